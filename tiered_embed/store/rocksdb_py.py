"""The fallback store: RocksDB through the ``rocksdb-py`` wheel (import name ``rocksdbpy``).

The limits of that wheel shape this module. Its write-ahead log cannot be turned off. Every call
holds the GIL, so reads do not overlap; batches are divided into slices so that other threads run in
between. It has no checkpoint: ours closes the database, links its immutable files, copies the
others and opens it again. For some errors it raises Rust panics (``BaseException``). An iterator
that outlives its database crashes, so a scan keeps none between two chunks.

Threading: one lock around every use of the database.
"""

import contextlib
import ctypes
import importlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ClosedError, ConfigError, CorruptionError, StoreError
from .base import Chunk, RowStore, StoreOptions
from .directory import StoreDirectory, sync_path
from .handles import share_of_handles
from .keys import KEY_BYTES, UInt8Array

__all__ = ["RocksDbPyRowStore", "available"]

_rocksdbpy: Any
try:
    _rocksdbpy = importlib.import_module("rocksdbpy")
except ImportError:
    _rocksdbpy = None

_SLICE_ROWS = 512
_VERIFY_CHUNK_ROWS = 1 << 14


def available() -> bool:
    """Whether the wheel is installed."""
    return _rocksdbpy is not None


@contextlib.contextmanager
def _mapped(what: str) -> Iterator[None]:
    """Turns the wheel's exceptions into ours; nothing else does."""
    try:
        yield
    except BaseException as error:
        kind = type(error)
        if not (kind.__module__.startswith("rocksdbpy") or kind.__name__ == "PanicException"):
            raise
        message = f"{what}: {error}"
        # For a block that fails its checksum the wheel says no more than "Iterator completed".
        if "Corruption" in message or "Iterator completed" in message:
            raise CorruptionError(message) from error
        raise StoreError(message) from error


def _options(options: StoreOptions, create: bool) -> Any:
    rocks = _rocksdbpy.Option()
    rocks.create_if_missing(create)
    # Nothing else gives whole-key bloom filters and sets the block cache (in MiB).
    rocks.optimize_for_point_lookup(max(1, options.block_cache_bytes >> 20))
    rocks.set_write_buffer_size(options.write_buffer_bytes)
    rocks.set_max_write_buffer_number(2)
    rocks.set_max_background_jobs(2)
    rocks.set_max_open_files(share_of_handles())
    rocks.set_bytes_per_sync(1 << 20)
    return rocks


def _link_or_copy(source: Path, target: Path) -> None:
    """Links SST files, which never change once written, and copies all others."""
    if source.suffix == ".sst":
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(source, target)
    sync_path(target)


