"""Open a trace file, plain or compressed, and read it in blocks.

The file's first bytes decide on the compression, not its name. The exceptions of decompressors
become ``ConfigError`` here, and nowhere else.
"""

import gzip
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from ..errors import ConfigError
from .extras import require

__all__ = ["COMPRESSED_SUFFIXES", "StrPath", "read_blocks", "read_line_blocks"]

StrPath = str | os.PathLike[str]

_XZ_MAGIC = b"\xfd7zXZ\x00"
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
COMPRESSED_SUFFIXES = (".gz", ".xz", ".zst")
# A zstd block of 4 bytes may expand to 128 KiB: small pieces bound the memory that one needs.
_ZSTD_PIECE_BYTES = 2048
_BLOCK_BYTES = 1 << 20
_LINE_LIMIT_BYTES = 1 << 16


def read_blocks(path: StrPath, block_bytes: int = _BLOCK_BYTES) -> Iterator[bytes]:
    """Yield the decompressed bytes of ``path`` in pieces of at most ``block_bytes``.

    Raises:
        ConfigError: the compressed data is cut off or damaged (the message names the place), or it
            is zstd and the extra ``sim`` is not installed.
        OSError: the file cannot be opened or read.
    """
    done_bytes = 0
    with Path(path).open("rb") as file:
        magic = file.read(len(_XZ_MAGIC))
        file.seek(0)
        if magic.startswith(_ZSTD_MAGIC):
            yield from _zstd_blocks(path, file, block_bytes)
            return
        stream: IO[bytes] = file
        if magic == _XZ_MAGIC:
            # typeshed does not declare that LZMAFile is an IO[bytes].
            stream = cast(IO[bytes], lzma.LZMAFile(file))  # noqa: SIM115 (owns nothing)
        elif magic.startswith(_GZIP_MAGIC):
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=file))
        while True:
            try:
                block = stream.read(block_bytes)
            except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
                raise _damaged(path, file.tell(), done_bytes, error) from error
            if not block:
                return
            done_bytes += len(block)
            yield block


def _zstd_blocks(path: StrPath, file: IO[bytes], block_bytes: int) -> Iterator[bytes]:
    zstandard = require("zstandard", f"read {os.fspath(path)}")
    frame = None
    piece = b""
    waiting = bytearray()
    done_bytes = 0
    while piece := piece or file.read(_ZSTD_PIECE_BYTES):
        frame = frame or zstandard.ZstdDecompressor().decompressobj()
        try:
            waiting += frame.decompress(piece)
        except zstandard.ZstdError as error:
            raise _damaged(path, file.tell(), done_bytes + len(waiting), error) from error
        piece = frame.unused_data if frame.eof else b""
        frame = None if frame.eof else frame
        while len(waiting) >= block_bytes:
            done_bytes += block_bytes
            yield bytes(waiting[:block_bytes])
            del waiting[:block_bytes]
    if waiting:
        done_bytes += len(waiting)
        yield bytes(waiting)
    if frame is not None:
        raise _damaged(path, file.tell(), done_bytes, "the file ends inside a frame")


def _damaged(path: StrPath, at: int, done_bytes: int, fact: object) -> ConfigError:
    return ConfigError(
        f"{os.fspath(path)}: compressed data is cut off or damaged near byte {at} of the file,"
        f" after {done_bytes} decompressed bytes ({fact}); get the file again"
    )


def read_line_blocks(path: StrPath, block_bytes: int = _BLOCK_BYTES) -> Iterator[bytes]:
    """Yield pieces of ``path`` that end at a line end; one is added to a last line without it.

    Memory is bounded by one block and one line.

    Raises:
        ConfigError: as ``read_blocks``; also a line of more than 64 KiB, as in a file that is not a
            text log.
        OSError: the file cannot be opened or read.
    """
    rest = b""
    num_lines = 0
    for block in read_blocks(path, block_bytes):
        joined = rest + block
        end = joined.rfind(b"\n") + 1
        rest = joined[end:]
        if end:
            num_lines += joined.count(b"\n", 0, end)
            yield joined[:end]
        if len(rest) > max(_LINE_LIMIT_BYTES, block_bytes):
            raise ConfigError(
                f"{os.fspath(path)}, line {num_lines + 1}: no line end within {len(rest)} bytes;"
                " is this a text log?"
            )
    if rest:
        yield rest + b"\n"
