"""Access traces stored as bare integers, one after another."""

import os
import re
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from tiered_embed.errors import ConfigError
from tiered_embed.traces.files import StrPath, read_all

__all__ = ["Layout", "read_raw"]

Layout = Literal["i64be", "i64le", "u32be", "u32le"]
_DTYPES = {"i64be": ">i8", "i64le": "<i8", "u32be": ">u4", "u32le": "<u4"}


def read_raw(path: StrPath, layout: Layout | None = None) -> npt.NDArray[np.int64]:
    """Return the ids of a raw trace in access order: int64 (N,).

    ``layout`` names the stored integers; None takes it from the file's name, as in
    ``scarab_recs.i64be.xz``. Plain, gzip and xz files are told apart by content.

    Raises:
        ConfigError: the layout is unknown, the size is no multiple of the integer's (names the
            byte), or compressed data is damaged.
        OSError: the file cannot be read.
    """
    name = layout if layout is not None else _layout_in_name(path)
    if name not in _DTYPES:
        raise ConfigError(f"layout must be one of {', '.join(get_args(Layout))}, got {name!r}")
    dtype = np.dtype(_DTYPES[name])
    data = read_all(path)
    extra = len(data) % dtype.itemsize
    if extra:
        raise ConfigError(
            f"{os.fspath(path)}: {len(data)} bytes are no multiple of {dtype.itemsize} ({name});"
            f" the id that starts at byte {len(data) - extra} is cut off"
        )
    return np.frombuffer(data, dtype=dtype).astype(np.int64)


def _layout_in_name(path: StrPath) -> str:
    found = re.search(r"\.([iu]\d+[bl]e)(\.xz|\.gz)?$", os.fspath(path))
    if found is None:
        raise ConfigError(
            f"{os.fspath(path)}: the name does not tell the integer layout; pass layout="
            f" one of {', '.join(get_args(Layout))}"
        )
    return found.group(1)
