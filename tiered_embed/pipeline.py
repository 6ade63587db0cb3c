"""Executes step plans in order, for one pool: evict, read, fill, ready.

The only module with threads. Two executors serve a pool: *staging* runs jobs one after another
(enter a batch into the window, make and execute a plan, apply a release), *writing* hands dirty
records to the store meanwhile. Jobs never wait for the trainer: the trainer's calls post them when
they may run, so that a stop needs no wake-up. Decisions depend on the order of those calls alone.

A prefetched plan *t* is posted when the window is full behind it and batch *t − depth − 1* was
released. When the trainer asks for it earlier (two forwards before one backward), it is posted all
the same: the planner keeps the slots of unreleased batches pinned.

Threading: the public methods belong to one thread at a time, the trainer's. ``Lease.release`` may
come from any (a garbage collector runs where it likes).
"""

from __future__ import annotations

import logging
import threading
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
_log = logging.getLogger("tiered_embed")


class Lease:
    """A planned batch whose rows are in their slots, pinned until :meth:`release`."""

    def __init__(self, pipeline: Pipeline, plan: StepPlan, streamed: bool) -> None:
        self.plan = plan
        self.streamed = streamed
        self._pipeline = pipeline
        self._released = False

    def release(self, *, updated: bool) -> None:
        """Drops the pins, once; ``updated`` says that the rows were changed."""
        if self._released:
            return
        self._released = True
        self._pipeline._release(self, updated)


