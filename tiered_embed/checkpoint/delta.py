"""A delta's rows: ``keys.npy`` (n, 12) ascending and ``records.npy`` (n, record_bytes), uint8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import CorruptionError
from ..store import KEY_BYTES, RowStore
from ..store.directory import os_errors

__all__ = ["delta_chunks", "write_delta"]

U8 = npt.NDArray[np.uint8]
CHUNK_ROWS = 1 << 14


def write_delta(store: RowStore, keys: U8, target: Path) -> None:
    """The store's records of ``keys`` (n, 12) as of now."""
    with os_errors(f"cannot write the delta '{target}'"):
        target.mkdir(mode=0o700)
        np.save(target / "keys.npy", keys)
        out = (
            np.lib.format.open_memmap(
                target / "records.npy", "w+", np.uint8, (len(keys), store.record_bytes)
            )
            if len(keys)
            else None
        )
        if out is None:
            np.save(target / "records.npy", np.empty((0, store.record_bytes), np.uint8))
        for start in range(0, len(keys), CHUNK_ROWS):
            part = np.ascontiguousarray(keys[start : start + CHUNK_ROWS])
            records = np.empty((len(part), store.record_bytes), np.uint8)
            found = store.get(part, records)
            if not found.all():
                missing = part[int(np.argmin(found))].tobytes().hex()
                raise CorruptionError(f"store '{store.path}' has lost the row of key {missing}")
            assert out is not None
            out[start : start + len(part)] = records
        if out is not None:
            out.flush()


def delta_chunks(folder: Path, record_bytes: int) -> Iterator[tuple[U8, U8]]:
    """(keys, records) of a delta, in key order.

    Raises:
        CorruptionError: not what :func:`write_delta` writes.
    """
    arrays = []
    for name, width in (("keys.npy", KEY_BYTES), ("records.npy", record_bytes)):
        with os_errors(f"cannot read '{folder / name}'"):
            try:
                array = np.load(folder / name, mmap_mode="r", allow_pickle=False)
            except ValueError:  # an empty array cannot be mapped
                try:
                    array = np.load(folder / name, allow_pickle=False)
                except (ValueError, EOFError) as error:
                    raise CorruptionError(f"'{folder / name}' is not readable: {error}") from error
        if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != width:
            raise CorruptionError(
                f"'{folder / name}' holds {array.dtype} {array.shape}, not uint8 (n, {width})"
            )
        arrays.append(array)
    keys, records = arrays
    if len(keys) != len(records):
        raise CorruptionError(f"'{folder}' has {len(keys)} keys and {len(records)} records")
    for start in range(0, len(keys), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        yield np.array(keys[part]), np.array(records[part])
