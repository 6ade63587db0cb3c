"""Text files with separated columns (CSV, TSV), block by block, as pyarrow's record batches.

What pyarrow does in silence is an error here: a quote that is never closed, and a wanted column
whose name occurs twice. Rows are counted from 1, below the header, without the blank lines that are
skipped. A blank line is a row only in a file of one column, where it is an empty field.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .arrow_columns import Mapped, arrow, beyond
from .extras import require
from .files import StrPath, check_encoding, read_blocks

__all__ = ["TextFile", "text_blocks"]

BLOCK_BYTES = 1 << 20

_LAST_ID = -(1 << 63) + 0x7E1D
"""Stands in every id column of a row that is added at the end of the file, to see that the reader
gets there: in a quote that is never closed, it does not."""

_OTHER_COUNT = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+): (.*)", re.S)
_NOT_AN_INTEGER = re.compile(
    r"In CSV column #(\d+): Row #(\d+): CSV conversion error to int64: invalid value '(.*)'", re.S
)


@dataclass(frozen=True)
class TextFile:
    """A text file with columns: its fields are separated by ``separator``.

    header: names of the columns, where the file has no header line. skip_rows: lines before it.
    """

    path: StrPath
    separator: str = ","
    header: Sequence[str] | None = None
    skip_rows: int = 0


def text_blocks(file: TextFile, wanted: Sequence[str]) -> Iterator[Any]:
    """Yield record batches of the ``wanted`` columns, as int64.

    Raises:
        ConfigError: an unknown column, or one whose name occurs twice; a field that is no int64, or
            a row with another number of fields (the message names the row); a quote that is not
            closed; damaged compression.
        OSError: the file cannot be read.
    """
    path = file.path
    library, reader = arrow(path), require("pyarrow.csv", f"read {os.fspath(path)}")
    names, num_lines = _names(file)
    check_names(path, wanted, names)
    before = num_lines + (file.header is None)  # rows that pyarrow counts, and this module does not
    last = file.separator.join(str(_LAST_ID) if name in wanted else "" for name in names)
    # pyarrow knows row numbers only when it reads with one thread.
    reading = reader.ReadOptions(
        use_threads=False,
        block_size=BLOCK_BYTES,
        skip_rows=num_lines,
        column_names=None if file.header is None else list(names),
    )
    parsing = reader.ParseOptions(
        delimiter=file.separator,
        newlines_in_values=True,
        ignore_empty_lines=len(names) > 1,
    )
    converting = reader.ConvertOptions(
        column_types={name: library.int64() for name in wanted},
        include_columns=list(wanted),
        null_values=[""],
        strings_can_be_null=False,
    )
    num_rows = 0
    waiting: Any = None
    try:
        with Mapped(path, library):
            source = library.PythonFile(_Bytes(path, last.encode()), mode="r")
            for block in reader.open_csv(source, reading, parsing, converting):
                if not block.num_rows:
                    continue
                if waiting is not None:
                    num_rows += waiting.num_rows
                    yield waiting
                waiting = block
    except ConfigError as error:
        if waiting is not None:
            num_rows += waiting.num_rows
            yield waiting
        raise _explained(error, file, names, before, num_rows) from error.__cause__
    if waiting is None or any(column[-1].as_py() != _LAST_ID for column in waiting.columns):
        row = num_rows + (0 if waiting is None else waiting.num_rows)
        raise ConfigError(
            f"{os.fspath(path)}, row {row}: a quote is opened and never closed, so that all that"
            " follows would be one field; close it, or double it if it is part of the text"
        )
    yield waiting.slice(0, waiting.num_rows - 1)


def check_names(path: StrPath, wanted: Sequence[str], found: Sequence[str]) -> None:
    """Raises ConfigError unless each wanted column is among the columns of a file, and once."""
    for name in wanted:
        count = list(found).count(name)
        if count == 0:
            shown = f"{list(found)[:50]}" + (f" and {len(found) - 50} more" * (len(found) > 50))
            raise ConfigError(
                f"{os.fspath(path)}: there is no column {name!r}; the columns are {shown}"
            )
        if count > 1:
            raise ConfigError(
                f"{os.fspath(path)}: {count} columns are called {name!r}, so it is not clear which"
                " one is meant; rename them in the file"
            )


def _names(file: TextFile) -> tuple[list[str], int]:
    """The names of the columns, and how many lines are before the header or the first row."""
    first = b""
    for block in read_blocks(file.path, BLOCK_BYTES):
        first += block
        if len(first) >= BLOCK_BYTES:
            break
    check_encoding(file.path, first)
    if file.header is not None:
        return list(file.header), file.skip_rows
    text = first.decode("utf-8-sig", "backslashreplace")
    lines = io.StringIO(text, newline="")
    for num_lines, line in enumerate(lines):
        if num_lines >= file.skip_rows and line.strip("\r\n"):
            rows = csv.reader(itertools.chain([line], lines), delimiter=file.separator)
            return next(rows), num_lines
    raise ConfigError(
        f"{os.fspath(file.path)}: Empty CSV file: there is no header line; get the file again, or"
        " pass header= with the columns' names"
    )


def _explained(
    error: ConfigError, file: TextFile, names: list[str], before: int, after: int
) -> ConfigError:
    """pyarrow's error with the row as this module counts, and the column's name."""
    path = os.fspath(file.path)
    counted = "rows are counted from 1" + (", below the header" * (file.header is None))
    text = str(error.__cause__)
    if found := _OTHER_COUNT.search(text):
        return ConfigError(
            f"{path}, row {int(found[1]) - before}: {found[3]} fields instead of {found[2]}:"
            f" {found[4][:80]!r} ({counted})"
        )
    if "straddl" in text:
        return ConfigError(
            f"{path}, after row {after}: a row is longer than {BLOCK_BYTES:,} bytes; is a quote"
            " opened and never closed?"
        )
    if "cannot infer number of columns" in text:
        return ConfigError(
            f"{path}: the header line does not end; is a quote opened and never closed?"
        )
    found = _NOT_AN_INTEGER.search(text)
    if found is None:
        return error
    column, row_number, value = names[int(found[1])], int(found[2]) - before, found[3]
    where = f"{path}, row {row_number}"
    if re.fullmatch(r"-?\d+", value.strip()):
        return beyond(where, column, value.strip())
    return ConfigError(
        f"{where}: column {column!r} holds {value[:80]!r}; ids are integers, so map or hash the"
        f" values first ({counted})"
    )


class _Bytes(io.RawIOBase):
    """The decompressed bytes of a file and a last line, as pyarrow reads them."""

    def __init__(self, path: StrPath, last: bytes) -> None:
        self._blocks = self._with(path, last)
        self._rest = b""

    @staticmethod
    def _with(path: StrPath, last: bytes) -> Iterator[bytes]:
        end = b"\n"
        for block in read_blocks(path, BLOCK_BYTES):
            end = block[-1:]
            yield block
        yield (b"" if end in b"\r\n" else b"\n") + last + b"\n"

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        assert size >= 0  # pyarrow asks for blocks
        parts, count = [self._rest], len(self._rest)
        while count < size:
            block = next(self._blocks, b"")
            if not block:
                break
            parts.append(block)
            count += len(block)
        joined = b"".join(parts)
        self._rest = joined[size:]
        return joined[:size]
