"""The rows of a delta: ``keys.npy`` (n, 12) ascending, ``records.npy`` (n, record_bytes), uint8.

Threading: pure functions of a folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import CorruptionError
from ..store import KEY_BYTES, RowStore, os_errors

__all__ = ["delta_chunks", "delta_keys", "write_delta"]

U8 = npt.NDArray[np.uint8]
KEYS, RECORDS = "keys.npy", "records.npy"
CHUNK_ROWS = 1 << 14


def write_delta(store: RowStore, keys: U8, target: Path) -> None:
    """Writes the store's present records of ``keys`` (n, 12), which ascend.

    Raises:
        CorruptionError: the store lacks one. StoreError: ``target`` cannot be written.
    """
    with os_errors(f"cannot write the delta '{target}'"):
        target.mkdir(mode=0o700)
        np.save(target / KEYS, keys)
        with open(target / RECORDS, "xb") as file:
            header = {"descr": "|u1", "fortran_order": False}
            shape = (len(keys), store.record_bytes)
            np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
            for start in range(0, len(keys), CHUNK_ROWS):
                part = np.ascontiguousarray(keys[start : start + CHUNK_ROWS])
                records = np.empty((len(part), store.record_bytes), np.uint8)
                found = store.get(part, records)
                if not found.all():
                    missing = part[int(np.argmin(found))].tobytes().hex()
                    raise CorruptionError(
                        f"store '{store.path}' has lost the row with key {missing}; restore it "
                        "from a checkpoint"
                    )
                file.write(records.data)


def delta_keys(folder: Path) -> U8:
    """The keys (n, 12), ascending. Raises as :func:`delta_chunks`."""
    with os_errors(f"cannot read '{folder}'"), open(folder / KEYS, "rb") as file:
        return _read(file, folder / KEYS, _rows(file, folder / KEYS, KEY_BYTES), KEY_BYTES)


def delta_chunks(folder: Path, record_bytes: int) -> Iterator[tuple[U8, U8]]:
    """(keys, records) of a delta, in key order.

    Raises:
        CorruptionError: the files are not as :func:`write_delta` writes them.
    """
    keys = delta_keys(folder)
    path = folder / RECORDS
    with os_errors(f"cannot read '{folder}'"), open(path, "rb") as file:
        if _rows(file, path, record_bytes) != len(keys):
            raise CorruptionError(
                f"the number of records in '{path}' differs from its {len(keys)} keys"
            )
        for start in range(0, len(keys), CHUNK_ROWS):
            part = keys[start : start + CHUNK_ROWS]
            yield part, _read(file, path, len(part), record_bytes)


def _rows(file: BinaryIO, path: Path, width: int) -> int:
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("it must have format 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except (ValueError, SyntaxError, TypeError, RecursionError) as error:
        raise CorruptionError(f"'{path}' is not readable: {error}") from error
    if dtype != np.uint8 or fortran or len(shape) != 2 or shape[1] != width:
        raise CorruptionError(f"'{path}' holds {dtype} {shape}, not uint8 (n, {width})")
    left = path.stat().st_size - file.tell()
    if left != shape[0] * width:
        raise CorruptionError(f"'{path}' has {left} bytes for {shape[0]} rows of {width}")
    return int(shape[0])


def _read(file: BinaryIO, path: Path, rows: int, width: int) -> U8:
    raw = file.read(rows * width)
    if len(raw) != rows * width:
        raise CorruptionError(f"'{path}' ends too early")
    return np.frombuffer(raw, np.uint8).reshape(rows, width)
