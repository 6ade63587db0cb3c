"""Makes step plans in order, for one pool, and has them executed ahead of the trainer.

The owner of threads. Staging jobs run one after another: enter a batch into the window, make a plan
and start it (see ``execution.py``), apply a release. Jobs never wait for the trainer: the trainer's
calls post them when they may run, so that a stop needs no wake-up. Decisions depend on the order of
those calls alone.

A prefetched plan *t* is posted when ``lookahead`` batches behind it are known and batch
*t − depth − 1* was released; the planner's window then holds exactly those batches. When the
trainer asks for it earlier (two forwards before one backward), it is posted all the same: the
planner keeps the slots of unreleased batches pinned.

With a :class:`~tiered_embed.depth.DepthTuner` the depth may change at every batch that is taken. A
plan keeps the depth under which it was posted.

Threading: every public method belongs to one thread at a time, the trainer's, except
:meth:`Lease.drop`, which a garbage collector may call anywhere: it only leaves a note that the
trainer's next call reads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

import numpy as np

from ..errors import CapacityError, ClosedError, StoreError, TieredEmbedError
from ..residency import Planner, Segment, StepPlan
from ..tiers import MemoryTiers, SsdTier
from .depth import DepthTuner
from .executors import Executors
from .mover import Mover
from .phases import Phases

__all__ = ["Lease", "Scheduler"]

T = TypeVar("T")
WRITE_BUFFER_BYTES = 32 << 20
_log = logging.getLogger("tiered_embed")


class Lease:
    """A planned batch whose rows are in their slots, pinned until released or dropped."""

    def __init__(self, pipeline: Scheduler, plan: StepPlan) -> None:
        self.plan = plan
        self._pipeline = pipeline
        self._open = True

    def release(self, *, updated: bool) -> None:
        """Drops the pins, once; ``updated`` says that the rows were changed."""
        if self._open:
            self._open = False
            self._pipeline._release(self, updated)

    def drop(self, *, updated: bool = False) -> None:
        """As :meth:`release`, from any thread: at the trainer's next call."""
        if self._open:
            self._open = False
            self._pipeline._dropped.append((self, updated))


class _Started(NamedTuple):
    """A plan in execution; ``ready`` tells that its rows are in their slots, None that they are."""

    plan: StepPlan
    ready: Future[None] | None


class _Streamed:
    """A batch of the stream: known, in the planner's window, or posted for planning."""

    def __init__(self, segments: list[Segment]) -> None:
        self.segments: list[Segment] | None = segments  # None once in the planner's window
        self.planned: Future[_Started] | None = None
        self.waited_s = 0.0  # by the trainer


