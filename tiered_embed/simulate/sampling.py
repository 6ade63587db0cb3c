"""SHARDS: miss-ratio curves from a fraction of the rows, chosen by a hash of their ids.

A row is either in the sample or not, in all its uses, so that reuse in the sample is as in the
trace. A distance in the sample counts fewer rows, by the rate, and is divided by it.

Source: Waldspurger, Park, Garthwaite, Ahmad, "Efficient MRC construction with SHARDS", USENIX FAST
2015; theirs is also the correction for a sample with too many or too few accesses (SHARDS-adj). It
amounts to dividing the sample's misses by the rate: only misses are scaled, never the hits of hot
rows, so that it hardly matters whether the hottest row is sampled.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..traces import Trace, TraceChunk
from .compiled import compiled
from .curve import MissRatioCurve
from .distances import F64, Bins, StackDistances
from .numbering import I64, Accesses, Numbering

__all__ = ["sampled", "shards"]

U64 = npt.NDArray[np.uint64]

BITS = 24  # of a hash
PIECE_IDS = 1 << 16
KEPT = 0.9  # share of ``max_rows`` that stays when there are too many


def sampled(trace: Trace, rate: float, *, seed: int = 0) -> Trace:
    """The same batches with a fraction ``rate`` of the rows, chosen by hash.

    Raises:
        ConfigError: a rate outside (0, 1].
    """
    threshold = _threshold(rate)

    def chunks() -> Iterator[TraceChunk]:
        for chunk in trace.chunks():
            yield _filtered(chunk, threshold, seed)

    return Trace(trace.tables, chunks, num_batches=trace.num_batches)


def shards(
    trace: Trace,
    rate: float = 0.01,
    *,
    max_rows: int | None = None,
    batched: bool = False,
    seed: int = 0,
) -> MissRatioCurve:
    """LRU's misses for every size, estimated from a fraction of the rows.

    Args:
        rate: share of the rows in the sample. With ``max_rows`` it is the rate at the start.
        max_rows: bounds the sample; the rate falls as the trace brings more rows (fixed-size
            SHARDS). It may be exceeded by one piece of 65,536 ids before the rate falls.
        batched: whether all rows of a batch are looked up before any counts as used.
        seed: seed of the hash.

    Raises:
        ConfigError: a rate outside (0, 1], or ``max_rows`` below 1.
    """
    if max_rows is not None and max_rows < 1:
        raise ConfigError(f"max_rows is {max_rows}; a sample needs at least one row")
    sample = _Sample(trace, _threshold(rate), max_rows, batched, seed)
    for chunk in trace.chunks():
        sample.push(chunk)
    return sample.curve()


class _Sample:
    """The rows whose hash is below a falling threshold, and the uses counted so far."""

    def __init__(
        self, trace: Trace, threshold: int, max_rows: int | None, batched: bool, seed: int
    ) -> None:
        self._trace = trace
        self._threshold = threshold
        self._max_rows = max_rows
        self._batched = batched
        self._seed = seed
        self._numbering = Numbering(len(trace.tables))
        self._stack = StackDistances(len(trace.tables))
        self._hashes = np.zeros(0, np.int64)  # by row; -1: no longer in the sample
        self._uses = np.zeros(Bins.NUM)  # by bin of the scaled distance
        self._cold = 0.0
        self._lookups = 0  # in the whole trace

    @property
    def _rate(self) -> float:
        return self._threshold / (1 << BITS)

    def push(self, chunk: TraceChunk) -> None:
        self._lookups += chunk.num_ids
        ends = np.sum([offsets for offsets, _ in chunk.table_ids], axis=0)
        first = 0
        while first < chunk.num_batches:
            last = int(np.searchsorted(ends, ends[first] + PIECE_IDS, side="right")) - 1
            last = max(last, first + 1)
            self._push_piece(chunk.batches(first, last))
            first = last

    def _push_piece(self, chunk: TraceChunk) -> None:
        chunk = _filtered(chunk, self._threshold, self._seed)
        piece = self._numbering.accesses(chunk)
        if not self._batched:
            piece = Accesses(piece.rows, np.arange(len(piece.rows) + 1, dtype=np.int64))
        self._stack.push(piece, self._numbering.tables)
        if self._max_rows is None:
            return
        if self._numbering.num_rows > len(self._hashes):
            new = np.zeros(self._numbering.num_rows - len(self._hashes), np.int64)
            self._hashes = np.append(self._hashes, new)
        for t, (_, ids) in enumerate(chunk.table_ids):
            self._hashes[self._numbering.number(t, ids)] = _hashes(ids, _salt(t, self._seed))
        if self._stack.num_rows > self._max_rows:
            self._lower(max(1, int(self._max_rows * KEPT)))

    def _lower(self, keep: int) -> None:
        self._count_uses()
        inside = np.flatnonzero(self._hashes >= 0)
        self._threshold = int(np.partition(self._hashes[inside], keep)[keep])
        out = inside[self._hashes[inside] >= self._threshold]
        self._stack.remove(out.astype(np.int32))
        self._hashes[out] = -1

    def _count_uses(self) -> None:
        """Scales the uses since the rate last changed, and adds them up."""
        stack, rate = self._stack, self._rate
        found = np.flatnonzero(stack.counts)
        bins = Bins.of(np.maximum(1, np.rint(found / rate)).astype(np.int64))
        np.add.at(self._uses, bins, stack.counts[found] / rate)
        self._cold += float(stack.cold.sum()) / rate
        stack.counts[:] = 0
        stack.cold[:] = 0

    def curve(self) -> MissRatioCurve:
        self._count_uses()
        top = int(np.flatnonzero(self._uses)[-1]) if self._uses.any() else 1
        uses: F64 = self._uses[: top + 1]
        misses = self._cold + uses.sum() - np.cumsum(uses)
        name = f"SHARDS {self._rate:.3g}"
        if self._max_rows is not None:
            name = f"SHARDS {self._max_rows} rows"
        return MissRatioCurve(
            name,
            Bins.last()[: top + 1],
            misses,
            float(self._lookups),
            float(uses.sum() + self._cold) if self._batched else float(self._lookups),
            self._cold,
            bins=(Bins.last()[: top + 1], uses),
        )


def _threshold(rate: float) -> int:
    if not 0.0 < rate <= 1.0:
        raise ConfigError(f"rate is {rate!r}; it must be in (0, 1]")
    return max(1, round(rate * (1 << BITS)))


def _salt(table: int, seed: int) -> np.uint64:
    return np.uint64((seed * 0x9E3779B97F4A7C15 + table * 0xD1B54A32D192ED03 + 1) % 2**64)


def _filtered(chunk: TraceChunk, threshold: int, seed: int) -> TraceChunk:
    parts = []
    for t, (offsets, ids) in enumerate(chunk.table_ids):
        parts.append(_filter(ids, offsets, _salt(t, seed), threshold))
    return TraceChunk(tuple(parts))


@compiled
def _hash(id_: int, salt: np.uint64) -> int:
    """The upper 24 bits of splitmix64's finalizer over the salted id."""
    x = np.uint64(id_) ^ salt
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return np.int64(x >> np.uint64(40))  # type: ignore[return-value]


@compiled
def _hashes(ids: I64, salt: np.uint64) -> I64:
    out = np.empty(len(ids), np.int64)
    for i in range(len(ids)):
        out[i] = _hash(ids[i], salt)
    return out


@compiled
def _filter(ids: I64, offsets: I64, salt: np.uint64, threshold: int) -> tuple[I64, I64]:
    """Returns the offsets of the batches, and the ids that are kept."""
    kept = np.empty(len(ids), np.int64)
    kept_offsets = np.zeros_like(offsets)
    count = 0
    for b in range(len(offsets) - 1):
        for i in range(offsets[b], offsets[b + 1]):
            kept[count] = ids[i]
            count += _hash(ids[i], salt) < threshold
        kept_offsets[b + 1] = count
    return kept_offsets, kept[:count].copy()
