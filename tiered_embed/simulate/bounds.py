"""The fewest misses that any policy can have, if it knows the whole future or part of it.

Source: Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems
Journal 1966: evict the row whose next use is farthest away. The row just accessed must stay, since
a row that is looked up must be in memory. The whole trace is kept in memory: 12 bytes per access,
and heaps.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import CapacityError, ConfigError
from ..traces import Trace
from .compiled import compiled
from .numbering import I32, I64, all_accesses
from .planner_replay import SimulatedCounts

__all__ = ["belady", "belady_batches"]

NEVER = 2**62
Bools = npt.NDArray[np.bool_]


def belady(trace: Trace, size: int, window: int | None = None) -> SimulatedCounts:
    """Belady's misses at each access, over all tables together.

    Args:
        size: rows of the cache.
        window: how many accesses ahead are known; all by default. Rows without a known use are
            evicted first, in order of their last use.

    Raises:
        ConfigError: a size or window below 1.
    """
    _check_size(size)
    if window is not None and window < 1:
        raise ConfigError(f"window is {window}; pass at least one access, or None for all")
    found, numbering = all_accesses(trace)
    next_use = _next_uses(found.rows, numbering.num_rows)
    ahead = len(found.rows) if window is None else min(window, len(found.rows))
    misses = _belady(found.rows, next_use, numbering.num_rows, size, ahead)
    return _counts(len(found.rows), len(found.rows), misses, numbering.num_rows, size)


def belady_batches(trace: Trace, size: int, depth: int = 0) -> SimulatedCounts:
    """Belady's misses when rows are evicted between batches, and the rows of a batch and of the
    ``depth`` batches before it are held, as in the planner: the bound of ``lookahead``.

    Raises:
        ConfigError: a size below 1 or a negative depth.
        CapacityError: more rows than ``size`` must be held.
    """
    _check_size(size)
    if depth < 0:
        raise ConfigError(f"depth is {depth}; it must be 0 or more")
    found, numbering = all_accesses(trace)
    rows, offsets = _unique_by_batch(found.rows, found.offsets, numbering.num_rows)
    next_use = _next_batches(rows, offsets, numbering.num_rows)
    misses, stopped = _belady_batches(rows, offsets, next_use, numbering.num_rows, size, depth)
    if stopped >= 0:
        raise CapacityError(
            f"batch {stopped} and the {depth} before it need more than {size} rows; raise the size "
            "or lower the depth"
        )
    return _counts(len(found.rows), len(rows), misses, numbering.num_rows, size)


def _check_size(size: int) -> None:
    if size < 1:
        raise ConfigError(f"size is {size}; a cache needs at least one row")


def _counts(lookups: int, unique: int, misses: int, num_rows: int, size: int) -> SimulatedCounts:
    evicted = max(0, misses - min(size, num_rows))
    return SimulatedCounts(
        lookups=lookups,
        unique=unique,
        misses=misses,
        hits=unique - misses,
        staged=misses,
        evicted=evicted,
        written_back=evicted,
        cold=num_rows,
    )


@compiled
def _next_uses(rows: I32, num_rows: int) -> I64:
    coming = np.full(num_rows, NEVER, np.int64)
    out = np.empty(len(rows), np.int64)
    for i in range(len(rows) - 1, -1, -1):
        out[i] = coming[rows[i]]
        coming[rows[i]] = i
    return out


@compiled
def _next_batches(rows: I32, offsets: I64, num_rows: int) -> I64:
    coming = np.full(num_rows, NEVER, np.int64)
    out = np.empty(len(rows), np.int64)
    for b in range(len(offsets) - 2, -1, -1):
        for i in range(offsets[b], offsets[b + 1]):
            out[i] = coming[rows[i]]
            coming[rows[i]] = b
    return out


@compiled
def _unique_by_batch(rows: I32, offsets: I64, num_rows: int) -> tuple[I32, I64]:
    newest = np.full(num_rows, -1, np.int64)
    out = np.empty(len(rows), np.int32)
    out_offsets = np.zeros_like(offsets)
    count = 0
    for b in range(len(offsets) - 1):
        for i in range(offsets[b], offsets[b + 1]):
            if newest[rows[i]] != b:
                newest[rows[i]] = b
                out[count] = rows[i]
                count += 1
        out_offsets[b + 1] = count
    return out[:count].copy(), out_offsets


@compiled
def _sift_up(keys: I64, values: I32, count: int, key: int, value: int) -> None:
    """Adds an entry to a heap of `count` entries, greatest key first."""
    i = count
    while i > 0:
        parent = (i - 1) >> 1
        if keys[parent] >= key:
            break
        keys[i] = keys[parent]
        values[i] = values[parent]
        i = parent
    keys[i] = key
    values[i] = value


@compiled
def _drop_top(keys: I64, values: I32, count: int) -> None:
    """Removes the first entry of a heap of `count` entries."""
    last = count - 1
    key, value = keys[last], values[last]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= last:
            break
        if child + 1 < last and keys[child + 1] > keys[child]:
            child += 1
        if keys[child] <= key:
            break
        keys[i] = keys[child]
        values[i] = values[child]
        i = child
    keys[i] = key
    values[i] = value


@compiled
def _belady(rows: I32, next_use: I64, num_rows: int, size: int, ahead: int) -> int:
    """Rows with a known next use are in a heap, ordered by it; the others in a log, by last use.

    An entry of the heap whose use has passed is stale, and below every live one. An entry of the
    log is stale when its row was used again, was evicted, or has a known use now.
    """
    uses = np.full(num_rows, -1, np.int64)  # of resident rows
    unknown = np.zeros(num_rows, np.bool_)
    last = np.full(num_rows, -1, np.int64)
    keys = np.empty(len(rows) + 1, np.int64)
    values = np.empty(len(rows) + 1, np.int32)
    in_heap, num_unknown, resident, tail, misses = 0, 0, 0, 0, 0
    for i in range(len(rows)):
        row = rows[i]
        coming = i + ahead
        if coming < len(rows):
            other = rows[coming]
            if uses[other] == coming and unknown[other]:
                unknown[other] = False
                num_unknown -= 1
                _sift_up(keys, values, in_heap, coming, other)
                in_heap += 1
        if uses[row] >= 0:
            if unknown[row]:
                num_unknown -= 1
        else:
            misses += 1
            if resident == size:
                if num_unknown > 0:
                    while True:
                        victim = rows[tail]
                        if unknown[victim] and last[victim] == tail:
                            break
                        tail += 1
                    unknown[victim] = False
                    num_unknown -= 1
                else:
                    victim = values[0]
                    _drop_top(keys, values, in_heap)
                    in_heap -= 1
                uses[victim] = -1
            else:
                resident += 1
        uses[row] = next_use[i]
        last[row] = i
        if next_use[i] <= i + ahead:
            unknown[row] = False
            _sift_up(keys, values, in_heap, next_use[i], row)
            in_heap += 1
        else:
            unknown[row] = True
            num_unknown += 1
    return misses


@compiled
def _belady_batches(
    rows: I32, offsets: I64, next_use: I64, num_rows: int, size: int, depth: int
) -> tuple[int, int]:
    """Returns (misses, -1), or the batch at which there was no room left."""
    uses = np.full(num_rows, -1, np.int64)  # next batch of resident rows
    newest = np.full(num_rows, -1, np.int64)
    keys = np.empty(len(rows) + 1, np.int64)
    values = np.empty(len(rows) + 1, np.int32)
    held = np.empty(num_rows, np.int32)
    in_heap, resident, misses = 0, 0, 0
    for b in range(len(offsets) - 1):
        for i in range(offsets[b], offsets[b + 1]):
            row = rows[i]
            if uses[row] < 0:
                misses += 1
                resident += 1
            uses[row] = next_use[i]
            newest[row] = b
        num_held = 0
        while resident > size:
            if in_heap == 0:
                return misses, b
            key, victim = keys[0], values[0]
            _drop_top(keys, values, in_heap)
            in_heap -= 1
            if uses[victim] != key:
                continue
            if newest[victim] >= b - depth:
                if newest[victim] < b:
                    held[num_held] = victim
                    num_held += 1
                continue
            uses[victim] = -1
            resident -= 1
        for i in range(num_held):
            _sift_up(keys, values, in_heap, uses[held[i]], held[i])
            in_heap += 1
        for i in range(offsets[b], offsets[b + 1]):
            _sift_up(keys, values, in_heap, next_use[i], rows[i])
            in_heap += 1
    return misses, -1
