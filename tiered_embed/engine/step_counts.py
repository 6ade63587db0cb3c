"""What every batch of a ``te.prefetch`` loop adds to the counts of its tiers and tables.

``stats()`` counts a batch's moves when they are planned, which is ahead of its training by as much
as threads had time for. Whoever compares a part of a run, such as the timed steps of a benchmark,
asks for this instead: it notes the counts at every plan, so that those of steps ``first`` to
``last`` are the same in every run.

Threading: plans are noted by the thread that stages, reads by those that read. Ask for counts when
the batches were trained.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..residency import Planner, StepPlan
from ..spec import Counts
from ..tiers import SsdTier
from .wiring import Wiring

__all__ = ["PoolSteps", "StepCounts"]


class _Noted(NamedTuple):
    """Totals once a plan has run but for its reads: per table in the upper and the lower tier, and
    records that were handed down to the store."""

    plan: int
    upper: list[Counts]
    lower: list[Counts]
    handed_down: int


class PoolSteps:
    """The counts of one pool at every plan of its stream."""

    def __init__(self, planner: Planner, ssd: SsdTier | None, record_bytes: int) -> None:
        self._planner = planner
        self._ssd = ssd
        self._record_bytes = record_bytes
        self._noted = [self._now(-1)]
        self._lock = threading.Lock()
        self._reads: dict[int, tuple[int, int]] = {}  # by plan: rows looked for, and found

    def planned(self, plan: StepPlan) -> None:
        """A stream's plan has run, but for its reads."""
        self._noted.append(self._now(plan.number))

    def read(self, plan: StepPlan, looked_for: int, found: int) -> None:
        """A plan has read from the store."""
        with self._lock:
            self._reads[plan.number] = (looked_for, found)

    def between(self, first: int, last: int) -> tuple[list[Counts], list[Counts], Counts | None]:
        """What steps ``first`` to ``last - 1`` counted: per table above, and below; in the store.

        REQUIRES: they were trained.
        """
        before, after = self._noted[first], self._noted[last]
        upper, lower = (_less(after.upper, before.upper), _less(after.lower, before.lower))
        if self._ssd is None:
            return upper, lower, None
        plans = {noted.plan for noted in self._noted[first + 1 : last + 1]}
        with self._lock:
            reads = [counts for plan, counts in self._reads.items() if plan in plans]
        looked_for, found = (sum(column) for column in zip((0, 0), *reads, strict=True))
        taken_in = after.handed_down - before.handed_down
        stored = Counts(
            lookups=looked_for,
            unique=looked_for,
            hits=found,
            misses=looked_for - found,
            staged=taken_in,
            bytes_in=taken_in * self._record_bytes,
            bytes_out=found * self._record_bytes,
        )
        return upper, lower, stored

    def _now(self, plan: int) -> _Noted:
        return _Noted(
            plan,
            self._planner.counts(self._record_bytes),
            self._planner.lower_counts(self._record_bytes),
            0 if self._ssd is None else self._ssd.stats().staged,
        )


class StepCounts:
    """The counts of an engine's next ``te.prefetch`` loop, by step, from 0.

    REQUIRES: no loop is running, and every forward in the next one uses what was staged for it.

    Args:
        pools: of each, the topmost tier's name, and its counts.
    """

    def __init__(self, pools: Sequence[tuple[str, PoolSteps]], wiring: Wiring) -> None:
        self._pools = pools
        self._wiring = wiring

    def between(self, first: int, last: int) -> tuple[dict[str, Counts], dict[str, Counts]]:
        """What steps ``first`` to ``last - 1`` added, by tier and by table; without stall seconds.

        REQUIRES: they were trained.
        """
        tiers: dict[str, Counts] = {}
        per_pool: list[list[Counts]] = []
        for topmost, steps in self._pools:
            upper, lower, stored = steps.between(first, last)
            per_pool.append(upper)
            parts = [(topmost, upper), ("DDR", lower)]
            parts.append(("SSD", [] if stored is None else [stored]))
            for name, counts in parts:
                for one in counts:
                    tiers.setdefault(name, Counts()).add(one)
        places = zip(self._wiring.tables, self._wiring.places, strict=True)
        return tiers, {table.name: per_pool[p][i] for table, (p, i) in places}


def _less(after: list[Counts], before: list[Counts]) -> list[Counts]:
    out = [replace(counts) for counts in after]
    for mine, earlier in zip(out, before, strict=True):
        mine.subtract(earlier)
    return out
