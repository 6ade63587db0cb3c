"""Traces stored as bare integers, one after the other."""

import os
import re
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from .chunk import CHUNK_IDS, TraceChunk, TraceTable, check_batch, even_offsets
from .files import StrPath, read_blocks
from .trace import Trace

__all__ = ["Layout", "layout_in_name", "raw_trace", "read_raw"]

Layout = Literal["i64be", "i64le", "u32be", "u32le"]
_DTYPES = {"i64be": ">i8", "i64le": "<i8", "u32be": ">u4", "u32le": "<u4"}


def read_raw(path: StrPath, layout: Layout | None = None) -> npt.NDArray[np.int64]:
    """Return the ids of a raw trace in access order: int64 (N,).

    ``layout`` says how integers are stored; with None the file's name says it, as in
    ``scarab_recs.i64be.xz``. Compression is recognised by content.

    Raises:
        ConfigError: an unknown layout, a size that is not a multiple of the integer's, or damaged
            compression.
        OSError: the file cannot be read.
    """
    blocks = list(_read_ids(path, _dtype(path, layout), 1 << 17))
    return np.concatenate([np.empty(0, np.int64), *blocks])


def raw_trace(
    path: StrPath,
    layout: Layout | None = None,
    batch: int = 1024,
    *,
    name: str = "table",
    num_rows: int | None = None,
) -> Trace:
    """Return a raw trace, streamed: one table, ``batch`` ids per batch. Raises as ``read_raw``."""
    dtype = _dtype(path, layout)
    step = max(1, CHUNK_IDS // check_batch(batch)) * batch

    def chunks() -> Iterator[TraceChunk]:
        for ids in _read_ids(path, dtype, step):
            yield TraceChunk(((even_offsets(len(ids), batch), ids),))

    return Trace([TraceTable(name, num_rows)], chunks)


def _dtype(path: StrPath, layout: Layout | None) -> np.dtype[np.generic]:
    name = layout if layout is not None else layout_in_name(path)
    if name is None:
        raise ConfigError(
            f"{os.fspath(path)}: the name does not say how integers are stored; pass layout="
            f" one of {', '.join(get_args(Layout))}"
        )
    if name not in _DTYPES:
        raise ConfigError(f"layout must be one of {', '.join(get_args(Layout))}, got {name!r}")
    return np.dtype(_DTYPES[name])


def layout_in_name(path: StrPath) -> str | None:
    """Return the layout in a name such as ``scarab_recs.i64be.xz``, or None."""
    found = re.search(r"\.([iu]\d+[bl]e)(\.xz|\.gz|\.zst|\.bz2)?$", os.fspath(path))
    return None if found is None else found.group(1)


def _read_ids(
    path: StrPath, dtype: np.dtype[np.generic], num_ids: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield ``num_ids`` ids at a time, and the rest at the end."""
    rest = bytearray()
    done_bytes = 0
    piece = num_ids * dtype.itemsize
    for block in read_blocks(path):
        rest += block
        done_bytes += len(block)
        while len(rest) >= piece:
            yield np.frombuffer(bytes(rest[:piece]), dtype).astype(np.int64)
            del rest[:piece]
    extra = len(rest) % dtype.itemsize
    if extra:
        raise ConfigError(
            f"{os.fspath(path)}: the size of {done_bytes} bytes is not a multiple of"
            f" {dtype.itemsize} ({dtype.str[1:]}); the id that starts at byte"
            f" {done_bytes - extra} is cut off"
        )
    if rest:
        yield np.frombuffer(bytes(rest), dtype).astype(np.int64)
