"""The memory tiers of one pool, as the engine's mover sees them: one, or two as a pair.

Threading: as the tiers: calls may overlap when they name different slots.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from .. import _native
from .host import HostTier
from .layout import PoolLayout

__all__ = ["MemoryTier", "MemoryTiers"]

Slots = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]


class MemoryTier(Protocol):
    """Records by slot. Calls may overlap when they name different slots."""

    name: str
    layout: PoolLayout

    def reserve(self, num_slots: int) -> None:
        """Makes the slots below ``num_slots`` usable. Raises CapacityError: not enough memory."""

    def gather(self, slots: Slots) -> U8:
        """Copies of the records in ``slots`` (n,) -> (n, record_bytes)."""

    def scatter(self, slots: Slots, records: U8, keep: Bools | None = None) -> None:
        """Writes ``records`` (n, record_bytes) into ``slots`` (n,), only where ``keep`` (n,)."""

    def initialise(
        self,
        slots: Slots,
        tables: npt.NDArray[np.uint16],
        rows: npt.NDArray[np.int64],
        skip: Bools | None = None,
    ) -> None:
        """Gives ``slots`` (n,) the initial values of their rows, except where ``skip``."""


class MemoryTiers:
    """The tier where kernels compute, and the tier below that takes its victims, if there is one.

    Args:
        first_lower_slot: the number of the lower tier's first slot in ``Planner.find``.
    """

    def __init__(
        self, upper: MemoryTier, lower: HostTier | None = None, first_lower_slot: int = 2**31 - 1
    ) -> None:
        self.upper = upper
        self.lower = lower
        self._first_lower_slot = first_lower_slot

    @property
    def initial(self) -> _native.InitialRows | None:
        """What gives rows that are nowhere their initial values as a plan stages them; None where
        there is a tier below, or where a device computes."""
        upper = self.upper
        return upper.initial if self.lower is None and isinstance(upper, HostTier) else None

    @property
    def layout(self) -> PoolLayout:
        return self.upper.layout

    def gather(self, slots: Slots) -> U8:
        """Copies of the records in ``slots`` (n,) of either tier -> (n, record_bytes)."""
        if self.lower is None:
            return self.upper.gather(slots)
        below = slots >= self._first_lower_slot
        if not below.any():
            return self.upper.gather(slots)
        out = np.empty((len(slots), self.layout.record_bytes), np.uint8)
        out[below] = self.lower.gather(slots[below] - np.int32(self._first_lower_slot))
        if not below.all():
            out[~below] = self.upper.gather(slots[~below])
        return out
