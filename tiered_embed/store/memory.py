"""A store in memory, for tests and as the readable reference of the contract.

It keeps the durability rule of the others: ``flush``, ``import_sorted``, ``checkpoint`` and
``close`` write all rows to one ``.npy`` file, and what is written later is lost with the process.

Threading: one lock around everything.
"""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, CorruptionError
from .base import Chunk, RowStore, StoreOptions
from .directory import StoreDirectory, os_errors, sync_path
from .keys import KEY_BYTES, UInt8Array

__all__ = ["MemoryRowStore"]

_FILE = "rows.npy"


class MemoryRowStore(RowStore):
    """``RowStore`` over a dict that maps a key to a row of one array."""

    def __init__(self, directory: StoreDirectory, record_bytes: int, options: StoreOptions) -> None:
        super().__init__(directory, record_bytes)
        self._lock = threading.Lock()
        # Guarded by _lock.
        self._slots: dict[bytes, int] = {}
        self._free: list[int] = []
        self._records: UInt8Array = np.empty((0, record_bytes), np.uint8)
        if directory.mode == "create":
            self._save(directory.db_path)
        else:
            self._load(directory.db_path / _FILE)

    def _load(self, file: Path) -> None:
        with os_errors(f"cannot read '{file}'"):
            try:
                rows = np.load(file, allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise CorruptionError(f"'{file}' is not readable: {error}") from error
        width = KEY_BYTES + self._record_bytes
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != width:
            raise CorruptionError(f"'{file}' holds {rows.dtype} {rows.shape}, not (n, {width})")
        self._insert(rows[:, :KEY_BYTES], np.ascontiguousarray(rows[:, KEY_BYTES:]))

    def _save(self, folder: Path) -> None:
        names = sorted(self._slots)
        keys = np.frombuffer(b"".join(names), np.uint8).reshape(-1, KEY_BYTES)
        slots = np.fromiter((self._slots[name] for name in names), np.intp, len(names))
        temporary = folder / f"{_FILE}.tmp"
        with os_errors(f"cannot write '{temporary}'"):
            with open(temporary, "wb") as file:
                np.save(file, np.concatenate((keys, self._records[slots]), axis=1))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, folder / _FILE)
            sync_path(folder)

    def _insert(self, keys: UInt8Array, records: UInt8Array) -> None:
        slots = np.empty(len(keys), np.intp)
        for index, key in enumerate(keys):
            name = key.tobytes()
            slot = self._slots.get(name)
            if slot is None:
                slot = self._free.pop() if self._free else len(self._slots)
                self._slots[name] = slot
            slots[index] = slot
        needed = len(self._slots) + len(self._free)
        if needed > len(self._records):
            grown = np.empty((max(needed, 2 * len(self._records)), self._record_bytes), np.uint8)
            grown[: len(self._records)] = self._records
            self._records = grown
        # Assignment with repeated positions keeps the last one, as the contract wants.
        self._records[slots] = records

    def _get(self, keys: UInt8Array, out: UInt8Array, found: npt.NDArray[np.bool_]) -> None:
        with self._lock:
            slots = np.fromiter(
                (self._slots.get(key.tobytes(), -1) for key in keys), np.intp, len(keys)
            )
            found[:] = slots >= 0
            out[found] = self._records[slots[found]]

    def _put(self, keys: UInt8Array, records: UInt8Array) -> None:
        with self._lock:
            self._insert(keys, records)

    def _delete(self, keys: UInt8Array) -> None:
        with self._lock:
            for key in keys:
                slot = self._slots.pop(key.tobytes(), None)
                if slot is not None:
                    self._free.append(slot)

    def _scan(self, start: bytes | None, stop: bytes | None, chunk_rows: int) -> Iterator[Chunk]:
        with self._lock:
            names = sorted(
                name
                for name in self._slots
                if (start is None or name >= start) and (stop is None or name < stop)
            )
        for begin in range(0, len(names), chunk_rows):
            keys = np.frombuffer(b"".join(names[begin : begin + chunk_rows]), np.uint8)
            keys = keys.reshape(-1, KEY_BYTES).copy()
            records = np.empty((len(keys), self._record_bytes), np.uint8)
            found = np.zeros(len(keys), np.bool_)
            self._get(keys, records, found)
            if found.any():
                yield keys[found], records[found]

    def _import(self, chunks: Iterator[Chunk]) -> None:
        with self._lock:
            if self._slots:
                raise ConfigError(
                    f"bulk import needs an empty store, but '{self.path}' has "
                    f"{len(self._slots)} records; write the rows with load_rows, or choose "
                    "another ssd directory"
                )
            try:
                for keys, records in chunks:
                    self._insert(keys, records)
                self._save(self._directory.db_path)
            except BaseException:
                self._slots, self._free = {}, []
                raise

    def _flush(self) -> None:
        with self._lock:
            self._save(self._directory.db_path)

    def _checkpoint(self, db_path: Path) -> None:
        with self._lock:
            db_path.mkdir(mode=0o700)
            self._save(db_path)

    def _verify(self) -> int:
        with self._lock:
            return len(self._slots)

    def _stats(self) -> dict[str, int]:
        with self._lock:
            return {"estimated_keys": len(self._slots)}

    def _close(self) -> None:
        with self._lock:
            if self._directory.mode != "read_only" and self._failure is None:
                self._save(self._directory.db_path)
