"""The Criteo click log, streamed: Kaggle's ``train.txt`` and the Terabyte set's ``day_N`` files.

A line is a label (0 or 1), 13 integers and 26 categories of up to 8 hex digits, separated by tabs;
an empty field is a missing value. Format: https://www.kaggle.com/c/criteo-display-ad-challenge/data
and https://ailab.criteo.com/download-criteo-1tb-click-logs-dataset. Memory is bounded by one block
of the file and one batch. Shapes: ``N`` lines, ``B`` lines in a batch.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from .fields import Fields, split_fields
from .files import StrPath, read_line_blocks
from .hashing import splitmix64

__all__ = [
    "MISSING_ID",
    "MISSING_INTEGER",
    "NUM_CATEGORIES",
    "NUM_INTEGERS",
    "NUM_RAW_IDS",
    "CriteoBatch",
    "CriteoLines",
    "CriteoOptions",
    "CriteoReader",
    "format_lines",
    "hash_ids",
    "parse_lines",
]

NUM_INTEGERS = 13
NUM_CATEGORIES = 26
NUM_FIELDS = 1 + NUM_INTEGERS + NUM_CATEGORIES

MISSING_ID = 1 << 32
"""The raw id of an empty category: the first after the 32-bit values that a log can hold."""

NUM_RAW_IDS = MISSING_ID + 1
"""How many rows a table of raw ids has."""

MISSING_INTEGER = -(1 << 63)
"""Stands for an empty integer field. Parsed integers have at most 18 digits and never equal it."""

Part = Literal["all", "train", "heldout"]


@dataclass(frozen=True)
class CriteoOptions:
    """How to split a log into batches.

    num_embeddings: None for raw ids in [0, NUM_RAW_IDS); or a number of rows to hash into, for all
    tables or one per table. Row 0 is the missing value; any other value x is row
    1 + splitmix64(x) mod (rows - 1). part: every ``heldout_every``-th line of the log is held out
    (lines k, 2k, ... counted from 1), the rest is for training. max_lines: ends the log early, for
    all parts alike. drop_last: leaves out a last batch that is not full.
    """

    batch_size: int = 128
    num_embeddings: int | tuple[int, ...] | None = None
    part: Part = "all"
    heldout_every: int = 5
    max_lines: int | None = None
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size!r}")
        if self.part not in get_args(Part):
            raise ConfigError(f"part must be one of {', '.join(get_args(Part))}, got {self.part!r}")
        if self.heldout_every < 2:
            raise ConfigError(
                f"heldout_every must be at least 2 (1 leaves nothing to train on),"
                f" got {self.heldout_every!r}"
            )
        if self.max_lines is not None and self.max_lines < 0:
            raise ConfigError(f"max_lines must not be negative, got {self.max_lines!r}")
        rows = self.rows_per_table()
        if rows is not None and (len(rows) != NUM_CATEGORIES or min(rows) < 2):
            raise ConfigError(
                f"num_embeddings must give at least 2 rows (one for the missing value) to each of"
                f" {NUM_CATEGORIES} tables, got {self.num_embeddings!r}"
            )

    def rows_per_table(self) -> tuple[int, ...] | None:
        """Return the rows of each of the 26 hashed tables, or None for raw ids."""
        if isinstance(self.num_embeddings, int):
            return (self.num_embeddings,) * NUM_CATEGORIES
        return self.num_embeddings


@dataclass(frozen=True)
class CriteoBatch:
    """``B`` examples in log order.

    ``dense`` is float32 (B, 13): ln(1 + max(0, x)), 0 where missing (Naumov et al. 2019's
    preprocessing). ``ids`` is int64 (26, B), a row per table. ``labels`` is float32 (B,).
    """

    dense: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class CriteoLines:
    """``N`` parsed lines: ``labels`` int64 (N,), ``integers`` int64 (N, 13) with
    ``MISSING_INTEGER``, ``categories`` int64 (N, 26) with ``MISSING_ID``."""

    labels: npt.NDArray[np.int64]
    integers: npt.NDArray[np.int64]
    categories: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


class CriteoReader:
    """An iterable of ``CriteoBatch`` over one log, or several in a row; each pass reads them again.

    A batch may span two files. Iterating raises:
        ConfigError: a malformed line (the message names file and line), or damaged compression.
        OSError: a file cannot be read.
    """

    def __init__(
        self, paths: StrPath | Sequence[StrPath], options: CriteoOptions | None = None
    ) -> None:
        self.paths: tuple[StrPath, ...] = (
            (paths,) if isinstance(paths, str | os.PathLike) else tuple(paths)
        )
        self.options = options if options is not None else CriteoOptions()

    def __iter__(self) -> Iterator[CriteoBatch]:
        options = self.options
        waiting: list[CriteoLines] = []
        num_waiting = 0
        for lines in self._selected():
            waiting.append(lines)
            num_waiting += len(lines)
            if num_waiting < options.batch_size:
                continue
            joined = _join(waiting)
            full = num_waiting - num_waiting % options.batch_size
            for start in range(0, full, options.batch_size):
                yield _batch(_slice(joined, start, start + options.batch_size), options)
            waiting, num_waiting = [_slice(joined, full, num_waiting)], num_waiting - full
        if num_waiting and not options.drop_last:
            yield _batch(_join(waiting), options)

    def _selected(self) -> Iterator[CriteoLines]:
        """Yield the lines of this reader's part, in blocks."""
        options = self.options
        position = 0  # lines of the whole log before the current block
        for path in self.paths:
            first_line = 1
            for block in read_line_blocks(path):
                if options.max_lines is not None and position >= options.max_lines:
                    return
                lines = parse_lines(block, path, first_line)
                first_line += len(lines)
                if options.max_lines is not None:
                    lines = _slice(lines, 0, options.max_lines - position)
                places = np.arange(position, position + len(lines)) % options.heldout_every
                position += len(lines)
                if options.part != "all":
                    heldout = places == options.heldout_every - 1
                    chosen = heldout if options.part == "heldout" else ~heldout
                    lines = CriteoLines(
                        lines.labels[chosen], lines.integers[chosen], lines.categories[chosen]
                    )
                yield lines


