"""Store keys: the 4-byte identity of the table, then the row id as 8 big-endian bytes.

In key order the rows of a table lie together, with their ids in unsigned order: negative ids come
after all others. Shapes: ``(n, 12)`` uint8.

Pure functions; safe from any thread.
"""

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..spec import table_hash

__all__ = ["KEY_BYTES", "decode_rows", "encode_keys", "first_out_of_order", "table_range"]

KEY_BYTES = 12
_TABLE_BYTES = 4

UInt8Array = npt.NDArray[np.uint8]


def table_range(name: str) -> tuple[bytes, bytes | None]:
    """The range of keys of a table's rows: its first key, and the first key after it (None: the
    range reaches to the end)."""
    prefix = table_hash(name)
    following = int.from_bytes(prefix, "big") + 1
    if following >> 32:
        return prefix + bytes(8), None
    return prefix + bytes(8), following.to_bytes(_TABLE_BYTES, "big") + bytes(8)


def encode_keys(table: bytes | UInt8Array, rows: npt.NDArray[np.int64]) -> UInt8Array:
    """Keys ``(n, 12)`` of int64 ``rows`` ``(n,)``. ``table``: the identity of the table of all rows
    (4 bytes), or of each row ``(n, 4)``."""
    if rows.dtype != np.int64 or rows.ndim != 1:
        raise ConfigError(f"rows must be int64 (n,), not {rows.dtype} {rows.shape}")
    prefix = np.frombuffer(table, np.uint8) if isinstance(table, bytes) else table
    if prefix.dtype != np.uint8 or prefix.shape not in {(_TABLE_BYTES,), (len(rows), _TABLE_BYTES)}:
        raise ConfigError(
            f"a table key is 4 bytes or uint8 ({len(rows)}, 4), not {prefix.dtype} {prefix.shape}"
        )
    keys = np.empty((len(rows), KEY_BYTES), np.uint8)
    keys[:, :_TABLE_BYTES] = prefix
    keys[:, _TABLE_BYTES:] = rows.astype(">i8").view(np.uint8).reshape(-1, 8)
    return keys


def decode_rows(keys: UInt8Array) -> npt.NDArray[np.int64]:
    """The int64 row ids ``(n,)`` of ``keys`` ``(n, 12)``."""
    if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES:
        raise ConfigError(f"keys must be uint8 (n, {KEY_BYTES}), not {keys.dtype} {keys.shape}")
    rows = np.ascontiguousarray(keys[:, _TABLE_BYTES:]).view(">i8").reshape(-1)
    return rows.astype(np.int64)


def first_out_of_order(keys: UInt8Array) -> int | None:
    """Position of the first key that is not greater than the one before it, or None."""
    tables = np.ascontiguousarray(keys[:, :_TABLE_BYTES]).view(">u4").reshape(-1)
    rows = np.ascontiguousarray(keys[:, _TABLE_BYTES:]).view(">u8").reshape(-1)
    ascends = (tables[1:] > tables[:-1]) | ((tables[1:] == tables[:-1]) & (rows[1:] > rows[:-1]))
    bad = np.flatnonzero(~ascends)
    return int(bad[0]) + 1 if len(bad) else None
