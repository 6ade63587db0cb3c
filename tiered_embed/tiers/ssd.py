"""The SSD tier: records of one pool in a RowStore, and those on their way into it.

Threading: any thread may call anything; write-backs follow one another.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from .. import _native
from ..stats import TierStats
from ..store import RowStore, encode_keys
from .layout import PoolLayout

__all__ = ["SsdTier"]

Tables = npt.NDArray[np.uint16]
Rows = npt.NDArray[np.int64]
Records = npt.NDArray[np.uint8]


class SsdTier:
    """The store of one pool with a write buffer before it, and the counts of what passed."""

    name = "SSD"

    def __init__(self, layout: PoolLayout, store: RowStore) -> None:
        self.layout = layout
        self.store = store
        self._buffer = _native.WriteBuffer(layout.record_bytes)
        self._writing = threading.Lock()  # held while records go from the buffer to the store
        self._lock = threading.Lock()
        self._stats = TierStats()  # guarded by _lock

    @property
    def in_flight_bytes(self) -> int:
        """Records handed down whose write has not arrived."""
        return self._buffer.bytes

    def read(
        self, tables: Tables, rows: Rows, *, counted: bool = True
    ) -> tuple[Records, npt.NDArray[np.bool_]]:
        """Records (n, record_bytes) of the rows (n,), and which of them this tier has held (n,).

        ``counted``: in ``stats()``, which tells what training asked for.
        """
        records = np.empty((len(rows), self.layout.record_bytes), np.uint8)
        found = np.zeros(len(rows), np.bool_)
        # The buffer first: what leaves it meanwhile is in the store by then.
        self._buffer.read(tables, rows, records, found)
        if not found.any():
            found = self.store.get(self._keys(tables, rows), records)
        elif not found.all():
            below = ~found
            part = np.empty((int(below.sum()), self.layout.record_bytes), np.uint8)
            stored = self.store.get(self._keys(tables[below], rows[below]), part)
            records[below] = part
            found[below] = stored
        if not counted:
            return records, found
        num_found = int(found.sum())
        with self._lock:
            s = self._stats
            s.lookups += len(rows)
            s.unique += len(rows)
            s.hits += num_found
            s.misses += len(rows) - num_found
            s.bytes_out += num_found * self.layout.record_bytes
        return records, found

    def hand_down(self, tables: Tables, rows: Rows, records: Records) -> None:
        """Takes ``records`` (n, record_bytes) of different rows (n,), for :meth:`write_back`."""
        self._buffer.add(tables, rows, records)
        with self._lock:
            self._stats.staged += len(rows)
            self._stats.bytes_in += len(rows) * self.layout.record_bytes

    def write_back(self) -> None:
        """Stores everything that was handed down; of a row only its newest record."""
        with self._writing:
            tables, rows, records = self._buffer.take()
            if len(rows):
                self.store.put(self._keys(tables, rows), records.reshape(len(rows), -1))
            self._buffer.arrived()

    def stats(self) -> TierStats:
        with self._lock:
            return TierStats(**vars(self._stats) | {"overhead_bytes": self.in_flight_bytes})

    def _keys(self, tables: Tables, rows: Rows) -> npt.NDArray[np.uint8]:
        return encode_keys(np.ascontiguousarray(self.layout.table_hashes[tables]), rows)
