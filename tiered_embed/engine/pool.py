"""One pool of an engine: its tiers, planner, scheduler and kernel, wired together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _native
from ..errors import StoreError, TieredEmbedError
from ..kernels import POOLINGS, DeviceKernel
from ..residency import Planner, PoolSlots, Segment, Segments
from ..spec import Counts, EngineOptions, TierStats
from ..tiers import HostTier, MemoryTiers, PoolLayout, open_ssd
from .compute import make_compute
from .depth import DepthTuner
from .phases import Phases
from .scheduler import Scheduler
from .step_counts import PoolSteps

__all__ = ["Below", "Found", "Pool"]

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

SCAN_ROWS = 65536


class Below(NamedTuple):
    """Distinct rows that no memory tier holds: ``tables`` (M,), ``keys`` (M,), and their
    ``records`` (M, record_bytes)."""

    tables: npt.NDArray[np.uint16]
    keys: I64
    records: U8

    def is_of(self, found: Found) -> bool:
        """Whether these are exactly the rows that were not found, in their order."""
        return np.array_equal(self.keys, found.keys) and np.array_equal(self.tables, found.tables)


class Found(NamedTuple):
    """Where the rows of occurrences (N) are.

    slots: (N,) in the memory tiers; -1 - m where the row is the m-th of those that no memory tier
    holds: ``tables`` (M,), ``keys`` (M,). below: their records, once they have been read.
    """

    slots: npt.NDArray[np.int32]
    tables: npt.NDArray[np.uint16]
    keys: I64
    below: Below | None = None


class Pool:
    """All tables of an engine with one record layout. Threading: as the scheduler.

    Args:
        layout: of the records, and the tables that share it.
        slots: of the topmost tier.
        lower_slots: of DDR below it; 0 where DDR is the topmost.
        outputs: per feature, (its first column in the output of ``num_columns``, its pooling).
    """

    def __init__(
        self,
        layout: PoolLayout,
        slots: PoolSlots,
        lower_slots: int,
        outputs: Sequence[tuple[int, str]],
        num_columns: int,
        *,
        options: EngineOptions,
        phases: Phases,
    ) -> None:
        tiers = options.tiers
        self.layout = layout
        self._slots = slots
        self._num_threads = options.threads
        self._lower_slots = lower_slots
        self.first_slots = np.array(slots.first_slot, np.int64)  # of each table; -1: it has none
        self.planner = Planner(
            layout.tables,
            slots,
            policy=options.policy,
            backed=tiers.ssd is not None,
            tier="DDR" if tiers.hbm is None else "HBM",
            lower_slots=lower_slots,
            num_threads=options.threads,
        )
        self.bag_layout = _native.BagLayout(
            [POOLINGS[pooling] for _, pooling in outputs],
            [column for column, _ in outputs],
            num_columns,
        )
        self.row_layout = _native.BagLayout([POOLINGS["sum"]], [0], layout.dim)  # one row a bag
        self.upper, self.kernel = make_compute(layout, slots, outputs, options)
        lower = HostTier(layout, lower_slots, options.threads) if lower_slots else None
        self.memory = MemoryTiers(self.upper, lower, self.planner.first_lower_slot)
        ssd = None if tiers.ssd is None else open_ssd(layout, tiers)
        self.store = None if ssd is None else ssd.store
        self.stored_step = 0 if ssd is None else ssd.stored_step  # at which the store was left
        self.scheduler = Scheduler(
            self.planner,
            self.memory,
            ssd,
            lookahead=options.lookahead,
            depth=_depth(options, slots),
            phases=phases,
        )
        if ssd is not None and ssd.unfinished is not None:
            self.scheduler.refuse(ssd.unfinished)

    @property
    def num_slots(self) -> int:
        """Rows that the topmost tier's budget holds."""
        return self._slots.whole + self._slots.cached

    def room(self, counts: Sequence[int]) -> tuple[int, int]:
        """(rows that share slots, slots that they share) if the tables have ``counts`` rows."""
        shared = [n for n, first in zip(counts, self._slots.first_slot, strict=True) if first < 0]
        return sum(shared), self._slots.cached + self._lower_slots

    def read(self, table: int, ids: I64) -> U8:
        """Current records of ``ids`` (n,) -> (n, record_bytes); nothing is staged or changed."""
        found = self.find([(table, ids)])
        if len(found.keys) == 0:
            return self.memory.gather(found.slots)
        below = self.read_below(found.tables, found.keys)
        records = np.empty((len(ids), self.layout.record_bytes), np.uint8)
        resident = found.slots >= 0
        records[resident] = self.memory.gather(np.ascontiguousarray(found.slots[resident]))
        records[~resident] = below.records[-1 - found.slots[~resident]]
        return records

    def find(self, segments: Segments | Sequence[Segment]) -> Found:
        """Where the rows of the occurrences are now; nothing is staged or changed.

        It holds until the next plan is posted.
        """
        self.scheduler.finish_plans()
        found = self._find(segments)
        self.scheduler.await_rows(found.slots)
        return found

    def is_at_rest(self) -> bool:
        """Whether no row moves or is filled, or will be by what has been posted."""
        return self.scheduler.is_at_rest()

    def holds_for_good(self, segments: Segments) -> bool:
        """Whether the rows of the occurrences are in slots ``first_slots`` + id, for good."""
        return self.is_at_rest() and self.planner.holds_for_good(segments, self._num_threads)

    def _find(self, segments: Segments | Sequence[Segment]) -> Found:
        if not isinstance(segments, Segments):
            segments = Segments(list(segments))
        slots = self.planner.find_all(segments, self._num_threads)
        return Found(slots, *_native.name_missing(segments, slots))

    def read_below(self, tables: npt.NDArray[np.uint16], rows: I64) -> Below:
        """Records of distinct rows (n,) that no memory tier holds: from the SSD tier, or initial.

        REQUIRES: every plan that evicted one of them has handed its record down.
        """
        if self.scheduler.ssd is None:
            return Below(tables, rows, self.layout.initial_records(tables, rows))
        records, stored = self.scheduler.ssd.read(tables, rows, counted=False)
        if not stored.all():
            records[~stored] = self.layout.initial_records(tables[~stored], rows[~stored])
        return Below(tables, rows, records)

    def read_ahead(self, segments: Segments | Sequence[Segment]) -> Future[Future[Below]]:
        """Starts reading the occurrences' rows that no memory tier will hold then.

        They are looked for after the plans that are posted so far, whose victims are on their way
        down by then.
        """

        def start() -> Future[Below]:
            found = self._find(segments)
            return self.scheduler.in_reading_thread(
                lambda: self.read_below(found.tables, found.keys)
            )

        return self.scheduler.in_order(start)

    def write(self, table: int, ids: I64, records: U8) -> None:
        """Materialises rows: ``ids`` (n,) without repeats, ``records`` (n, record_bytes)."""
        # Without a store, rows that may not fit go all at once: all fit, or none is written.
        in_parts = self.store is not None or self._surely_fit(table, ids)
        block = max(1, self.num_slots // 2) if in_parts else len(ids)
        self.mark_training()
        for start in range(0, len(ids), max(block, 1)):
            part = slice(start, start + block)
            lease = self.scheduler.stage([(table, ids[part])])
            try:
                self.upper.scatter(lease.plan.slots, records[part])
            finally:
                lease.release(updated=True)

    def _surely_fit(self, table: int, ids: I64) -> bool:
        """Whether the memory tiers can hold these rows in addition to what they hold now."""
        self.scheduler.finish_moves()
        new = int((self.planner.find(table, ids) < 0).sum())
        held = self.planner.num_resident + self.planner.num_lower_resident
        # Every slot of the whole tables counts as taken: no other rows may use them.
        return held + self._slots.whole + new <= self.num_slots + self._lower_slots

    def flush(self) -> None:
        """Writes dirty rows back."""
        self.scheduler.flush()

    def mark_finished(self, step: int) -> None:
        """Notes that the store holds every row as of ``step``. REQUIRES: flushed or finished."""
        if self.scheduler.ssd is not None:
            self.scheduler.ssd.mark_finished(step)

    def mark_training(self) -> None:
        """To be called before a row changes: notes that from here on the store's rows may come from
        different training steps.

        Raises:
            StoreError: the note cannot be written. ClosedError: closed, or in a forked child.
        """
        ssd = self.scheduler.ssd
        if ssd is not None and not ssd.training:
            self.scheduler.check()
            ssd.mark_training()

    def materialised(self, table: int) -> Iterator[tuple[I64, U8]]:
        """(row ids, records) of a table's materialised rows in key order, in chunks.

        REQUIRES: flushed.
        """
        if self.store is None:
            tables, rows, slots = self.planner.dirty_rows()
            mine = tables == table
            order = np.argsort(rows[mine].view(np.uint64), kind="stable")
            rows, slots = rows[mine][order], slots[mine][order]
            for start in range(0, len(rows), SCAN_ROWS):
                part = slice(start, start + SCAN_ROWS)
                yield rows[part], self.memory.gather(np.ascontiguousarray(slots[part]))
            return
        prefix = self.layout.table_hashes[table].tobytes()
        first = prefix + bytes(8)
        after = (int.from_bytes(prefix, "big") + 1).to_bytes(5, "big")
        stop = None if after[0] else after[1:] + bytes(8)
        for keys, records in self.store.scan(first, stop):
            yield np.ascontiguousarray(keys[:, 4:]).view(">i8").ravel().astype(np.int64), records

    def table_counts(self) -> list[Counts]:
        """Per table; a wait is divided among the tables by the rows that its batch staged."""
        counts = self.planner.counts(self.layout.record_bytes, self.scheduler.used_plans())
        for c, stall_s in zip(counts, self.scheduler.stalls.seconds.tolist(), strict=True):
            c.stall_s = stall_s
        return counts

    def tier_stats(self) -> dict[str, TierStats]:
        """Counts of every tier, by name, topmost first."""
        size, planner = self.layout.record_bytes, self.planner
        # From the bottom up, as plans may be made meanwhile: what a tier took in, the one above it
        # has then counted as gone.
        ssd = None if self.scheduler.ssd is None else self.scheduler.ssd.stats()
        lower = TierStats(slot_bytes=self._lower_slots * size, resident=planner.num_lower_resident)
        for c in planner.lower_counts(size):
            lower.add(c)
        upper = TierStats(
            slot_bytes=self.num_slots * size,
            overhead_bytes=planner.overhead_bytes,
            resident=planner.num_resident,
        )
        for c in self.table_counts():
            upper.add(c)
        tiers = {self.upper.name: upper}
        if self._lower_slots:
            tiers["DDR"] = lower
        if ssd is not None:
            tiers["SSD"] = ssd
        return tiers

    def count_steps(self) -> PoolSteps:
        """Notes the counts of every plan of the next stream. REQUIRES: there is no stream now."""
        steps = PoolSteps(self.planner, self.scheduler.ssd, self.layout.record_bytes)
        self.scheduler.note_steps(steps)
        return steps

    def finish(self) -> bool:
        """Flushes and stops the threads; returns whether this call flushed."""
        return self.scheduler.close()

    def close(self) -> None:
        """Releases files and device memory. REQUIRES: finished."""
        try:
            if self.store is not None:
                self.store.close()
        finally:
            self._free()

    def discard(self, why: TieredEmbedError) -> None:
        """Stops threads and releases files; every row is lost, and later calls raise ``why``."""
        self.scheduler.refuse(why)
        self.scheduler.discard()
        if self.store is not None:
            # The store may have failed before; its rows are no longer needed.
            with contextlib.suppress(StoreError):
                self.store.close()
        self._free()  # the pool that replaces this one needs the memory

    def _free(self) -> None:
        if isinstance(self.kernel, DeviceKernel):
            self.kernel.free()


def _depth(options: EngineOptions, slots: PoolSlots) -> int | DepthTuner:
    if isinstance(options.depth, int):
        return options.depth
    return DepthTuner(options.deepest, slots.cached or None)
