"""The default store: RocksDB through the package's own extension ``tiered_embed._rocksdb``.

The extension translates RocksDB's errors, checks the pid, keeps reads in flight on its own threads
and releases the GIL. It exists only where the package was built with ``librocksdb-dev``.

Threading: as :class:`RowStore`; calls run in parallel.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import StoreError
from .base import Chunk, RowStore, StoreOptions
from .directory import StoreDirectory
from .keys import KEY_BYTES, UInt8Array

__all__ = ["RocksDbRowStore", "available", "num_read_handles"]

_native: Any
try:
    _native = importlib.import_module("tiered_embed._rocksdb")
    _import_error: ImportError | None = None
except ImportError as error:
    _native = None
    _import_error = error


def available() -> bool:
    """Whether the extension was built and can be loaded."""
    return _native is not None


def num_read_handles() -> int:
    """Files that all stores of the process have open for reads. They give way to others."""
    return 0 if _native is None else int(_native.num_read_handles())


class RocksDbRowStore(RowStore):
    """``RowStore`` over the native RocksDB extension."""

    def __init__(self, directory: StoreDirectory, record_bytes: int, options: StoreOptions) -> None:
        if _native is None:
            raise StoreError(
                f"backend 'rocksdb' needs the extension tiered_embed._rocksdb ({_import_error}); "
                "build with librocksdb-dev installed, or pass store='rocksdb_py'"
            )
        super().__init__(directory, record_bytes)
        self._db = _native.RocksDbStore.open(
            str(directory.db_path),
            record_bytes,
            directory.mode,
            tuning=options.tuning,
            num_read_threads=options.num_read_threads,
            direct_io=options.direct_io,
            fill_cache=options.fill_cache,
            write_buffer_bytes=options.write_buffer_bytes,
            block_cache_bytes=options.block_cache_bytes,
        )

    def compact(self) -> None:
        """Merge all files, so that every read searches one level."""
        self._check_writable()
        self._db.compact()

    def _get(self, keys: UInt8Array, out: UInt8Array, found: npt.NDArray[np.bool_]) -> None:
        self._db.get(keys, out, found)

    def _put(self, keys: UInt8Array, records: UInt8Array) -> None:
        self._db.put(keys, records)

    def _delete(self, keys: UInt8Array) -> None:
        self._db.delete(keys)

    def _scan(self, start: bytes | None, stop: bytes | None, chunk_rows: int) -> Iterator[Chunk]:
        scanner = self._db.scan(start, stop)
        try:
            while True:
                keys = np.empty((chunk_rows, KEY_BYTES), np.uint8)
                records = np.empty((chunk_rows, self._record_bytes), np.uint8)
                rows = scanner.next(keys, records)
                if rows == 0:
                    return
                yield keys[:rows], records[:rows]
        finally:
            scanner.close()

    def _import(self, chunks: Iterator[Chunk]) -> None:
        importer = self._db.importer(str(self._directory.scratch_path))
        try:
            for keys, records in chunks:
                importer.add(keys, records)
            importer.finish()
        finally:
            importer.abort()

    def _flush(self) -> None:
        self._db.flush()

    def _checkpoint(self, db_path: Path) -> None:
        self._db.checkpoint(str(db_path))

    def _verify(self) -> int:
        return int(self._db.verify())

    def _stats(self) -> dict[str, int]:
        return dict(self._db.stats())

    def memory_bytes(self) -> int:
        return int(self._db.memory_bytes())

    def _close(self) -> None:
        self._db.close()
