"""What one pool's scheduler sees of the stream, and notes about each ticket.

Plain data; the scheduler writes it, in the trainer's thread.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import NamedTuple, Protocol

from ..residency import Segments, StepPlan

__all__ = ["Ahead", "Aside", "Entry", "NoStream", "Started"]


class Started(NamedTuple):
    """A plan that the mover executes.

    ready: done when the plan's rows are in their slots; None: they are there already.
    """

    plan: StepPlan
    ready: Future[None] | None


class Aside(NamedTuple):
    """The plan of a batch outside the stream.

    shared: the reads of earlier plans that fill some of its slots; its other rows are there.
    """

    plan: StepPlan
    shared: list[Future[None]]


class Entry:
    """One pool's part of a ticket: its ids, until they are in the planner's window, and its plan.

    planned: None until the plan is posted. waited_s: by the trainer.
    """

    __slots__ = ("planned", "segments", "waited_s")

    def __init__(self, segments: Segments) -> None:
        # Copies: the loader may reuse its buffers before the batch enters the window.
        self.segments: Segments | None = segments.copy()
        self.planned: Future[Started] | None = None
        self.waited_s = 0.0


class Ahead(Protocol):
    """What a scheduler sees of the stream: its own pool's part of every ticket, by number."""

    @property
    def ended(self) -> bool:
        """No further batch will come."""

    @property
    def num_pushed(self) -> int:
        """Tickets so far."""

    def entry(self, number: int) -> Entry:
        """Of a ticket that was pushed and not taken. Raises IndexError for any other."""


class NoStream:
    """A stream without a batch."""

    ended = False
    num_pushed = 0

    def entry(self, number: int) -> Entry:
        raise IndexError("no batch is known: there is no stream")
