"""A column of Arrow values as ids and the bags that they are in.

A column holds one integer per row, or lists of integers nested to any depth; then all integers of a
row are one bag, in order. Legend: ``R`` rows of a block, ``N`` ids in them. pyarrow's exceptions
become ``ConfigError`` here.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from .chunk import I64
from .extras import require
from .files import StrPath

__all__ = ["Mapped", "arrow", "beyond", "check_missing", "check_type", "column_ids", "empty"]

_LEAST, _LARGEST = -(1 << 63), (1 << 63) - 1


def arrow(path: StrPath) -> ModuleType:
    """pyarrow; raises ConfigError where it is not installed."""
    return require("pyarrow", f"read {os.fspath(path)}")


class Mapped:
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
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(f"{os.fspath(self._path)}: {text}") from error


def check_missing(missing: int | None) -> int | None:
    """Return the id that empty fields stand for; raises ConfigError if it cannot be one."""
    if missing is None:
        return None
    if isinstance(missing, bool) or not isinstance(missing, int | np.integer):
        raise ConfigError(f"missing is {missing!r}; it must be an integer, as ids are")
    if not _LEAST <= missing <= _LARGEST:
        raise ConfigError(f"missing is {missing}, which is beyond int64; pass an id within it")
    return int(missing)


def empty(where: str, column: str, what: str = "is empty") -> ConfigError:
    """The error for an empty field of a column; ``where`` names the file and the row."""
    return ConfigError(
        f"{where}: column {column!r} {what}; pass missing= with the id that an empty field stands"
        " for"
    )


def beyond(where: str, column: str, value: object) -> ConfigError:
    """The error for an id that is no int64."""
    return ConfigError(
        f"{where}: column {column!r} holds id {value}, which is beyond int64; hash the ids to 63"
        " bits first"
    )


def check_type(path: StrPath, name: str, kind: Any) -> None:
    """Raises ConfigError unless a column of this Arrow type holds integers, or lists of them."""
    types = arrow(path).types
    leaf = _storage(path, kind)
    while _is_list(types, leaf):
        if types.is_fixed_size_list(leaf) and leaf.list_size == 0:
            # pyarrow 26 reads [[]] as [[null]] there, and so invents an id.
            raise ConfigError(
                f"{os.fspath(path)}: column {name!r} holds {kind}: a list of fixed size 0 has no"
                " ids; leave the column out, or write it as lists of any length"
            )
        leaf = _storage(path, leaf.value_type)
    if types.is_dictionary(leaf):
        leaf = leaf.value_type
    if not types.is_integer(leaf) and not types.is_null(leaf):
        raise ConfigError(
            f"{os.fspath(path)}: column {name!r} holds {kind}; ids are integers, or lists of"
            " integers, so map or hash the values first"
        )


def column_ids(
    path: StrPath, name: str, column: Any, first_row: int, missing: int | None
) -> tuple[I64, I64 | None]:
    """A column's ids (N,), and for a column of lists where the bags of its rows start (R + 1,).

    A null list, at any depth, holds no ids. A null in place of an integer is ``missing``.

    Args:
        column: an Arrow array of one block.
        first_row: rows of the file before the block.

    Raises:
        ConfigError: values that are no integers, are empty, or are beyond int64; the message names
            the row of the file.
    """
    library, compute = arrow(path), require("pyarrow.compute", f"read {os.fspath(path)}")
    types = library.types
    check_type(path, name, column.type)
    starts: I64 | None = None
    with Mapped(path, library):
        column = _stored(types, column)
        while _is_list(types, column.type):
            lengths = compute.list_value_length(column).fill_null(0)
            own = np.zeros(len(lengths) + 1, np.int64)
            np.cumsum(lengths.to_numpy(zero_copy_only=False), out=own[1:])
            starts = own if starts is None else own[starts]
            column = _stored(types, compute.list_flatten(column))
        if types.is_null(column.type):
            column = column.cast(library.int64())
        nulls = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
        values = (column.fill_null(0) if column.null_count else column).to_numpy(
            zero_copy_only=False
        )

    def where(place: int) -> str:
        row = place if starts is None else int(np.searchsorted(starts, place, side="right")) - 1
        return f"{os.fspath(path)}, row {first_row + row + 1}"

    if nulls is not None and missing is None:
        what = "is empty" if starts is None else "has an empty place in its list"
        raise empty(where(int(nulls.argmax())), name, what)
    if values.dtype == np.uint64 and len(values) and values.max() > np.uint64(_LARGEST):
        place = int((values > np.uint64(_LARGEST)).argmax())
        raise beyond(where(place), name, values[place])
    ids: npt.NDArray[np.int64] = values.astype(np.int64, copy=False)
    if nulls is not None:
        ids = np.where(nulls, np.int64(missing or 0), ids)
    return np.ascontiguousarray(ids), starts


def _is_list(types: ModuleType, kind: Any) -> bool:
    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


def _storage(path: StrPath, kind: Any) -> Any:
    """What an extension type is stored as; one of booleans stays, as those are no ids."""
    base = arrow(path).BaseExtensionType
    while isinstance(kind, base) and kind.extension_name != "arrow.bool8":
        kind = kind.storage_type
    return kind


def _stored(types: ModuleType, column: Any) -> Any:
    """The column without extension types and dictionaries."""
    while hasattr(column, "storage"):
        column = column.storage
    return column.dictionary_decode() if types.is_dictionary(column.type) else column
