"""LRU of one size at memory speed: the planner's counts, without its lists.

Instead of a list that a hit reorders, there is a log of uses. A row is resident exactly when its
newest use is in the log's live part, from tail to head. The tail skips uses that a later use of the
same row replaced, and evicts the row of any other. A hit costs one write to the log.

Equal to ``replay(trace, slots, "lru", lookahead, depth)`` for any window, since LRU does not use
what a window knows, as long as no batch with its ``depth`` predecessors needs more rows than there
are slots.

LRU exists three times, for three reasons: the planner's own (native, what training does), this one
(the simulator's, and ``access:lru``), and a plain Python model in the tests. All sizes at once are
in ``distances``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import CapacityError, ConfigError
from ..traces import Trace
from .compiled import compiled
from .numbering import I32, I64, PIECE_IDS, Accesses, Numbering, accesses, grown
from .planner_replay import SimulatedCounts
from .records import Records

__all__ = ["LruReplay", "lru", "misses_by_access"]

LOOKUPS, UNIQUE, MISSES, EVICTED, COLD = range(5)
HEAD, TAIL, RESIDENT = range(3)


class LruReplay:
    """LRU over ``slots`` rows; counts the accesses to numbered rows.

    counts: (tables, 5) int64: lookups, unique, misses, evicted, cold.

    Raises:
        ConfigError: fewer than one slot.
    """

    def __init__(self, slots: int, num_tables: int = 1, depth: int = 0) -> None:
        if slots < 1:
            raise ConfigError(f"slots is {slots}; a cache needs at least one row")
        self.slots = slots
        self.counts = np.zeros((num_tables, 5), np.int64)
        self._last = np.full(1024, -1, np.int64)  # by row: position of its newest use
        self._log = np.empty(1 << 12, np.int32)  # by position mod size
        self._state = np.zeros(3, np.int64)
        self._starts = np.zeros(depth + 1, np.int64)  # a ring: where the newest batches begin
        self._batches = 0

    def push(self, piece: Accesses, tables: npt.NDArray[np.uint16]) -> None:
        """Appends batches; ``tables`` (rows,) is each numbered row's table.

        Raises:
            CapacityError: a batch and its ``depth`` predecessors have more rows than slots.
        """
        self._last = grown(self._last, len(tables), -1)
        self._make_room(len(piece.rows))
        alone = len(self.counts) == 1 and len(self._starts) == 1
        if alone and _all_single(piece):
            stopped = _single(
                piece.rows, self._last, self._log, self._state, self.slots, self.counts
            )
        else:
            stopped = _run(
                piece.rows,
                piece.offsets,
                tables,
                self._last,
                self._log,
                self._state,
                self._starts,
                self._batches,
                self.slots,
                self.counts,
            )
        if stopped >= 0:
            raise CapacityError(
                f"batch {self._batches + stopped} and the {len(self._starts) - 1} before it need "
                f"more than {self.slots} rows; simulate more slots, or use simulate.replay"
            )
        self._batches += len(piece.offsets) - 1

    def _make_room(self, num_uses: int) -> None:
        live = int(self._state[HEAD] - self._state[TAIL])
        if live + num_uses < len(self._log):
            return
        head, tail = self._state[HEAD], self._state[TAIL]
        resident = int(self._state[RESIDENT])
        size = len(self._log)
        while size < 2 * (resident + num_uses):
            size *= 2
        larger = np.empty(size, np.int32)
        kept = _compact(self._log, larger, self._last, self._starts, tail, head)
        self._log = larger
        self._state[HEAD], self._state[TAIL] = kept, 0


def lru(
    trace: Trace, slots: int, *, depth: int = 0, records: Records | None = None
) -> dict[str, SimulatedCounts]:
    """LRU's counts per table, as ``replay(trace, slots, "lru", ...)`` has them.

    Raises:
        CapacityError: a batch needs more rows than there are slots.
    """
    pools = (records or Records()).pools(trace.tables)
    if len(pools) != 1:
        raise ConfigError(
            f"the tables make {len(pools)} pools, which cannot share slots; simulate tables of "
            "one dim and with equal options at a time"
        )
    numbering = Numbering(len(trace.tables))
    run = LruReplay(slots, len(trace.tables), depth)
    for piece in accesses(trace, numbering):
        run.push(piece, numbering.tables)
    out = {}
    for table, counts in zip(trace.tables, run.counts.tolist(), strict=True):
        lookups, unique, misses, evicted, cold = counts
        out[table.name] = SimulatedCounts(
            lookups=lookups,
            unique=unique,
            misses=misses,
            hits=unique - misses,
            staged=misses,
            evicted=evicted,
            written_back=evicted if pools[0].trains else 0,
            bytes_in=misses * pools[0].record_bytes,
            bytes_out=evicted * pools[0].record_bytes if pools[0].trains else 0,
            cold=cold,
        )
    return out


def misses_by_access(rows: I32, num_rows: int, slots: int) -> int:
    """LRU's misses when each access of ``rows`` (N,) is a batch of its own."""
    run = LruReplay(slots)
    one_table = np.zeros(num_rows, np.uint16)
    for start in range(0, len(rows), PIECE_IDS):
        piece = rows[start : start + PIECE_IDS]
        run.push(Accesses(piece, np.arange(len(piece) + 1, dtype=np.int64)), one_table)
    return int(run.counts[0, MISSES])


