r"""Our trace file, ``.tet``: compact, in chunks with checksums, written and read in bounded memory.

Version 1, all numbers little-endian, CRC being CRC-32 as in zlib:

=========  =========================================================================================
header     ``89 54 45 54 0D 0A 1A 0A`` ("\x89TET\r\n\x1a\n"); u32 version; u32 bytes of JSON; the
           JSON ``{"tables": [{"name": str, "num_rows": int or null}, ...]}``; u32 CRC of all that
chunk      u8 codec (0 as is, 1 zlib, 2 zstd); u32 batches; u64 ids; u64 bytes of columns; u64 bytes
           as stored; the columns (``tet_columns``), stored so; u32 CRC of all that
index      per chunk u64 place in the file, u32 batches, u64 ids; then u32 CRC of it
trailer    u64 place of the index; u32 chunks; u64 batches; u64 ids; u32 CRC of these; then
           ``54 45 54 45 4E 44 0D 0A`` ("TETEND\r\n")
=========  =========================================================================================

A file without its trailer was never finished, or was cut off, and is refused. Nothing in a file is
ever executed. Readers accept every released version; the tests have a golden file of each.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from ..errors import ClosedError, ConfigError, CorruptionError
from ..spec import absolute_path
from .chunk import TraceChunk, TraceTable
from .files import StrPath
from .tet_codecs import Codec, compressor, decompress
from .tet_columns import Damage, decode_chunk, encode_chunk
from .trace import Trace

__all__ = ["MAGIC", "Codec", "TraceWriter", "read_tet", "write_tet"]

MAGIC = b"\x89TET\r\n\x1a\n"
VERSION = 1
_END = b"TETEND\r\n"
_START = struct.Struct("<8sII")
_CHUNK = struct.Struct("<BIQQQ")
_ENTRY = struct.Struct("<QIQ")
_TRAILER = struct.Struct("<QIQQI8s")
_CRC = struct.Struct("<I")
_CHUNK_LIMIT_BYTES = 1 << 33
_HEADER_LIMIT_BYTES = 1 << 26


class TraceWriter:
    """Writes one trace; the file gets its name only when it is complete, on ``close``.

    Args:
        codec: ``"auto"`` is zstd where zstandard is installed, else zlib.

    As a context manager it closes at the end, or removes what it wrote after an error.

    Raises:
        ConfigError: an unknown codec, or zstd without the extra ``sim``.
        OSError: the file cannot be written.
    """

    def __init__(self, path: StrPath, tables: Sequence[TraceTable], codec: Codec = "auto") -> None:
        self._codec, self._compress = compressor(codec)
        self.path = absolute_path(path, "path")
        self.num_batches = 0
        self.num_accesses = 0
        self._num_tables = len(tables)
        self._index: list[tuple[int, int, int]] = []
        self._pid = os.getpid()
        self._part = self.path.with_name(self.path.name + ".part")
        if self._part.is_symlink():
            self._part.unlink()  # its target is not ours
        self._file: IO[bytes] = self._part.open("wb")
        described = [{"name": table.name, "num_rows": table.num_rows} for table in tables]
        text = json.dumps({"tables": described}).encode()
        self._write(_START.pack(MAGIC, VERSION, len(text)) + text)
        self._file.flush()

    @property
    def of_parent(self) -> bool:
        """This process is a forked child of the one that writes the file."""
        return self._pid != os.getpid()

    def write(self, chunk: TraceChunk) -> None:
        """Append a chunk of all the tables."""
        assert len(chunk.table_ids) == self._num_tables
        if self.of_parent:
            raise ClosedError(
                f"'{self.path}' is written by process {self._pid}, and not by its forked child "
                f"{os.getpid()}; record in one process only"
            )
        columns = encode_chunk(chunk)
        stored = self._compress(columns)
        self._index.append((self._file.tell(), chunk.num_batches, chunk.num_ids))
        head = _CHUNK.pack(self._codec, chunk.num_batches, chunk.num_ids, len(columns), len(stored))
        self._write(head + stored)
        self._file.flush()  # a forked child would write its copy of the buffer, too
        self.num_batches += chunk.num_batches
        self.num_accesses += chunk.num_ids

    def close(self) -> None:
        """Write the index and the trailer, and give the file its name; idempotent. In a forked
        child it does nothing."""
        if self._file.closed or self.of_parent:
            return
        place = self._file.tell()
        self._write(b"".join(_ENTRY.pack(*entry) for entry in self._index))
        trailer = _TRAILER.pack(
            place, len(self._index), self.num_batches, self.num_accesses, 0, _END
        )
        self._file.write(_sealed_trailer(trailer))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self.path)

    def abort(self) -> None:
        """Remove what was written; idempotent."""
        if not self._file.closed and not self.of_parent:
            self._file.close()
            self._part.unlink(missing_ok=True)

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.write(_CRC.pack(zlib.crc32(data)))


def write_tet(
    trace: Trace,
    path: StrPath,
    codec: Codec = "auto",
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write ``trace`` to ``path``; an existing file is replaced once the new one is complete.

    ``progress`` is called with the number of accesses of each chunk. Raises as ``TraceWriter`` and
    as the trace's own reader.
    """
    with TraceWriter(path, trace.tables, codec) as writer:
        for chunk in trace.chunks():
            writer.write(chunk)
            if progress is not None:
                progress(chunk.num_ids)


