"""A training loop over a synthetic or recorded id stream, and where its time went.

``run`` trains an embedding alone (bound by I/O) or under DLRM's MLPs (bound by compute), through
``te.prefetch``, and returns counts and times of the steps after a warm-up. ``Stats.phases`` says
what a step waits for. What is trained is described by ``options``, how results look by ``report``.
One thread; the engine's own threads work in the background.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from ..engine import StepCounts
from ..errors import ConfigError
from ..examples import DLRM
from ..loop import prefetch
from ..modules import TieredEmbeddingBagCollection
from ..simulate import Difference, Records, ReplayResult, replay
from ..spec import Counts, Stats, TableConfig
from ..store import RocksDbRowStore, RowStore
from .options import BenchOptions

__all__ = ["BenchOptions", "BenchResult", "run", "simulated"]

I64 = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

NUM_DENSE = 13
MOST_FILLING = 2000  # steps
CHUNK_ROWS = 1 << 16


@dataclass(frozen=True)
class BenchResult:
    """What was measured: ``seconds`` for the timed ``steps``, their counts and times in ``stats``.

    spans_s: seconds of each timed step. stats: the counts of tiers and tables are those of the
    timed steps, the same in every run with a fixed depth; its ``steps`` includes the warm-up.
    num_ids: ids looked up in the timed steps. simulated: what a simulation counts for the timed
    steps, computed in ``simulate_s`` seconds; None unless ``compare`` was set. new_store: whether
    the store was empty at the start; a simulation knows no rows that it held.
    """

    options: BenchOptions
    steps: int
    seconds: float
    stats: Stats
    spans_s: list[float]
    waits_s: list[float]
    lookups_s: list[float]
    updates_s: list[float]
    num_ids: int
    simulated: ReplayResult | None = None
    simulate_s: float = 0.0
    new_store: bool = True

    @property
    def differences(self) -> list[Difference] | None:
        """Counts of the timed steps in which the simulation differs; None without a simulation."""
        if self.simulated is None:
            return None
        found = self.simulated.differences(self.stats)
        return [d for d in found if (d.where, d.count) not in self.not_compared]

    @property
    def not_compared(self) -> list[tuple[str, str]]:
        """(tier, count) that a simulation cannot know, as the store held rows at the start."""
        return [] if self.new_store else [("SSD", name) for name in ("hits", "misses", "bytes_out")]

    @property
    def ids_per_s(self) -> float:
        return self.num_ids / self.seconds

    @property
    def staged_per_s(self) -> float:
        """Rows brought into the topmost tier."""
        return self.stats.topmost.staged / self.seconds

    @property
    def hit_rate(self) -> float:
        """Per access: a repeat inside a batch is a hit."""
        topmost = self.stats.topmost
        return 1.0 - topmost.misses / max(1, topmost.lookups)


def run(options: BenchOptions, progress: Progress | None = None) -> BenchResult:
    """Trains ``warm_steps``, then ``steps``; calls ``progress(done, left)`` after each step.

    Raises:
        ConfigError, CapacityError, StoreError: as the module does.
    """
    names = [table.name for table in options.shapes]
    collection = _collection(options)
    step = _dlrm_step(options, collection, names) if options.model == "dlrm" else None
    # While the tier fills before a model trains, gradients are zero: no row may change.
    grads: dict[int, torch.Tensor] = {}  # by number of bags
    loader = (
        {
            name: (torch.from_numpy(ids), torch.from_numpy(starts))
            for name, (ids, starts) in zip(names, batch, strict=True)
        }
        for batch in options.batches()
    )
    with collection:
        new_store = _is_empty(collection)
        if options.materialise and new_store:
            _write_every_row(options, collection, names)
        before = collection.stats()
        counted = collection.engine.count_steps()
        start = time.perf_counter()
        filling = 0  # steps so far
        left = options.warm_steps + options.steps
        num_ids = 0  # of the timed steps
        for batch in prefetch(loader, collection, ids=lambda batch: {collection: batch}):
            fill = options.fill and filling < MOST_FILLING
            fill = fill and not _turned_over(collection, counted, filling)
            if step is None or fill:
                out = collection(batch)
                bags = len(out[names[0]])
                if bags not in grads:
                    grads[bags] = torch.full(
                        (bags, options.dim),
                        0.0 if step else 0.01,
                        dtype=torch.float32,
                        device=collection.device,
                    )
                torch.autograd.backward([out[name] for name in names], [grads[bags]] * len(names))
            else:
                step(batch)
            if fill:
                filling += 1
                continue
            left -= 1
            if left < options.steps:
                num_ids += sum(len(ids) for ids, _ in batch.values())
            if left == options.steps:
                before = collection.stats()
                _clear_times(collection)
                start = time.perf_counter()
            if progress is not None:
                progress(options.warm_steps + options.steps - left, left)
            if left == 0:
                break  # what is staged beyond the last step makes up for the warm-up's share
        seconds = time.perf_counter() - start
        spans, waits, lookups, updates = _newest_times(collection)
        first = filling + options.warm_steps
        now = collection.stats()
        stats = _exactly(now.since(before), *counted.between(first, first + options.steps))
        if now.unmatched > before.unmatched:
            raise AssertionError("a forward did not use what was staged for it")
    start = time.perf_counter()
    simulation = simulated(options) if options.compare else None
    return BenchResult(
        options,
        options.steps,
        seconds,
        stats,
        spans,
        waits,
        lookups,
        updates,
        num_ids,
        simulation,
        time.perf_counter() - start,
        new_store,
    )


def simulated(options: BenchOptions) -> ReplayResult:
    """What the timed steps would count, without a run, on a store that is empty at the start.

    Raises:
        ConfigError: a run without ``compare``, whose stream has no end.
    """
    engine = options.engine
    if not options.compare or isinstance(engine.depth, str) or engine.optimizer is None:
        raise ConfigError(
            "only a run with compare=True and an optimizer can be simulated: its stream has an end"
        )
    return replay(
        options.stream(),
        engine.tiers,
        engine.policy,
        engine.lookahead,
        engine.depth,
        records=Records(options.dim, engine.optimizer),
        first_step=options.warm_steps,
    )


def _collection(options: BenchOptions) -> TieredEmbeddingBagCollection:
    tables = [TableConfig(table.name, table.num_rows, options.dim) for table in options.shapes]
    return TieredEmbeddingBagCollection(tables, **options.keywords)


def _clear_times(collection: TieredEmbeddingBagCollection) -> None:
    collection.engine.phases.clear()


def _newest_times(collection: TieredEmbeddingBagCollection) -> list[list[float]]:
    """Seconds of each step since the times were cleared: whole, waiting, looking up, updating."""
    phases = collection.engine.phases
    return [phases.newest(name) for name in ("step", "wait", "lookup", "update")]


def _exactly(stats: Stats, tiers: Mapping[str, Counts], tables: Mapping[str, Counts]) -> Stats:
    """``stats`` with these counts; what they do not have, such as seconds, stays."""
    for mine, exact in ((stats.tiers, tiers), (stats.tables, tables)):
        for name, counts in mine.items():
            for field in fields(Counts):
                if field.name != "stall_s":
                    setattr(counts, field.name, getattr(exact.get(name, Counts()), field.name))
    return stats


def _stores(collection: TieredEmbeddingBagCollection) -> list[RowStore]:
    return [pool.store for pool in collection.engine.pools if pool.store is not None]


def _turned_over(
    collection: TieredEmbeddingBagCollection, counted: StepCounts, num_steps: int
) -> bool:
    """Whether the topmost tier has had time to fill with the rows that its policy prefers."""
    slots = sum(pool.num_slots for pool in collection.engine.pools)
    topmost = collection.engine.pools[0].upper.name
    return counted.between(0, num_steps)[0][topmost].staged >= slots


def _is_empty(collection: TieredEmbeddingBagCollection) -> bool:
    scans = (store.scan(chunk_rows=1) for store in _stores(collection))
    return all(next(iter(scan), None) is None for scan in scans)


def _write_every_row(
    options: BenchOptions, collection: TieredEmbeddingBagCollection, names: Sequence[str]
) -> None:
    draw = torch.Generator().manual_seed(options.engine.seed)
    for name in names:
        for start in range(0, options.rows_per_table, CHUNK_ROWS):
            count = min(CHUNK_ROWS, options.rows_per_table - start)
            weights = torch.rand(count, options.dim, generator=draw, dtype=torch.float32)
            weights = weights * 0.02 - 0.01
            collection.load_rows(range(start, start + count), weights, table=name)
    collection.flush()
    for store in _stores(collection):
        if isinstance(store, RocksDbRowStore):
            store.compact()  # otherwise its merges would run during the timed steps


def _dlrm_step(
    options: BenchOptions, collection: TieredEmbeddingBagCollection, names: Sequence[str]
) -> Callable[[dict[str, tuple[torch.Tensor, torch.Tensor]]], None]:
    model = DLRM(
        collection,
        options.dim,
        feature_names=names,
        num_dense=NUM_DENSE,
        bottom=options.bottom,
        top=options.top,
        seed=options.engine.seed,
    )
    model.to(collection.device)
    optimizer = torch.optim.SGD(model.dense_parameters(), lr=0.01)
    criterion = torch.nn.BCEWithLogitsLoss()
    draw = torch.Generator().manual_seed(options.engine.seed)
    dense = torch.randn(options.batch_size, NUM_DENSE, generator=draw).to(collection.device)
    labels = torch.randint(0, 2, (options.batch_size,), generator=draw).to(dense)

    def step(batch: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        loss = criterion(model(dense, batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
