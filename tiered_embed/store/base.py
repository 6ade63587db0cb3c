"""``RowStore``: what the tiers above need of a store, checked and counted once for all backends.

A public method validates its arguments, refuses a closed store and a forked child, counts, and
calls the one underscored method that the backend implements.

Threading: any method may run at the same time as any other, from different threads; one ``scan``
iterator belongs to one thread at a time.

All arrays are C-contiguous uint8: ``keys`` ``(n, 12)``, ``records`` and ``out`` ``(n,
record_bytes)``.
"""

import abc
import atexit
import contextlib
import os
import shutil
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ..errors import ClosedError, ConfigError, StoreError
from ..spec import absolute_path
from .directory import StoreDirectory, os_errors, sync_path
from .keys import KEY_BYTES, UInt8Array, first_out_of_order

__all__ = ["Chunk", "RowStore", "StoreOptions", "close_at_exit"]

Chunk = tuple[UInt8Array, UInt8Array]
Tuning = Literal["rows", "rocksdb_default"]

_live: "weakref.WeakSet[RowStore]" = weakref.WeakSet()


_COUNTS = (
    *("get_calls", "get_rows", "get_found", "get_bytes"),
    *("put_calls", "put_rows", "put_bytes", "delete_rows"),
)


@dataclass(frozen=True)
class StoreOptions:
    """Tuning of a store. A backend ignores what it does not know; no option changes a result."""

    tuning: Tuning = "rows"
    """``rocksdb_default`` is for comparisons (``rocksdb``): RocksDB's own options, block cache and
    write buffer included. ``direct_io`` and the store's contract still hold."""
    num_read_threads: int | None = None
    """How many of the threads that all stores of the process share (10; on more cores as many as
    there are cores, and at most 32) a ``get`` may use besides the caller's (``rocksdb``). None:
    all. Each keeps up to 32 reads in flight."""
    direct_io: bool = False
    """Bypass the page cache (``rocksdb``)."""
    fill_cache: bool = False
    """Let ``get`` fill the block cache (``rocksdb``): for use without a cache above the store."""
    write_buffer_bytes: int = 64 << 20
    """Size of each of the two memtables (``rocksdb``, ``rocksdb_py``)."""
    block_cache_bytes: int = 32 << 20
    """Size of the block cache (``rocksdb``, ``rocksdb_py``)."""

    def __post_init__(self) -> None:
        if self.tuning not in get_args(Tuning):
            raise ConfigError(
                f"store option tuning={self.tuning!r} must be one of {', '.join(get_args(Tuning))}"
            )
        for name, low, high in (
            ("num_read_threads", 0, 1024),
            ("write_buffer_bytes", 64 << 10, 16 << 30),
            ("block_cache_bytes", 0, 1 << 40),
        ):
            value = getattr(self, name)
            if value is None and name == "num_read_threads":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"store option {name}={value!r} must be in [{low}, {high}]")