def read_tet(path: StrPath) -> Trace:
    """Return the trace in a ``.tet`` file; every pass reads and checks it again.

    Raises:
        CorruptionError: a wrong beginning, a file that is cut off, or bytes that do not match their
            checksum (the message names the place); also while reading the chunks.
        ConfigError: a version of a later release, or zstd chunks without the extra ``sim``.
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        tables, first = _read_header(path, file, size)
        index, num_batches, num_accesses = _read_index(path, file, size, first)

    def chunks() -> Iterator[TraceChunk]:
        with Path(path).open("rb") as file:
            for i, entry in enumerate(index):
                yield _read_chunk(path, file, i, entry, len(tables))

    return Trace(tables, chunks, num_batches=num_batches, num_accesses=num_accesses)


def _corrupt(path: StrPath, at: int, fact: str) -> CorruptionError:
    return CorruptionError(
        f"{os.fspath(path)}: at byte {at}: {fact}; get or record the trace again"
    )


def _read_header(path: StrPath, file: IO[bytes], size: int) -> tuple[list[TraceTable], int]:
    start = file.read(_START.size)
    if start[: len(MAGIC)] != MAGIC:
        raise _corrupt(
            path,
            0,
            f"starts with {start[: len(MAGIC)]!r} and not with {MAGIC!r}; this is not a .tet file",
        )
    if len(start) < _START.size:
        raise _corrupt(
            path, len(start), f"the file is cut off inside its header, after {size} bytes"
        )
    _, version, num_text = _START.unpack(start)
    if num_text > min(size, _HEADER_LIMIT_BYTES):
        raise _corrupt(
            path, 12, f"a header of {num_text} bytes in a file of {size} bytes cannot be right"
        )
    text, crc = file.read(num_text), file.read(_CRC.size)
    if len(crc) < _CRC.size or _CRC.unpack(crc)[0] != zlib.crc32(start + text):
        raise _corrupt(path, 0, "the header does not match its checksum")
    if version != VERSION:
        raise ConfigError(
            f"{os.fspath(path)}: the file has version {version} of the format, and this release"
            f" reads version {VERSION}; upgrade tiered_embed"
        )
    try:
        described = json.loads(text)["tables"]
        tables = [TraceTable(str(each["name"]), each["num_rows"]) for each in described]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _corrupt(path, _START.size, f"the tables cannot be read ({error})") from error
    return tables, file.tell()


def _read_index(
    path: StrPath, file: IO[bytes], size: int, first: int
) -> tuple[list[tuple[int, int, int]], int, int]:
    at = size - _TRAILER.size
    if at < first:
        raise _corrupt(path, size, "the file is cut off: it ends before its trailer")
    file.seek(at)
    trailer = file.read(_TRAILER.size)
    place, num_chunks, num_batches, num_accesses, _, end = _TRAILER.unpack(trailer)
    if end != _END:
        raise _corrupt(path, size, "the file has no trailer: it is cut off, or was never finished")
    if _sealed_trailer(trailer) != trailer:
        raise _corrupt(path, at, "the trailer does not match its checksum")
    num_bytes = num_chunks * _ENTRY.size
    if place < first or place + num_bytes + _CRC.size != at:
        raise _corrupt(
            path, at, f"an index of {num_chunks} chunks at byte {place} does not fit into the file"
        )
    file.seek(place)
    data, crc = file.read(num_bytes), file.read(_CRC.size)
    if _CRC.unpack(crc)[0] != zlib.crc32(data):
        raise _corrupt(path, place, "the index does not match its checksum")
    index = list(_ENTRY.iter_unpack(data))
    if index and index[0][0] != first:
        raise _corrupt(path, first, f"the index has the first chunk at byte {index[0][0]}")
    totals = sum(entry[1] for entry in index), sum(entry[2] for entry in index)
    if totals != (num_batches, num_accesses):
        raise _corrupt(
            path,
            at,
            f"the index counts {totals[0]} batches and {totals[1]} accesses, the trailer"
            f" {num_batches} and {num_accesses}",
        )
    return index, num_batches, num_accesses


def _read_chunk(
    path: StrPath, file: IO[bytes], i: int, entry: tuple[int, int, int], num_tables: int
) -> TraceChunk:
    place, num_batches, num_ids = entry
    file.seek(place)
    head = file.read(_CHUNK.size)
    if len(head) < _CHUNK.size:
        raise _corrupt(path, place, f"chunk {i} is cut off")
    codec, batches, ids, num_columns, num_stored = _CHUNK.unpack(head)
    left = os.fstat(file.fileno()).st_size - file.tell()
    if num_stored > left or num_columns > _CHUNK_LIMIT_BYTES:
        raise _corrupt(
            path, place, f"chunk {i} has {num_stored} bytes, but the file has only {left} more"
        )
    stored, crc = file.read(num_stored), file.read(_CRC.size)
    if len(crc) < _CRC.size or _CRC.unpack(crc)[0] != zlib.crc32(stored, zlib.crc32(head)):
        raise _corrupt(path, place, f"chunk {i} does not match its checksum")
    try:
        chunk = decode_chunk(decompress(path, codec, stored, num_columns), num_tables)
    except Damage as damage:
        raise _corrupt(path, place, f"chunk {i}: {damage}") from damage
    if (num_batches, num_ids) != (batches, ids) or (chunk.num_batches, chunk.num_ids) != (
        batches,
        ids,
    ):
        raise _corrupt(path, place, f"chunk {i} and its entry in the index have different counts")
    return chunk


def _sealed_trailer(trailer: bytes) -> bytes:
    """The trailer with the checksum of its numbers in place."""
    numbers = trailer[: -len(_END) - _CRC.size]
    return numbers + _CRC.pack(zlib.crc32(numbers)) + _END
