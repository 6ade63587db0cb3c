"""Numbers a trace's rows 0, 1, 2, ... in order of first use, so that loops index plain arrays.

Each table has an open-addressing index, at most two thirds full, with key and number next to each
other. A block of keys is touched before it is looked up, so that its cache misses overlap.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import CapacityError, ConfigError
from ..residency import MAX_TABLES
from ..traces import Trace, TraceChunk
from .compiled import compiled

__all__ = ["Accesses", "Numbering", "accesses", "all_accesses", "grown"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

FIRST_BITS = 12
MOST_ROWS = 2**31 - 2
BLOCK = 64
PIECE_IDS = 1 << 20
# Of the indexes' hash, drawn per process: nobody can choose ids that share one place. Numbers do
# not depend on it.
SECRET = np.uint64(secrets.randbits(64))


@dataclass(frozen=True)
class Accesses:
    """Batches of numbered rows: batch b is ``rows[offsets[b]:offsets[b + 1]]``, table after table.

    rows: (N,) int32. offsets: (B + 1,) int64.
    """

    rows: I32
    offsets: I64


class Numbering:
    """The rows of a trace's tables by number.

    Raises:
        CapacityError: from :meth:`accesses`, more than 2^31 - 2 distinct rows.
    """

    def __init__(self, num_tables: int) -> None:
        if num_tables > MAX_TABLES:
            raise ConfigError(
                f"the trace has {num_tables} tables, and at most {MAX_TABLES} can be simulated at "
                "once; choose some of them"
            )
        self.num_rows = 0
        self._entries = [_empty(FIRST_BITS) for _ in range(num_tables)]
        self._sizes = [0] * num_tables
        self._tables = np.zeros(1024, np.uint16)

    @property
    def tables(self) -> npt.NDArray[np.uint16]:
        """(num_rows,): each row's table."""
        return self._tables[: self.num_rows]

    def accesses(self, chunk: TraceChunk) -> Accesses:
        """Numbers a chunk's rows."""
        parts = [self.number(t, ids) for t, (_, ids) in enumerate(chunk.table_ids)]
        if len(parts) == 1:
            return Accesses(parts[0], chunk.table_ids[0][0])
        offsets = np.stack([o for o, _ in chunk.table_ids])
        rows = np.empty(sum(map(len, parts)), np.int32)
        starts = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=starts[1:])
        _interleave(np.concatenate(parts), starts, offsets, rows)
        return Accesses(rows, offsets.sum(axis=0))

    def number(self, table: int, ids: I64) -> I32:
        """The numbers (n,) of a table's row ids (n,)."""
        out = np.empty(len(ids), np.int32)
        done = 0
        while True:
            entries = self._entries[table]
            done, num_rows = _number(
                entries, ids, out, done, self.num_rows, self._sizes[table], SECRET
            )
            self._note(table, num_rows)
            if done == len(ids):
                return out
            larger = _empty(len(entries).bit_length())
            _rehash(entries, larger, SECRET)
            self._entries[table] = larger

    def _note(self, table: int, num_rows: int) -> None:
        if num_rows > MOST_ROWS:
            raise CapacityError(
                f"the trace has more than {MOST_ROWS} distinct rows; use a sample of it, as "
                "simulate.shards does"
            )
        if num_rows > len(self._tables):
            self._tables = np.resize(self._tables, max(num_rows, 2 * len(self._tables)))
        self._tables[self.num_rows : num_rows] = table
        self._sizes[table] += num_rows - self.num_rows
        self.num_rows = num_rows


def accesses(trace: Trace, numbering: Numbering | None = None) -> Iterator[Accesses]:
    """The trace as numbered rows, in pieces of whole batches and about ``PIECE_IDS`` ids."""
    numbering = numbering or Numbering(len(trace.tables))
    for chunk in trace.chunks():
        if chunk.num_ids <= 2 * PIECE_IDS:
            yield numbering.accesses(chunk)
            continue
        ends = np.sum([offsets for offsets, _ in chunk.table_ids], axis=0)
        first = 0
        while first < chunk.num_batches:
            last = int(np.searchsorted(ends, ends[first] + PIECE_IDS, side="right")) - 1
            last = max(last, first + 1)
            yield numbering.accesses(chunk.batches(first, last))
            first = last


