"""Exact LRU stack distances: one pass gives the misses of every cache size.

Source: Mattson, Gecsei, Slutz, Traiger, "Evaluation techniques for storage hierarchies", IBM
Systems Journal 1970. A row's distance is its rank among all rows, ordered by newest use; LRU with
at least that many rows would have hit. Ranks come from a bitmap with one bit for each use that is
still the newest of its row, a Fenwick tree over blocks of 512 bits, and population counts inside a
block. A block enters the tree once it is full, so that a use costs one walk down and one walk up.

Positions are compacted when they run out. Memory: 4 bytes per position (at most four positions per
distinct row, and one piece), and 24 bytes per distinct row in the numbering.

Distances count by batch: all rows of a batch are looked up before any counts as used, as in the
planner. With one id per batch they are the classical distances.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .compiled import compiled, popcount
from .numbering import I32, I64, Accesses, grown

__all__ = ["Bins", "StackDistances"]

U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]

WORD = 64
BLOCK_WORDS = 8
BLOCK = WORD * BLOCK_WORDS
HEAD, LIVE = range(2)


class Bins:
    """Distances in bins: exact up to ``FINE``, then ``FINE`` bins per doubling (0.4 % wide)."""

    FINE = 256
    NUM = FINE * 56

    @staticmethod
    def of(distance: npt.NDArray[np.float64] | I64) -> I64:
        """The bins (n,) of distances (n,), from 1 on."""
        return _bins_of(np.asarray(distance, np.int64))

    @staticmethod
    def last() -> F64:
        """The greatest distance of each bin, (NUM,)."""
        k = np.arange(Bins.NUM)
        octave = np.maximum(k // Bins.FINE - 1, 0)
        step = 2.0**octave
        first = np.where(k < Bins.FINE, k, (Bins.FINE + k % Bins.FINE) * step)
        return np.asarray(first + step - 1, np.float64)


class StackDistances:
    """Counts the distances of numbered rows.

    counts: [d] int64, uses at distance d, all tables together. cold: (tables,) int64, first uses.
    lookups: (tables,) int64, ids.
    """

    def __init__(self, num_tables: int = 1) -> None:
        self.counts = np.zeros(1024, np.int64)
        self._by_table = np.zeros((num_tables if num_tables > 1 else 0, Bins.NUM), np.int64)
        self.cold = np.zeros(num_tables, np.int64)
        self.lookups = np.zeros(num_tables, np.int64)
        self._last = np.full(1024, -1, np.int64)
        self._state = np.zeros(2, np.int64)
        self._resize(1 << 14)

    @property
    def num_rows(self) -> int:
        """Rows on the stack."""
        return int(self._state[LIVE])

    def push(self, piece: Accesses, tables: npt.NDArray[np.uint16]) -> None:
        """Appends batches; ``tables`` (rows,) is each numbered row's table."""
        self._last = grown(self._last, len(tables), -1)
        self.counts = grown(self.counts, len(tables) + 1, 0)
        if self._state[HEAD] + len(piece.rows) > len(self._log):
            self._compact(len(piece.rows))
        _distances(
            piece.rows,
            piece.offsets,
            tables,
            self._last,
            self._log,
            self._bits,
            self._tree,
            self._state,
            self.counts,
            self._by_table,
            self.cold,
            self.lookups,
        )

    def by_table(self) -> I64:
        """Uses by table and by bin of their distance: (tables, Bins.NUM)."""
        if len(self._by_table):
            return self._by_table
        out = np.zeros((1, Bins.NUM), np.int64)
        found = np.flatnonzero(self.counts)
        np.add.at(out[0], Bins.of(found), self.counts[found])
        return out

    def remove(self, rows: I32) -> None:
        """Takes rows off the stack; their next use is a first use again."""
        _remove(rows, self._last, self._bits, self._tree, self._state)

    def _resize(self, positions: int) -> None:
        self._log = np.empty(positions, np.int32)
        self._bits = np.zeros(positions // WORD + BLOCK_WORDS, np.uint64)
        self._tree = np.zeros(positions // BLOCK + 2, np.int32)

    def _compact(self, num_uses: int) -> None:
        log, bits = self._log, self._bits
        head, live = (int(x) for x in self._state)
        size = len(log)
        while size < 2 * (live + num_uses):
            size *= 2
        self._resize(size)
        _compact(log, bits, self._log, self._bits, self._tree, self._last, head)
        self._state[HEAD] = live


@compiled
def _bin(distance: int) -> int:
    octave = 0
    while distance >= 512:
        distance >>= 1
        octave += 1
    return distance + 256 * octave


@compiled
def _bins_of(distances: I64) -> I64:
    out = np.empty(len(distances), np.int64)
    for i in range(len(distances)):
        out[i] = _bin(distances[i])
    return out


@compiled
def _below(bits: U64, tree: I32, position: int, filling: int) -> int:
    """Set bits before `position`. REQUIRES: its block is full, or is the one being filled."""
    block = position >> 9
    total = 0
    i = min(block, filling)
    while i > 0:
        total += tree[i]
        i &= i - 1
    word = position >> 6
    for w in range(block * 8, word):
        total += popcount(bits[w])
    rest = np.uint64(position & 63)
    return total + popcount(bits[word] & ((np.uint64(1) << rest) - np.uint64(1)))


@compiled
def _clear(bits: U64, tree: I32, position: int, filling: int) -> None:
    bits[position >> 6] &= ~(np.uint64(1) << np.uint64(position & 63))
    block = position >> 9
    if block < filling:
        i = block + 1
        while i < len(tree):
            tree[i] -= 1
            i += i & -i


@compiled
def _fill(bits: U64, tree: I32, block: int) -> None:
    """Adds a full block to the tree."""
    count = 0
    for w in range(block * 8, block * 8 + 8):
        count += popcount(bits[w])
    i = block + 1
    while i < len(tree):
        tree[i] += count
        i += i & -i


@compiled
def _distances(
    rows: I32,
    offsets: I64,
    tables: npt.NDArray[np.uint16],
    last: I64,
    log: I32,
    bits: U64,
    tree: I32,
    state: I64,
    counts: I64,
    by_table: I64,
    cold: I64,
    lookups: I64,
) -> None:
    head, live = state[0], state[1]
    several = len(lookups) > 1
    most = 0
    for b in range(len(offsets) - 1):
        most = max(most, offsets[b + 1] - offsets[b])
    before = np.empty(most, np.int64)
    for b in range(len(offsets) - 1):
        base = head
        live_at_start = live
        filling = base >> 9
        num_unique = 0
        for i in range(offsets[b], offsets[b + 1]):
            row = rows[i]
            table = np.int64(tables[row]) if several else 0
            lookups[table] += 1
            position = last[row]
            if position >= base:
                continue
            if position < 0:
                cold[table] += 1
                live += 1
            else:
                distance = live_at_start - _below(bits, tree, position, filling)
                counts[distance] += 1
                if len(by_table):
                    by_table[table, _bin(distance)] += 1
            before[num_unique] = position
            num_unique += 1
            last[row] = head
            log[head] = row
            head += 1
        for u in range(num_unique):
            if before[u] >= 0:
                _clear(bits, tree, before[u], filling)
        for position in range(base, head):
            bits[position >> 6] |= np.uint64(1) << np.uint64(position & 63)
            if position & 511 == 511:
                _fill(bits, tree, position >> 9)
    state[0], state[1] = head, live


@compiled
def _remove(rows: I32, last: I64, bits: U64, tree: I32, state: I64) -> None:
    filling = state[0] >> 9
    for i in range(len(rows)):
        position = last[rows[i]]
        if position >= 0:
            _clear(bits, tree, position, filling)
            last[rows[i]] = -1
            state[1] -= 1


@compiled
def _compact(log: I32, bits: U64, larger: I32, fresh: U64, tree: I32, last: I64, head: int) -> None:
    kept = 0
    for position in range(head):
        if (bits[position >> 6] >> np.uint64(position & 63)) & np.uint64(1):
            row = log[position]
            larger[kept] = row
            last[row] = kept
            fresh[kept >> 6] |= np.uint64(1) << np.uint64(kept & 63)
            if kept & 511 == 511:
                _fill(fresh, tree, kept >> 9)
            kept += 1
