"""What a benchmark trains on, and how: options, and the batches that they mean."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from .. import optim
from ..errors import ConfigError
from ..spec import Tiers
from ..traces import Distribution, IdStream, Trace, TraceChunk, TraceTable

__all__ = ["BagBatch", "BenchOptions"]

I64 = npt.NDArray[np.int64]

BagBatch = list[tuple[I64, I64]]
"""Of each table: ids (N,), and where its bags start (B,)."""


@dataclass(frozen=True)
class BenchOptions:
    """What to train.

    rows: of all tables together. pooling: ids in a bag. trace: ids to replay instead of drawing
    them: an array of one table's ids, cut into batches, or a trace with batches of its own. model:
    ``"embedding"`` or ``"dlrm"``, whose MLPs have the hidden widths ``bottom`` and ``top``. depth:
    a number or ``"auto"``. device, kernel: as a module takes them; the MLPs are there too. fill:
    steps of the embedding alone come before the warm-up, until as many rows were staged as the
    topmost tier holds. materialise: every row is written first where the store is empty, so that a
    miss reads; otherwise a row's first use is computed. compare: the stream ends with the last
    step, and the same batches are simulated.

    Raises:
        ConfigError: options that do not fit together.
    """

    tiers: Tiers
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
    optimizer: optim.Optimizer = field(default_factory=lambda: optim.RowWiseAdagrad(lr=0.02))
    policy: str = "lookahead"
    lookahead: int = 32
    depth: int | str = 2
    num_threads: int | None = None
    device: str | None = None
    kernel: str = "auto"
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
        if isinstance(self.trace, Trace) and self.model == "dlrm":
            raise ConfigError("a trace's batches may be of any size: dlrm needs all of one size")
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
        """Of the batches that are drawn or cut here, not of a trace's own."""
        return self.tables * self.batch_size * self.pooling

    @property
    def shapes(self) -> list[TraceTable]:
        """The tables that are trained."""
        if isinstance(self.trace, Trace):
            return list(self.trace.tables)
        rows = None if self.trace is not None else self.rows_per_table
        return [TraceTable(f"t{i}", rows) for i in range(self.tables)]

    @property
    def num_batches(self) -> int | None:
        """A run that is compared ends where its simulation does; others pull past the last step."""
        return self.warm_steps + self.steps if self.compare else None

    def batches(self) -> Iterator[BagBatch]:
        """Per step, each table's bags; ``num_batches`` times or for ever."""
        return itertools.islice(self._batches(), self.num_batches)

    def stream(self) -> Trace:
        """The same batches as a trace. REQUIRES: ``compare``, or it never ends."""

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
                    f"the trace has {len(self.trace)} ids, less than one batch of {size}"
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
                seed=self.seed * 1009 + t,
            )
            for t in range(self.tables)
        ]
        for i in itertools.count():
            yield [(stream.batch(i).ids, starts) for stream in streams]


def _again_and_again(trace: Trace) -> Iterator[BagBatch]:
    """The trace's batches for ever; one bag a table where bags are not known."""
    while True:
        none = True
        for chunk in trace.chunks():
            for b in range(chunk.num_batches):
                none = False
                one = chunk.batches(b, b + 1)
                yield [(ids, _starts(one, t, len(ids))) for t, (_, ids) in enumerate(one.table_ids)]
        if none:
            raise ConfigError("the trace has no batch")


def _starts(one: TraceChunk, table: int, num_ids: int) -> I64:
    if one.bags is None:
        return np.zeros(1, np.int64)
    own = one.bags.starts[table]
    return np.arange(num_ids, dtype=np.int64) if own is None else own[:-1]