def all_accesses(trace: Trace) -> tuple[Accesses, Numbering]:
    """The whole trace in memory: 4 bytes per access, 8 per batch."""
    numbering = Numbering(len(trace.tables))
    parts = list(accesses(trace, numbering))
    rows = np.concatenate([part.rows for part in parts] or [np.empty(0, np.int32)])
    sizes = [np.diff(part.offsets) for part in parts]
    offsets = np.zeros(sum(map(len, sizes)) + 1, np.int64)
    np.cumsum(np.concatenate(sizes or [np.empty(0, np.int64)]), out=offsets[1:])
    return Accesses(rows, offsets), numbering


def grown(array: I64, size: int, value: int) -> I64:
    """The array, or a copy of at least ``size`` whose new elements are ``value``; it doubles."""
    if size <= len(array):
        return array
    larger = np.full(max(size, 2 * len(array)), value, np.int64)
    larger[: len(array)] = array
    return larger


def _empty(bits: int) -> I64:
    entries = np.empty((1 << bits, 2), np.int64)
    entries[:, 1] = -1
    return entries


@compiled
def _number(
    entries: I64, ids: I64, out: I32, done: int, num_rows: int, size: int, secret: np.uint64
) -> tuple[int, int]:
    """Stops when the index is too full for another row; returns (done, num_rows)."""
    mask = len(entries) - 1
    shift = np.uint64(64)
    width = len(entries)
    while width > 1:
        width >>= 1
        shift -= np.uint64(1)
    most = len(entries) * 2 // 3
    factor = np.uint64(0x9E3779B97F4A7C15)
    homes = np.empty(BLOCK, np.int64)
    touched = np.int64(0)
    begin = done
    while begin < len(ids):
        end = min(begin + BLOCK, len(ids))
        for i in range(begin, end):
            h = np.int64(((np.uint64(ids[i]) ^ secret) * factor) >> shift)
            homes[i - begin] = h
            touched ^= entries[h, 1]
        for i in range(begin, end):
            id_ = ids[i]
            h = homes[i - begin]
            while entries[h, 1] >= 0 and entries[h, 0] != id_:
                h = (h + 1) & mask
            number = entries[h, 1]
            if number < 0:
                if size >= most:
                    return i, num_rows
                number = num_rows
                entries[h, 0] = id_
                entries[h, 1] = number
                num_rows += 1
                size += 1
            out[i] = number
        begin = end
    if touched == np.int64(-(2**62)):  # never true; keeps the compiler from removing the touches
        return -1, num_rows
    return len(ids), num_rows


@compiled
def _rehash(entries: I64, larger: I64, secret: np.uint64) -> None:
    mask = len(larger) - 1
    shift = np.uint64(64)
    width = len(larger)
    while width > 1:
        width >>= 1
        shift -= np.uint64(1)
    factor = np.uint64(0x9E3779B97F4A7C15)
    for i in range(len(entries)):
        if entries[i, 1] < 0:
            continue
        h = np.int64(((np.uint64(entries[i, 0]) ^ secret) * factor) >> shift)
        while larger[h, 1] >= 0:
            h = (h + 1) & mask
        larger[h, 0] = entries[i, 0]
        larger[h, 1] = entries[i, 1]


@compiled
def _interleave(parts: I32, starts: I64, offsets: I64, out: I32) -> None:
    at = 0
    for b in range(offsets.shape[1] - 1):
        for t in range(offsets.shape[0]):
            for i in range(starts[t] + offsets[t, b], starts[t] + offsets[t, b + 1]):
                out[at] = parts[i]
                at += 1
