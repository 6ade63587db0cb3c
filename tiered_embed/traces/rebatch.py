"""Splits a stream of chunks into batches of another size; at most one batch and one chunk in
memory.

Every table is turned into flat samples (ids, and where bags start), which are then split again.
Legend as in ``chunk``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .chunk import I64, TraceBags, TraceChunk, even_offsets

__all__ = ["rebatched"]


@dataclass(frozen=True)
class _Samples:
    """``num`` samples: per table ids (N,), and bag starts (num + 1,) or None for one id a bag."""

    num: int
    ids: list[I64]
    starts: list[I64 | None]
    known: bool  # False: the source has no samples, and single ids of its only table stand in

    def bounds(self, t: int) -> I64:
        """Where the bags of table ``t`` start, even if every bag is one id."""
        own = self.starts[t]
        return np.arange(self.num + 1, dtype=np.int64) if own is None else own


def rebatched(chunks: Iterator[TraceChunk], batch: int) -> Iterator[TraceChunk]:
    """Yield the chunks' samples in batches of ``batch`` samples; the last may be smaller.

    Raises:
        ConfigError: several tables and no bags.
    """
    waiting: list[_Samples] = []
    num_waiting = 0
    for chunk in chunks:
        samples = _flat(chunk)
        waiting.append(samples)
        num_waiting += samples.num
        if num_waiting < batch:
            continue
        joined = _join(waiting)
        full = num_waiting - num_waiting % batch
        yield _chunk(_slice(joined, 0, full), batch)
        waiting, num_waiting = [_slice(joined, full, num_waiting)], num_waiting - full
    if num_waiting:
        yield _chunk(_join(waiting), batch)


def _flat(chunk: TraceChunk) -> _Samples:
    ids = [own for _, own in chunk.table_ids]
    if chunk.bags is not None:
        return _Samples(chunk.bags.num_samples, ids, list(chunk.bags.starts), True)
    if len(ids) > 1:
        raise ConfigError(
            f"a trace of {len(ids)} tables without bags cannot be split into other batches, as its"
            " samples are not known; record or convert it with bags, or use its own batches"
        )
    return _Samples(len(ids[0]), ids, [None], False)


def _slice(samples: _Samples, first: int, last: int) -> _Samples:
    ids, starts = [], []
    for t, own in enumerate(samples.starts):
        low, high = (first, last) if own is None else (int(own[first]), int(own[last]))
        ids.append(samples.ids[t][low:high])
        starts.append(None if own is None else own[first : last + 1] - low)
    return _Samples(last - first, ids, starts, samples.known)


def _join(parts: list[_Samples]) -> _Samples:
    if len(parts) == 1:
        return parts[0]
    ids: list[I64] = []
    starts: list[I64 | None] = []
    for t in range(len(parts[0].ids)):
        ids.append(np.concatenate([part.ids[t] for part in parts]))
        if all(part.starts[t] is None for part in parts):
            starts.append(None)
            continue
        pieces: list[I64] = [np.zeros(1, np.int64)]
        base = 0
        for part in parts:
            pieces.append(part.bounds(t)[1:] + base)
            base += len(part.ids[t])
        starts.append(np.concatenate(pieces))
    return _Samples(sum(p.num for p in parts), ids, starts, all(p.known for p in parts))


def _chunk(samples: _Samples, batch: int) -> TraceChunk:
    ends = even_offsets(samples.num, batch)
    parts = tuple(
        (ends if own is None else own[ends], ids)
        for own, ids in zip(samples.starts, samples.ids, strict=True)
    )
    return TraceChunk(parts, TraceBags(ends, tuple(samples.starts)) if samples.known else None)
