"""Moves the bytes that plans name, for one pool: evict, read, fill, write back.

:meth:`Mover.run` is called in plan order by one thread. It copies dirty victims out, which
frees their slots, and hands them to the write buffer; then it starts the plan's reads and returns.
:meth:`Mover.run_aside` does the same for a batch outside the stream, and reads at once.
With two memory tiers it first exchanges rows between them: what goes up is copied out of the lower
tier before what comes down takes its slots.

Reads of several plans are in flight at once, and a row whose write is not finished is read from the
buffer. So throughput, not the latency of one plan, is the bound.

Reads may overlap for two reasons. The slots that a plan fills are pinned until its batch is
released, so no later plan evicts from them. And a row that a plan reads was evicted by an earlier
plan, which had put its record into the buffer before this plan's reads began.

The write buffer is bounded (``writes.py``): a plan that finds it overfull waits before it evicts.
Its reads never wait for the writes of its own victims.

Threading: `run`, `run_aside`, `wait_for_reads` and `finish` belong to one thread at a time.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from ..residency import StepPlan
from ..tiers import HostTier, MemoryTiers, SsdTier
from .executors import Executors
from .jobs import submit
from .phases import Phases
from .writes import Writes

__all__ = ["Mover", "StepNotes"]

T = TypeVar("T")
EARLIER_FAILURE = "an earlier background job failed, so this one was not run; see its error above"
FLUSH_BYTES = 8 << 20  # copied out at a time


class _Rows(NamedTuple):
    """Rows on their way up: ``slots`` (n,) to fill, ``tables`` (n,), ``keys`` (n,)."""

    slots: npt.NDArray[np.int32]
    tables: npt.NDArray[np.uint16]
    keys: npt.NDArray[np.int64]


class _Read(NamedTuple):
    """Rows of one plan on their way into their ``slots`` (n,)."""

    done: Future[None]
    slots: npt.NDArray[np.int32]


class StepNotes(Protocol):
    """Notes what the plans of a stream count."""

    def planned(self, plan: StepPlan) -> None: ...

    def read(self, plan: StepPlan, looked_for: int, found: int) -> None: ...


class Mover:
    """Executes plans over the memory tiers and the store below them, or none.

    Args:
        write_buffer_bytes: as ``limit_bytes`` of :class:`Writes`.
    """

    def __init__(
        self,
        memory: MemoryTiers,
        ssd: SsdTier | None,
        executors: Executors,
        phases: Phases,
        write_buffer_bytes: int,
    ) -> None:
        self.failure: BaseException | None = None  # the first of any job; fatal, read by all
        self.lost: BaseException | None = None  # why trained rows were lost
        self.steps: StepNotes | None = None  # who notes the counts of every plan
        self._memory = memory
        self._ssd = ssd
        self._executors = executors
        self._phases = phases
        self._writes: Writes | None = None
        if ssd is not None:
            self._writes = Writes(ssd, self._submit_write, phases, write_buffer_bytes)
        self._reads: deque[_Read] = deque()  # in plan order; may be done
        self._marks = np.zeros(0, np.bool_)  # per slot; all False between calls
        self._stranded: dict[tuple[int, int], npt.NDArray[np.uint8] | None] = {}

    def run(self, plan: StepPlan) -> Future[None] | None:
        """Starts a plan. Its rows are in their slots when the future is done; None: they are now.

        Raises:
            StoreError: an earlier write failed. No plan may follow.
        """
        read = self.watched(lambda: self._run(plan))
        if self.steps is not None:
            self.steps.planned(plan)
        return read

    def run_aside(self, plan: StepPlan) -> list[Future[None]]:
        """Executes the plan of a batch outside the stream, its reads included.

        Returns the reads of earlier plans that fill some of its slots too: its rows are in their
        slots when all of them are done.

        Raises:
            StoreError: an earlier write failed, or a read. No plan may follow.
        """

        def job() -> None:
            rows = self._begin(plan, aside=True)
            if rows is not None:
                assert self._ssd is not None
                self._read(self._ssd, rows)

        self.watched(job)
        return self.reads_into(plan.slots)

    def watched(self, job: Callable[[], T], *, but: type[Exception] | tuple[()] = ()) -> T:
        """Runs a job that later plans rely on, so that none may follow where it fails. ``but``: an
        error that changes nothing."""
        try:
            return job()
        except but:
            raise
        except BaseException as error:
            if self.failure is None:
                self.failure = error
            raise

    def require_no_failure(self) -> None:
        """Raises StoreError where an earlier job failed."""
        if self.failure is not None:
            raise StoreError(EARLIER_FAILURE) from self.failure

    def hurry(self) -> AbstractContextManager[None]:
        """As :meth:`Writes.hurry`."""
        return contextlib.nullcontext() if self._writes is None else self._writes.hurry()

    @property
    def reading(self) -> bool:
        """A plan was started, and nobody has waited for its reads yet."""
        return bool(self._reads)

    def reads_into(self, slots: npt.NDArray[np.int32]) -> list[Future[None]]:
        """The reads under way that fill any of ``slots`` (n,), which are not negative."""
        reads = [read for read in self._reads if not read.done.done()]
        if not reads or len(slots) == 0:
            return []
        needed = 1 + max(int(slots.max()), *(int(read.slots.max()) for read in reads))
        if len(self._marks) < needed:
            self._marks = np.zeros(needed, np.bool_)
        self._marks[slots] = True
        try:
            return [read.done for read in reads if self._marks[read.slots].any()]
        finally:
            self._marks[slots] = False

    def wait_for_reads(self) -> None:
        """Returns when every started plan has its rows in their slots, or has failed."""
        # Removed only once it has ended, so that an interrupted wait can be repeated.
        while self._reads:
            self._reads[0].done.exception()
            self._reads.popleft()

    def finish(self) -> None:
        """Returns when every read and write has ended.

        Raises:
            StoreError: rows could not be written; again at every call.
        """
        self.wait_for_reads()
        if self._writes is not None:
            self._writes.finish()

    def write_out(
        self,
        tables: npt.NDArray[np.uint16],
        rows: npt.NDArray[np.int64],
        slots: npt.NDArray[np.int32],
    ) -> None:
        """Writes the records in ``slots`` (n,) down and makes them durable. REQUIRES: finished.

        What a failed job left in the write buffer is written too.
        """
        assert self._ssd is not None
        self._ssd.write_back()
        if self._stranded:
            tables, rows, slots = self._write_stranded(self._ssd, tables, rows, slots)
        block = max(1, FLUSH_BYTES // self._memory.layout.record_bytes)
        for i in range(0, len(rows), block):
            part = slice(i, i + block)
            self._ssd.hand_down(tables[part], rows[part], self._memory.gather(slots[part]))
            self._ssd.write_back()
        self._ssd.store.flush()

    def _write_stranded(
        self,
        ssd: SsdTier,
        tables: npt.NDArray[np.uint16],
        rows: npt.NDArray[np.int64],
        slots: npt.NDArray[np.int32],
    ) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Hands down those of these rows that a failed plan kept aside; returns the others."""
        pairs = list(zip(tables.tolist(), rows.tolist(), strict=True))
        placed = np.array([pair not in self._stranded for pair in pairs], np.bool_)
        for i in np.flatnonzero(~placed):
            record = self._stranded[pairs[i]]
            if record is not None:
                ssd.hand_down(tables[i : i + 1], rows[i : i + 1], record[None, :])
        return tables[placed], rows[placed], slots[placed]

    def snapshot(
        self,
        tables: npt.NDArray[np.uint16],
        rows: npt.NDArray[np.int64],
        slots: npt.NDArray[np.int32],
        job: Callable[[], T],
    ) -> Future[T]:
        """Runs ``job`` in the background, while the store holds every record of this snapshot.

        The dirty rows are copied out here. What is evicted from now on waits in the write buffer
        until ``job`` has ended. If ``job`` fails, only its own future has the error.

        REQUIRES: these are the dirty rows, and no read is under way.

        Raises:
            StoreError: an earlier write failed.
        """
        assert self._writes is not None
        block = max(1, FLUSH_BYTES // self._memory.layout.record_bytes)
        slices = [slice(i, i + block) for i in range(0, len(rows), block)]
        parts = ((tables[p], rows[p], self._memory.gather(slots[p])) for p in slices)
        out: Future[T] = Future()

        def follow() -> None:
            try:
                self.require_no_failure()
                out.set_result(job())
            except BaseException as error:
                out.set_exception(error)

        self._writes.snapshot(parts, follow)
        return out

    def in_reading_thread(self, job: Callable[[], T]) -> Future[T]:
        """Runs a read that belongs to no plan. If it fails, only its future has the error."""
        return submit(self._executors.reading, job)

    def in_saving_thread(self, job: Callable[[], T]) -> Future[T]:
        """Runs a job that no pool's order concerns. If it fails, only its future has the error."""
        return submit(self._executors.saving, job)

    def _run(self, plan: StepPlan) -> Future[None] | None:
        rows, ssd = self._begin(plan, aside=False), self._ssd
        if rows is None:
            return None
        assert ssd is not None
        while self._reads and self._reads[0].done.done():
            self._reads.popleft()
        read = self._submit(self._executors.reading, lambda: self._read(ssd, rows, plan))
        self._reads.append(_Read(read, rows.slots))
        return read

    def _begin(self, plan: StepPlan, *, aside: bool) -> _Rows | None:
        """Does all that a plan has to do but for its reads: those rows, if there are any."""
        lower, writes = self._memory.lower, self._writes
        staged = plan.staged
        if writes is not None:
            writes.await_room(aside=aside)
        # This comes first, and also after a write has failed: the planner has already given the
        # victims' slots to other rows.
        if lower is not None:
            self._exchange(plan, lower)
            staged = staged[plan.staged_from < 0]
        else:
            if writes is not None:
                self._evict(plan, writes)
            self._reserve(plan)
        if writes is not None:
            writes.post()
            writes.check()
        rows = _Rows(plan.slots[staged], plan.tables[staged], plan.keys[staged])
        if len(staged) == 0:
            return None
        if writes is None:
            with self._phases.time("fill"):
                self._memory.upper.initialise(*rows)
            return None
        return rows

    def _evict(self, plan: StepPlan, writes: Writes) -> None:
        """Hands dirty victims down to the store."""
        dirty = plan.victim_dirty.astype(bool)
        if not dirty.any():
            return
        try:
            with self._phases.time("evict"):
                victims = self._memory.upper.gather(plan.victim_slots[dirty])
                writes.hand_down(plan.victim_tables[dirty], plan.victim_keys[dirty], victims)
        except BaseException as error:
            self.lost = error
            raise

    def _exchange(self, plan: StepPlan, lower: HostTier) -> None:
        """Moves rows between the memory tiers; dirty ones without a slot there go to the store."""
        upper, writes = self._memory.upper, self._writes
        rises = plan.staged_from >= 0
        lands = plan.victim_to >= 0
        # Without a store the planner lets no dirty row fall or pass.
        falls = plan.fallen_dirty.astype(bool)
        passes = ~lands & plan.victim_dirty.astype(bool)
        up = plan.staged[rises]
        rising: npt.NDArray[np.uint8] | None = None
        try:
            with self._phases.time("evict"):
                rising = lower.gather(plan.staged_from[rises])
                if writes is not None and falls.any():
                    records = lower.gather(plan.fallen_slots[falls])
                    tables, keys = plan.fallen_tables[falls], plan.fallen_keys[falls]
                    writes.hand_down(tables, keys, records)
                if lands.any():
                    lower.scatter(plan.victim_to[lands], upper.gather(plan.victim_slots[lands]))
                if writes is not None and passes.any():
                    records = upper.gather(plan.victim_slots[passes])
                    tables, keys = plan.victim_tables[passes], plan.victim_keys[passes]
                    writes.hand_down(tables, keys, records)
        except BaseException as error:
            self.lost = error
            self._strand(plan.victim_tables[lands], plan.victim_keys[lands], None)
            self._strand(plan.tables[up], plan.keys[up], rising)
            raise
        try:
            self._reserve(plan)
            with self._phases.time("fill"):
                upper.scatter(plan.slots[up], rising)
        except BaseException:
            self._strand(plan.tables[up], plan.keys[up], rising)
            raise

    def _reserve(self, plan: StepPlan) -> None:
        if plan.overflow:
            self._memory.upper.reserve(int(plan.slots.max()) + 1)

    def _strand(
        self,
        tables: npt.NDArray[np.uint16],
        rows: npt.NDArray[np.int64],
        records: npt.NDArray[np.uint8] | None,
    ) -> None:
        """Notes rows (n,) that a failed plan left without a slot, though the planner has them in
        one. ``records`` (n, record_bytes), or None where they are lost."""
        for i, row in enumerate(zip(tables.tolist(), rows.tolist(), strict=True)):
            self._stranded[row] = None if records is None else records[i]

    # --- jobs -----------------------------------------------------------------------------------

    def _read(self, ssd: SsdTier, rows: _Rows, plan: StepPlan | None = None) -> None:
        self.require_no_failure()
        with self._phases.time("read"):
            records, found = ssd.read(rows.tables, rows.keys)
        if self.steps is not None and plan is not None:
            self.steps.read(plan, len(rows.keys), int(found.sum()))
        with self._phases.time("fill"):
            self._memory.upper.scatter(rows.slots, records, found)
            if not found.all():
                self._memory.upper.initialise(*rows, found)

    def _submit_write(self, job: Callable[[], None]) -> Future[None]:
        return self._submit(self._executors.writing, job)

    def _submit(self, executor: Executor, job: Callable[[], T]) -> Future[T]:
        return submit(executor, lambda: self.watched(job))
