"""How the columns of a ``.tet`` chunk are compressed."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from typing import Literal, get_args

from ..errors import ConfigError
from .extras import require
from .files import StrPath
from .tet_columns import Damage

__all__ = ["Codec", "compressor", "decompress"]

Codec = Literal["auto", "none", "zlib", "zstd"]
_NUM_CODECS = 3  # 0 as is, 1 zlib, 2 zstd


def compressor(codec: Codec) -> tuple[int, Callable[[bytes], bytes]]:
    """Return the number that stands for ``codec`` in the file, and the function that compresses.

    Raises:
        ConfigError: an unknown codec, or zstd without the extra ``sim``.
    """
    if codec not in get_args(Codec):
        raise ConfigError(f"codec must be one of {', '.join(get_args(Codec))}, got {codec!r}")
    if codec == "none":
        return 0, bytes
    if codec == "auto":
        try:
            return compressor("zstd")
        except ConfigError:
            return compressor("zlib")
    if codec == "zlib":
        return 1, lambda data: zlib.compress(data, 1)
    zstandard = require("zstandard", "write zstd chunks")
    return 2, zstandard.ZstdCompressor(level=3, write_content_size=True).compress


def decompress(path: StrPath, codec: int, stored: bytes, num_bytes: int) -> bytes:
    """Return the ``num_bytes`` bytes that were compressed to ``stored``; ``path`` is for messages.

    Raises:
        Damage: ``stored`` does not decompress to that many bytes.
        ConfigError: zstd without the extra ``sim``.
    """
    if codec >= _NUM_CODECS:
        raise Damage(f"codec {codec} is unknown")
    if codec == 0:
        data = stored
    elif codec == 1:
        unpacker = zlib.decompressobj()
        try:
            data = unpacker.decompress(stored, num_bytes + 1)
        except zlib.error as error:
            raise Damage(f"zlib: {error}") from error
    else:
        zstandard = require("zstandard", f"read {os.fspath(path)}")
        try:
            if zstandard.get_frame_parameters(stored).content_size != num_bytes:
                raise Damage(f"the zstd frame does not hold {num_bytes} bytes")
            data = zstandard.ZstdDecompressor().decompress(stored, num_bytes)
        except zstandard.ZstdError as error:
            raise Damage(f"zstd: {error}") from error
    if len(data) != num_bytes:
        raise Damage(f"{len(data)} bytes of columns, but {num_bytes} are expected")
    return data
