"""The SSD tier: records of one pool in a RowStore, and those on their way into it.

Threading: any thread may call anything; write-backs follow one another.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from .. import _native
from ..errors import StoreError
from ..spec import TierStats
from ..store import Chunk, RowStore, encode_keys, read_meta, write_meta
from .layout import PoolLayout

__all__ = ["ChangedKeys", "SsdTier"]

Tables = npt.NDArray[np.uint16]
Rows = npt.NDArray[np.int64]
Records = npt.NDArray[np.uint8]

KEY = np.dtype("V12")  # compares as bytes, as the store does


class ChangedKeys:
    """Which keys a tier has written since somebody asked; bounded by their number.

    Threading: calls follow one another.
    """

    def __init__(self) -> None:
        self._parts: list[npt.NDArray[np.void]] = []
        self._num = 0
        self._merge_at = 1 << 20

    def add(self, keys: npt.NDArray[np.uint8]) -> None:
        """Notes ``keys`` (n, 12)."""
        self._parts.append(np.ascontiguousarray(keys).view(KEY).ravel())
        self._num += len(keys)
        if self._num > self._merge_at:
            self._merge()

    def keys(self) -> npt.NDArray[np.uint8]:
        """Each once, ascending, (n, 12)."""
        self._merge()
        merged = self._parts[0] if self._parts else np.empty(0, KEY)
        return merged.view(np.uint8).reshape(-1, KEY.itemsize)

    def _merge(self) -> None:
        if self._parts:
            self._parts = [np.unique(np.concatenate(self._parts))]
            self._num = len(self._parts[0])
            self._merge_at = max(1 << 20, 2 * self._num)


class SsdTier:
    """The store of one pool with a write buffer before it, and the counts of what passed."""

    name = "SSD"

    def __init__(
        self,
        layout: PoolLayout,
        store: RowStore,
        *,
        stored_step: int = 0,
        unfinished: StoreError | None = None,
    ) -> None:
        """``stored_step``: of which the store's rows are; ``unfinished``: why they are of none."""
        self.layout = layout
        self.store = store
        self.stored_step = stored_step
        self.unfinished = unfinished
        self._buffer = _native.WriteBuffer(layout.record_bytes)
        self._writing = threading.Lock()  # held while records go from the buffer to the store
        # Guarded by _writing.
        self._settled: bool | None = None  # as noted in the store's directory; None: not read
        self._changed: ChangedKeys | None = None  # nobody asked
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

    def cut(self) -> None:
        """Until it is lifted, nothing that is handed down from now on is stored."""
        self._buffer.cut()

    def lift_cut(self) -> None:
        """Lets what waits behind the oldest cut go down."""
        self._buffer.lift_cut()

    def write_back(self) -> None:
        """Stores what was handed down, up to the oldest cut; of a row only its newest record."""
        with self._writing:
            tables, rows, records = self._buffer.take()
            if len(rows):
                keys = self._keys(tables, rows)
                self._mark(settled=False)
                self.store.put(keys, records.reshape(len(rows), -1))
                if self._changed is not None:
                    self._changed.add(keys)
            self._buffer.arrived()

    def settle(self, step: int) -> None:
        """The store holds every row as of ``step``, durably; until the next write it stays so."""
        with self._writing:
            self._mark(settled=True, step=step)

    def unsettle(self) -> None:
        """From here on the store's rows are of no one step."""
        with self._writing:
            self._mark(settled=False)

    def import_sorted(self, chunks: Iterable[Chunk]) -> int:
        """As :meth:`RowStore.import_sorted`, past the buffer; nobody tracks its keys."""
        with self._writing:
            self._changed = None
            return self.store.import_sorted(chunks)

    def _mark(self, *, settled: bool, step: int | None = None) -> None:
        """Notes in the store's directory whether its rows belong to one step. Guarded: _writing."""
        if settled or self._settled is not settled:
            meta = read_meta(self.store.path)
            write_meta(
                self.store.path,
                {"step": meta.get("step", 0) if step is None else step, "settled": settled},
            )
            self._settled = settled

    def track(self) -> ChangedKeys:
        """Keys that are written from here on; the earlier object hears of no more."""
        with self._writing:
            self._changed = ChangedKeys()
            return self._changed

    def tracks(self, changed: ChangedKeys) -> bool:
        """Whether ``changed`` has heard of every key written since :meth:`track` gave it."""
        with self._writing:
            return self._changed is changed

    def stats(self) -> TierStats:
        with self._lock:
            return TierStats(**vars(self._stats) | {"overhead_bytes": self.in_flight_bytes})

    def _keys(self, tables: Tables, rows: Rows) -> npt.NDArray[np.uint8]:
        return encode_keys(np.ascontiguousarray(self.layout.table_hashes[tables]), rows)
