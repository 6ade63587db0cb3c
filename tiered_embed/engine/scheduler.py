"""Decides when plans may run, for one pool, and has them executed ahead of the trainer.

Staging jobs run one after another: enter a batch into the window, make a plan and start it (see
``mover.py``), apply a release. Jobs never wait for the trainer. The trainer's calls post them when
they may run, so a stop needs no wake-up, and decisions depend on the order of those calls alone.

The plan of a stream's batch *t* is posted when the ``lookahead`` batches after it are known and
batch *t - depth - 1* was released. The planner's window then holds exactly those batches. When the
trainer asks for it earlier (two forwards before one backward), it is posted all the same: the
planner keeps the slots of unreleased batches pinned.

With a :class:`~tiered_embed.engine.depth.DepthTuner` the depth may change at every batch that is
taken. A plan keeps the depth under which it was posted.

Threading: every method belongs to one thread at a time, the trainer's, except
:meth:`Scheduler.note_dropped`, which a garbage collector may call anywhere: it only leaves a note
that the trainer's next call reads.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import CapacityError, TieredEmbedError
from ..residency import Planner, Segment, Segments, StepPlan
from ..tiers import MemoryTiers, SsdTier
from .condition import Condition
from .depth import DepthTuner
from .entry import Ahead, Aside, Entry, NoStream, Started
from .executors import Executors
from .jobs import Jobs
from .lease import Lease
from .mover import Mover, StepNotes
from .notices import OverflowNotice
from .phases import Phases, Stalls

__all__ = ["Scheduler"]

T = TypeVar("T")
WRITE_BUFFER_BYTES = 32 << 20


class Scheduler:
    """Stages batches of one pool ahead of the trainer.

    Args:
        planner: decides residency.
        memory: the tiers that it decides about.
        ssd: the store below, or None.
        lookahead: future batches that a streamed plan has seen, unless the stream ended.
        depth: batches staged ahead of the one training, or who finds that number.
        executors: who runs the jobs; threads by default.
        phases: where times are noted.
        write_buffer_bytes: dirty records that wait to be written; those of one plan come on top.
    """

    def __init__(
        self,
        planner: Planner,
        memory: MemoryTiers,
        ssd: SsdTier | None,
        *,
        lookahead: int,
        depth: int | DepthTuner,
        executors: Executors | None = None,
        phases: Phases | None = None,
        write_buffer_bytes: int = WRITE_BUFFER_BYTES,
    ) -> None:
        self.planner = planner
        self.memory = memory
        self.ssd = ssd
        self.lookahead = lookahead
        self.stalls = Stalls(planner.num_tables)
        self._tuner = depth if isinstance(depth, DepthTuner) else None
        self.depth = depth.depth if isinstance(depth, DepthTuner) else depth
        self._taken_at: float | None = None  # when the stream's last batch was taken
        self._jobs = Jobs(executors or Executors())
        self._phases = phases or Phases()
        self._mover = Mover(memory, ssd, self._jobs.executors, self._phases, write_buffer_bytes)
        # Fills what a plan stages, where its rows can be nowhere else.
        self._initial = memory.initial if planner.all_whole and ssd is None else None
        self.condition = Condition(self._mover)
        self.check = self.condition.check
        self._overflow = OverflowNotice(memory)

        # The stream's tickets, by number: [_num_taken, _num_posted) have a plan, and those below
        # _num_entered are in the planner's window or planned.
        self._ahead: Ahead = NoStream()
        self._num_entered = 0
        self._num_posted = 0
        self._num_taken = 0
        self._held: list[tuple[int, Lease]] = []  # (ticket's number, taken lease)

        self._dropped: deque[tuple[Lease, bool]] = deque()  # any thread appends
        self._used: set[int] = set()  # numbers of the plans that forwards hold

        # Written by the staging job that runs, read when none does.
        self._refused: CapacityError | None = None  # the stream's first plan without room

    # --- the trainer's calls --------------------------------------------------------------------

    def follow(self, ahead: Ahead) -> None:
        """Plans the tickets of a new stream from here on. REQUIRES: none is followed, or cancelled.

        An interrupted :meth:`cancel` is repeated first.
        """
        self.condition.check_process()
        self.cancel()
        self._ahead = ahead

    def cancel(self) -> None:
        """Drops the stream: the window, and batches that were staged but never taken.

        Idempotent, and to be repeated when it was interrupted.
        """
        if not self.condition.in_own_process:
            return
        self._release_dropped()
        self._jobs.wait()
        self._mover.wait_for_reads()
        while self._num_posted > self._num_taken:
            planned = self._ahead.entry(self._num_posted - 1).planned
            if planned is not None and planned.exception() is None:
                self.planner.release(planned.result().plan.number, updated=False, used=False)
            self._num_posted -= 1
        self.planner.cancel()
        self._ahead = NoStream()
        self._taken_at = None
        self._held.clear()
        self._num_entered = self._num_posted = self._num_taken = 0
        self._refused = None

    def peek(self) -> StepPlan:
        """Waits for the stream's oldest batch; its rows are in their slots on return.

        Raises:
            CapacityError: there is no room for it, and no tier below.
        """
        self.check()
        self._release_dropped()
        entry = self._ahead.entry(self._num_taken)
        if entry.planned is None:
            self._post_plan(self._num_taken)
        assert entry.planned is not None
        start = time.perf_counter()
        plan, ready = self._wait(entry.planned)
        if ready is not None:
            self._wait(ready)
        waited_s = time.perf_counter() - start
        self.stalls.note(plan, waited_s)
        entry.waited_s += waited_s
        self._overflow.see(plan, self.depth)
        return plan

    def take(self) -> Lease:
        """The stream's oldest batch, as :meth:`peek`, to train on."""
        lease = self._lease(self.peek())
        waited_s = self._ahead.entry(self._num_taken).waited_s
        self._held.append((self._num_taken, lease))
        self._num_taken += 1
        if self._tuner is not None:
            self._tune(self._tuner, waited_s, self.planner.num_cached(lease.plan))
        return lease

    def used_plans(self) -> list[int]:
        """Numbers of plans that a forward has, or had until just now."""
        return list(self._used)

    def note_steps(self, steps: StepNotes) -> None:
        """Has the counts of every plan of the next stream noted. REQUIRES: there is none now."""
        self._mover.steps = steps

    def stage(self, segments: Segments | Sequence[Segment]) -> Lease:
        """Plans and stages one batch at once, ahead of the stream.

        Raises:
            CapacityError: no room; nothing changed.
        """
        self.check()
        self._release_dropped()
        if (self._initial or self.planner.all_resident) and self._jobs.idle:
            # Cheaper than a thread. An interrupt may lose the plan, which pins nothing.
            with self._phases.time("plan"):
                plan = self.planner.plan_now(segments, self._initial)
            self.await_rows(plan.slots)
            return self._lease(plan)

        def job() -> Aside:
            with self._phases.time("plan"):
                plan = self.planner.plan_now(segments)
            return Aside(plan, self._mover.run_aside(plan))

        start = time.perf_counter()
        future = self._jobs.post(job)
        try:
            with self._mover.hurry():
                plan, shared = self._wait(future)
            # It jumped the queue: rows that it shares with the stream may still be on their way.
            for read in shared:
                self._wait(read)
        except KeyboardInterrupt:
            # The job goes on by itself; nobody will use what it stages.
            future.add_done_callback(self._drop_unwanted)
            raise
        self.stalls.note(plan, time.perf_counter() - start)
        self._overflow.see(plan, self.depth)
        return self._lease(plan)

    def finish_plans(self) -> None:
        """Returns when every posted plan is made, and its victims are in the write buffer. Its rows
        may be on their way into their slots: see :meth:`await_rows`."""
        self.check()
        self._release_dropped()
        with self._mover.hurry():
            self._jobs.wait()
        self.check()

    def is_at_rest(self) -> bool:
        """Whether no job is posted that plans, and no rows are on their way into their slots."""
        self.check()
        self._release_dropped()
        return self._jobs.idle and not self._mover.reading

    def await_rows(self, slots: npt.NDArray[np.int32]) -> None:
        """Returns when the rows of ``slots`` (n,) are there; negative ones are none. REQUIRES:
        every plan is made."""
        if self._mover.reading:
            for read in self._mover.reads_into(slots[slots >= 0]):
                read.exception()
            self.check()

    def finish_moves(self) -> None:
        """Returns when the rows of every posted plan are in their slots, and its victims are in the
        write buffer. Writes from there to the store go on."""
        self.finish_plans()
        self._mover.wait_for_reads()
        self.check()

    def in_order(self, job: Callable[[], T]) -> Future[T]:
        """Runs ``job`` in the background after what was posted before; it must be brief."""
        self.check()
        return self._jobs.post(job)

    def in_reading_thread(self, job: Callable[[], T]) -> Future[T]:
        """Runs ``job``, which reads from the store for no plan, in the background."""
        return self._mover.in_reading_thread(job)

    def quiesce(self) -> None:
        """Returns when every posted job has run and every write has reached the store."""
        self.finish_moves()
        self._mover.finish()
        self.check()

    def flush(self) -> None:
        """Writes every dirty record to the tier below."""
        self.quiesce()
        self._write_dirty()

    def snapshot(self, job: Callable[[], T]) -> Future[T]:
        """Runs ``job`` in the background, where the store holds every row as it is now.

        Training may go on: what it changes reaches the store after ``job``.

        Raises:
            StoreError: an earlier write failed.
        """
        self.check()
        self._release_dropped()
        self._jobs.wait()
        self._mover.wait_for_reads()
        self.check()
        out = self._mover.snapshot(*self.planner.dirty_rows(), job)
        self.planner.mark_clean()
        return out

    def in_saving_thread(self, job: Callable[[], T]) -> Future[T]:
        """Runs ``job`` in the background, in parallel with everything else."""
        self.check()
        return self._mover.in_saving_thread(job)

    def refuse(self, why: TieredEmbedError) -> None:
        """Every later call but :meth:`discard` and :meth:`close` raises ``why``."""
        self.condition.refusal = why

    def discard(self) -> None:
        """Stops at once, with every row lost; idempotent."""
        if self.condition.closed or not self.condition.in_own_process:
            return
        self.condition.closed = True
        with contextlib.suppress(Exception):
            self.cancel()
        self._jobs.executors.shutdown()

    def close(self) -> bool:
        """Flushes and stops; idempotent. Works inside a garbage collection: posts no job.

        Returns whether this call flushed: not a second one, nor one in a forked child.

        Raises:
            StoreError: rows could not be written.
        """
        if self.condition.closed:
            return False
        self.condition.closed = True
        if not self.condition.in_own_process:
            return False
        if self.condition.refusal is not None:
            self._jobs.executors.shutdown()
            return False
        try:
            self.cancel()
            self._jobs.wait()
            self._mover.finish()
            # A failed read leaves what was trained before it in its slots.
            self._write_dirty()
            lost = self._mover.lost
            if lost is not None:
                raise TieredEmbedError(
                    f"rows that were leaving {self.memory.upper.name} were lost: {lost!r}"
                ) from lost
        finally:
            self._jobs.executors.shutdown()
        return True

    # --- jobs -----------------------------------------------------------------------------------

    def advance(self) -> None:
        """Posts the plans that may run now."""
        self.condition.check_process()
        ahead = self._ahead
        while self._num_posted < ahead.num_pushed:
            number = self._num_posted
            seen_enough = ahead.ended or ahead.num_pushed - 1 - number >= self.lookahead
            oldest_held = self._held[0][0] if self._held else self._num_taken
            if not seen_enough or oldest_held < number - self.depth:
                return
            self._post_plan(number)

    def _post_plan(self, number: int) -> None:
        """Posts the plan of a ticket, and the batches that its window lacks."""
        entry = self._ahead.entry(number)
        while self._num_entered < min(self._ahead.num_pushed, number + 1 + self.lookahead):
            seen = self._ahead.entry(self._num_entered)
            self._enter(seen)
            self._num_entered += 1

        depth = self.depth

        def job() -> Started:
            self._mover.require_no_failure()
            if self._refused is not None:
                raise self._refused
            try:
                with self._phases.time("plan"):
                    plan = self._mover.watched(lambda: self.planner.plan(depth), but=CapacityError)
            except CapacityError as error:
                self._refused = error
                raise
            return Started(plan, self._mover.run(plan))

        self._num_posted += 1
        entry.planned = self._jobs.post(job)

    def _enter(self, entry: Entry) -> None:
        segments, entry.segments = entry.segments, None
        assert segments is not None
        self._jobs.post(lambda: self._mover.watched(lambda: self.planner.push(segments)))

    def _write_dirty(self) -> None:
        if self.ssd is None:
            return
        self._mover.write_out(*self.planner.dirty_rows())
        self.planner.mark_clean()

    # --- leases ---------------------------------------------------------------------------------

    def release(self, lease: Lease, updated: bool, used: bool) -> None:
        """As :meth:`Lease.release`, which calls it."""
        if self.condition.closed or not self.condition.in_own_process:
            return
        number = lease.plan.number
        if not used:
            self._used.discard(number)

        def job() -> None:
            self._mover.watched(lambda: self.planner.release(number, updated=updated, used=used))
            self._used.discard(number)

        self._jobs.post_brief(job)
        if self._held:
            self._held = [(n, held) for n, held in self._held if held is not lease]
        if self._num_posted < self._ahead.num_pushed:
            self.advance()

    def note_dropped(self, lease: Lease, updated: bool) -> None:
        """As :meth:`Lease.drop`, which calls it, perhaps in a garbage collection."""
        self._dropped.append((lease, updated))

    def _release_dropped(self) -> None:
        while self._dropped:
            lease, updated = self._dropped.popleft()
            self.release(lease, updated, True)

    def _lease(self, plan: StepPlan) -> Lease:
        self._used.add(plan.number)
        return Lease(self, plan)

    def _drop_unwanted(self, future: Future[Aside]) -> None:
        if future.exception() is None:
            Lease(self, future.result().plan).drop()

    def _wait(self, future: Future[T]) -> T:
        try:
            return future.result()
        except Exception:
            self.check()  # words it for the trainer
            raise

    def _tune(self, tuner: DepthTuner, waited_s: float, num_unique: int) -> None:
        now = time.perf_counter()
        if self._taken_at is not None:
            self.depth = tuner.observe(now - self._taken_at, waited_s, num_unique)
            self.advance()
        self._taken_at = now