class RocksDbPyRowStore(RowStore):
    """``RowStore`` over the ``rocksdb-py`` wheel."""

    def __init__(self, directory: StoreDirectory, record_bytes: int, options: StoreOptions) -> None:
        if _rocksdbpy is None:
            raise StoreError("backend 'rocksdb_py' needs the wheel: pip install rocksdb-py")
        super().__init__(directory, record_bytes)
        self._options = options
        self._lock = threading.Lock()
        self._db: Any = None  # guarded by _lock; None once closed
        self._wrote = False
        self._open(create=directory.mode == "create")

    def _open(self, create: bool) -> None:
        path = str(self._directory.db_path)
        rocks = _options(self._options, create)
        with _mapped(f"cannot open the RocksDB in '{path}'"):
            if self._directory.mode == "read_only":
                self._db = _rocksdbpy.open_for_readonly(path, rocks, False)
            else:
                self._db = _rocksdbpy.open(path, rocks)

    @contextlib.contextmanager
    def _using(self, what: str) -> Iterator[Any]:
        self._check_process()  # before the lock: a thread of the parent may have held it
        with self._lock:
            if self._db is None:
                raise ClosedError(f"store '{self.path}' is closed")
            with _mapped(f"{what} store '{self.path}'"):
                yield self._db

    def _get(self, keys: UInt8Array, out: UInt8Array, found: npt.NDArray[np.bool_]) -> None:
        for begin in range(0, len(keys), _SLICE_ROWS):
            names = [key.tobytes() for key in keys[begin : begin + _SLICE_ROWS]]
            with self._using("get from") as db:
                values = db.multi_get(names)
            for index, value in enumerate(values, begin):
                if value is None:
                    continue
                self._check_length(names[index - begin], value)
                out[index] = np.frombuffer(value, np.uint8)
                found[index] = True

    def _check_length(self, key: bytes, value: bytes) -> None:
        if len(key) != KEY_BYTES or len(value) != self._record_bytes:
            raise CorruptionError(
                f"store '{self.path}': key {key.hex()} has {len(value)} bytes, "
                f"not {self._record_bytes}"
            )

    def _put(self, keys: UInt8Array, records: UInt8Array) -> None:
        self._wrote = True
        for begin in range(0, len(keys), _SLICE_ROWS):
            end = min(begin + _SLICE_ROWS, len(keys))
            batch = _rocksdbpy.WriteBatch()
            for index in range(begin, end):
                batch.add(keys[index].tobytes(), records[index].tobytes())
            with self._using("put to") as db:
                db.write(batch)

    def _delete(self, keys: UInt8Array) -> None:
        batch = _rocksdbpy.WriteBatch()
        for key in keys:
            batch.delete(key.tobytes())
        with self._using("delete from") as db:
            db.write(batch)

    def _read_chunk(
        self, start: bytes | None, stop: bytes | None, chunk_rows: int
    ) -> list[tuple[bytes, bytes]]:
        rows: list[tuple[bytes, bytes]] = []
        with self._using("scan of") as db:
            iterator = db.iterator() if start is None else db.iterator(mode="from", key=start)
            try:
                for key, value in iterator:
                    if stop is not None and key >= stop:
                        break
                    self._check_length(key, value)
                    rows.append((key, value))
                    if len(rows) == chunk_rows:
                        break
            finally:
                iterator.close()
        return rows

    def _scan(self, start: bytes | None, stop: bytes | None, chunk_rows: int) -> Iterator[Chunk]:
        while rows := self._read_chunk(start, stop, chunk_rows):
            keys = np.frombuffer(b"".join(key for key, _ in rows), np.uint8)
            records = np.frombuffer(b"".join(value for _, value in rows), np.uint8)
            yield (
                keys.reshape(-1, KEY_BYTES).copy(),
                records.reshape(-1, self._record_bytes).copy(),
            )
            start = rows[-1][0] + b"\0"  # the smallest key after it

    def _import(self, chunks: Iterator[Chunk]) -> None:
        if self._read_chunk(None, None, 1):
            raise ConfigError(
                f"bulk import needs an empty store, but '{self.path}' has records; "
                "write the rows with load_rows, or choose another ssd directory"
            )
        try:
            for keys, records in chunks:
                self._put(keys, records)
            self._flush()
        except BaseException:
            if os.getpid() == self._owner_pid:  # no child that was forked by `chunks`
                self._empty()
            raise

    def _empty(self) -> None:
        with self._using("reset of") as db:
            self._db = None
            db.close()
            _rocksdbpy.destroy(str(self._directory.db_path))
            self._open(create=True)
            self._directory.remember_db()

    def _flush(self) -> None:
        with self._using("flush of") as db:
            db.flush()

    def _checkpoint(self, db_path: Path) -> None:
        with self._using("checkpoint of") as db:
            db.flush()
            # An open database may delete files between two links; a closed one changes nothing.
            self._db = None
            db.close()
            try:
                db_path.mkdir(mode=0o700)
                for source in sorted(self._directory.db_path.iterdir()):
                    # Not LOCK: closing a copy would end the process's lock. Not LOG: only text.
                    if source.is_file() and not source.name.startswith("LO"):
                        _link_or_copy(source, db_path / source.name)
                sync_path(db_path)
            finally:
                self._open(create=False)

    def _verify(self) -> int:
        return sum(len(keys) for keys, _ in self._scan(None, None, _VERIFY_CHUNK_ROWS))

    def _stats(self) -> dict[str, int]:
        sizes = [
            file.stat().st_size
            for file in self._directory.db_path.glob("*.sst")
            if file.exists()  # a compaction may delete it meanwhile
        ]
        return {"live_sst_bytes": sum(sizes)}

    def _close(self) -> None:
        with self._lock:
            db, self._db = self._db, None
            if db is None:
                return
            with _mapped(f"close of store '{self.path}'"):
                try:
                    if self._directory.mode != "read_only" and self._failure is None:
                        db.flush()
                finally:
                    db.close()
                if self._directory.mode != "read_only" and self._failure is None and self._wrote:
                    # It looks for every file, which nothing else in the wheel does.
                    path = str(self._directory.db_path)
                    rocks = _options(self._options, create=False)
                    _rocksdbpy.open_for_readonly(path, rocks, False).close()

    def _leak_after_fork(self) -> None:
        # The destructor would wait for threads that do not exist in the child.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._db))
