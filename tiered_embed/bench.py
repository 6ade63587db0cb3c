"""A training loop over a synthetic or recorded id stream, and where its time went.

``run`` trains an embedding alone (bound by I/O) or under DLRM's MLPs (bound by compute), through
``te.prefetch``, and returns counts and times of the steps behind a warm-up. What a step waits for
is told by ``Stats.stages``; see ``stages.py`` for their meaning.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from . import TableConfig, TieredEmbeddingBagCollection, Tiers, optim, prefetch
from .errors import ConfigError
from .examples.dlrm import DLRM
from .simulate import Difference, Records, ReplayResult, replay
from .stats import Stats
from .store.rocksdb import RocksDbRowStore
from .traces import IdStream
from .traces.chunk import TraceChunk, TraceTable
from .traces.generate import Distribution
from .traces.trace import Trace

__all__ = ["BenchOptions", "BenchResult", "run", "simulated"]

I64 = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

NUM_DENSE = 13
MOST_FILLING = 2000  # steps
CHUNK_ROWS = 1 << 16


@dataclass(frozen=True)
class BenchOptions:
    """What to train.

    rows: of all tables together. pooling: ids in a bag. trace: ids to replay instead of drawing
    them, cut into batches. model: ``"embedding"`` or ``"dlrm"``, whose MLPs have the hidden widths
    ``bottom`` and ``top``. depth: a number or ``"auto"``. fill: steps of the embedding alone come
    before the warm-up, until as many rows were staged as the topmost tier holds. materialise: every
    row is written first where the store is empty, so that a miss reads; otherwise a row's first use
    is computed.
    """

    tiers: Tiers
    rows: int = 1_000_000
    tables: int = 1
    dim: int = 64
    batch_size: int = 2048
    pooling: int = 8
    distribution: Distribution = "zipf"
    exponent: float = 1.05
    trace: I64 | None = field(default=None, repr=False)
    model: Literal["embedding", "dlrm"] = "embedding"
    bottom: Sequence[int] = (512, 256)
    top: Sequence[int] = (1024, 512, 256)
    optimizer: optim.Optimizer = field(default_factory=lambda: optim.RowWiseAdagrad(lr=0.02))
    policy: str = "lookahead"
    lookahead: int = 32
    depth: int | str = 2
    num_threads: int | None = None
    warm_steps: int = 50
    steps: int = 200
    fill: bool = False
    materialise: bool = False
    compare: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("tables", 1), ("steps", 1), ("warm_steps", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ConfigError(f"{name} is {value!r}; it must be an integer of at least {low}")
        if self.model not in ("embedding", "dlrm"):
            raise ConfigError(f"model is {self.model!r}; choose embedding or dlrm")
        if self.trace is not None and self.tables != 1:
            raise ConfigError(f"a trace is of one table, not of {self.tables}")
        if self.trace is not None and self.materialise:
            raise ConfigError("a trace's rows are not known beforehand: leave materialise out")

        if self.compare and (self.depth == "auto" or self.fill or self.materialise):
            raise ConfigError(
                "compare needs a run that a simulation can repeat: a fixed depth, and neither fill "
                "nor materialise"
            )

    @property
    def rows_per_table(self) -> int:
        return max(1, self.rows // self.tables)

    @property
    def ids_per_step(self) -> int:
        return self.tables * self.batch_size * self.pooling

    def batches(self) -> Iterator[list[I64]]:
        """Per step, each table's ids (batch_size * pooling,); for ever."""
        size = self.batch_size * self.pooling
        if self.trace is not None:
            whole = len(self.trace) // size
            if whole == 0:
                raise ConfigError(
                    f"the trace has {len(self.trace)} ids, less than one batch of {size}"
                )
            for i in itertools.count():
                yield [self.trace[i % whole * size : (i % whole + 1) * size]]
        streams = [
            IdStream(
                self.rows_per_table,
                self.batch_size,
                1 << 40,
                self.pooling,
                self.distribution,
                self.exponent,
                seed=self.seed * 1009 + t,
            )
            for t in range(self.tables)
        ]
        for i in itertools.count():
            yield [stream.batch(i).ids for stream in streams]


@dataclass(frozen=True)
class BenchResult:
    """Of the timed steps: ``seconds`` for ``steps``, counts and times in ``stats``.

    spans_s: seconds of every timed step. ``stats.steps`` counts the warm-up too. total: counts of
    the whole run. simulated: the same by simulation, which took ``simulate_s``; None unless
    ``compare`` was set. new_store: the store was empty at the start; otherwise what it has is not
    simulated.
    """

    options: BenchOptions
    steps: int
    seconds: float
    stats: Stats
    spans_s: list[float]
    waits_s: list[float]
    lookups_s: list[float]
    updates_s: list[float]
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
        return self.steps * self.options.ids_per_step / self.seconds

    @property
    def staged_per_s(self) -> float:
        """Rows brought into the topmost tier."""
        return self.stats.tiers["DDR"].staged / self.seconds

    @property
    def hit_rate(self) -> float:
        """Per access: a repeat inside a batch is a hit."""
        ddr = self.stats.tiers["DDR"]
        return 1.0 - ddr.misses / max(1, ddr.lookups)


