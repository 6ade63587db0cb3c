"""Open a trace file, plain or compressed, and read it in blocks.

The file's first bytes decide on the compression, not its name. The exceptions of decompressors
become ``ConfigError`` here, and nowhere else.
"""

import bz2
import gzip
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol, cast

from ..errors import ConfigError
from .extras import require

__all__ = [
    "BOM",
    "COMPRESSED_SUFFIXES",
    "StrPath",
    "check_encoding",
    "read_blocks",
    "read_line_blocks",
]

StrPath = str | os.PathLike[str]

BOM = b"\xef\xbb\xbf"
"""The byte order mark of UTF-8, with which some programs begin a text."""

_XZ_MAGIC = b"\xfd7zXZ\x00"
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_BZIP2_MAGIC = b"BZh"
_BZIP2_STARTS = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")  # of a block, of the end
COMPRESSED_SUFFIXES = (".gz", ".xz", ".zst", ".bz2")
# A zstd block of 4 bytes may expand to 128 KiB: small pieces bound the memory that one needs.
_PIECE_BYTES = 2048
_BLOCK_BYTES = 1 << 20
_LINE_LIMIT_BYTES = 1 << 16


class _Frame(Protocol):
    """A decompressor of one compressed stream: a file may hold several, one after the other."""

    def decompress(self, data: bytes, /) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


def read_blocks(path: StrPath, block_bytes: int = _BLOCK_BYTES) -> Iterator[bytes]:
    """Yield the decompressed bytes of ``path`` in pieces of at most ``block_bytes``.

    Raises:
        ConfigError: the compressed data is cut off or damaged (the message names the place), it is
            zstd and the extra ``sim`` is not installed, or this is a pipe.
        OSError: the file cannot be opened or read.
    """
    done_bytes = 0
    with Path(path).open("rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ConfigError(
                f"{os.fspath(path)}: this is no file but a pipe or a device, which can be read only"
                " once; write what it gives into a file first"
            )
        magic = file.read(10)
        file.seek(0)
        if magic.startswith(_ZSTD_MAGIC):
            zstandard = require("zstandard", f"read {os.fspath(path)}")
            new = lambda: zstandard.ZstdDecompressor().decompressobj()  # noqa: E731
            yield from _frames(path, file, block_bytes, new, (zstandard.ZstdError,))
            return
        if magic.startswith(_XZ_MAGIC):
            yield from _frames(path, file, block_bytes, lzma.LZMADecompressor, (lzma.LZMAError,))
            return
        if magic.startswith(_BZIP2_MAGIC) and magic[4:].startswith(_BZIP2_STARTS):
            yield from _frames(path, file, block_bytes, bz2.BZ2Decompressor, (OSError,))
            return
        stream: IO[bytes] = file
        if magic.startswith(_GZIP_MAGIC):
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=file))
        while True:
            try:
                block = stream.read(block_bytes)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise _damaged(path, file.tell(), done_bytes, error) from error
            if not block:
                return
            done_bytes += len(block)
            yield block


def _frames(
    path: StrPath,
    file: IO[bytes],
    block_bytes: int,
    new: Callable[[], _Frame],
    errors: tuple[type[Exception], ...],
) -> Iterator[bytes]:
    """Decompress all streams of a file. The standard library's own files end in silence where the
    second of two streams is damaged."""
    frame: _Frame | None = None
    piece = b""
    waiting = bytearray()
    done_bytes = 0
    while piece := piece or file.read(_PIECE_BYTES):
        if frame is None and new is lzma.LZMADecompressor:
            piece = piece.lstrip(b"\0")  # padding between streams, which the format allows
            if not piece:
                continue
        frame = frame or new()
        try:
            waiting += frame.decompress(piece)
        except errors as error:
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


def check_encoding(path: StrPath, start: bytes) -> None:
    """Raises ConfigError if a text file's first bytes say that it is UTF-16 or UTF-32."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        raise ConfigError(
            f"{os.fspath(path)}: the text is encoded as UTF-16 or UTF-32; convert it to UTF-8, for"
            " example by iconv -f UTF-16 -t UTF-8"
        )


def _damaged(path: StrPath, at: int, done_bytes: int, fact: object) -> ConfigError:
    return ConfigError(
        f"{os.fspath(path)}: compressed data is cut off or damaged near byte {at} of the file,"
        f" after {done_bytes} decompressed bytes ({fact}); get the file again"
    )


def read_line_blocks(path: StrPath, block_bytes: int = _BLOCK_BYTES) -> Iterator[bytes]:
    """Yield pieces of ``path`` that end at a line end; one is added to a last line without it.

    A byte order mark at the start is left out. Memory is bounded by one block and one line.

    Raises:
        ConfigError: as ``read_blocks``; also a line of more than 64 KiB, as in a file that is not a
            text log, and a text in UTF-16.
        OSError: the file cannot be opened or read.
    """
    rest = b""
    num_lines = 0
    start = True
    for block in read_blocks(path, block_bytes):
        if start:
            check_encoding(path, block)
            block = block.removeprefix(BOM)
            start = False
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
