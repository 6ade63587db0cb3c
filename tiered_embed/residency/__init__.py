"""Which row is where, decided ahead of time and without a clock. Moves no bytes."""

from .budgets import (
    MAX_TABLES,
    OVERFLOW_SLOTS,
    PoolSlots,
    allocate,
    allocate_tiers,
    fair_shares,
    num_partitions,
    require_countable,
)
from .planner import BASE_POLICIES, POLICIES, Planner, Segment, Segments, StepPlan
from .replay import BatchedIds, Replay

__all__ = [
    "BASE_POLICIES",
    "MAX_TABLES",
    "OVERFLOW_SLOTS",
    "POLICIES",
    "BatchedIds",
    "Planner",
    "PoolSlots",
    "Replay",
    "Segment",
    "Segments",
    "StepPlan",
    "allocate",
    "allocate_tiers",
    "fair_shares",
    "num_partitions",
    "require_countable",
]
