"""A training loop over a synthetic or recorded id stream, and where its time went.

``run`` trains an embedding alone (bound by I/O) or under DLRM's MLPs (bound by compute), through
``te.prefetch``, and returns counts and times of the steps behind a warm-up. What a step waits for
is told by ``Stats.phases``; see ``phases.py`` for their meaning.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError
from ..examples import DLRM
from ..loop import prefetch
from ..modules import TieredEmbeddingBagCollection
from ..simulate import Difference, Records, ReplayResult, replay
from ..spec import Stats, TableConfig
from ..store import RocksDbRowStore
from .options import BenchOptions

__all__ = ["BenchOptions", "BenchResult", "run", "simulated"]

I64 = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

NUM_DENSE = 13
MOST_FILLING = 2000  # steps
CHUNK_ROWS = 1 << 16


@dataclass(frozen=True)
class BenchResult:
    """Of the timed steps: ``seconds`` for ``steps``, counts and times in ``stats``.

    spans_s: seconds of every timed step. ``stats.steps`` counts the warm-up too. num_ids: looked
    up in those steps. total: counts of the whole run. simulated: the same by simulation, which took
    ``simulate_s``; None unless ``compare`` was set. new_store: the store was empty at the start;
    otherwise what it has is not simulated.
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
    total: Stats
    simulated: ReplayResult | None = None
    simulate_s: float = 0.0
    new_store: bool = True

    @property
    def differences(self) -> list[Difference] | None:
        """Counts of the whole run that the simulation does not share; None where none was made."""
        if self.simulated is None:
            return None
        found = self.simulated.differences(self.total)
        return [d for d in found if self.new_store or d.where != "SSD"]

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
    """Trains ``warm_steps`` and ``steps``; ``progress(done, left)`` follows each step.

    Raises:
        ConfigError, CapacityError, StoreError: as the module does.
    """
    names = [table.name for table in options.shapes]
    collection = _collection(options)
    step = _dlrm_step(options, collection, names) if options.model == "dlrm" else None
    # Under a model's loss rows must stay where they are while the tier fills.
    grads: dict[int, torch.Tensor] = {}  # by number of bags
    loader = (
        {
            name: (torch.from_numpy(ids), torch.from_numpy(starts))
            for name, (ids, starts) in zip(names, batch, strict=True)
        }
        for batch in options.batches()
    )
    phases = collection.engine.phases
    with collection:
        new_store = _is_empty(collection)
        if options.materialise and new_store:
            _write_every_row(options, collection, names)
        first = before = collection.stats()
        start = time.perf_counter()
        filling = 0  # steps so far
        left = options.warm_steps + options.steps
        num_ids = 0  # of the timed steps
        for batch in prefetch(loader, collection, ids=lambda batch: {collection: batch}):
            fill = options.fill and filling < MOST_FILLING and not _turned_over(collection, first)
            if step is None or fill:
                out = collection(batch)
                bags = len(out[names[0]])
                if bags not in grads:
                    grads[bags] = torch.full(
                        (bags, options.dim), 0.0 if step else 0.01, device=collection.device
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
                phases.clear()
                start = time.perf_counter()
            if progress is not None:
                progress(options.warm_steps + options.steps - left, left)
            if left == 0:
                break  # what is staged ahead now was staged in the warm-up too
        seconds = time.perf_counter() - start
        samples = {name: phases.newest(name) for name in ("step", "wait", "lookup", "update")}
        stats = collection.stats().since(before)
        for pool in collection.engine.pools:
            pool.scheduler.quiesce()  # the last write-backs count too
        total = collection.stats()
    start = time.perf_counter()
    simulation = simulated(options) if options.compare else None
    return BenchResult(
        options,
        options.steps,
        seconds,
        stats,
        samples["step"],
        samples["wait"],
        samples["lookup"],
        samples["update"],
        num_ids,
        total,
        simulation,
        time.perf_counter() - start,
        new_store,
    )


def simulated(options: BenchOptions) -> ReplayResult:
    """What the whole run counts, told without it. The SSD tier's counts are those of a new store.

    Raises:
        ConfigError: a run without ``compare``, whose stream has no end.
    """
    if not options.compare or isinstance(options.depth, str):
        raise ConfigError("only a run with compare=True can be simulated: its stream has an end")
    return replay(
        options.stream(),
        options.tiers,
        options.policy,
        options.lookahead,
        options.depth,
        records=Records(options.dim, options.optimizer),
    )


def _collection(options: BenchOptions) -> TieredEmbeddingBagCollection:
    return TieredEmbeddingBagCollection(
        [TableConfig(table.name, table.num_rows, options.dim) for table in options.shapes],
        tiers=options.tiers,
        optimizer=options.optimizer,
        seed=options.seed,
        policy=options.policy,
        lookahead=options.lookahead,
        depth=options.depth,
        num_threads=options.num_threads,
        device=options.device,
        kernel=options.kernel,
    )


def _turned_over(collection: TieredEmbeddingBagCollection, first: Stats) -> bool:
    """Whether the topmost tier has had time to hold what its policy wants."""
    slots = sum(pool.num_slots for pool in collection.engine.pools)
    return collection.stats().since(first).topmost.staged >= slots


def _is_empty(collection: TieredEmbeddingBagCollection) -> bool:
    stores = [pool.store for pool in collection.engine.pools]
    return all(s is None or next(iter(s.scan(chunk_rows=1)), None) is None for s in stores)


def _write_every_row(
    options: BenchOptions, collection: TieredEmbeddingBagCollection, names: Sequence[str]
) -> None:
    draw = torch.Generator().manual_seed(options.seed)
    for name in names:
        for start in range(0, options.rows_per_table, CHUNK_ROWS):
            count = min(CHUNK_ROWS, options.rows_per_table - start)
            weights = torch.rand(count, options.dim, generator=draw) * 0.02 - 0.01
            collection.load_rows(torch.arange(start, start + count), weights, table=name)
    collection.flush()
    for pool in collection.engine.pools:
        if isinstance(pool.store, RocksDbRowStore):
            pool.store.compact()  # or its merges would run into what is timed


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
        seed=options.seed,
    )
    model.to(collection.device)
    optimizer = torch.optim.SGD(model.dense_parameters(), lr=0.01)
    criterion = torch.nn.BCEWithLogitsLoss()
    draw = torch.Generator().manual_seed(options.seed)
    dense = torch.randn(options.batch_size, NUM_DENSE, generator=draw).to(collection.device)
    labels = torch.randint(0, 2, (options.batch_size,), generator=draw).to(dense)

    def step(batch: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        loss = criterion(model(dense, batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