def _all_single(piece: Accesses) -> bool:
    """Whether every batch is one id."""
    return len(piece.offsets) == len(piece.rows) + 1 and bool(np.all(np.diff(piece.offsets) == 1))


@compiled
def _single(rows: I32, last: I64, log: I32, state: I64, slots: int, counts: I64) -> int:
    """Batches of one id each, of one table. Rows whose newest use is before `tail` are evicted."""
    head, tail, resident = state[0], state[1], state[2]
    mask = len(log) - 1
    misses, evicted, cold = 0, 0, 0
    for i in range(len(rows)):
        row = rows[i]
        before = last[row]
        last[row] = head
        log[head & mask] = row
        head += 1
        if before >= tail:
            continue
        misses += 1
        cold += before == -1
        if resident < slots:
            resident += 1
            continue
        evicted += 1
        while last[log[tail & mask]] != tail:
            tail += 1
        tail += 1
    state[0], state[1], state[2] = head, tail, resident
    counts[0, 0] += len(rows)
    counts[0, 1] += len(rows)
    counts[0, 2] += misses
    counts[0, 3] += evicted
    counts[0, 4] += cold
    return -1


@compiled
def _run(
    rows: I32,
    offsets: I64,
    tables: npt.NDArray[np.uint16],
    last: I64,
    log: I32,
    state: I64,
    starts: I64,
    batches: int,
    slots: int,
    counts: I64,
) -> int:
    """Returns the batch that does not fit, or -1."""
    head, tail, resident = state[0], state[1], state[2]
    mask = len(log) - 1
    for b in range(len(offsets) - 1):
        base = head
        starts[(batches + b) % len(starts)] = base
        for i in range(offsets[b], offsets[b + 1]):
            row = rows[i]
            table = tables[row]
            counts[table, 0] += 1
            before = last[row]
            if before >= base:
                continue
            counts[table, 1] += 1
            if before < tail:
                counts[table, 2] += 1
                counts[table, 4] += before == -1
                resident += 1
            last[row] = head
            log[head & mask] = row
            head += 1
        pinned = starts[(batches + b + 1) % len(starts)]
        if batches + b + 1 < len(starts):
            pinned = starts[0]
        while resident > slots:
            if tail >= pinned:
                return b
            row = log[tail & mask]
            if last[row] == tail:
                counts[tables[row], 3] += 1
                resident -= 1
            tail += 1
    state[0], state[1], state[2] = head, tail, resident
    return -1


@compiled
def _compact(log: I32, larger: I32, last: I64, starts: I64, tail: int, head: int) -> int:
    """Keeps the newest use of every resident row, and marks evicted rows with -2."""
    mask = len(log) - 1
    for row in range(len(last)):
        if last[row] >= 0 and last[row] < tail:
            last[row] = -2
    moved = np.zeros_like(starts)
    kept = 0
    for position in range(tail, head):
        for j in range(len(starts)):
            if starts[j] == position:
                moved[j] = kept
        row = log[position & mask]
        if last[row] == position:
            larger[kept] = row
            last[row] = kept
            kept += 1
    for j in range(len(starts)):
        starts[j] = kept if starts[j] == head else moved[j]
    return kept
