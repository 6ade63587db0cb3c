"""The SSD tier: records of one pool in a RowStore, by (table, row id).

Threading: ``read`` and ``write`` may run at once for different rows.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from ..stats import TierStats
from ..store import RowStore, encode_keys
from .layout import PoolLayout

__all__ = ["SsdTier"]


class SsdTier:
    """The store of one pool, and the counts of what went through it."""

    name = "SSD"

    def __init__(self, layout: PoolLayout, store: RowStore) -> None:
        self.layout = layout
        self.store = store
        self._lock = threading.Lock()
        self._stats = TierStats()  # guarded by _lock

    def read(
        self,
        tables: npt.NDArray[np.uint16],
        rows: npt.NDArray[np.int64],
        *,
        counted: bool = True,
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Records (n, record_bytes) of the rows (n,), and which of them the store has held (n,).

        ``counted``: in ``stats()``, which tells what training asked for.
        """
        records = np.empty((len(rows), self.layout.record_bytes), np.uint8)
        found = self.store.get(self._keys(tables, rows), records)
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

    def write(
        self,
        tables: npt.NDArray[np.uint16],
        rows: npt.NDArray[np.int64],
        records: npt.NDArray[np.uint8],
    ) -> None:
        """Stores ``records`` (n, record_bytes) of the rows (n,)."""
        self.store.put(self._keys(tables, rows), records)
        with self._lock:
            self._stats.staged += len(rows)
            self._stats.bytes_in += len(rows) * self.layout.record_bytes

    def stats(self) -> TierStats:
        with self._lock:
            return TierStats(**vars(self._stats))

    def _keys(
        self, tables: npt.NDArray[np.uint16], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.uint8]:
        return encode_keys(np.ascontiguousarray(self.layout.table_hashes[tables]), rows)
