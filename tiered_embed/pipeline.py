"""Executes step plans in order, for one pool: evict, read, fill, ready.

The only module with threads. Two executors serve a pool: *staging* runs jobs one after another
(enter a batch into the window, make and execute a plan, apply a release), *writing* hands dirty
records to the store meanwhile. Jobs never wait for the trainer: the trainer's calls post them when
they may run, so that a stop needs no wake-up. Decisions depend on the order of those calls alone.

A prefetched plan *t* is posted when ``lookahead`` batches behind it are known and batch
*t − depth − 1* was released; the planner's window then holds exactly those batches. When the
trainer asks for it earlier (two forwards before one backward), it is posted all the same: the
planner keeps the slots of unreleased batches pinned.

Threading: every public method belongs to one thread at a time, the trainer's, except
:meth:`Lease.drop`, which a garbage collector may call anywhere: it only leaves a note that the
trainer's next call reads.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

from .errors import CapacityError, ClosedError, TieredEmbedError
from .residency import Planner, Segment, StepPlan
from .tiers import DdrTier, SsdTier

__all__ = ["Lease", "Pipeline"]

T = TypeVar("T")
FLUSH_BYTES = 8 << 20  # copied out at a time
_log = logging.getLogger("tiered_embed")


class Lease:
    """A planned batch whose rows are in their slots, pinned until released or dropped."""

    def __init__(self, pipeline: Pipeline, plan: StepPlan) -> None:
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


class _Streamed:
    """A batch of the stream: known, in the planner's window, or posted for planning."""

    def __init__(self, segments: list[Segment]) -> None:
        self.segments: list[Segment] | None = segments  # None once in the planner's window
        self.planned: Future[StepPlan] | None = None


