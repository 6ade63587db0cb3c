"""The HBM tier: the records of one pool on a device, by slot.

Weights (slots, D) and every state array (slots, width) are separate tensors, as the kernels need
them. A record that travels is their rows, one after the other, as everywhere else.

Threading: calls may overlap when they name different slots; the planner's pins ensure that. A
kernel uses the tensors inside :meth:`HbmTier.use`; growing them waits until no kernel does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from ..errors import CapacityError
from .layout import PoolLayout
from .moves import Moves

__all__ = ["HbmTier"]

Slots = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]


class HbmTier:
    """Slots for records of ``layout`` on the device of ``moves``.

    Args:
        num_slots: allocated at once; :meth:`reserve` adds more for a batch beyond the budget.

    Raises:
        CapacityError: the device does not have enough memory.
    """

    name = "HBM"

    def __init__(self, layout: PoolLayout, num_slots: int, moves: Moves) -> None:
        self.layout = layout
        self.moves = moves
        self.num_slots = num_slots
        dtype = getattr(torch, layout.dtype)
        self.weights = self._allocate(num_slots, layout.dim, dtype)
        self.state = {
            name: self._allocate(num_slots, width, torch.float32)
            for name, width in layout.state_layout.items()
        }
        self._users = 0
        self._growing = False
        self._changed = threading.Condition()  # guards the two above

    def reserve(self, num_slots: int) -> None:
        if num_slots <= self.num_slots:
            return
        wanted = max(num_slots, self.num_slots + self.num_slots // 8)
        with self._alone():
            larger = [self._allocate(wanted, a.shape[1], a.dtype) for a in self._arrays()]
            for old, new in zip(self._arrays(), larger, strict=True):
                self.moves.move(old, new)
                old.data = new  # in place: kernels hold these tensor objects
            self.num_slots = wanted

    def free(self) -> None:
        """Frees the device's memory. Every record is lost."""
        with self._alone():
            for array in self._arrays():
                array.data = self._allocate(0, array.shape[1], array.dtype)
            self.num_slots = 0

    @contextmanager
    def use(self) -> Iterator[None]:
        """Inside, the tensors stay in place and hold every record that was written before."""
        self._enter()
        try:
            self.moves.before_use()
            try:
                yield
            finally:
                self.moves.after_use()  # also after a failure: an earlier kernel has used slots
        finally:
            self._leave()

    def gather(self, slots: Slots) -> U8:
        if len(slots) == 0:
            return np.empty((0, self.layout.record_bytes), np.uint8)
        self._enter()
        try:
            return self.moves.gather(self._arrays(), slots)
        finally:
            self._leave()

    def scatter(self, slots: Slots, records: U8, keep: Bools | None = None) -> None:
        if keep is not None and not keep.all():
            slots, records = slots[keep], records[keep]
        if len(slots) == 0:
            return
        self._enter()
        try:
            self.moves.scatter(self._arrays(), slots, records)
        finally:
            self._leave()

    def initialise(
        self,
        slots: Slots,
        tables: npt.NDArray[np.uint16],
        rows: npt.NDArray[np.int64],
        skip: Bools | None = None,
    ) -> None:
        if skip is not None:
            slots, tables, rows = slots[~skip], tables[~skip], rows[~skip]
        self.scatter(slots, self.layout.initial_records(tables, rows))

    def _arrays(self) -> list[torch.Tensor]:
        """In the order of a record's parts."""
        return [self.weights, *self.state.values()]

    def _allocate(self, num_slots: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        try:
            return self.moves.zeros(num_slots, width, dtype)
        except RuntimeError as error:
            # On a CPU the error has no class of its own.
            if not isinstance(error, torch.OutOfMemoryError) and "allocate" not in str(error):
                raise
            names = ", ".join(repr(name) for name, _ in self.layout.tables)
            raise CapacityError(
                f"{self.moves.device} has no room for {num_slots} records of "
                f"{self.layout.record_bytes} bytes of table {names}, weights and optimizer state "
                f"({num_slots * self.layout.record_bytes} bytes); lower hbm, or free memory there"
            ) from error

    # --- who uses the tensors, and when they may be replaced --------------------------------------

    def _enter(self) -> None:
        with self._changed:
            while self._growing:
                self._changed.wait()
            self._users += 1

    def _leave(self) -> None:
        with self._changed:
            self._users -= 1
            self._changed.notify_all()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            with self._changed:
                self._growing = True
                while self._users:
                    self._changed.wait()
            yield
        finally:
            with self._changed:
                self._growing = False
                self._changed.notify_all()
