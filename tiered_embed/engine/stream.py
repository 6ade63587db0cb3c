"""The known future of one engine: batches that were pushed and that no forward has used yet.

:meth:`Stream.push` takes a checked batch and gives a ticket, the batch's place in the stream. The
loop says when it hands a batch out (:meth:`Stream.give`) and when it is done with it
(:meth:`Stream.finish`). In between a forward presents what it got: :meth:`Stream.known` tells by
identity whether that is the ticket's batch, so that nothing is checked twice, and
:meth:`Stream.take` tells by content, and gives the leases of its rows. A batch that no forward took
is released unused.

This is the one queue of future batches. Each pool's scheduler reads from it what it may plan; an
exchange of ids between ranks would come between a batch's check and its push.

Threading: one thread at a time, the trainer's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum

import numpy as np

from ..residency import Segments, StepPlan
from .checking import CheckedBatch, Presented
from .entry import Entry
from .lease import Lease
from .scheduler import Scheduler

__all__ = ["Stream", "Ticket", "TicketState"]


class TicketState(Enum):
    """A ticket goes from KNOWN to GIVEN, and from there to TAKEN or UNUSED."""

    KNOWN = "pushed"
    GIVEN = "handed to the loop"
    TAKEN = "a forward has its leases"
    UNUSED = "the loop is done with it, and no forward took it"


class Ticket:
    """A batch's place in the stream.

    entries: what each pool's scheduler has done for it. answered: a forward came while the batch
    was with the loop, whether or not it presented this batch.
    """

    __slots__ = ("answered", "batch", "entries", "state")

    def __init__(self, batch: CheckedBatch) -> None:
        self.batch = batch
        self.entries = [Entry(segments) for segments in batch.segments]
        self.state = TicketState.KNOWN
        self.answered = False


class Stream:
    """Batches ahead of one loop, oldest first."""

    def __init__(self, schedulers: Sequence[Scheduler]) -> None:
        self._schedulers = schedulers
        self._tickets: deque[Ticket] = deque()  # KNOWN or GIVEN
        self._num_pushed = 0
        self._given: Ticket | None = None  # with the loop now
        self.ended = False
        for p, scheduler in enumerate(schedulers):
            scheduler.follow(PoolStream(self, p))

    # --- the loop's calls -------------------------------------------------------------------------

    def push(self, batch: CheckedBatch) -> Ticket:
        """Makes a future batch known. REQUIRES: it was checked."""
        for scheduler in self._schedulers:
            scheduler.check()
        ticket = Ticket(batch)
        self._tickets.append(ticket)
        self._num_pushed += 1
        self._advance()
        return ticket

    def end(self) -> None:
        """No further batch will be pushed: what remains is planned with the window that it has."""
        self.ended = True
        self._advance()

    def give(self, ticket: Ticket) -> None:
        """The loop hands out the ticket's batch. REQUIRES: it is the oldest."""
        ticket.state = TicketState.GIVEN
        self._given = ticket

    def finish(self, ticket: Ticket) -> None:
        """The loop is done with the ticket's batch; if no forward took it, it is released."""
        self._given = None
        if ticket.state is TicketState.GIVEN:
            for lease in self._leases(TicketState.UNUSED):
                lease.release(updated=False, used=False)

    def close(self) -> None:
        """Drops the window, and batches that were staged but never used.

        Idempotent, and to be repeated when it was interrupted.
        """
        self._given = None
        for scheduler in self._schedulers:
            scheduler.cancel()
        self._tickets.clear()

    @property
    def given(self) -> bool:
        """A batch is with the loop."""
        return self._given is not None

    # --- the forward's calls ----------------------------------------------------------------------

    def known(self, presented: Presented) -> CheckedBatch | None:
        """The batch with the loop now, if it was pushed as these very tensors, unchanged since."""
        ticket = self._given
        if ticket is None or ticket.state is not TicketState.GIVEN:
            return None
        mine = ticket.batch.presented
        if mine is None or not mine.is_same(presented) or not mine.unchanged():
            return None
        return ticket.batch

    def take(self, batch: CheckedBatch) -> list[Lease] | str:
        """The leases of the ticket whose batch this is, by content; or why there is none."""
        ticket = self._given
        if ticket is None:
            return "te.prefetch was shown no ids of this module for this batch"
        ticket.answered = True
        if ticket.state is not TicketState.GIVEN:
            return "an earlier forward has used what te.prefetch staged for this batch"
        # Every pool waits before any is taken.
        plans = [scheduler.peek() for scheduler in self._schedulers]
        for plan, segments in zip(plans, batch.segments, strict=True):
            if not plan.matches(segments):
                return _difference(plans, batch)
        return self._leases(TicketState.TAKEN)

    def _leases(self, state: TicketState) -> list[Lease]:
        leases = [scheduler.take() for scheduler in self._schedulers]
        self._tickets.popleft().state = state
        return leases

    def _advance(self) -> None:
        for scheduler in self._schedulers:
            scheduler.advance()

    # --- the schedulers' view ---------------------------------------------------------------------

    @property
    def num_pushed(self) -> int:
        return self._num_pushed

    def ticket(self, number: int) -> Ticket:
        """The ``number``-th ticket of this stream, from 0. Raises IndexError: taken or unknown."""
        first = self._num_pushed - len(self._tickets)
        if not first <= number < self._num_pushed:
            raise IndexError(f"ticket {number} is not waiting: [{first}, {self._num_pushed}) are")
        return self._tickets[number - first]


class PoolStream:
    """What one pool's scheduler sees of the stream."""

    def __init__(self, stream: Stream, pool: int) -> None:
        self._stream = stream
        self._pool = pool

    @property
    def ended(self) -> bool:
        return self._stream.ended

    @property
    def num_pushed(self) -> int:
        return self._stream.num_pushed

    def entry(self, number: int) -> Entry:
        return self._stream.ticket(number).entries[self._pool]


def _difference(plans: Sequence[StepPlan], batch: CheckedBatch) -> str:
    """How the forward's ids differ from those that were prefetched."""
    expected = sum(plan.num_ids for plan in plans)
    given = sum(segments.num_ids for segments in batch.segments)
    if expected != given:
        return f"te.prefetch was shown {expected} ids, and the forward got {given}"
    same = all(
        np.array_equal(np.sort(plan.keys[plan.inverse]), _sorted_ids(segments))
        for plan, segments in zip(plans, batch.segments, strict=True)
    )
    if same:
        return f"the forward got the {given} ids that te.prefetch was shown in another order"
    return f"the forward got {given} other ids than te.prefetch was shown"


def _sorted_ids(segments: Segments) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    parts = [ids for _, ids in segments.parts()]
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