class _Streamed:
    """A batch of the stream: waiting in the window, or posted for planning."""

    def __init__(self) -> None:
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
        self._closed = False
        self._warned_overflow = False

        self._lock = threading.RLock()  # never held while waiting for a job
        self._window: deque[_Streamed] = deque()  # guarded by _lock: pushed, not taken
        self._ended = False  # guarded by _lock
        self._last: Future[object] | None = None  # guarded by _lock: newest posted job
        self._posted = 0  # guarded by _lock: streamed plans posted
        self._held: dict[int, Lease | None] = {}  # guarded by _lock: streamed, unreleased

        # Written by the staging job that runs; `_failure` is read by all.
        self._write: Future[None] | None = None
        self._failure: BaseException | None = None

    # --- the trainer's calls --------------------------------------------------------------------

    def push(self, segments: Sequence[Segment]) -> None:
        """Enters a future batch into the window. Its ids lie inside their tables."""
        self.check()
        # The loader may reuse its buffers before the job has run.
        copied = [(table, ids.copy()) for table, ids in segments]
        with self._lock:
            self._window.append(_Streamed())
            self._post(lambda: self.planner.push(copied))
            self._advance()

    def end(self) -> None:
        """No further batch will be pushed: what remains is planned with the window it has."""
        with self._lock:
            self._ended = True
            self._advance()

    def cancel(self) -> None:
        """Drops the stream: the window, and batches staged but never trained."""
        with self._lock:
            window, self._window = self._window, deque()
            self._ended = False
        if self._last is not None:
            self._last.exception()  # wait; a failure is in _failure too
        if isinstance(self._failure, CapacityError):
            self._failure = None  # its batch was refused as a whole
        if self._failure is None and not self._closed:
            for entry in window:
                if entry.planned is not None and entry.planned.exception() is None:
                    self._lease(entry.planned.result(), streamed=True).release(updated=False)
            self._wait(self._post(self.planner.cancel))
        with self._lock:
            self._held.clear()
            self._posted = 0

    def peek(self) -> StepPlan:
        """Waits for the stream's oldest batch; its rows are in their slots on return."""
        self.check()
        entry = self._window[0]
        if entry.planned is None:
            self._post_plan(entry)
        assert entry.planned is not None
        plan = self._wait(entry.planned)
        self._notice_overflow(plan)
        return plan

    def take(self) -> Lease:
        """The stream's oldest batch, as :meth:`peek`, to train on."""
        plan = self.peek()
        with self._lock:
            self._window.popleft()
        return self._lease(plan, streamed=True)

    def stage(self, segments: Sequence[Segment]) -> Lease:
        """Plans and stages one batch at once, ahead of the stream.

        Raises:
            CapacityError: no room; nothing changed.
        """
        self.quiesce()
        start = time.perf_counter()
        plan = self.planner.plan_now(segments)
        try:
            self._execute(plan)
        except BaseException as error:
            self._failure = error
            raise
        self.stall_s += time.perf_counter() - start
        self._notice_overflow(plan)
        return self._lease(plan, streamed=False)

    def quiesce(self) -> None:
        """Returns when every posted job has run and every write has reached the store."""
        self.check()
        if self._last is not None:
            self._wait(self._last)
        if self._write is not None:
            self._write.result()
        self.check()

    def flush(self) -> None:
        """Writes every dirty record to the tier below."""
        self.quiesce()
        if self.ssd is None:
            return
        tables, rows, slots = self.planner.dirty_rows()
        block = max(1, (64 << 20) // self.ddr.layout.record_bytes)
        for i in range(0, len(rows), block):
            part = slice(i, i + block)
            self.ssd.write(tables[part], rows[part], self.ddr.gather(slots[part]))
        self.ssd.store.flush()
        self.planner.mark_clean()

    def close(self) -> None:
        """Stops; idempotent. Rows that were not flushed are gone."""
        if self._closed:
            return
        try:
            if self._failure is None:
                self.cancel()
        finally:
            self._closed = True
            self._staging.shutdown(wait=True)
            self._writing.shutdown(wait=True)

    @property
    def failed(self) -> bool:
        """Whether a background job failed; nothing runs any more."""
        return self._failure is not None

    def check(self) -> None:
        """Raises what a background job ran into, or ClosedError."""
        if self._closed:
            raise ClosedError("the module was closed; make a new one to go on")
        failure = self._failure
        if failure is None:
            return
        if isinstance(failure, TieredEmbedError):
            raise type(failure)(f"staging failed: {failure}") from failure
        raise TieredEmbedError(f"staging failed: {failure!r}") from failure

    # --- jobs -----------------------------------------------------------------------------------

    def _post(self, job: Callable[[], T], *, brief: bool = False) -> Future[T]:
        """Queues a job. A brief one runs here and now when nothing is queued before it."""

        def run() -> T:
            if self._failure is not None:
                raise TieredEmbedError("an earlier job failed") from self._failure
            try:
                return job()
            except BaseException as error:
                self._failure = error
                raise

        with self._lock:
            if brief and (self._last is None or self._last.done()):
                future: Future[T] = Future()
                future.set_result(run())
                return future
            try:
                future = self._staging.submit(run)
            except RuntimeError:
                # The interpreter is shutting down and takes no more jobs: nothing else runs.
                future = Future()
                future.set_result(run())
            self._last = future  # type: ignore[assignment]
            return future

    def _post_plan(self, entry: _Streamed) -> None:
        def job() -> StepPlan:
            plan = self.planner.plan(self.depth)
            self._execute(plan)
            return plan

        with self._lock:
            self._held[self._posted] = None
            self._posted += 1
        entry.planned = self._post(job)

    def _advance(self) -> None:
        """Posts the plans that may run now."""
        with self._lock:
            waiting = [entry for entry in self._window if entry.planned is None]
            for i, entry in enumerate(waiting):
                seen_enough = self._ended or len(waiting) - 1 - i >= self.lookahead
                oldest_held = next(iter(self._held), self._posted)
                if not seen_enough or oldest_held < self._posted - self.depth:
                    return
                self._post_plan(entry)

    def _execute(self, plan: StepPlan) -> None:
        """Moves the bytes that a plan names."""
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
            except RuntimeError:
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

    # --- leases ---------------------------------------------------------------------------------

    def _lease(self, plan: StepPlan, *, streamed: bool) -> Lease:
        lease = Lease(self, plan, streamed)
        if streamed:
            with self._lock:
                waiting = next(key for key, held in self._held.items() if held is None)
                self._held[waiting] = lease
        return lease

    def _release(self, lease: Lease, updated: bool) -> None:
        if self._closed or self._failure is not None:
            return
        number = lease.plan.number
        with self._lock:
            self._post(lambda: self.planner.release(number, updated=updated), brief=True)
            if lease.streamed:
                for key in [k for k, held in self._held.items() if held is lease]:
                    del self._held[key]
                self._advance()

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
