"""Generated traces of several tables, streamed: a billion accesses need the memory of one chunk.

Reading the ids needs numba, from the extra ``sim``. ``popularity`` has the laws, ``calibration``
fits a table to a published histogram, and ``sampler`` is the inner loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError
from .chunk import (
    CHUNK_IDS,
    I64,
    TableIds,
    TraceBags,
    TraceChunk,
    TraceTable,
    check_batch,
    even_offsets,
)
from .extras import require
from .hashing import scatter_factors, splitmix64
from .popularity import Pooling, Popularity, alias_table
from .trace import Trace

__all__ = ["GeneratedStream", "GeneratedTable", "WorkingSet"]


@dataclass(frozen=True)
class WorkingSet:
    """A ``share`` of the accesses goes evenly to a set of ``rows`` rows, which changes over time.

    Members are drawn by the table's popularity. Each stays for ``samples`` samples; they are
    replaced one by one.

    Raises:
        ConfigError: a share outside [0, 1], rows or samples below 1.
    """

    share: float
    rows: int
    samples: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ConfigError(f"the working set's share must be in [0, 1], got {self.share!r}")
        if self.rows < 1 or self.samples < 1:
            raise ConfigError(
                f"a working set needs at least 1 row and 1 sample, got {self.rows!r} and"
                f" {self.samples!r}"
            )


@dataclass(frozen=True)
class GeneratedTable:
    """The law of one table's ids.

    name: unique in a stream. popularity: ``Zipf`` or ``Steps``. pooling: ids per sample. one_hit:
    share of the accesses that go to rows which occur only once in the whole stream; the ids of
    these rows are above all others and grow with time. drift_samples: after each so many samples,
    all rows age by one rank, and the least popular row becomes the most popular one. scatter_rows:
    spreads the ranks over the table, as hashing would; otherwise row id = rank - 1, most popular
    first.

    Raises:
        ConfigError: shares outside [0, 1] or with a sum above 1, or drift_samples below 1.
    """

    name: str
    popularity: Popularity
    pooling: Pooling = Pooling((0.0, 1.0))  # noqa: RUF009 (frozen)
    one_hit: float = 0.0
    working_set: WorkingSet | None = None
    drift_samples: int | None = None
    scatter_rows: bool = True

    def __post_init__(self) -> None:
        working = 0.0 if self.working_set is None else self.working_set.share
        if not 0.0 <= self.one_hit <= 1.0 or self.one_hit + working > 1.0:
            raise ConfigError(
                f"table {self.name!r}: one_hit is {self.one_hit!r} and the share of the working set"
                f" is {working!r}; each of them and their sum must be in [0, 1]"
            )
        if self.drift_samples is not None and self.drift_samples < 1:
            raise ConfigError(
                f"table {self.name!r}: drift_samples must be at least 1 or None, got"
                f" {self.drift_samples!r}"
            )


@dataclass(frozen=True)
class GeneratedStream:
    """``num_batches`` batches of ``batch_size`` samples over ``tables``.

    Sample ``i`` is a pure function of the tables, ``seed`` and ``i``. A longer stream only adds
    samples, and another batch size has the same ones.

    Raises:
        ConfigError: no table, a number out of range, or more than 2**61 accesses, for which there
            would not be enough one-hit ids.
    """

    tables: tuple[GeneratedTable, ...]
    batch_size: int
    num_batches: int
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tables", tuple(self.tables))
        check_batch(self.batch_size)
        if not self.tables:
            raise ConfigError("a stream needs at least one table")
        if self.num_batches < 0:
            raise ConfigError(f"num_batches must not be negative, got {self.num_batches!r}")
        if not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"seed must be in [0, 2**64), got {self.seed!r}")
        largest = max(table.pooling.most for table in self.tables)
        if self.num_samples * largest >= 1 << 61:
            raise ConfigError(
                f"{self.num_samples} samples of up to {largest} ids are more than 2**61 accesses;"
                " lower num_batches or the pooling"
            )

    @property
    def num_samples(self) -> int:
        return self.batch_size * self.num_batches

    def trace(self) -> Trace:
        """Return the stream as a trace; reading it without numba raises ConfigError."""
        sizes = [table.pooling.constant for table in self.tables]
        known = None if None in sizes else self.num_samples * sum(size or 0 for size in sizes)
        tables = [TraceTable(table.name, self._num_rows(table)) for table in self.tables]
        return Trace(tables, self._chunks, num_batches=self.num_batches, num_accesses=known)

    def _num_rows(self, table: GeneratedTable) -> int:
        one_hits = self.num_samples * table.pooling.most if table.one_hit > 0.0 else 0
        return table.popularity.num_rows + one_hits

    def _chunks(self) -> Iterator[TraceChunk]:
        sampler = require("tiered_embed.traces.sampler", "generate ids")
        numbers = [self._numbers(sampler, t) for t in range(len(self.tables))]
        ids_per_batch = self.batch_size * sum(table.pooling.mean for table in self.tables)
        step = self.batch_size * max(1, int(CHUNK_IDS // max(1.0, ids_per_batch)))
        for first in range(0, self.num_samples, step):
            num = min(step, self.num_samples - first)
            ends = even_offsets(num, self.batch_size)
            parts: list[TableIds] = []
            starts: list[I64 | None] = []
            for table, own in zip(self.tables, numbers, strict=True):
                bounds = _bag_starts(sampler, table.pooling, own.seed, first, num)
                ids = np.empty(bounds[-1], np.int64)
                sampler.fill(own, first, bounds, ids)
                parts.append((bounds[ends], ids))
                starts.append(None if table.pooling.constant == 1 else bounds)
            yield TraceChunk(tuple(parts), TraceBags(ends, tuple(starts)))

    def _numbers(self, sampler: Any, t: int) -> Any:
        table = self.tables[t]
        rows, shares = table.popularity.steps()
        keep, other = alias_table(shares)
        # Each table has a seed of its own, so that tables with equal laws have different ids.
        seed = splitmix64(splitmix64(np.array([self.seed], np.uint64)) ^ np.uint64(t))[0]
        num_popular = table.popularity.num_rows
        bits = (num_popular - 1).bit_length() if table.scatter_rows else 0
        factors = scatter_factors(self.seed ^ t)
        working = table.working_set or WorkingSet(0.0, 1, 1)
        return sampler.Numbers(
            seed,
            table.pooling.most,
            table.one_hit,
            working.share,
            working.rows,
            working.samples,
            table.drift_samples or 0,
            num_popular,
            keep,
            other,
            np.cumsum(rows) - rows,
            rows,
            bits,
            (bits + 1) // 2,
            factors[0],
            factors[1],
        )


def _bag_starts(
    sampler: Any, pooling: Pooling, seed: np.uint64, first_sample: int, num: int
) -> I64:
    """Where the bags of ``num`` samples from ``first_sample`` on start: (num + 1,)."""
    if pooling.constant is not None:
        return np.arange(num + 1, dtype=np.int64) * pooling.constant
    uniforms = np.empty(num, np.float64)
    sampler.sample_uniforms(seed, first_sample, uniforms)
    starts = np.zeros(num + 1, np.int64)
    np.cumsum(pooling.lengths(uniforms), out=starts[1:])
    return starts