class Pipeline:
    """Stages batches of one pool ahead of the trainer.

    Args:
        planner: decides residency.
        ddr: the topmost tier.
        ssd: the tier below, or None.
        lookahead: future batches that a streamed plan has seen, unless the stream ended.
        depth: batches staged ahead of the one training.
        staging, writing: executors that run one job at a time, in order; threads of their own by
            default. Tests step them by hand.
    """

    def __init__(
        self,
        planner: Planner,
        ddr: DdrTier,
        ssd: SsdTier | None,
        *,
        lookahead: int,
        depth: int,
        staging: Executor | None = None,
        writing: Executor | None = None,
    ) -> None:
        self.planner = planner
        self.ddr = ddr
        self.ssd = ssd
        self.lookahead = lookahead
        self.depth = depth
        self.stall_s = 0.0
        self._staging = staging or ThreadPoolExecutor(1, "tiered_embed-staging")
        self._writing = writing or ThreadPoolExecutor(1, "tiered_embed-writing")
        self._pid = os.getpid()
        self._closed = False
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
        self._write: Future[None] | None = None
        self._refused: CapacityError | None = None  # the stream's first plan without room
        self._failure: BaseException | None = None  # fatal; read by all

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
        """Drops the stream: the window, and batches staged but never trained."""
        ahead, self._ahead = self._ahead, deque()
        self._settle_dropped()
        if self._last is not None:
            self._last.exception()  # wait; who cares gets it from the plan's own future
        for entry in ahead:
            if entry.planned is not None and entry.planned.exception() is None:
                self.planner.release(entry.planned.result().number, updated=False)
        self.planner.cancel()
        self._ended = False
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
        plan = self._wait(entry.planned)
        self._notice_overflow(plan)
        return plan

    def take(self) -> Lease:
        """The stream's oldest batch, as :meth:`peek`, to train on."""
        lease = Lease(self, self.peek())
        self._ahead.popleft()
        self._held.append((self._num_taken, lease))
        self._num_taken += 1
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
            return Lease(self, self.planner.plan_now(segments))

        def job() -> StepPlan:
            plan = self.planner.plan_now(segments)
            self._execute(plan)
            return plan

        future = self._post(job)
        try:
            plan = self._wait(future)
        except KeyboardInterrupt:
            # The job goes on by itself; nobody will use what it stages.
            future.add_done_callback(self._drop_unwanted)
            raise
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
        try:
            self.cancel()
            self._idle()
            # A failed read leaves what was trained before it in its slots.
            self._write_dirty()
        finally:
            self._staging.shutdown(wait=True)
            self._writing.shutdown(wait=True)
        return True

    def check(self) -> None:
        """Raises what a background job ran into, or ClosedError."""
        if self._closed:
            raise ClosedError("the module was closed; make a new one to go on")
        if self._pid != os.getpid():
            raise ClosedError(
                f"the module belongs to process {self._pid}; make a new one after a fork"
            )
        failure = self._failure
        if failure is None:
            return
        if isinstance(failure, TieredEmbedError):
            raise type(failure)(f"staging failed: {failure}") from failure
        raise TieredEmbedError(f"staging failed: {failure!r}") from failure

    # --- jobs -----------------------------------------------------------------------------------

    def _post(self, job: Callable[[], T]) -> Future[T]:
        """Queues a job behind all others."""
        try:
            future = self._staging.submit(job)
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
        return self._last is None or self._last.done()

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

        def job() -> StepPlan:
            if self._failure is not None:
                raise TieredEmbedError("an earlier job failed") from self._failure
            if self._refused is not None:
                raise self._refused
            try:
                plan = self.planner.plan(self.depth)
            except CapacityError as error:
                self._refused = error
                raise
            self._execute(plan)
            return plan

        self._num_posted += 1
        self._ahead[i].planned = self._post(job)

    def _execute(self, plan: StepPlan) -> None:
        """Moves the bytes that a plan names."""
        try:
            self._move(plan)
        except BaseException as error:
            # The planner believes what did not happen: no plan may follow.
            self._failure = error
            raise

    def _move(self, plan: StepPlan) -> None:
        dirty = plan.victim_dirty.astype(bool)
        if self._write is not None:
            # Rows of this plan may still be on their way down.
            self._write.result()
            self._write = None
        if self.ssd is not None and dirty.any():
            ssd = self.ssd
            tables, rows = plan.victim_tables[dirty], plan.victim_keys[dirty]
            records = self.ddr.gather(plan.victim_slots[dirty])
            try:
                self._write = self._writing.submit(ssd.write, tables, rows, records)
            except RuntimeError:  # as in _post
                ssd.write(tables, rows, records)
        staged = plan.staged
        if len(staged) == 0:
            return
        slots, tables, rows = plan.slots[staged], plan.tables[staged], plan.keys[staged]
        if self.ssd is None:
            self.ddr.initialise(slots, tables, rows)
            return
        records, found = self.ssd.read(tables, rows)
        self.ddr.scatter(slots, records, found)
        if not found.all():
            self.ddr.initialise(slots, tables, rows, found)

    def _write_dirty(self) -> None:
        if self.ssd is None:
            return
        tables, rows, slots = self.planner.dirty_rows()
        block = max(1, FLUSH_BYTES // self.ddr.layout.record_bytes)
        for i in range(0, len(rows), block):
            part = slice(i, i + block)
            self.ssd.write(tables[part], rows[part], self.ddr.gather(slots[part]))
        self.ssd.store.flush()
        self.planner.mark_clean()

    # --- leases ---------------------------------------------------------------------------------

    def _release(self, lease: Lease, updated: bool) -> None:
        if self._closed or self._pid != os.getpid():
            return
        number = lease.plan.number
        self._post_brief(lambda: self.planner.release(number, updated=updated))
        self._held = [(n, held) for n, held in self._held if held is not lease]
        self._advance()

    def _settle_dropped(self) -> None:
        while self._dropped:
            self._release(*self._dropped.popleft())

    def _drop_unwanted(self, future: Future[StepPlan]) -> None:
        if future.exception() is None:
            Lease(self, future.result()).drop()

    def _idle(self) -> None:
        """Waits for every job and write."""
        if self._last is not None:
            start = time.perf_counter()
            self._last.exception()
            self.stall_s += time.perf_counter() - start
        write, self._write = self._write, None
        if write is not None:
            try:
                write.result()
            except BaseException as error:
                self._failure = error
                raise

    def _wait(self, future: Future[T]) -> T:
        start = time.perf_counter()
        try:
            return future.result()
        except Exception:
            self.check()  # words it for the trainer
            raise
        finally:
            self.stall_s += time.perf_counter() - start

    def _notice_overflow(self, plan: StepPlan) -> None:
        if plan.overflow and not self._warned_overflow:
            self._warned_overflow = True
            needed = len(plan.keys) * (self.depth + 1) * self.ddr.layout.record_bytes
            _log.warning(
                "a batch of %d rows took %d transient slots beyond the DDR budget; about ddr=%d "
                "bytes would hold it at depth %d",
                len(plan.keys),
                plan.overflow,
                needed,
                self.depth,
            )
