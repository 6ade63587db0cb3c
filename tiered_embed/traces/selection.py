"""A shorter trace from a long one: its first batches, or a sample of its rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..errors import ConfigError
from .chunk import I64, TableIds, TraceBags, TraceChunk
from .hashing import splitmix64
from .trace import Trace

__all__ = ["head", "sample"]


def head(trace: Trace, num_batches: int) -> Trace:
    """Return the first ``num_batches`` batches; nothing after them is read.

    Raises:
        ConfigError: a negative number.
    """
    if num_batches < 0:
        raise ConfigError(f"num_batches must not be negative, got {num_batches!r}")

    def chunks() -> Iterator[TraceChunk]:
        left = num_batches
        if left == 0:
            return
        for chunk in trace.chunks():
            if chunk.num_batches >= left:
                yield chunk.batches(0, left)
                return
            left -= chunk.num_batches
            yield chunk

    known = None if trace.num_batches is None else min(trace.num_batches, num_batches)
    return Trace(trace.tables, chunks, num_batches=known)


def sample(trace: Trace, rate: float, seed: int = 0) -> Trace:
    """Return all accesses to a share ``rate`` of the rows, chosen by a hash of table and id.

    Batches stay, with fewer ids. A cache of ``rate`` times the size has about the hit rate of the
    whole trace: Waldspurger et al., "Efficient MRC construction with SHARDS", FAST 2015.

    Raises:
        ConfigError: a rate outside (0, 1], or a seed outside [0, 2**64).
    """
    if not 0.0 < rate <= 1.0:
        raise ConfigError(f"rate must be in (0, 1], got {rate!r}")
    if not 0 <= seed < 1 << 64:
        raise ConfigError(f"seed must be in [0, 2**64), got {seed!r}")
    if rate == 1.0:
        return trace
    limit = np.uint64(int(rate * 2.0**64))
    salts = splitmix64(np.arange(len(trace.tables)).astype(np.uint64) ^ np.uint64(seed))

    def chunks() -> Iterator[TraceChunk]:
        for chunk in trace.chunks():
            yield _kept(chunk, salts, limit)

    return Trace(trace.tables, chunks, num_batches=trace.num_batches)


def _kept(chunk: TraceChunk, salts: np.ndarray, limit: np.uint64) -> TraceChunk:
    parts: list[TableIds] = []
    starts: list[I64 | None] = []
    for t, (offsets, ids) in enumerate(chunk.table_ids):
        keep = splitmix64(ids.view(np.uint64) ^ salts[t]) < limit
        before = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(keep, out=before[1:])
        parts.append((before[offsets], ids[keep]))
        if chunk.bags is not None:
            own = chunk.bags.starts[t]
            starts.append(before if own is None else before[own])
    if chunk.bags is None:
        return TraceChunk(tuple(parts))
    return TraceChunk(tuple(parts), TraceBags(chunk.bags.samples, tuple(starts)))