def parse_lines(block: bytes, path: StrPath = "<bytes>", first_line: int = 1) -> CriteoLines:
    """Parse a block of whole lines; ``path`` and ``first_line`` are for error messages.

    Raises:
        ConfigError: a wrong number of fields, a label other than 0 and 1, a field that is not an
            integer or not hex.
    """
    fields: Fields = split_fields(path, block, b"\t", NUM_FIELDS, first_line)
    labels = fields.integers(0, 1)[:, 0]
    wrong = (labels < 0) | (labels > 1)
    if wrong.any():
        row = int(wrong.argmax())
        raise fields.error(row, f"the label is {labels[row]}; it must be 0 or 1")
    return CriteoLines(
        labels,
        fields.integers(1, 1 + NUM_INTEGERS, missing=MISSING_INTEGER),
        fields.hexadecimals(1 + NUM_INTEGERS, NUM_FIELDS, missing=MISSING_ID),
    )


def format_lines(lines: CriteoLines) -> bytes:
    """Return the lines in the log's format; ``parse_lines`` is its inverse."""
    out = []
    for label, integers, categories in zip(
        lines.labels.tolist(), lines.integers.tolist(), lines.categories.tolist(), strict=True
    ):
        fields = [str(label)]
        fields += ["" if value == MISSING_INTEGER else str(value) for value in integers]
        fields += ["" if value == MISSING_ID else f"{value:08x}" for value in categories]
        out.append("\t".join(fields) + "\n")
    return "".join(out).encode()


def hash_ids(categories: npt.NDArray[np.int64], num_rows: int) -> npt.NDArray[np.int64]:
    """Hash raw ids (int64, any shape) to rows of one table: 0 where missing, else [1, num_rows)."""
    rows = (splitmix64(categories) % np.uint64(num_rows - 1)).astype(np.int64) + 1
    return np.where(categories == MISSING_ID, 0, rows)


def _batch(lines: CriteoLines, options: CriteoOptions) -> CriteoBatch:
    # A missing integer is the most negative one, so that the clamp makes it 0 too.
    dense = np.log1p(np.maximum(lines.integers, 0).astype(np.float64)).astype(np.float32)
    ids = np.ascontiguousarray(lines.categories.T)
    rows = options.rows_per_table()
    if rows is not None:
        ids = np.stack([hash_ids(column, n) for column, n in zip(ids, rows, strict=True)])
    return CriteoBatch(dense, ids, lines.labels.astype(np.float32))


def _join(parts: list[CriteoLines]) -> CriteoLines:
    return CriteoLines(
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.integers for part in parts]),
        np.concatenate([part.categories for part in parts]),
    )


def _slice(lines: CriteoLines, start: int, stop: int) -> CriteoLines:
    return CriteoLines(
        lines.labels[start:stop], lines.integers[start:stop], lines.categories[start:stop]
    )