class RowStore(abc.ABC):
    """Records of ``record_bytes`` bytes by 12-byte key, in the store's own directory."""

    def __init__(self, directory: StoreDirectory, record_bytes: int) -> None:
        self._directory = directory
        self._record_bytes = record_bytes
        self._owner_pid = os.getpid()
        self._closed = False
        self._failure: str | None = None
        self._close_lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._counts = dict.fromkeys(_COUNTS, 0)  # guarded by _count_lock

    @property
    def record_bytes(self) -> int:
        """Bytes of every record."""
        return self._record_bytes

    @property
    def path(self) -> Path:
        """The store's directory."""
        return self._directory.path

    @property
    def closed(self) -> bool:
        return self._closed

    def get(self, keys: UInt8Array, out: UInt8Array) -> npt.NDArray[np.bool_]:
        """Copy the stored records of ``keys`` into ``out``; returns ``found`` ``(n,)``.

        Rows of ``out`` whose key is missing stay as they are. Keys may repeat, in any order.

        Raises:
            CorruptionError: stored bytes fail their checksum; ``out`` may hold anything then.
        """
        self._check_usable()
        self._check_keys(keys)
        self._check_records("out", out, len(keys))
        if not out.flags.writeable:
            raise ConfigError("out must be writeable")
        found = np.zeros(len(keys), np.bool_)
        if len(keys):
            self._get(keys, out, found)
        num_found = int(np.count_nonzero(found))
        self._count(
            get_calls=1,
            get_rows=len(keys),
            get_found=num_found,
            get_bytes=num_found * self._record_bytes,
        )
        return found

    def put(self, keys: UInt8Array, records: UInt8Array) -> None:
        """Insert or replace records. If a key is repeated, its last record wins."""
        self._check_writable()
        self._check_keys(keys)
        self._check_records("records", records, len(keys))
        if len(keys):
            with self._remember_failure():
                self._put(keys, records)
        self._count(put_calls=1, put_rows=len(keys), put_bytes=records.nbytes)

    def delete(self, keys: UInt8Array) -> None:
        """Remove records; keys that are missing are ignored."""
        self._check_writable()
        self._check_keys(keys)
        if len(keys):
            with self._remember_failure():
                self._delete(keys)
        self._count(delete_rows=len(keys))

    def scan(
        self, start: bytes | None = None, stop: bytes | None = None, chunk_rows: int = 4096
    ) -> Iterator[Chunk]:
        """Chunks ``(keys, records)`` in key order, ``start`` inclusive and ``stop`` exclusive.

        A row that is written or deleted during the scan appears in its old or its new state.
        """
        self._check_usable()
        for name, bound in (("start", start), ("stop", stop)):
            if bound is not None and (not isinstance(bound, bytes) or len(bound) != KEY_BYTES):
                raise ConfigError(f"{name} must be {KEY_BYTES} bytes or None, not {bound!r}")
        if chunk_rows < 1:
            raise ConfigError(f"chunk_rows={chunk_rows} must be at least 1")
        return self._checked_scan(start, stop, chunk_rows)

    def import_sorted(self, chunks: Iterable[Chunk]) -> int:
        """Bulk import into a store that has never held a record; returns the number of rows.

        When this returns, all rows are imported and durable; after an exception, none is.
        No other thread may write until then.

        Raises:
            ConfigError: keys do not ascend strictly over all chunks, or the store is not empty.
        """
        self._check_writable()
        num_rows = [0]
        self._import(self._checked_chunks(chunks, num_rows))
        return num_rows[0]

    def flush(self) -> None:
        """Make everything durable that was written so far."""
        self._check_writable()
        with self._remember_failure():
            self._flush()

    def checkpoint(self, target: str | os.PathLike[str]) -> None:
        """Create ``target``, which must not exist: an independent store with the present rows.

        It shares files by hard links where the file system allows, and is durable on return. After
        a failure there is no ``target``.
        """
        self._check_writable()
        self._directory.check_in_place()
        path = absolute_path(target, "target")
        with os_errors(f"checkpoint of store '{self.path}' into '{path}'"):
            if path.exists():
                raise ConfigError(f"checkpoint: '{path}' exists already; choose another directory")
            path.mkdir(mode=0o700)
            try:
                self._checkpoint(path / "db")
                self._directory.copy_description(path)
                sync_path(path)
                sync_path(path.parent)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise

    def check_in_place(self) -> None:
        """Raises StoreError if the directory was moved, removed or replaced since it was opened."""
        self._check_usable()
        self._directory.check_in_place()

    def verify(self) -> int:
        """Read everything; returns the number of records.

        Raises:
            CorruptionError: stored bytes do not match their checksum or their format.
        """
        self._check_usable()
        return self._verify()

    def stats(self) -> dict[str, int]:
        """Counts of calls, rows and bytes since the store was opened, and those of the backend."""
        self._check_usable()
        with self._count_lock:
            counts = dict(self._counts)
        return {**counts, **self._stats()}

    def memory_bytes(self) -> int:
        """Memory that the backend holds for its index, filters, buffers and cache; 0 where it does
        not tell, and once it is closed. Raises nothing."""
        return 0

    def close(self) -> None:
        """Flush, free everything and unlock; a second call does nothing.

        Raises:
            StoreError: rows could not be flushed, or files of the store were removed or replaced
                while it was open. Everything is freed all the same.
        """
        if os.getpid() != self._owner_pid:
            return
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
            try:
                if self._directory.mode != "read_only" and self._failure is None:
                    with contextlib.ExitStack() as last:
                        last.callback(self._close)
                        self._directory.check_in_place()
                else:
                    self._close()
            finally:
                self._directory.release()

    def __enter__(self) -> "RowStore":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # What a backend implements. Arguments have been checked, and n > 0.

    @abc.abstractmethod
    def _get(self, keys: UInt8Array, out: UInt8Array, found: npt.NDArray[np.bool_]) -> None: ...

    @abc.abstractmethod
    def _put(self, keys: UInt8Array, records: UInt8Array) -> None: ...

    @abc.abstractmethod
    def _delete(self, keys: UInt8Array) -> None: ...

    @abc.abstractmethod
    def _scan(
        self, start: bytes | None, stop: bytes | None, chunk_rows: int
    ) -> Iterator[Chunk]: ...

    @abc.abstractmethod
    def _import(self, chunks: Iterator[Chunk]) -> None: ...

    @abc.abstractmethod
    def _flush(self) -> None: ...

    @abc.abstractmethod
    def _checkpoint(self, db_path: Path) -> None: ...

    @abc.abstractmethod
    def _verify(self) -> int: ...

    @abc.abstractmethod
    def _stats(self) -> dict[str, int]: ...

    @abc.abstractmethod
    def _close(self) -> None: ...

    def _leak_after_fork(self) -> None:  # noqa: B027 (optional)
        """In a forked child: keeps alive for ever what must not be destroyed there."""

    # Checks

    def _check_process(self) -> None:
        if os.getpid() != self._owner_pid:
            raise ClosedError(
                f"store '{self.path}' was opened by process {self._owner_pid} and cannot be used "
                "after a fork; open it in one process only"
            )

    def _check_usable(self) -> None:
        self._check_process()
        if self._closed:
            raise ClosedError(f"store '{self.path}' is closed")
        if self._failure is not None:
            raise StoreError(
                f"store '{self.path}' failed earlier ({self._failure}); "
                "restore its rows with te.checkpoint.load(model, path)"
            )

    def _check_writable(self) -> None:
        self._check_usable()
        if self._directory.mode == "read_only":
            raise StoreError(f"store '{self.path}' was opened read_only")

    def _check_bytes(self, name: str, array: UInt8Array, width: int) -> None:
        if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
            got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise ConfigError(f"{name} must be a uint8 array, not {got}")
        if array.ndim != 2 or array.shape[1] != width:
            raise ConfigError(f"{name} must have shape (n, {width}), not {array.shape}")
        if not array.flags.c_contiguous:
            raise ConfigError(f"{name} must be C-contiguous; pass numpy.ascontiguousarray({name})")

    def _check_keys(self, keys: UInt8Array) -> None:
        self._check_bytes("keys", keys, KEY_BYTES)

    def _check_records(self, name: str, records: UInt8Array, num_keys: int) -> None:
        self._check_bytes(name, records, self._record_bytes)
        if len(records) != num_keys:
            raise ConfigError(f"{name} has {len(records)} rows for {num_keys} keys")

    def _checked_scan(
        self, start: bytes | None, stop: bytes | None, chunk_rows: int
    ) -> Iterator[Chunk]:
        chunks = self._scan(start, stop, chunk_rows)
        while True:
            self._check_usable()
            chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def _checked_chunks(self, chunks: Iterable[Chunk], num_rows: list[int]) -> Iterator[Chunk]:
        last: UInt8Array = np.empty((0, KEY_BYTES), np.uint8)
        for keys, records in chunks:
            self._check_keys(keys)
            self._check_records("records", records, len(keys))
            bad = first_out_of_order(np.concatenate((last, keys)))
            if bad is not None:
                position = num_rows[0] + bad - len(last)
                raise ConfigError(
                    f"import: keys must ascend strictly, but row {position} does not; "
                    "sort the rows by key and drop duplicates"
                )
            if len(keys):
                last = keys[-1:].copy()
                num_rows[0] += len(keys)
                yield keys, records

    @contextlib.contextmanager
    def _remember_failure(self) -> Iterator[None]:
        """After a failed write the store's content is unknown, so it refuses every later call."""
        try:
            yield
        except StoreError as error:
            self._failure = str(error)
            raise

    def _count(self, **increments: int) -> None:
        with self._count_lock:
            for name, increment in increments.items():
                self._counts[name] += increment


def close_at_exit(store: RowStore) -> None:
    """Close ``store`` when the interpreter exits, and protect it from forked children."""
    _live.add(store)


def _forget_after_fork() -> None:
    for store in list(_live):
        if not store._closed:
            store._directory.forget_after_fork()
            store._leak_after_fork()


def _close_live() -> None:
    # A backend's threads must not outlive the interpreter.
    for store in list(_live):
        with contextlib.suppress(StoreError):
            store.close()


os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(_close_live)
