"""What a pool tells its user once, in the log."""

from __future__ import annotations

import logging

from ..residency import StepPlan
from ..tiers import MemoryTiers

__all__ = ["OverflowNotice"]

_log = logging.getLogger("tiered_embed")


class OverflowNotice:
    """Tells of the first batch that did not fit the topmost tier, and the size that would hold it.

    Threading: one thread at a time.
    """

    def __init__(self, memory: MemoryTiers) -> None:
        self._memory = memory
        self._given = False

    def see(self, plan: StepPlan, depth: int) -> None:
        """Called for every plan; ``depth`` batches are staged ahead."""
        if not plan.overflow or self._given:
            return
        self._given = True
        tier = self._memory.upper.name
        _log.warning(
            "a batch of %d rows took %d transient slots beyond the %s budget; about %s=%d "
            "bytes would hold it at depth %d",
            len(plan.keys),
            plan.overflow,
            tier,
            tier.lower(),
            len(plan.keys) * (depth + 1) * self._memory.layout.record_bytes,
            depth,
        )
