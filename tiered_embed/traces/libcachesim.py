"""libCacheSim's trace formats: one object per request, so one table and one id per access.

Source: https://github.com/1a1a11a/libCacheSim/blob/develop/doc/quickstart_traceAnalyzer.md and its
``oracleGeneralBin.h``: records of 24 bytes, little-endian and packed: u32 time in seconds, u64
object id, u32 size in bytes, i64 the request's next access. Ids of 2**63 and above keep their bits:
they become negative row ids.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator

import numpy as np

from ..errors import ConfigError
from .chunk import CHUNK_IDS, TraceChunk, TraceTable, check_batch, even_offsets
from .columns import csv_trace
from .files import BOM, StrPath, read_blocks
from .trace import Trace

__all__ = ["ORACLE_GENERAL", "csv_requests_trace", "oracle_general_trace"]

ORACLE_GENERAL = np.dtype(
    [("time", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next_access", "<i8")]
)


def oracle_general_trace(path: StrPath, batch: int = 1024, *, name: str = "table") -> Trace:
    """Return an oracleGeneral trace (plain, gzip, xz or zstd), with ``batch`` requests per batch.

    Raises:
        ConfigError: while reading: a size that is not a multiple of 24 bytes, or damaged
            compression.
        OSError: the file cannot be read.
    """
    step = max(1, CHUNK_IDS // check_batch(batch)) * batch
    size = ORACLE_GENERAL.itemsize

    def chunks() -> Iterator[TraceChunk]:
        rest = bytearray()
        done_bytes = 0
        for block in read_blocks(path):
            rest += block
            done_bytes += len(block)
            while len(rest) >= step * size:
                yield _chunk(bytes(rest[: step * size]), batch)
                del rest[: step * size]
        if len(rest) % size:
            at = done_bytes - len(rest) % size
            raise ConfigError(
                f"{os.fspath(path)}: the size of {done_bytes} bytes is not a multiple of {size};"
                f" the request that starts at byte {at} is cut off, or this is not an oracleGeneral"
                " trace"
            )
        if rest:
            yield _chunk(bytes(rest), batch)

    return Trace([TraceTable(name)], chunks)


def csv_requests_trace(
    path: StrPath,
    batch: int = 1024,
    *,
    object_column: int = 2,
    separator: str = ",",
    name: str = "table",
) -> Trace:
    """Return the trace in a csv of requests; columns count from 1, as in ``obj-id-col=2``.

    Ids are integers; a first line without any number is a header. Raises as ``csv_trace``.
    """
    start = next(read_blocks(path), b"").removeprefix(BOM).decode("utf-8", "backslashreplace")
    fields = next(csv.reader(io.StringIO(start, newline=""), delimiter=separator), [])
    if not fields:
        raise ConfigError(f"{os.fspath(path)}: the first line is empty; there is no request")
    if not 1 <= object_column <= len(fields):
        raise ConfigError(
            f"object_column must be in [1, {len(fields)}], the columns of {os.fspath(path)}; got"
            f" {object_column!r}"
        )
    names = [str(column) for column in range(1, len(fields) + 1)]
    has_header = not any(_is_number(field) for field in fields)
    return csv_trace(
        path,
        {name: str(object_column)},
        batch,
        separator=separator,
        header=names,
        skip_rows=int(has_header),
    )


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _chunk(data: bytes, batch: int) -> TraceChunk:
    ids = np.frombuffer(data, ORACLE_GENERAL)["object"].astype(np.uint64).view(np.int64)
    return TraceChunk(((even_offsets(len(ids), batch), ids),))