def run(options: BenchOptions, progress: Progress | None = None) -> BenchResult:
    """Trains ``warm_steps`` and ``steps``; ``progress(done, left)`` follows each step.

    Raises:
        ConfigError, CapacityError, StoreError: as the module does.
    """
    names = [f"t{i}" for i in range(options.tables)]
    collection = _collection(options, names)
    step = _dlrm_step(options, collection, names) if options.model == "dlrm" else None
    # Under a model's loss rows must stay where they are while the tier fills.
    grad = torch.full((options.batch_size, options.dim), 0.0 if step else 0.01)
    offsets = torch.arange(options.batch_size) * options.pooling
    loader = (
        {name: (torch.from_numpy(ids), offsets) for name, ids in zip(names, batch, strict=True)}
        for batch in itertools.islice(options.batches(), _num_batches(options))
    )
    stages = collection._runtime.stages
    with collection:
        new_store = _is_empty(collection)
        if options.materialise and new_store:
            _write_every_row(options, collection, names)
        first = before = collection.stats()
        start = time.perf_counter()
        filling = 0  # steps so far
        left = options.warm_steps + options.steps
        for batch in prefetch(loader, collection, ids=lambda batch: {collection: batch}):
            fill = options.fill and filling < MOST_FILLING and not _turned_over(collection, first)
            if step is None or fill:
                out = collection(batch)
                torch.autograd.backward([out[name] for name in names], [grad] * len(names))
            else:
                step(batch)
            if fill:
                filling += 1
                continue
            left -= 1
            if left == options.steps:
                before = collection.stats()
                stages.clear()
                start = time.perf_counter()
            if progress is not None:
                progress(options.warm_steps + options.steps - left, left)
            if left == 0:
                break  # what is staged ahead now was staged in the warm-up too
        seconds = time.perf_counter() - start
        samples = {name: stages.newest(name) for name in ("step", "wait", "lookup", "update")}
        stats = collection.stats().since(before)
        for pool in collection._runtime.pools:
            pool.pipeline.quiesce()  # the last write-backs count too
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
        total,
        simulation,
        time.perf_counter() - start,
        new_store,
    )


def _num_batches(options: BenchOptions) -> int | None:
    """A run that is compared ends where its simulation does; others go on past the last step."""
    return options.warm_steps + options.steps if options.compare else None


def simulated(options: BenchOptions) -> ReplayResult:
    """What the whole run counts, told without it. The SSD tier's counts are those of a new store.

    Raises:
        ConfigError: ``depth="auto"``, which follows the clock.
    """
    rows = None if options.trace is not None else options.rows_per_table

    def chunks() -> Iterator[TraceChunk]:
        for batch in itertools.islice(options.batches(), options.warm_steps + options.steps):
            yield TraceChunk(tuple((np.array([0, len(ids)], np.int64), ids) for ids in batch))

    trace = Trace([TraceTable(f"t{i}", rows) for i in range(options.tables)], chunks)
    if isinstance(options.depth, str):
        raise ConfigError("depth='auto' follows the clock; a simulation needs a number")
    return replay(
        trace,
        options.tiers,
        options.policy,
        options.lookahead,
        options.depth,
        records=Records(options.dim, options.optimizer),
    )


def _collection(options: BenchOptions, names: Sequence[str]) -> TieredEmbeddingBagCollection:
    num_rows = None if options.trace is not None else options.rows_per_table
    return TieredEmbeddingBagCollection(
        [TableConfig(name, num_rows, options.dim, [name]) for name in names],
        tiers=options.tiers,
        optimizer=options.optimizer,
        seed=options.seed,
        policy=options.policy,
        lookahead=options.lookahead,
        depth=options.depth,
        num_threads=options.num_threads,
    )


def _turned_over(collection: TieredEmbeddingBagCollection, first: Stats) -> bool:
    """Whether the topmost tier has had time to hold what its policy wants."""
    slots = sum(pool.num_slots for pool in collection._runtime.pools)
    return collection.stats().since(first).tiers["DDR"].staged >= slots


def _is_empty(collection: TieredEmbeddingBagCollection) -> bool:
    stores = [pool.store for pool in collection._runtime.pools]
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
    for pool in collection._runtime.pools:
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
    optimizer = torch.optim.SGD(model.dense_parameters(), lr=0.01)
    criterion = torch.nn.BCEWithLogitsLoss()
    draw = torch.Generator().manual_seed(options.seed)
    dense = torch.randn(options.batch_size, NUM_DENSE, generator=draw)
    labels = torch.randint(0, 2, (options.batch_size,), generator=draw).float()

    def step(batch: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        loss = criterion(model(dense, batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
