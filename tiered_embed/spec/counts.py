"""Counts, as plain data. ``stats()`` returns a :class:`Stats`.

All numbers are totals since the module was made. They are only held here; planner and engine count.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

__all__ = ["BoundsCounts", "Counts", "EvaluationCounts", "PhaseTimes", "Stats", "TierStats"]


@dataclass
class Counts:
    """The counts of one tier, or of one table in the topmost tier.

    Attributes:
        lookups: ids looked up.
        unique: unique rows, summed over batches.
        misses: unique rows that were not resident when their batch was planned.
        hits: ``unique - misses``.
        staged: rows brought in.
        evicted: rows that lost their slot.
        written_back: dirty records handed to the tier below, by evictions and flushes.
        overflow: rows that took transient slots beyond the budget.
        bytes_in: record bytes staged.
        bytes_out: record bytes written back.
        stall_s: seconds that forwards waited for rows.
    """

    lookups: int = 0
    unique: int = 0
    misses: int = 0
    hits: int = 0
    staged: int = 0
    evicted: int = 0
    written_back: int = 0
    overflow: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    stall_s: float = 0.0

    def add(self, other: Counts) -> None:
        for f in fields(Counts):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))

    def subtract(self, other: Counts) -> None:
        for f in fields(Counts):
            setattr(self, f.name, getattr(self, f.name) - getattr(other, f.name))


@dataclass
class TierStats(Counts):
    """The counts of a tier, and its memory.

    Attributes:
        budget_bytes: the budget that the configuration gave it.
        slot_bytes: memory of its record slots when all are used.
        overhead_bytes: memory of index, pins and plan buffers on top.
        store_bytes: memory of the store below, beyond every budget: RocksDB's index, filters,
            memtables and block cache. 0 for other stores and tiers.
        resident: rows that it holds now.
    """

    budget_bytes: int = 0
    slot_bytes: int = 0
    overhead_bytes: int = 0
    store_bytes: int = 0
    resident: int = 0

    def add_tier(self, part: TierStats) -> None:
        """Adds one pool's part of the same tier; the budget is the whole tier's already."""
        self.add(part)
        self.slot_bytes += part.slot_bytes
        self.overhead_bytes += part.overhead_bytes
        self.store_bytes += part.store_bytes
        self.resident += part.resident


@dataclass
class EvaluationCounts:
    """What forwards looked up that train nothing; the other counts do not contain it.

    Attributes:
        forwards: such forwards.
        lookups: ids looked up.
        misses: ids whose row no memory tier held.
        read: unique rows of those, summed over forwards and pools; read from the SSD tier, or
            computed where they were never trained.
        read_ahead: of ``read``, the rows that ``te.prefetch`` had read before the forward came.
    """

    forwards: int = 0
    lookups: int = 0
    misses: int = 0
    read: int = 0
    read_ahead: int = 0


@dataclass
class BoundsCounts:
    """Ids that lay outside their table, in training and in evaluation; see ``bounds_check``.

    Attributes:
        clamped: replaced by the nearest row.
        ignored: left out.
        warned: replaced by row 0.
    """

    clamped: int = 0
    ignored: int = 0
    warned: int = 0


@dataclass(frozen=True)
class PhaseTimes:
    """How long one phase of a step took (see ``engine/phases.py``), in seconds.

    Attributes:
        count: passes since the module was made, or since the times were cleared. A pass is a step
            for ``step``, ``wait``, ``lookup`` and ``update``, and a plan of one pool for the other
            phases.
        total_s: the time of all these passes.
        p50_s, p95_s, p99_s: percentiles over the newest passes.
    """

    count: int
    total_s: float
    p50_s: float
    p95_s: float
    p99_s: float


@dataclass(frozen=True)
class Stats:
    """The totals of one module.

    Attributes:
        steps: updates.
        tiers: counts per tier, topmost first.
        tables: counts per table.
        skipped: backwards that updated nothing because a gradient was infinite or NaN.
        phases: where the time went.
        depth: how many batches the deepest pool stages ahead now.
        unmatched: training forwards inside ``te.prefetch`` that could not use what it had staged.
        evaluation: what forwards looked up that train nothing.
        bounds: per table, ids outside it that forwards got.
    """

    steps: int
    tiers: Mapping[str, TierStats] = field(default_factory=dict)
    tables: Mapping[str, Counts] = field(default_factory=dict)
    skipped: int = 0
    phases: Mapping[str, PhaseTimes] = field(default_factory=dict)
    depth: int = 0
    unmatched: int = 0
    evaluation: EvaluationCounts = field(default_factory=EvaluationCounts)
    bounds: Mapping[str, BoundsCounts] = field(default_factory=dict)

    @property
    def topmost(self) -> TierStats:
        """The tier that computes."""
        return next(iter(self.tiers.values()))

    def since(self, earlier: Stats) -> Stats:
        """The counts of tiers and tables since ``earlier``; everything else as it is now."""
        tiers, tables = copy.deepcopy((self.tiers, self.tables))
        for now, then in ((tiers, earlier.tiers), (tables, earlier.tables)):
            for name, counts in now.items():
                if name in then:
                    counts.subtract(then[name])
        return replace(self, tiers=tiers, tables=tables)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
