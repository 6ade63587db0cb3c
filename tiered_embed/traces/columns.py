"""Files with named columns (CSV, TSV, Parquet) as traces: one embedding table per column.

Each row is a sample. A Parquet column of lists holds a bag per row; other columns hold one id per
row. pyarrow reads the file block by block; its exceptions become ``ConfigError`` here.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import ConfigError
from .chunk import CHUNK_IDS, I64, TableIds, TraceBags, TraceChunk, TraceTable, as_ids, check_batch
from .extras import require
from .files import StrPath, read_blocks
from .rebatch import rebatched
from .trace import Trace

__all__ = ["Columns", "csv_trace", "parquet_trace"]

Columns = Sequence[str] | Mapping[str, str]
"""The names of id columns, or {table: column}."""

_BLOCK_BYTES = 1 << 20


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
    """Return the trace in a text file with a header line: plain, gzip, xz or zstd.

    Args:
        columns: the columns that hold ids, which are integers; {table: column} names the tables.
        header: names of the columns, where the file has no header line.
        skip_rows: number of lines to skip at the start.
        missing: the id that an empty field stands for; with None an empty field is an error.
        num_rows: {table: rows}, where known.

    Raises:
        ConfigError: an unknown column. While reading: a field that is not an integer, a row with
            another number of fields (the message names the row), damaged compression.
        OSError: the file cannot be read.
    """
    names = _names(columns)

    def blocks() -> Iterator[Any]:
        return _csv_blocks(path, names, separator, header, skip_rows)

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

    A column of lists of integers holds a bag of ids per row; a null list is an empty bag.
    """
    names = _names(columns)

    def blocks() -> Iterator[Any]:
        arrow, parquet = _arrow(path), require("pyarrow.parquet", f"read {os.fspath(path)}")
        with Path(path).open("rb") as file, _Mapped(path, arrow):
            source = parquet.ParquetFile(file)
            _check_names(path, names, source.schema_arrow.names)
            yield from source.iter_batches(
                batch_size=max(1, CHUNK_IDS // len(names) // 4), columns=list(names.values())
            )

    return _trace(path, names, blocks, batch, missing, num_rows)


def _names(columns: Columns) -> dict[str, str]:
    if isinstance(columns, str):
        raise ConfigError(f"columns is {columns!r}; pass a list of names, or {{table: column}}")
    names = dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}
    if not names:
        raise ConfigError("columns is empty; pass the names of the columns that hold ids")
    return names


def _arrow(path: StrPath) -> ModuleType:
    return require("pyarrow", f"read {os.fspath(path)}")


class _Mapped:
    """Maps pyarrow's exceptions to ConfigError."""

    def __init__(self, path: StrPath, arrow: ModuleType) -> None:
        self._path, self._arrow = path, arrow

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # pyarrow passes a ConfigError of read_blocks on unchanged. It raises OSError without an
        # errno for damaged pages; one with an errno comes from the system.
        theirs = (self._arrow.ArrowException, OSError, UnicodeDecodeError)
        if isinstance(error, theirs) and getattr(error, "errno", None) is None:
            text = str(error).strip().splitlines()[0]
            raise ConfigError(f"{os.fspath(self._path)}: {text}") from error


class _Blocks(io.RawIOBase):
    """The decompressed bytes of a file, as pyarrow reads them."""

    def __init__(self, path: StrPath) -> None:
        self._blocks = read_blocks(path, _BLOCK_BYTES)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        assert size >= 0  # pyarrow asks for blocks
        while len(self._rest) < size:
            block = next(self._blocks, b"")
            if not block:
                break
            self._rest += block
        out, self._rest = self._rest[:size], self._rest[size:]
        return out


def _csv_blocks(
    path: StrPath,
    names: dict[str, str],
    separator: str,
    header: Sequence[str] | None,
    skip_rows: int,
) -> Iterator[Any]:
    arrow, csv = _arrow(path), require("pyarrow.csv", f"read {os.fspath(path)}")
    wanted = list(names.values())
    with _Mapped(path, arrow):
        source = arrow.PythonFile(_Blocks(path), mode="r")
        # pyarrow knows row numbers only when it reads with one thread.
        reading = csv.ReadOptions(
            use_threads=False,
            block_size=_BLOCK_BYTES,
            skip_rows=skip_rows,
            column_names=None if header is None else list(header),
        )
        converting = csv.ConvertOptions(
            column_types={name: arrow.int64() for name in wanted},
            include_columns=wanted,
            null_values=[""],
            strings_can_be_null=False,
        )
        try:
            reader = csv.open_csv(
                source, reading, csv.ParseOptions(delimiter=separator), converting
            )
        except KeyError as error:
            _check_names(path, names, _header(path, separator) if header is None else header)
            raise ConfigError(f"{os.fspath(path)}: {error}") from error
        yield from reader


def _header(path: StrPath, separator: str) -> list[str]:
    first = next(read_blocks(path), b"").partition(b"\n")[0]
    text = first.rstrip(b"\r").decode("utf-8", "backslashreplace")
    return [name.strip('"') for name in text.split(separator)]


def _check_names(path: StrPath, names: dict[str, str], found: Sequence[str]) -> None:
    absent = [name for name in names.values() if name not in found]
    if absent:
        raise ConfigError(
            f"{os.fspath(path)}: there is no column {absent[0]!r}; the columns are"
            f" {list(found)[:50]}"
        )


def _trace(
    path: StrPath,
    names: dict[str, str],
    blocks: Callable[[], Iterator[Any]],
    batch: int,
    missing: int | None,
    num_rows: Mapping[str, int | None] | None,
) -> Trace:
    check_batch(batch)
    _arrow(path)
    sizes = num_rows or {}

    def samples() -> Iterator[TraceChunk]:
        row = 0
        for block in blocks():
            parts = [
                _ids(path, column, block.column(column), row, missing) for column in names.values()
            ]
            yield _one_batch(parts, block.num_rows)
            row += block.num_rows

    tables = [TraceTable(name, sizes.get(name)) for name in names]
    return Trace(tables, lambda: rebatched(samples(), batch))


def _one_batch(parts: list[tuple[I64, I64 | None]], num_samples: int) -> TraceChunk:
    table_ids: list[TableIds] = [(np.array([0, len(ids)], np.int64), ids) for ids, _ in parts]
    samples = np.array([0, num_samples], np.int64)
    return TraceChunk(tuple(table_ids), TraceBags(samples, tuple(starts for _, starts in parts)))


def _ids(
    path: StrPath, name: str, column: Any, row: int, missing: int | None
) -> tuple[I64, I64 | None]:
    """A column's ids (N,), and for a column of lists where its bags start."""
    arrow = _arrow(path)
    types = arrow.types
    if types.is_list(column.type) or types.is_large_list(column.type):
        lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        starts = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=starts[1:])
        return _ids(path, name, column.flatten(), row, missing)[0], starts
    if not types.is_integer(column.type):
        raise ConfigError(
            f"{os.fspath(path)}: column {name!r} holds {column.type}; ids are integers, so map or"
            " hash the values first"
        )
    if column.null_count:
        if missing is None:
            at = int(column.is_null().to_numpy(zero_copy_only=False).argmax())
            raise ConfigError(
                f"{os.fspath(path)}, row {row + at + 1}: column {name!r} is empty; pass missing="
                " with the id that an empty field stands for"
            )
        with _Mapped(path, arrow):
            column = column.cast(arrow.int64()).fill_null(missing)
    where = f"{os.fspath(path)}, column {name!r} after row {row}"
    return as_ids(where, column.to_numpy(zero_copy_only=False)), None
