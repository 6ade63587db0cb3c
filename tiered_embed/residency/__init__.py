"""Which row is where, decided ahead of time and without a clock. Moves no bytes."""

from .budgets import (
    OVERFLOW_SLOTS,
    PoolSlots,
    allocate,
    allocate_tiers,
    fair_shares,
    num_partitions,
)
from .planner import BASE_POLICIES, POLICIES, Planner, Segment, Segments, StepPlan
from .replay import BatchedIds, Replay

__all__ = [
    "BASE_POLICIES",
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
]
