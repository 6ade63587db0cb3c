"""A planned batch whose rows stay in their slots until it is released.

Threading: the trainer's thread releases; a garbage collector, in any thread, only leaves a note.
"""

from __future__ import annotations

from typing import Protocol

from ..residency import StepPlan

__all__ = ["Lease"]


class Owner(Protocol):
    """Who pins the rows: a pool's scheduler."""

    def release(self, lease: Lease, updated: bool, used: bool) -> None:
        """Drops the pins, in the trainer's thread."""

    def note_dropped(self, lease: Lease, updated: bool) -> None:
        """Leaves a release for the trainer's next call; from any thread."""


class Lease:
    """The slots of a planned batch, pinned until it is released or dropped, once."""

    __slots__ = ("_open", "_owner", "plan")

    def __init__(self, owner: Owner, plan: StepPlan) -> None:
        self.plan = plan
        self._owner = owner
        self._open = True

    def release(self, *, updated: bool, used: bool = True) -> None:
        """Drops the pins.

        ``updated``: the rows were changed. ``used``: a forward looked them up; otherwise the batch
        is taken out of the counts of lookups.
        """
        if self._open:
            self._open = False
            self._owner.release(self, updated, used)

    def drop(self, *, updated: bool = False) -> None:
        """As :meth:`release`, from any thread: it happens at the trainer's next call."""
        if self._open:
            self._open = False
            self._owner.note_dropped(self, updated)
