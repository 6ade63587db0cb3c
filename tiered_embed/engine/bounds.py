"""Counts the ids that lay outside their tables, and says once that some were replaced.

Threading: as the engine.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from ..spec import BoundsCounts
from .checking import CheckedBatch
from .wiring import Wiring

__all__ = ["Bounds"]

_log = logging.getLogger("tiered_embed")


class Bounds:
    """Of one engine."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._counts = {table.name: BoundsCounts() for table in wiring.tables}
        self._told = False

    def counts(self) -> dict[str, BoundsCounts]:
        """Of each table, until now."""
        return {name: replace(counts) for name, counts in self._counts.items()}

    def note(self, batch: CheckedBatch) -> None:
        """A forward got this batch. REQUIRES: some of its ids were outside."""
        for f in batch.outside:
            outside = batch.features[f].outside
            assert outside is not None
            counts = self._counts[self._wiring.feature_tables[f].name]
            counts.clamped += outside.clamped
            counts.ignored += outside.ignored
            counts.warned += outside.warned
            if outside.warned and not self._told:
                self._tell(batch, f)

    def _tell(self, batch: CheckedBatch, first: int) -> None:
        self._told = True
        total = sum(feature.outside.warned for feature in batch.features if feature.outside)
        outside = batch.features[first].outside
        assert outside is not None
        table = self._wiring.feature_tables[first]
        position, wrong = outside.first
        _log.warning(
            "%d ids of a batch are outside their tables, and row 0 is looked up instead: the first "
            "is id %d at position %d, outside [0, %d) of table %r. This is said once; "
            "stats().bounds counts such ids. Pass bounds_check='raise' to have them refused",
            total,
            wrong,
            position,
            table.num_embeddings,
            table.name,
        )
