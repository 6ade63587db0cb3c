"""The SSD tier: the records of one pool in a RowStore, and those on their way into it.

Threading: any thread may call anything; write-backs run one after another.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from .. import _native
from ..errors import StoreError
from ..spec import TierStats
from ..store import Chunk, RowStore, encode_keys, mark_finished, mark_training
from .layout import PoolLayout

__all__ = ["ChangedKeys", "SsdTier"]

Tables = npt.NDArray[np.uint16]
Rows = npt.NDArray[np.int64]
Records = npt.NDArray[np.uint8]

KEY = np.dtype("V12")  # compares as bytes, as the store does
PORTION_BYTES = 4 << 20  # what goes down at a time


class ChangedKeys:
    """The keys that a tier has written since :meth:`SsdTier.track`, 12 bytes of memory each.

    Threading: one call at a time.
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
        """Every key once, ascending, (n, 12)."""
        self._merge()
        merged = self._parts[0] if self._parts else np.empty(0, KEY)
        return merged.view(np.uint8).reshape(-1, KEY.itemsize)

    def _merge(self) -> None:
        if self._parts:
            self._parts = [np.unique(np.concatenate(self._parts))]
            self._num = len(self._parts[0])
            self._merge_at = max(1 << 20, 2 * self._num)


class SsdTier:
    """The store of one pool, a write buffer in front of it, and counts of what passes.

    Args:
        stored_step: the training step that the store's rows are of.
        unfinished: an error to raise on every use, where the rows come from different steps.
    """

    name = "SSD"

    def __init__(
        self,
        layout: PoolLayout,
        store: RowStore,
        *,
        stored_step: int = 0,
        unfinished: StoreError | None = None,
    ) -> None:
        self.layout = layout
        self.store = store
        self.stored_step = stored_step
        self.unfinished = unfinished
        self._names = [name for name, _ in layout.tables]
        self._buffer = _native.WriteBuffer(layout.record_bytes, PORTION_BYTES)
        self._writing = threading.Lock()  # held while records move from the buffer to the store
        # Guarded by _writing. This object has marked the tables as training; the trainer's thread,
        # which alone sets it to False, may read it without the lock.
        self._training = False
        self._changed: ChangedKeys | None = None  # None: nobody tracks
        self._lock = threading.Lock()
        self._stats = TierStats()  # guarded by _lock

    @property
    def in_flight_bytes(self) -> int:
        """Bytes of records that were handed down and have not reached the store."""
        return self._buffer.bytes

    def read(
        self, tables: Tables, rows: Rows, *, counted: bool = True
    ) -> tuple[Records, npt.NDArray[np.bool_]]:
        """The records (n, record_bytes) of the rows (n,), and which of them this tier holds (n,).

        ``counted``: whether ``stats()`` counts this read; it counts those of training.
        """
        records = np.empty((len(rows), self.layout.record_bytes), np.uint8)
        found = np.zeros(len(rows), np.bool_)
        # The buffer first: what leaves it from now on is in the store before we look there.
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
        """Accepts ``records`` (n, record_bytes) of distinct rows (n,) for :meth:`write_back`."""
        self._buffer.add(tables, rows, records)
        with self._lock:
            self._stats.staged += len(rows)
            self._stats.bytes_in += len(rows) * self.layout.record_bytes

    def hold(self) -> None:
        """Nothing that is handed down from now on is stored, until :meth:`resume`."""
        self._buffer.hold()

    def resume(self) -> None:
        """Lets what the oldest :meth:`hold` kept in the buffer go down to the store."""
        self._buffer.resume()

    def write_back(self) -> None:
        """Stores what was handed down before the oldest hold; of a row only its newest record."""
        while self.write_portion():
            pass

    def write_portion(self) -> bool:
        """Stores the oldest part of it, ``PORTION_BYTES``; returns whether there was any.

        It makes room in the buffer. Called once per :meth:`num_portions`, it is :meth:`write_back`.
        """
        with self._writing:
            taken = self._buffer.take()
            if taken is None:
                return False
            tables, rows, records = taken
            if len(rows):
                keys = self._keys(tables, rows)
                self._mark_training()
                self.store.put(keys, records.reshape(len(rows), -1))
                if self._changed is not None:
                    self._changed.add(keys)
            self._buffer.arrived()
            return True

    def num_portions(self, num_rows: int) -> int:
        """In how many portions one call of :meth:`hand_down` goes down, at most."""
        return -(-num_rows // max(1, PORTION_BYTES // self.layout.record_bytes))

    def mark_finished(self, step: int) -> None:
        """Notes that the store holds every row as of ``step``, durably; the next write ends that.

        REQUIRES: flushed.
        """
        with self._writing:
            self.store.check_in_place()
            mark_finished(self.store.path, self._names, step)
            self._training = False

    @property
    def training(self) -> bool:
        """Whether that is noted. For the trainer's thread: a write may hold the lock for long."""
        return self._training

    def mark_training(self) -> None:
        """Notes that from here on the store's rows may come from different training steps.

        To be called before a row changes, also where it changes in memory alone: after a crash the
        store has the rows of an earlier step then, and who opens it has to know.
        """
        with self._writing:
            self._mark_training()

    def _mark_training(self) -> None:
        """REQUIRES: ``_writing`` is held."""
        if not self._training:
            self.store.check_in_place()
            mark_training(self.store.path, self._names)
            self._training = True

    def import_sorted(self, chunks: Iterable[Chunk]) -> int:
        """As :meth:`RowStore.import_sorted`, bypassing the buffer. Ends the tracking of keys."""
        with self._writing:
            self._changed = None
            return self.store.import_sorted(self._marked(chunks))

    def _marked(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """REQUIRES: ``_writing`` is held while they are drawn."""
        self._mark_training()
        yield from chunks

    def track(self) -> ChangedKeys:
        """The keys that are written from here on. The object that was given before gets no more."""
        with self._writing:
            self._changed = ChangedKeys()
            return self._changed

    def tracks(self, changed: ChangedKeys) -> bool:
        """Whether ``changed`` has every key that was written since :meth:`track` returned it."""
        with self._writing:
            return self._changed is changed

    def stats(self) -> TierStats:
        now = {"overhead_bytes": self.in_flight_bytes, "store_bytes": self.store.memory_bytes()}
        with self._lock:
            return TierStats(**vars(self._stats) | now)

    def _keys(self, tables: Tables, rows: Rows) -> npt.NDArray[np.uint8]:
        return encode_keys(np.ascontiguousarray(self.layout.table_hashes[tables]), rows)
