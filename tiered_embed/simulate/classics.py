"""Eviction policies of the literature at each access, compiled: FIFO, SIEVE, S3-FIFO, ARC; and LRU.

They decide one access after the other, for rows of one size, and their counts equal those of
libCacheSim's policies of the same names. The planner's policies decide between batches and hold the
rows in use, so their counts differ: these here are the yardstick, not the forecast.

S3-FIFO exists three times, for three reasons: the planner's own (native, what training does); this
one (with an exact ghost queue; it counts as libCacheSim does, seven times as fast, and writes no
file); and a plain Python model of the planner's in the tests. LRU is ``lru_replay``'s.

Sources: SIEVE: Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is simpler than LRU", NSDI 2024.
S3-FIFO: Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction", SOSP
2023. ARC: Megiddo, Modha, "ARC: a self-tuning, low overhead replacement cache", FAST 2003.

All state lies in arrays by row: 4 to 17 bytes per distinct row.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..traces import Trace
from .compiled import compiled
from .lru_replay import misses_by_access
from .numbering import I32, I64, all_accesses
from .planner_replay import SimulatedCounts

__all__ = ["CLASSICS", "classic"]

U8 = npt.NDArray[np.uint8]

OUT, SMALL, MAIN, GHOST = 0, 1, 2, 3
T1, T2, B1, B2 = 1, 2, 3, 4


def classic(trace: Trace, slots: int, policy: str) -> SimulatedCounts:
    """What a policy counts at each access, over all tables together.

    Raises:
        ConfigError: fewer than one slot, or a policy that is not in ``CLASSICS``.
    """
    if policy not in CLASSICS:
        raise ConfigError(f"policy is {policy!r}; choose one of {', '.join(CLASSICS)}")
    if slots < 1:
        raise ConfigError(f"slots is {slots}; a cache needs at least one row")
    found, numbering = all_accesses(trace)
    misses = int(CLASSICS[policy](found.rows, numbering.num_rows, slots))
    evicted = max(0, misses - slots)
    return SimulatedCounts(
        lookups=len(found.rows),
        unique=len(found.rows),
        misses=misses,
        hits=len(found.rows) - misses,
        staged=misses,
        evicted=evicted,
        written_back=evicted,
        cold=numbering.num_rows,
    )


@compiled
def _fifo(rows: I32, num_rows: int, slots: int) -> int:
    queue = np.empty(slots, np.int32)
    resident = np.zeros(num_rows, np.bool_)
    misses = 0
    for i in range(len(rows)):
        row = rows[i]
        if resident[row]:
            continue
        place = misses % slots
        if misses >= slots:
            resident[queue[place]] = False
        queue[place] = row
        resident[row] = True
        misses += 1
    return misses


@compiled
def _unlink(before: I32, after: I32, row: int) -> None:
    before[after[row]] = before[row]
    after[before[row]] = after[row]


@compiled
def _append(before: I32, after: I32, head: int, row: int) -> None:
    """At the tail of a circular list; `head` is an extra row after the real ones."""
    tail = before[head]
    after[tail] = row
    before[row] = tail
    after[row] = head
    before[head] = row


@compiled
def _lists(num_rows: int, heads: int) -> tuple[I32, I32]:
    before = np.arange(num_rows + heads).astype(np.int32)
    after = np.arange(num_rows + heads).astype(np.int32)
    return before, after


@compiled
def _sieve(rows: I32, num_rows: int, slots: int) -> int:
    before, after = _lists(num_rows, 1)
    resident = np.zeros(num_rows, np.bool_)
    visited = np.zeros(num_rows, np.bool_)
    head, misses = num_rows, 0
    hand = head  # the head stands for no row: the hand starts at the oldest
    for i in range(len(rows)):
        row = rows[i]
        if resident[row]:
            visited[row] = True
            continue
        if misses >= slots:
            victim = after[head] if hand == head else hand
            while visited[victim]:
                visited[victim] = False
                victim = after[victim]
                if victim == head:
                    victim = after[head]
            hand = after[victim]
            _unlink(before, after, victim)
            resident[victim] = False
        _append(before, after, head, row)
        resident[row] = True
        visited[row] = False
        misses += 1
    return misses


@compiled
def _s3fifo(rows: I32, num_rows: int, slots: int) -> int:
    """The small queue has a tenth of the slots, the ghost queue nine tenths; two uses promote."""
    small_slots = slots // 10
    main_slots = slots - small_slots
    ghost_slots = int(slots * 0.9)
    before, after = _lists(num_rows, 3)
    where = np.zeros(num_rows, np.uint8)
    uses = np.zeros(num_rows, np.int32)
    small, main, ghost = num_rows, num_rows + 1, num_rows + 2
    in_small, in_main, in_ghost = 0, 0, 0
    evicting = False
    misses = 0
    for i in range(len(rows)):
        row = rows[i]
        if where[row] == SMALL or where[row] == MAIN:
            uses[row] += 1
            continue
        misses += 1
        known = where[row] == GHOST
        if known:
            _unlink(before, after, row)
            in_ghost -= 1
            where[row] = OUT
        while in_small + in_main >= slots:
            evicting = True
            evicted = False
            if in_main > main_slots or in_small == 0:
                while not evicted and in_main > 0:
                    victim = after[main]
                    _unlink(before, after, victim)
                    if uses[victim] >= 1:
                        uses[victim] = min(uses[victim], 3) - 1
                        _append(before, after, main, victim)
                    else:
                        where[victim] = OUT
                        in_main -= 1
                        evicted = True
            else:
                while not evicted and in_small > 0:
                    victim = after[small]
                    _unlink(before, after, victim)
                    in_small -= 1
                    if uses[victim] >= 2:
                        where[victim] = MAIN
                        uses[victim] = 0
                        _append(before, after, main, victim)
                        in_main += 1
                    else:
                        where[victim] = OUT
                        evicted = True
                        if ghost_slots > 0:
                            if in_ghost >= ghost_slots:
                                oldest = after[ghost]
                                _unlink(before, after, oldest)
                                where[oldest] = OUT
                                in_ghost -= 1
                            where[victim] = GHOST
                            _append(before, after, ghost, victim)
                            in_ghost += 1
        uses[row] = 0
        if known or (not evicting and in_small >= small_slots):
            where[row] = MAIN
            _append(before, after, main, row)
            in_main += 1
        else:
            where[row] = SMALL
            _append(before, after, small, row)
            in_small += 1
    return misses


@compiled
def _arc(rows: I32, num_rows: int, slots: int) -> int:
    before, after = _lists(num_rows, 5)
    where = np.zeros(num_rows, np.uint8)
    count = np.zeros(5, np.int64)
    wanted = 0.0  # rows of T1
    misses = 0
    for i in range(len(rows)):
        row = rows[i]
        place = where[row]
        if place in (T1, T2):
            _unlink(before, after, row)
            count[place] -= 1
            where[row] = T2
            count[T2] += 1
            _append(before, after, num_rows + T2, row)
            continue
        misses += 1
        target = T1
        if place in (B1, B2):
            if place == B1:
                wanted = min(wanted + max(count[B2] / count[B1], 1.0), float(slots))
            else:
                wanted = max(wanted - max(count[B1] / count[B2], 1.0), 0.0)
            if count[T1] + count[T2] >= slots:
                _arc_replace(before, after, where, count, num_rows, wanted, place == B2)
            _unlink(before, after, row)
            count[place] -= 1
            target = T2
        else:
            if count[T1] + count[B1] == slots:
                if count[T1] < slots:
                    _arc_forget(before, after, where, count, num_rows, B1)
                    if count[T1] + count[T2] >= slots:
                        _arc_replace(before, after, where, count, num_rows, wanted, False)
                else:
                    _arc_forget(before, after, where, count, num_rows, T1)
            elif count[T1] + count[T2] + count[B1] + count[B2] >= slots:
                if count[T1] + count[T2] + count[B1] + count[B2] >= 2 * slots:
                    _arc_forget(before, after, where, count, num_rows, B2)
                if count[T1] + count[T2] >= slots:
                    _arc_replace(before, after, where, count, num_rows, wanted, False)
        where[row] = target
        count[target] += 1
        _append(before, after, num_rows + target, row)
    return misses


@compiled
def _arc_forget(before: I32, after: I32, where: U8, count: I64, num_rows: int, place: int) -> None:
    row = after[num_rows + place]
    _unlink(before, after, row)
    where[row] = OUT
    count[place] -= 1


@compiled
def _arc_replace(
    before: I32,
    after: I32,
    where: U8,
    count: I64,
    num_rows: int,
    wanted: float,
    known_in_b2: bool,
) -> None:
    place, ghost = T2, B2
    if count[T1] >= 1 and (
        count[T1] > wanted or (known_in_b2 and count[T1] == wanted) or count[T2] == 0
    ):
        place, ghost = T1, B1
    row = after[num_rows + place]
    _unlink(before, after, row)
    count[place] -= 1
    where[row] = ghost
    count[ghost] += 1
    _append(before, after, num_rows + ghost, row)


CLASSICS: dict[str, Callable[[I32, int, int], int]] = {
    "fifo": _fifo,
    "lru": misses_by_access,
    "sieve": _sieve,
    "s3fifo": _s3fifo,
    "arc": _arc,
}
