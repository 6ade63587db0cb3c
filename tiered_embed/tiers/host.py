"""The DDR tier: the records of one pool in host memory, by slot.

Threading: calls may overlap when they name different slots; the planner's pins ensure that.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import _native
from ..errors import CapacityError
from .layout import PoolLayout

__all__ = ["HostTier"]

Slots = npt.NDArray[np.int32]


class HostTier:
    """Slots for records of ``layout``. Memory is taken when a slot is first used.

    ``name`` is ``"HBM"`` where this tier takes the place of one, on a CPU.

    Raises:
        CapacityError: the process may not reserve so much address space.
    """

    def __init__(
        self, layout: PoolLayout, num_slots: int, num_threads: int, name: str = "DDR"
    ) -> None:
        self.layout = layout
        self.name = name
        self.num_threads = num_threads
        try:
            self.records = _native.RecordArray(
                num_slots, layout.dim, layout.type_number, layout.state_floats
            )
        except MemoryError:
            raise CapacityError(
                f"cannot reserve address space for {num_slots} records of {layout.record_bytes} "
                f"bytes; lower {name.lower()}, or lift the process's limit on virtual memory"
            ) from None

    @property
    def initial(self) -> _native.InitialRows:
        """What gives the rows that a plan stages their initial values."""
        layout = self.layout
        return _native.InitialRows(
            self.records,
            layout.table_words,
            layout.seed,
            layout.init.lo,
            layout.init_scale,
            self.num_threads,
        )

    def reserve(self, num_slots: int) -> None:
        """Does nothing: the addresses of all slots are reserved from the start."""

    def gather(self, slots: Slots) -> npt.NDArray[np.uint8]:
        """Copies of the records in ``slots`` (n,) -> (n, record_bytes)."""
        out = np.empty((len(slots), self.layout.record_bytes), np.uint8)
        self.records.gather(slots, out, self.num_threads)
        return out

    def scatter(
        self,
        slots: Slots,
        records: npt.NDArray[np.uint8],
        keep: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Writes ``records`` (n, record_bytes) into ``slots`` (n,), only where ``keep`` (n,)."""
        self.records.scatter(slots, records, keep, self.num_threads)

    def initialise(
        self,
        slots: Slots,
        tables: npt.NDArray[np.uint16],
        rows: npt.NDArray[np.int64],
        skip: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Gives ``slots`` (n,) the initial values of their rows, except where ``skip``."""
        layout = self.layout
        self.records.initialise(
            slots,
            layout.table_words[tables],
            rows,
            skip,
            layout.seed,
            layout.init.lo,
            layout.init_scale,
            self.num_threads,
        )
