"""Moves the bytes that plans name, for one pool: evict, read, fill, write back.

:meth:`Mover.run` is called in plan order by one thread. It copies dirty victims out, which
frees their slots, and hands them to the write buffer; then it starts the plan's reads and returns.
With two memory tiers it first exchanges rows between them: what goes up is copied out of the lower
tier before what comes down takes its slots.

Reads of several plans are in flight at once, and a row whose write is not finished is read from the
buffer. So throughput, not the latency of one plan, is the bound.

Reads may overlap for two reasons. The slots that a plan fills are pinned until its batch is
released, so no later plan evicts from them. And a row that a plan reads was evicted by an earlier
plan, which had put its record into the buffer before this plan's reads began.

The write buffer is bounded: a plan whose victims overfill it waits for the oldest write.

Threading: `run`, `wait_for_reads` and `finish` belong to one thread at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from ..residency import StepPlan
from ..tiers import HostTier, MemoryTiers, SsdTier
from .executors import Executors
from .jobs import submit
from .phases import Phases

__all__ = ["Mover"]

T = TypeVar("T")
EARLIER_FAILURE = "an earlier background job failed, so this one was not run; see its error above"
FLUSH_BYTES = 8 << 20  # copied out at a time
SNAPSHOT_BYTES = 1 << 30  # dirty records that a snapshot copies before it waits for writes
SNAPSHOT_SLACK_BYTES = 256 << 20  # more for the write buffer while a snapshot is written


class _Rows(NamedTuple):
    """Rows on their way up: ``slots`` (n,) to fill, ``tables`` (n,), ``keys`` (n,)."""

    slots: npt.NDArray[np.int32]
    tables: npt.NDArray[np.uint16]
    keys: npt.NDArray[np.int64]


class Mover:
    """Executes plans over the memory tiers and the store below them, or none.

    Args:
        write_buffer_bytes: of dirty records on their way down, in addition to those of one plan.
            Records that are being written are held twice.
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
        self._memory = memory
        self._ssd = ssd
        self._executors = executors
        self._phases = phases
        self._write_buffer_bytes = write_buffer_bytes
        self._reads: deque[Future[None]] = deque()  # in plan order; may be done
        self._writes: deque[Future[None]] = deque()
        self._snapshot: Future[None] | None = None  # the newest; later writes wait for it
        self._handed_down = False  # whether the plan that runs has handed records down
        self._stranded: dict[tuple[int, int], npt.NDArray[np.uint8] | None] = {}
        self._snapshot_bytes = 0  # more that the write buffer may hold because of it

    def run(self, plan: StepPlan) -> Future[None] | None:
        """Starts a plan. Its rows are in their slots when the future is done; None: they are now.

        Raises:
            StoreError: an earlier write failed. No plan may follow.
        """
        return self._watched(lambda: self._run(plan))

    @property
    def reading(self) -> bool:
        """A plan was started, and nobody has waited for its reads yet."""
        return bool(self._reads)

    def wait_for_reads(self) -> None:
        """Returns when every started plan has its rows in their slots, or has failed."""
        # Removed only once it has ended, so that an interrupted wait can be repeated.
        while self._reads:
            self._reads[0].exception()
            self._reads.popleft()

    def finish(self) -> None:
        """Returns when every read and write has ended.

        Raises:
            StoreError: rows could not be written; again at every call.
        """
        self.wait_for_reads()
        self._await_writes(0)

    def _await_writes(self, most_bytes: int) -> None:
        """Waits, oldest write first, until at most ``most_bytes`` are on their way."""
        while self._writes and (most_bytes == 0 or self.in_flight_bytes > most_bytes):
            self._writes[0].result()
            self._writes.popleft()

    @property
    def in_flight_bytes(self) -> int:
        return 0 if self._ssd is None else self._ssd.in_flight_bytes

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
        assert self._ssd is not None
        ssd = self._ssd
        block = max(1, FLUSH_BYTES // self._memory.layout.record_bytes)
        for i in range(0, len(rows), block):
            part = slice(i, i + block)
            if ssd.in_flight_bytes > SNAPSHOT_BYTES:
                self._post_write(ssd)
                self._await_writes(SNAPSHOT_BYTES // 2)
            ssd.hand_down(tables[part], rows[part], self._memory.gather(slots[part]))
        ssd.hold()
        self._snapshot_bytes = ssd.in_flight_bytes + SNAPSHOT_SLACK_BYTES
        out: Future[T] = Future()

        def write() -> None:
            self._write(ssd)
            ssd.store.flush()

        def follow() -> None:
            try:
                if self.failure is not None:
                    raise StoreError(EARLIER_FAILURE) from self.failure
                out.set_result(job())
            except BaseException as error:
                out.set_exception(error)
            finally:
                ssd.resume()

        self._writes.append(self._submit(self._executors.writing, write))
        self._snapshot = self._submit(self._executors.writing, follow)
        self._writes.append(self._snapshot)
        return out

    def in_reading_thread(self, job: Callable[[], T]) -> Future[T]:
        """Runs a read that belongs to no plan. If it fails, only its future has the error."""
        return submit(self._executors.reading, job)

    def in_saving_thread(self, job: Callable[[], T]) -> Future[T]:
        """Runs a job that no pool's order concerns. If it fails, only its future has the error."""
        return submit(self._executors.saving, job)

    @property
    def _write_buffer_limit(self) -> int:
        under_way = self._snapshot is not None and not self._snapshot.done()
        return self._write_buffer_bytes + (self._snapshot_bytes if under_way else 0)

    def _run(self, plan: StepPlan) -> Future[None] | None:
        lower, ssd = self._memory.lower, self._ssd
        staged = plan.staged
        # This comes first: the planner has already given the victims' slots to other rows.
        if lower is not None:
            self._exchange(plan, lower)
            staged = staged[plan.staged_from < 0]
        else:
            if ssd is not None:
                self._evict(plan, ssd)
            self._reserve(plan)
        if ssd is not None:
            self._write_evicted(ssd)
        rows = _Rows(plan.slots[staged], plan.tables[staged], plan.keys[staged])
        if len(staged) == 0:
            return None
        if ssd is None:
            with self._phases.time("fill"):
                self._memory.upper.initialise(*rows)
            return None
        while self._reads and self._reads[0].done():
            self._reads.popleft()
        read = self._submit(self._executors.reading, lambda: self._read(ssd, rows))
        self._reads.append(read)
        return read

    def _evict(self, plan: StepPlan, ssd: SsdTier) -> None:
        """Hands dirty victims down to the store."""
        dirty = plan.victim_dirty.astype(bool)
        if not dirty.any():
            return
        try:
            with self._phases.time("evict"):
                victims = self._memory.upper.gather(plan.victim_slots[dirty])
                self._hand_down(ssd, plan.victim_tables[dirty], plan.victim_keys[dirty], victims)
        except BaseException as error:
            self.lost = error
            raise

    def _exchange(self, plan: StepPlan, lower: HostTier) -> None:
        """Moves rows between the memory tiers; dirty ones without a slot there go to the store."""
        upper, ssd = self._memory.upper, self._ssd
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
                if ssd is not None and falls.any():
                    records = lower.gather(plan.fallen_slots[falls])
                    tables, keys = plan.fallen_tables[falls], plan.fallen_keys[falls]
                    self._hand_down(ssd, tables, keys, records)
                if lands.any():
                    lower.scatter(plan.victim_to[lands], upper.gather(plan.victim_slots[lands]))
                if ssd is not None and passes.any():
                    records = upper.gather(plan.victim_slots[passes])
                    tables, keys = plan.victim_tables[passes], plan.victim_keys[passes]
                    self._hand_down(ssd, tables, keys, records)
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

    def _hand_down(
        self,
        ssd: SsdTier,
        tables: npt.NDArray[np.uint16],
        rows: npt.NDArray[np.int64],
        records: npt.NDArray[np.uint8],
    ) -> None:
        ssd.hand_down(tables, rows, records)
        self._handed_down = True

    def _write_evicted(self, ssd: SsdTier) -> None:
        """Starts writing what this plan handed down; keeps the write buffer within its limit."""
        if self._handed_down:
            self._handed_down = False
            self._post_write(ssd)
            if ssd.in_flight_bytes > self._write_buffer_limit:
                with self._phases.time("back_pressure"):
                    self._await_writes(self._write_buffer_limit)
        while self._writes and self._writes[0].done():
            self._writes[0].result()
            self._writes.popleft()

    def _post_write(self, ssd: SsdTier) -> None:
        self._writes.append(self._submit(self._executors.writing, lambda: self._write(ssd)))

    # --- jobs -----------------------------------------------------------------------------------

    def _read(self, ssd: SsdTier, rows: _Rows) -> None:
        if self.failure is not None:
            raise StoreError(EARLIER_FAILURE) from self.failure
        with self._phases.time("read"):
            records, found = ssd.read(rows.tables, rows.keys)
        with self._phases.time("fill"):
            self._memory.upper.scatter(rows.slots, records, found)
            if not found.all():
                self._memory.upper.initialise(*rows, found)

    def _write(self, ssd: SsdTier) -> None:
        with self._phases.time("write"):
            ssd.write_back()

    def _submit(self, executor: Executor, job: Callable[[], T]) -> Future[T]:
        return submit(executor, lambda: self._watched(job))

    def _watched(self, job: Callable[[], T]) -> T:
        """Notes a failure: the planner relies on every job, so no plan may follow a failed one."""
        try:
            return job()
        except BaseException as error:
            if self.failure is None:
                self.failure = error
            raise
