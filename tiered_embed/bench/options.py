"""What a benchmark trains on, and how: its options, and the batches that follow from them.

What the module itself takes is one field, ``engine``, and is passed on as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .. import optim
from ..errors import ConfigError
from ..spec import EngineOptions, Tiers, init
from ..traces import Distribution, IdStream, Trace, TraceChunk, TraceTable

__all__ = ["BagBatch", "BenchOptions", "engine_options"]

I64 = npt.NDArray[np.int64]

BagBatch = list[tuple[I64, I64]]
"""Of each table: ids (N,), and where its bags start (B,)."""


@dataclass(frozen=True)
class BenchOptions:
    """What to train, and for how long.

    Args:
        engine: what the module takes; its ``seed`` also draws the ids and the MLPs' weights. See
            :func:`engine_options` for one with the benchmark's optimizer.
        rows: rows of all tables together.
        pooling: ids in a bag.
        trace: ids to replay instead of drawing them: an array of one table's ids, which is split
            into batches, or a trace with batches of its own.
        model: ``"embedding"``, or ``"dlrm"``, which adds MLPs of the hidden widths ``bottom`` and
            ``top``, on the module's device.
        fill: trains the embedding alone before the warm-up, until as many rows were staged as the
            topmost tier holds.
        materialise: writes every row first where the store is empty, so that a miss reads from it;
            otherwise a row's first use computes it.
        compare: ends the stream with the last step, and simulates the same batches.

    Raises:
        ConfigError: options that do not fit together.
    """

    engine: EngineOptions
    rows: int = 1_000_000
    tables: int = 1
    dim: int = 64
    batch_size: int = 2048
    pooling: int = 8
    distribution: Distribution = "zipf"
    exponent: float = 1.05
    trace: I64 | Trace | None = field(default=None, repr=False)
    model: Literal["embedding", "dlrm"] = "embedding"
    bottom: Sequence[int] = (512, 256)
    top: Sequence[int] = (1024, 512, 256)
    warm_steps: int = 50
    steps: int = 200
    fill: bool = False
    materialise: bool = False
    compare: bool = False

    def __post_init__(self) -> None:
        for name in ("tables", "steps", "warm_steps", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be an integer of at least 1")
        if self.model not in ("embedding", "dlrm"):
            raise ConfigError(f"model is {self.model!r}; choose embedding or dlrm")
        if self.trace is not None and self.tables != 1:
            raise ConfigError(
                f"tables is {self.tables}, but a trace is given, which says itself how many tables "
                "there are; leave tables out"
            )
        if self.trace is not None and self.materialise:
            raise ConfigError(
                "materialise writes every row before training, but the rows of a trace are not "
                "known beforehand; leave materialise out"
            )
        if isinstance(self.trace, Trace) and self.model == "dlrm":
            raise ConfigError(
                "dlrm needs batches of one size, and those of a trace may differ; pass "
                "model='embedding'"
            )
        if self.compare and (self.engine.depth == "auto" or self.fill or self.materialise):
            raise ConfigError(
                "compare needs a run that a simulation can repeat; pass a fixed depth, and leave "
                "fill and materialise out"
            )

    @property
    def keywords(self) -> dict[str, Any]:
        """``engine`` as a module's constructor takes it."""
        return {f.name: getattr(self.engine, f.name) for f in fields(self.engine)}

    @property
    def rows_per_table(self) -> int:
        return max(1, self.rows // self.tables)

    @property
    def shapes(self) -> list[TraceTable]:
        """The tables that are trained."""
        if isinstance(self.trace, Trace):
            return list(self.trace.tables)
        rows = None if self.trace is not None else self.rows_per_table
        return [TraceTable(f"t{i}", rows) for i in range(self.tables)]

    @property
    def num_batches(self) -> int | None:
        """None: without end, as a run's window reaches beyond its last step. A run that is compared
        ends where its simulation does."""
        return self.warm_steps + self.steps if self.compare else None

    def batches(self) -> Iterator[BagBatch]:
        """Per step, the bags of each table; ``num_batches`` of them, or without end."""
        return itertools.islice(self._batches(), self.num_batches)

    def stream(self) -> Trace:
        """The same batches as a trace. REQUIRES: ``compare``; otherwise it has no end."""

        def chunks() -> Iterator[TraceChunk]:
            for batch in self.batches():
                yield TraceChunk(
                    tuple((np.array([0, len(ids)], np.int64), ids) for ids, _ in batch)
                )

        return Trace(self.shapes, chunks)

    def _batches(self) -> Iterator[BagBatch]:
        if isinstance(self.trace, Trace):
            yield from _again_and_again(self.trace)
        size = self.batch_size * self.pooling
        starts = np.arange(self.batch_size, dtype=np.int64) * self.pooling
        if self.trace is not None:
            assert not isinstance(self.trace, Trace)
            whole = len(self.trace) // size
            if whole == 0:
                raise ConfigError(
                    f"the trace has {len(self.trace)} ids, less than one batch of {size} "
                    f"({self.batch_size} bags of {self.pooling}); lower batch_size or pooling"
                )
            for i in itertools.count():
                yield [(self.trace[i % whole * size : (i % whole + 1) * size], starts)]
        streams = [
            IdStream(
                self.rows_per_table,
                self.batch_size,
                1 << 40,
                self.pooling,
                self.distribution,
                self.exponent,
                seed=self.engine.seed * 1009 + t,
            )
            for t in range(self.tables)
        ]
        for i in itertools.count():
            yield [(stream.batch(i).ids, starts) for stream in streams]


def engine_options(tiers: Tiers, **given: Any) -> EngineOptions:
    """A module's options, with row-wise Adagrad and ``Uniform()`` unless others are given."""
    given.setdefault("optimizer", optim.RowWiseAdagrad(lr=0.02))
    given.setdefault("init", init.Uniform())
    return EngineOptions(tiers, **given)


def _again_and_again(trace: Trace) -> Iterator[BagBatch]:
    """The trace's batches, over and over; where bags are not known, a table has one per batch."""
    while True:
        none = True
        for chunk in trace.chunks():
            for b in range(chunk.num_batches):
                none = False
                one = chunk.batches(b, b + 1)
                yield [(ids, _starts(one, t, len(ids))) for t, (_, ids) in enumerate(one.table_ids)]
        if none:
            raise ConfigError("the trace has no batch; there is nothing to train on")


def _starts(one: TraceChunk, table: int, num_ids: int) -> I64:
    if one.bags is None:
        return np.zeros(1, np.int64)
    own = one.bags.starts[table]
    return np.arange(num_ids, dtype=np.int64) if own is None else own[:-1]
