"""The planner: which row is where, decided ahead of time and without a clock.

This module wraps the native planner (``native/residency``), which turns a window of future batches
into step plans. It moves no bytes: a simulator and a training run that feed it the same batches get
the same plans. Slots come from ``budgets.py``.

A large pool with a store below is partitioned: a hash deals its rows and slots to planners of their
own, which run on the threads of ``native/core``, and their plans are merged
(``native/residency/partitioned_planner.h``). The number of partitions depends only on the pool's
shape, and no plan depends on the number of threads. Unique rows, their order and their occurrences
are those of a single planner; only eviction, and so the slots that rows get, is decided partition
by partition.

Threading: every call locks inside the extension and releases the GIL while it works or waits.

A row's life in a tier::

    absent ──push──► awaited ──plan──► pinned ──last pin drops──► evictable
       ▲                ▲                 ▲                           │  │
       │                │                 └────────── plan ───────────┘  │
       └── no use ahead ┴──── use ahead ◄───────────── evict ────────────┘
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .. import _native
from .._native import Segments, StepPlan
from ..errors import CapacityError, ConfigError, TieredEmbedError
from ..spec import Counts
from .budgets import PoolSlots, num_partitions, require_countable

if TYPE_CHECKING:
    from .._native import InitialRows, TableCounts

__all__ = ["BASE_POLICIES", "POLICIES", "Planner", "Segment", "Segments", "StepPlan"]

BASE_POLICIES = ("lru", "lfu", "s3fifo")
POLICIES = (*BASE_POLICIES, "lookahead", *(f"lookahead:{base}" for base in BASE_POLICIES))

# What a native call may end with halfway; see native/residency/failure.h.
FAILURES = (_native.PlannerFailed, MemoryError, OverflowError, ValueError)

# (table index in its pool, row ids (n,) int64)
Segment = tuple[int, npt.NDArray[np.int64]]


class Planner:
    """One pool's residency in the tier that computes, and in the memory tier below it if there is
    one. See ``native/residency/planner.h`` and ``lower_tier.h`` for the rules.

    Args:
        tables: (name, rows or None for unbounded).
        slots: of the tier that computes.
        policy: of both tiers.
        backed: a store at the bottom takes evicted rows.
        tier: the upper tier's name, for messages.
        lower_slots: of the memory tier that takes what loses its slot above; 0: there is none.
        num_threads: that plan a partitioned pool; no plan depends on it.

    Threading: calls lock; their order is the caller's business and decides the plans.
    """

    def __init__(
        self,
        tables: Sequence[tuple[str, int | None]],
        slots: PoolSlots,
        *,
        policy: str,
        backed: bool,
        tier: str,
        lower_slots: int = 0,
        num_threads: int = 1,
    ) -> None:
        if not isinstance(policy, str) or policy not in POLICIES:
            raise ConfigError(f"policy is {policy!r}; choose one of {', '.join(POLICIES)}")
        require_countable([name for name, _ in tables])
        self._tier = tier
        self._whole = slots.whole
        self._all_whole = all(first >= 0 for first in slots.first_slot)
        self._names = [name for name, _ in tables]
        self._backed = backed
        self._lower = lower_slots > 0
        self._native = _native.Planner(
            [
                (-1 if rows is None else rows, first)
                for (_, rows), first in zip(tables, slots.first_slot, strict=True)
            ],
            whole_slots=slots.whole,
            cached_slots=slots.cached,
            overflow_slots=slots.overflow,
            lower_slots=lower_slots,
            policy=policy,
            backed=backed,
            num_partitions=num_partitions(slots, lower_slots, backed=backed),
            num_threads=num_threads,
        )

    def push(self, segments: Segments | Sequence[Segment]) -> None:
        """Appends a batch to the window. The ids lie inside their tables.

        Raises:
            TieredEmbedError: this call failed, or an earlier one that cannot be taken back.
        """
        try:
            self._native.push(_native_form(segments))
        except FAILURES as error:
            raise self._failed(error) from error

    def plan(self, depth: int) -> StepPlan:
        """Plans the window's oldest batch; the last ``depth`` plans' slots stay pinned.

        Raises:
            CapacityError: no room, with nothing changed.
            TieredEmbedError: as :meth:`push`.
        """
        try:
            return self._native.plan(depth)
        except (_native.NoCapacity, _native.TooManyHeld) as error:
            raise self._capacity_error(error) from None
        except FAILURES as error:
            raise self._failed(error) from error

    def plan_now(
        self, segments: Segments | Sequence[Segment], initial: InitialRows | None = None
    ) -> StepPlan:
        """Plans a batch alone, at depth 0; the window's batches come one plan later.

        initial: gives the rows that it stages their initial values, in the same call.

        Raises:
            CapacityError: no room, with nothing changed.
            TieredEmbedError: as :meth:`push`.
        """
        try:
            return self._native.plan_now(_native_form(segments), initial)
        except (_native.NoCapacity, _native.TooManyHeld) as error:
            raise self._capacity_error(error) from None
        except FAILURES as error:
            raise self._failed(error) from error

    def release(self, number: int, *, updated: bool, used: bool = True) -> None:
        """The batch of plan ``number`` is done.

        Args:
            updated: its rows were changed.
            used: a forward used the batch. If not, its lookups, unique rows, misses and overflow
                no longer count in the upper tier. Rows that it staged or evicted stay counted.
        """
        self._native.release(number, updated, used)

    def cancel(self) -> None:
        """Drops every batch of the window that has no plan yet."""
        self._native.cancel()

    def find(self, table: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """The slot of each id (n,), -1 where the row is not resident.

        The lower tier's slots follow the upper tier's, from ``first_lower_slot`` on.
        """
        return self.find_all([(table, ids)])

    def find_all(
        self, segments: Segments | Sequence[Segment], num_threads: int = 1
    ) -> npt.NDArray[np.int32]:
        """The slot of every occurrence (N,), as :meth:`find`."""
        try:
            return self._native.find(_native_form(segments), num_threads)
        except FAILURES as error:
            raise self._failed(error) from error

    def holds_for_good(self, segments: Segments | Sequence[Segment], num_threads: int = 1) -> bool:
        """Whether every row of the occurrences has been used, and is in a slot of its own for good,
        as rows of whole tables are."""
        return self._native.holds_for_good(_native_form(segments), num_threads)

    @property
    def native(self) -> _native.Planner:
        """For native calls over several parts."""
        return self._native

    def dirty_rows(
        self,
    ) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """(table, row id, slot) of rows that the store does not hold as they are here; slots are
        numbered as in :meth:`find`."""
        try:
            return self._native.dirty_rows()
        except FAILURES as error:
            raise self._failed(error) from error

    def mark_clean(self) -> None:
        """The dirty rows have been written back."""
        try:
            self._native.mark_clean()
        except FAILURES as error:
            raise self._failed(error) from error

    def counts(self, record_bytes: int, used: Sequence[int] | None = None) -> list[Counts]:
        """Counts of the upper tier, per table, in the order given at construction.

        Args:
            used: numbers of the plans awaiting their release that forwards have used. What the
                others add to lookups, unique, misses and overflow is left out. None: all count.
        """
        return _counts(self._native.counts(None if used is None else list(used)), record_bytes)

    def lower_counts(self, record_bytes: int) -> list[Counts]:
        """Of the lower tier: lookups are the rows that the upper tier staged, and overflow those
        that passed through for want of a slot. Empty without one."""
        return _counts(self._native.lower_counts(), record_bytes)

    def num_cached(self, plan: StepPlan) -> int:
        """Rows of the plan that share slots with others."""
        return int(np.count_nonzero(plan.slots >= self._whole))

    @property
    def num_tables(self) -> int:
        return len(self._names)

    @property
    def num_partitions(self) -> int:
        return self._native.num_partitions

    @property
    def window_size(self) -> int:
        return self._native.window_size

    @property
    def num_resident(self) -> int:
        """In the upper tier."""
        return self._native.num_resident

    @property
    def num_lower_resident(self) -> int:
        return self._native.num_lower_resident

    @property
    def first_lower_slot(self) -> int:
        """Slots from here on are the lower tier's."""
        return self._native.first_lower_slot

    @property
    def all_whole(self) -> bool:
        """Every row has a slot of its own: nothing is ever evicted."""
        return self._all_whole

    @property
    def all_resident(self) -> bool:
        """Every row is in its slot for good: a plan moves nothing."""
        return self._native.all_resident

    @property
    def overhead_bytes(self) -> int:
        return self._native.overhead_bytes

    def _failed(self, error: BaseException) -> TieredEmbedError:
        names = ", ".join(repr(name) for name in self._names)
        if isinstance(error, _native.PlannerFailed):
            return TieredEmbedError(
                f"the planner of table {names} stopped when an earlier call failed ({error}); "
                "close the module and restore the last checkpoint, with more memory if it ran out"
            )
        if isinstance(error, ValueError):
            return ConfigError(f"table {names}: {error}; take smaller batches")
        return TieredEmbedError(
            f"a batch of table {names} could not be planned ({error}); if memory ran out, give the "
            "process more or take smaller batches, and restore the last checkpoint"
        )

    def _capacity_error(self, error: RuntimeError) -> CapacityError:
        if isinstance(error, _native.TooManyHeld):
            return CapacityError(
                f"{error.args[0]} forwards still await their backward and hold their rows; "
                "run forwards that never train in eval() or torch.no_grad()"
            )
        missing, slots = error.args
        names = ", ".join(repr(name) for name in self._names)
        tiers = f"{self._tier} and DDR" if self._lower else self._tier
        have = "have" if self._lower else "has"
        remedy = f"raise {tiers.lower()}" + ("" if self._backed else " or add an ssd tier")
        have = "have" if self._lower else "has"
        return CapacityError(
            f"{tiers} {have} {slots} slots for table {names} and {missing} rows of this batch "
            f"found none; {remedy}"
        )


def _native_form(segments: Segments | Sequence[Segment]) -> Segments | list[Segment]:
    return segments if isinstance(segments, Segments) else list(segments)


def _counts(native: Sequence[TableCounts], record_bytes: int) -> list[Counts]:
    return [
        Counts(
            lookups=lookups,
            unique=unique,
            misses=misses,
            hits=unique - misses,
            staged=staged,
            evicted=evicted,
            written_back=written_back,
            overflow=overflow,
            bytes_in=staged * record_bytes,
            bytes_out=written_back * record_bytes,
        )
        for lookups, unique, misses, staged, evicted, written_back, overflow in native
    ]
