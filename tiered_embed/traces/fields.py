"""Split and parse delimited text with whole-array operations.

Shapes: ``N`` lines, ``F`` fields in a line, ``C`` columns that are parsed. Every error names the
file, the line (counted from 1) and what is wrong.
"""

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from .files import StrPath

__all__ = ["Fields", "split_fields"]

_NEWLINE = 10
_RETURN = 13
_MINUS = 45
_NOT_A_DIGIT = 255
_INT_DIGITS = 18  # any 18 digits fit an int64


def _digit_values() -> npt.NDArray[np.int64]:
    values = np.full(256, _NOT_A_DIGIT, dtype=np.int64)
    for value, character in enumerate("0123456789abcdef"):
        values[ord(character)] = value
        values[ord(character.upper())] = value
    return values


_DIGIT_VALUES = _digit_values()


@dataclass(frozen=True)
class Fields:
    """Where the fields of ``N`` lines of ``F`` fields are.

    starts, lengths: int64 (N, F), in bytes of ``buffer`` (uint8). first_line: the number of the
    first line in its file.
    """

    path: StrPath
    first_line: int
    buffer: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @property
    def num_lines(self) -> int:
        return len(self.starts)

    def integers(
        self, first: int, last: int, *, missing: int | None = None
    ) -> npt.NDArray[np.int64]:
        """Parse columns ``first`` to ``last - 1`` as decimal integers: int64 (N, C).

        An empty field becomes ``missing``; with None it is an error. Any other field must be 1 to
        18 digits with an optional minus.
        """
        starts, lengths = self.starts[:, first:last], self.lengths[:, first:last]
        negative = (lengths > 0) & (self.buffer[starts] == _MINUS)
        values, bad = self._digits(starts + negative, lengths - negative, 10, _INT_DIGITS)
        bad |= negative & (lengths == 1)
        return self._checked(
            np.where(negative, -values, values),
            bad,
            first,
            missing,
            "an integer of at most 18 digits",
        )

    def hexadecimals(
        self, first: int, last: int, *, missing: int | None = None
    ) -> npt.NDArray[np.int64]:
        """Parse columns ``first`` to ``last - 1`` as 1 to 8 hex digits: int64 (N, C)."""
        starts, lengths = self.starts[:, first:last], self.lengths[:, first:last]
        values, bad = self._digits(starts, lengths, 16, 8)
        return self._checked(values, bad, first, missing, "a hex number of at most 8 digits")

    def decimals(self, column: int) -> npt.NDArray[np.float64]:
        """Parse one column as finite decimal numbers: float64 (N,)."""
        starts, lengths = self.starts[:, column, None], self.lengths[:, column, None]
        width = max(1, int(lengths.max(initial=0)))
        places = np.minimum(starts + np.arange(width), len(self.buffer) - 1)
        letters = np.where(np.arange(width) < lengths, self.buffer[places], 0).astype(np.uint8)
        texts = np.ascontiguousarray(letters).view(f"S{width}").reshape(self.num_lines)
        try:
            values = texts.astype(np.float64)
        except ValueError:  # it does not say where; that is found below
            values = np.array([_float_or_nan(text) for text in texts])
        bad = ~np.isfinite(values)
        if bad.any():
            self._raise_not(int(bad.argmax()), column, "a finite decimal number")
        return values

    def error(self, row: int, fact: str) -> ConfigError:
        """Return the error for line ``row`` of this block."""
        return ConfigError(f"{os.fspath(self.path)}, line {self.first_line + row}: {fact}")

    def _digits(
        self, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], base: int, limit: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        values = np.zeros(starts.shape, dtype=np.int64)
        bad: npt.NDArray[np.bool_] = lengths > limit
        for k in range(min(limit, int(lengths.max(initial=0)))):
            inside = lengths > k
            # After a field's end the position is only kept inside the buffer; the digit is unused.
            digit = _DIGIT_VALUES[self.buffer[np.minimum(starts + k, len(self.buffer) - 1)]]
            bad |= inside & (digit >= base)
            values = np.where(inside, values * base + digit, values)
        return values, bad

    def _checked(
        self,
        values: npt.NDArray[np.int64],
        bad: npt.NDArray[np.bool_],
        first: int,
        missing: int | None,
        kind: str,
    ) -> npt.NDArray[np.int64]:
        empty = self.lengths[:, first : first + values.shape[1]] == 0
        if missing is None:
            bad = bad | empty
        else:
            values[empty] = missing
        if bad.any():
            row, column = np.unravel_index(int(bad.argmax()), bad.shape)
            self._raise_not(int(row), first + int(column), kind)
        return values

    def _raise_not(self, row: int, column: int, kind: str) -> None:
        text = self._text(row, column)[:40].decode("utf-8", "backslashreplace")
        raise self.error(row, f"field {column + 1} is {text!r}; it must be {kind}")

    def _text(self, row: int, column: int) -> bytes:
        start = int(self.starts[row, column])
        return self.buffer[start : start + int(self.lengths[row, column])].tobytes()


def _float_or_nan(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def split_fields(
    path: StrPath,
    block: bytes,
    separator: bytes,
    num_fields: int,
    first_line: int,
    shown: str | None = None,
) -> Fields:
    """Find the fields of a block of whole lines (each ended by ``\\n`` or ``\\r\\n``).

    ``separator`` is one byte; messages call it ``shown``, where that is given.

    Raises:
        ConfigError: a line does not have ``num_fields`` fields; the message names the first one.
    """
    buffer = np.frombuffer(block, dtype=np.uint8)
    newlines = np.flatnonzero(buffer == _NEWLINE)
    ends = np.flatnonzero((buffer == separator[0]) | (buffer == _NEWLINE))
    whole = len(ends) == len(newlines) * num_fields
    if not whole or (buffer[ends[num_fields - 1 :: num_fields]] != _NEWLINE).any():
        counts = np.diff(np.searchsorted(ends, newlines), prepend=-1)
        row = int((counts != num_fields).argmax())
        raise ConfigError(
            f"{os.fspath(path)}, line {first_line + row}: {counts[row]} fields, separated by"
            f" {shown or repr(separator.decode())}; {num_fields} fields are expected"
        )
    starts = np.roll(ends, 1) + 1
    starts[:1] = 0
    shape = (len(newlines), num_fields)
    lengths = (ends - starts).reshape(shape)
    # With CRLF, the return is part of the line end and not of the last field.
    lengths[:, -1] -= (lengths[:, -1] > 0) & (buffer[newlines - 1] == _RETURN)
    return Fields(path, first_line, buffer, starts.reshape(shape), lengths)
