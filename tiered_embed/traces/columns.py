"""Files with named columns (CSV, TSV, Parquet) as traces: one embedding table per column.

Each row is a sample. A Parquet column of lists holds a bag per row; other columns hold one id per
row. ``delimited`` reads text and ``arrow_columns`` turns what pyarrow has read into ids.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from .arrow_columns import Mapped, arrow, check_missing, check_type, column_ids
from .chunk import CHUNK_IDS, I64, TableIds, TraceBags, TraceChunk, TraceTable, check_batch
from .delimited import TextFile, check_names, text_blocks
from .extras import require
from .files import StrPath
from .rebatch import rebatched
from .trace import Trace

__all__ = ["Columns", "csv_trace", "parquet_trace"]

Columns = Sequence[str] | Mapping[str, str]
"""The names of id columns, or {table: column}."""


def csv_trace(
    path: StrPath,
    columns: Columns,
    batch: int = 1024,
    *,
    separator: str = ",",
    header: Sequence[str] | None = None,
    skip_rows: int = 0,
    missing: int | None = None,
    num_rows: Mapping[str, int | None] | None = None,
) -> Trace:
    """Return the trace in a text file with a header line: plain, gzip, xz, bzip2 or zstd.

    Fields may be quoted as in RFC 4180, also over several lines. A blank line is skipped; in a file
    of one column it is an empty field.

    Args:
        columns: the columns that hold ids, which are integers; {table: column} names the tables.
        header: names of all columns, where the file has no header line.
        skip_rows: number of lines to skip at the start.
        missing: the id that an empty field stands for; with None an empty field is an error.
        num_rows: {table: rows}, where known.

    Raises:
        ConfigError: options that cannot work. While reading: an unknown column, or one that is in
            the header twice; a field that is no int64, or a row with another number of fields (the
            message names the row, counted from 1 below the header); an unclosed quote; damaged
            compression.
        OSError: the file cannot be read.
    """
    names = _names(columns)
    if len(separator) != 1 or separator in '"\r\n' or not separator.isascii():
        raise ConfigError(f"separator is {separator!r}; it must be one ASCII character")
    if skip_rows < 0:
        raise ConfigError(f"skip_rows must not be negative, got {skip_rows!r}")
    if header is not None:
        check_names(path, list(names.values()), header)
    file = TextFile(path, separator, header, skip_rows)

    def blocks() -> Iterator[Any]:
        return text_blocks(file, _wanted(names))

    return _trace(path, names, blocks, batch, missing, num_rows)


def parquet_trace(
    path: StrPath,
    columns: Columns,
    batch: int = 1024,
    *,
    missing: int | None = None,
    num_rows: Mapping[str, int | None] | None = None,
) -> Trace:
    """Return the trace in a Parquet file; arguments and errors as of ``csv_trace``.

    A column of lists of integers holds a bag of ids per row; lists of lists, to any depth, are
    flattened in order. A null list, at any depth, holds no ids; a null in place of an id is
    ``missing``.
    """
    names = _names(columns)

    def blocks() -> Iterator[Any]:
        library, parquet = arrow(path), require("pyarrow.parquet", f"read {os.fspath(path)}")
        wanted = _wanted(names)
        with Path(path).open("rb") as file, Mapped(path, library):
            source = parquet.ParquetFile(file, page_checksum_verification=True)
            schema = source.schema_arrow
            check_names(path, wanted, schema.names)
            for name in wanted:
                check_type(path, name, schema.field(name).type)
            yield from source.iter_batches(batch_size=_block_rows(source, wanted), columns=wanted)

    return _trace(path, names, blocks, batch, missing, num_rows)


def _block_rows(source: Any, wanted: list[str]) -> int:
    """How many rows of a Parquet file have a quarter of a chunk's ids, by its first row group."""
    ids, rows = len(wanted), 1
    if source.metadata.num_row_groups:
        group = source.metadata.row_group(0)
        parts = [group.column(c) for c in range(group.num_columns)]
        own = [p.num_values for p in parts if p.path_in_schema.partition(".")[0] in wanted]
        ids, rows = max(ids, sum(own)), max(1, group.num_rows)
    return max(1, min(CHUNK_IDS // 4, CHUNK_IDS * rows // (4 * ids)))


def _names(columns: Columns) -> dict[str, str]:
    """{table: column}."""
    if isinstance(columns, str):
        raise ConfigError(f"columns is {columns!r}; pass a list of names, or {{table: column}}")
    if isinstance(columns, Mapping):
        names = dict(columns)
    else:
        names = {}
        for name in columns:
            if name in names:
                raise ConfigError(
                    f"columns names {name!r} twice; name each once, or pass {{table: column}} to"
                    " have several tables of one column"
                )
            names[name] = name
    if not names:
        raise ConfigError("columns is empty; pass the names of the columns that hold ids")
    for name in (*names, *names.values()):
        if not isinstance(name, str):
            raise ConfigError(f"columns has the name {name!r}; names of columns are strings")
    return names


def _wanted(names: dict[str, str]) -> list[str]:
    """The columns to read: each once, however many tables it has."""
    return list(dict.fromkeys(names.values()))


def _trace(
    path: StrPath,
    names: dict[str, str],
    blocks: Callable[[], Iterator[Any]],
    batch: int,
    missing: int | None,
    num_rows: Mapping[str, int | None] | None,
) -> Trace:
    check_batch(batch)
    arrow(path)
    instead = check_missing(missing)
    sizes = num_rows or {}
    unknown = [name for name in sizes if name not in names]
    if unknown:
        raise ConfigError(
            f"num_rows names table {unknown[0]!r}, which is not one of {list(names)}; use the"
            " names of the tables"
        )

    def samples() -> Iterator[TraceChunk]:
        row = 0
        for block in blocks():
            read = {
                name: column_ids(path, name, block.column(name), row, instead)
                for name in _wanted(names)
            }
            yield _one_batch([read[column] for column in names.values()], block.num_rows)
            row += block.num_rows

    tables = [TraceTable(name, sizes.get(name)) for name in names]
    return Trace(tables, lambda: rebatched(samples(), batch))


def _one_batch(parts: list[tuple[I64, I64 | None]], num_samples: int) -> TraceChunk:
    table_ids: list[TableIds] = [(np.array([0, len(ids)], np.int64), ids) for ids, _ in parts]
    samples = np.array([0, num_samples], np.int64)
    return TraceChunk(tuple(table_ids), TraceBags(samples, tuple(starts for _, starts in parts)))
