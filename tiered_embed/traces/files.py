"""Open a trace file, plain or compressed, and read it in blocks.

The compression is told by the file's first bytes, not by its name. This is the one place where the
decompressors' exceptions become ``ConfigError``.
"""

import gzip
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from tiered_embed.errors import ConfigError

__all__ = ["StrPath", "read_all", "read_blocks", "read_line_blocks"]

StrPath = str | os.PathLike[str]

_XZ_MAGIC = b"\xfd7zXZ\x00"
_GZIP_MAGIC = b"\x1f\x8b"
_BLOCK_BYTES = 1 << 20
_LINE_LIMIT_BYTES = 1 << 16


def read_blocks(path: StrPath, block_bytes: int = _BLOCK_BYTES) -> Iterator[bytes]:
    """Yield the decompressed bytes of ``path`` in pieces of at most ``block_bytes``.

    Raises:
        ConfigError: the compressed data is cut off or damaged; names the bytes that were readable.
        OSError: the file cannot be opened or read.
    """
    done_bytes = 0
    with Path(path).open("rb") as file:
        magic = file.read(len(_XZ_MAGIC))
        file.seek(0)
        stream: IO[bytes] = file
        if magic == _XZ_MAGIC:
            # typeshed: LZMAFile is an IO[bytes] in all but its declared base.
            stream = cast(IO[bytes], lzma.LZMAFile(file))  # noqa: SIM115 (owns nothing)
        elif magic.startswith(_GZIP_MAGIC):
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=file))
        while True:
            try:
                block = stream.read(block_bytes)
            except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
                raise ConfigError(
                    f"{os.fspath(path)}: compressed data is cut off or damaged near byte"
                    f" {file.tell()} of the file, after decompressed byte {done_bytes} ({error});"
                    " fetch the file again"
                ) from error
            if not block:
                return
            done_bytes += len(block)
            yield block


def read_all(path: StrPath) -> bytes:
    """Return all decompressed bytes of ``path``; raises as ``read_blocks`` does."""
    return b"".join(read_blocks(path))


def read_line_blocks(path: StrPath, block_bytes: int = _BLOCK_BYTES) -> Iterator[bytes]:
    """Yield pieces of ``path`` that end at a line end; a last line without one gets one.

    Memory stays bounded by the block and one line.

    Raises:
        ConfigError: as ``read_blocks``, or a line is longer than 64 KiB (no text log, then).
        OSError: the file cannot be opened or read.
    """
    rest = b""
    num_lines = 0
    for block in read_blocks(path, block_bytes):
        joined = rest + block
        cut = joined.rfind(b"\n") + 1
        rest = joined[cut:]
        if cut:
            num_lines += joined.count(b"\n", 0, cut)
            yield joined[:cut]
        if len(rest) > max(_LINE_LIMIT_BYTES, block_bytes):
            raise ConfigError(
                f"{os.fspath(path)}, line {num_lines + 1}: no line end within {len(rest)} bytes;"
                " is this a text log?"
            )
    if rest:
        yield rest + b"\n"