class Scheduler:
    """Phases batches of one pool ahead of the trainer.

    Args:
        planner: decides residency.
        memory: the tiers that it decides about.
        ssd: the store below, or None.
        lookahead: future batches that a streamed plan has seen, unless the stream ended.
        depth: batches staged ahead of the one training, or who finds that number.
        executors: who runs the jobs; threads by default.
        phases: where times are noted.
        write_buffer_bytes: dirty records on their way down, beside those of one plan.
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
        self.stall_s = np.zeros(planner.num_tables)  # per table whose rows were waited for
        self._tuner = depth if isinstance(depth, DepthTuner) else None
        self.depth = depth.depth if isinstance(depth, DepthTuner) else depth
        self._taken_at: float | None = None  # when the stream's last batch was taken
        self._executors = executors or Executors()
        self._phases = phases or Phases()
        self._mover = Mover(memory, ssd, self._executors, self._phases, write_buffer_bytes)
        self._pid = os.getpid()
        self._closed = False
        self._refusal: TieredEmbedError | None = None
        self._warned_overflow = False
        self._last: Future[object] | None = None  # newest posted job

        # The stream, oldest batch first.
        self._ahead: deque[_Streamed] = deque()  # not taken yet
        self._ended = False
        self._num_posted = 0  # plans
        self._held: list[tuple[int, Lease]] = []  # (plan's number in the stream, taken lease)
        self._num_taken = 0

        self._dropped: deque[tuple[Lease, bool]] = deque()  # any thread appends

        # Written by the staging job that runs, read when none does.
        self._refused: CapacityError | None = None  # the stream's first plan without room

    # --- the trainer's calls --------------------------------------------------------------------

    def push(self, segments: Sequence[Segment]) -> None:
        """Makes a future batch known. Its ids lie inside their tables."""
        self.check()
        # The loader may reuse its buffers before the batch enters the window.
        self._ahead.append(_Streamed([(table, ids.copy()) for table, ids in segments]))
        self._advance()

    def end(self) -> None:
        """No further batch will be pushed: what remains is planned with the window it has."""
        self._ended = True
        self._advance()

    def cancel(self) -> None:
        """Drops the stream: the window, and batches staged but never trained.

        Idempotent, and to be repeated when it was interrupted.
        """
        self._settle_dropped()
        if self._last is not None:
            self._last.exception()  # wait; who cares gets it from the plan's own future
        self._mover.wait_for_reads()
        while self._ahead:
            entry = self._ahead[-1]
            if entry.planned is not None and entry.planned.exception() is None:
                self.planner.release(entry.planned.result().plan.number, updated=False)
            self._ahead.pop()
        self.planner.cancel()
        self._ended = False
        self._taken_at = None
        self._held.clear()
        self._num_posted = self._num_taken = 0
        self._refused = None

    def peek(self) -> StepPlan:
        """Waits for the stream's oldest batch; its rows are in their slots on return.

        Raises:
            CapacityError: there is no room for it, and no tier below.
        """
        self.check()
        self._settle_dropped()
        entry = self._ahead[0]
        if entry.planned is None:
            self._post_plan(0)
        assert entry.planned is not None
        start = time.perf_counter()
        plan, ready = self._wait(entry.planned)
        if ready is not None:
            self._wait(ready)
        waited_s = time.perf_counter() - start
        self._blame(plan, waited_s)
        entry.waited_s += waited_s
        self._notice_overflow(plan)
        return plan

    def take(self) -> Lease:
        """The stream's oldest batch, as :meth:`peek`, to train on."""
        lease = Lease(self, self.peek())
        entry = self._ahead.popleft()
        self._held.append((self._num_taken, lease))
        self._num_taken += 1
        if self._tuner is not None:
            self._tune(self._tuner, entry.waited_s, self.planner.num_cached(lease.plan))
        return lease

    def stage(self, segments: Sequence[Segment]) -> Lease:
        """Plans and stages one batch at once, ahead of the stream.

        Raises:
            CapacityError: no room; nothing changed.
        """
        self.check()
        self._settle_dropped()
        if self.planner.all_resident and self._nothing_queued():
            # Cheaper than waking a thread. A plan that an interrupt loses here pins nothing.
            self._mover.wait_for_reads()
            self.check()
            with self._phases.time("plan"):
                return Lease(self, self.planner.plan_now(segments))

        def job() -> StepPlan:
            with self._phases.time("plan"):
                plan = self.planner.plan_now(segments)
            self._mover.run(plan)
            # It jumped the queue: rows that it shares with the stream may still be on their way.
            self._mover.wait_for_reads()
            self._raise_failure()
            return plan

        start = time.perf_counter()
        future = self._post(job)
        try:
            plan = self._wait(future)
        except KeyboardInterrupt:
            # The job goes on by itself; nobody will use what it phases.
            future.add_done_callback(self._drop_unwanted)
            raise
        self._blame(plan, time.perf_counter() - start)
        self._notice_overflow(plan)
        return Lease(self, plan)

    def quiesce(self) -> None:
        """Returns when every posted job has run and every write has reached the store."""
        self.check()
        self._settle_dropped()
        self._idle()
        self.check()

    def flush(self) -> None:
        """Writes every dirty record to the tier below."""
        self.quiesce()
        self._write_dirty()

    def cut(self, job: Callable[[], T]) -> Future[T]:
        """Runs ``job`` in the background, where the store holds every row as it is now.

        Training may go on: what it changes reaches the store after ``job``.

        Raises:
            StoreError: an earlier write failed.
        """
        self.check()
        self._settle_dropped()
        if self._last is not None:
            self._last.exception()
        self._mover.wait_for_reads()
        self.check()
        out = self._mover.cut(*self.planner.dirty_rows(), job)
        self.planner.mark_clean()
        return out

    def in_saving_thread(self, job: Callable[[], T]) -> Future[T]:
        """Runs ``job`` in the background, beside everything else."""
        self.check()
        return self._mover.in_saving_thread(job)

    def refuse(self, why: TieredEmbedError) -> None:
        """Every later call but :meth:`discard` and :meth:`close` raises ``why``."""
        self._refusal = why

    def discard(self) -> None:
        """Stops at once, with every row lost; idempotent."""
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        with contextlib.suppress(Exception):
            self.cancel()
        self._executors.shutdown()

    def close(self) -> bool:
        """Flushes and stops; idempotent. Works inside a garbage collection: posts no job.

        Returns whether this call flushed: not a second one, nor one in a forked child.

        Raises:
            StoreError: rows could not be written.
        """
        if self._closed:
            return False
        self._closed = True
        if self._pid != os.getpid():
            return False
        if self._refusal is not None:
            self._executors.shutdown()
            return False
        try:
            self.cancel()
            self._idle()
            # A failed read leaves what was trained before it in its slots.
            self._write_dirty()
            lost = self._mover.lost
            if lost is not None:
                raise TieredEmbedError(
                    f"rows on their way out of {self.memory.upper.name} were lost: {lost!r}"
                ) from lost
        finally:
            self._executors.shutdown()
        return True

    def check(self) -> None:
        """Raises what a background job ran into, or ClosedError."""
        if self._refusal is not None:
            raise self._refusal
        if self._closed:
            raise ClosedError("the module was closed; make a new one to go on")
        self.check_process()
        failure = self._mover.failure
        if failure is None:
            return
        if isinstance(failure, TieredEmbedError):
            raise type(failure)(f"staging failed: {failure}") from failure
        raise TieredEmbedError(f"staging failed: {failure!r}") from failure

    def check_process(self) -> None:
        """Raises ClosedError in a forked child."""
        if self._pid != os.getpid():
            raise ClosedError(
                f"the module belongs to process {self._pid} and a fork has none of its threads; "
                "start workers by spawn, and make a module there"
            )

    @property
    def usable(self) -> bool:
        """Whether :meth:`check` would raise nothing."""
        try:
            self.check()
        except Exception:
            return False
        return True

    # --- jobs -----------------------------------------------------------------------------------

    def _post(self, job: Callable[[], T]) -> Future[T]:
        """Queues a job behind all others."""
        try:
            future = self._executors.staging.submit(job)
        except RuntimeError:
            # The interpreter is shutting down and takes no more jobs.
            future = self._run_here(job)
        self._last = future  # type: ignore[assignment]
        return future

    def _post_brief(self, job: Callable[[], T]) -> None:
        """As :meth:`_post`, but at once when nothing is queued: cheaper than waking a thread."""
        if self._nothing_queued():
            job()
        else:
            self._post(job)

    def _nothing_queued(self) -> bool:
        if self._last is not None and self._last.done():
            self._last = None
        return self._last is None

    def _run_here(self, job: Callable[[], T]) -> Future[T]:
        if self._last is not None:
            self._last.exception()
        future: Future[T] = Future()
        try:
            future.set_result(job())
        except Exception as error:
            future.set_exception(error)
        return future

    def _advance(self) -> None:
        """Posts the plans that may run now."""
        first = self._num_posted - self._num_taken
        for i in range(first, len(self._ahead)):
            seen_enough = self._ended or len(self._ahead) - 1 - i >= self.lookahead
            oldest_held = self._held[0][0] if self._held else self._num_taken
            if not seen_enough or oldest_held < self._num_posted - self.depth:
                return
            self._post_plan(i)

    def _post_plan(self, i: int) -> None:
        """Posts the plan of the batch at ``i`` and the batches that its window lacks."""
        for entry in list(self._ahead)[: i + 1 + self.lookahead]:
            if entry.segments is not None:
                self._post(lambda segments=entry.segments: self.planner.push(segments))  # type: ignore[misc]
                entry.segments = None

        depth = self.depth

        def job() -> _Started:
            self._raise_failure()
            if self._refused is not None:
                raise self._refused
            try:
                with self._phases.time("plan"):
                    plan = self.planner.plan(depth)
            except CapacityError as error:
                self._refused = error
                raise
            return _Started(plan, self._mover.run(plan))

        self._num_posted += 1
        self._ahead[i].planned = self._post(job)

    def _raise_failure(self) -> None:
        if self._mover.failure is not None:
            raise StoreError("an earlier job failed") from self._mover.failure

    def _write_dirty(self) -> None:
        if self.ssd is None:
            return
        self._mover.write_out(*self.planner.dirty_rows())
        self.planner.mark_clean()

    # --- leases ---------------------------------------------------------------------------------

    def _release(self, lease: Lease, updated: bool) -> None:
        if self._closed or self._pid != os.getpid():
            return
        number = lease.plan.number
        self._post_brief(lambda: self.planner.release(number, updated=updated))
        if self._held:
            self._held = [(n, held) for n, held in self._held if held is not lease]
        if self._ahead:
            self._advance()

    def _settle_dropped(self) -> None:
        while self._dropped:
            self._release(*self._dropped.popleft())

    def _drop_unwanted(self, future: Future[StepPlan]) -> None:
        if future.exception() is None:
            Lease(self, future.result()).drop()

    def _idle(self) -> None:
        """Waits for every job, read and write."""
        if self._last is not None:
            self._last.exception()
        self._mover.finish()

    def _wait(self, future: Future[T]) -> T:
        try:
            return future.result()
        except Exception:
            self.check()  # words it for the trainer
            raise

    def _blame(self, plan: StepPlan, waited_s: float) -> None:
        """Notes a wait with the tables whose rows the plan staged."""
        if len(self.stall_s) == 1:
            self.stall_s += waited_s
            return
        tables = plan.tables[plan.staged] if len(plan.staged) else plan.tables
        rows = np.bincount(tables, minlength=len(self.stall_s))
        if len(tables):
            self.stall_s += waited_s * rows / len(tables)

    def _tune(self, tuner: DepthTuner, waited_s: float, num_unique: int) -> None:
        now = time.perf_counter()
        if self._taken_at is not None:
            self.depth = tuner.observe(now - self._taken_at, waited_s, num_unique)
            self._advance()
        self._taken_at = now

    def _notice_overflow(self, plan: StepPlan) -> None:
        if plan.overflow and not self._warned_overflow:
            self._warned_overflow = True
            needed = len(plan.keys) * (self.depth + 1) * self.memory.layout.record_bytes
            tier = self.memory.upper.name
            _log.warning(
                "a batch of %d rows took %d transient slots beyond the %s budget; about %s=%d "
                "bytes would hold it at depth %d",
                len(plan.keys),
                plan.overflow,
                tier,
                tier.lower(),
                needed,
                self.depth,
            )
