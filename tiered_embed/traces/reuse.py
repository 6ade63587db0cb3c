"""Reuse histograms: how rows, and accesses to them, are distributed over the number of uses.

Bucket ``b`` holds the rows used more than ``edges[b]`` and at most ``edges[b + 1]`` times in a
window; the last one has no upper edge. Shapes: ``K`` buckets.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from .chunk import I64
from .files import StrPath
from .trace import Trace

__all__ = ["EDGES", "ReuseHistogram", "TableCounts", "count_rows", "read_locality"]

EDGES = (0, *(1 << k for k in range(16)))
"""Those of Meta's published histograms: 0, 1, 2, 4, ... 32768."""


@dataclass(frozen=True)
class ReuseHistogram:
    """Shares that sum to 1, up to rounding.

    rows, accesses: each bucket's share (K,) of the distinct rows, and of the accesses. mean_uses:
    accesses per distinct row. edges: lower edges (K,).
    """

    rows: tuple[float, ...]
    accesses: tuple[float, ...]
    mean_uses: float
    edges: tuple[int, ...] = EDGES
    name: str = ""

    def __post_init__(self) -> None:
        if not len(self.rows) == len(self.accesses) == len(self.edges):
            raise ConfigError(
                f"a histogram of {len(self.edges)} buckets needs as many shares of rows and of"
                f" accesses, got {len(self.rows)} and {len(self.accesses)}"
            )
        if not 1.0 <= self.mean_uses < float("inf"):
            raise ConfigError(f"mean_uses must be at least 1, got {self.mean_uses!r}")
        for what, shares in (("rows", self.rows), ("accesses", self.accesses)):
            if not (min(shares) >= 0.0 and abs(sum(shares) - 1.0) < 0.02):
                raise ConfigError(
                    f"the shares of {what} sum to {sum(shares):.4f} and the smallest is"
                    f" {min(shares)}; they must not be negative, and sum to 1"
                )

    @classmethod
    def of_counts(
        cls, counts: npt.ArrayLike, edges: tuple[int, ...] = EDGES, name: str = ""
    ) -> ReuseHistogram:
        """Return the histogram of the uses (U,) of distinct rows, each at least 1.

        Raises:
            ConfigError: no row.
        """
        uses = np.asarray(counts, np.int64)
        if len(uses) == 0:
            raise ConfigError("a histogram needs at least one row")
        # Bucket of a count c: the last edge below c.
        bucket = np.searchsorted(np.array(edges), uses, side="left") - 1
        total = int(uses.sum())
        rows = np.bincount(bucket, minlength=len(edges)) / len(uses)
        accesses = (
            np.bincount(bucket, weights=uses.astype(np.float64), minlength=len(edges)) / total
        )
        return cls(tuple(rows.tolist()), tuple(accesses.tolist()), total / len(uses), edges, name)

    def error(self, other: ReuseHistogram) -> float:
        """Return the largest difference between two shares, over both kinds and all buckets."""
        assert self.edges == other.edges
        pairs = zip(self.rows + self.accesses, other.rows + other.accesses, strict=True)
        return max(abs(mine - its) for mine, its in pairs)

    def labels(self) -> list[str]:
        """Return the names of the buckets, such as ``"(2, 4]"``."""
        borders = [*(f"{edge}]" for edge in self.edges[1:]), "...)"]
        return [f"({low}, {high}" for low, high in zip(self.edges, borders, strict=True)]


_BUCKET = re.compile(r"\((\d+)(?:, (\d+)\]|\+): ([0-9.]+)")


def read_locality(path: StrPath) -> list[ReuseHistogram]:
    """Read the histograms that Meta published: one per section of the file.

    An incomplete last section, as in excerpts, is skipped. Format:
    https://github.com/facebookresearch/dlrm_datasets, ``*_locality.txt``.

    Raises:
        ConfigError: a section without its two histograms or its averages; the message names the
            line.
        OSError: the file cannot be read.
    """
    out: list[ReuseHistogram] = []
    lines = Path(path).read_text("utf-8", "replace").splitlines()
    begins = [i for i, line in enumerate(lines) if line.startswith("Locality stats")]
    for begin, end in zip(begins, [*begins[1:], len(lines) + 1], strict=False):
        name = lines[begin - 1].strip() if begin else ""
        try:
            out.append(_section(name, lines[begin : end - 1]))
        except ValueError as error:
            if out and begin == begins[-1]:
                break
            raise ConfigError(f"{os.fspath(path)}, line {begin + 1}: {error}") from error
    if not out:
        raise ConfigError(
            f"{os.fspath(path)}: no line starts with 'Locality stats'; pass a file such as"
            " Meta's *_locality.txt"
        )
    return out


def _section(name: str, lines: list[str]) -> ReuseHistogram:
    numbers = {}
    shares: dict[str, list[tuple[int, float]]] = {}
    title = ""
    for line in lines:
        found = _BUCKET.fullmatch(line.strip())
        if found:
            shares.setdefault(title, []).append((int(found[1]), float(found[3])))
        elif line.startswith("Avg"):
            key, _, value = line.partition(":")
            numbers[key] = float(value)
        else:
            title = line
    if len(shares) != 2 or not {"Avg # of indices", "Avg # of unique cols"} <= set(numbers):
        raise ValueError(
            f"section {name!r} has {len(shares)} histograms and the averages {sorted(numbers)}; 2"
            " histograms and the averages of indices and unique cols are expected"
        )
    rows, accesses = shares.values()
    mean = numbers["Avg # of indices"] / numbers["Avg # of unique cols"]
    return ReuseHistogram(
        tuple(share for _, share in rows),
        tuple(share for _, share in accesses),
        mean,
        tuple(edge for edge, _ in rows),
        name,
    )


@dataclass(frozen=True)
class TableCounts:
    """The distinct ids (U,) of one table in ascending order, and their uses (U,)."""

    ids: I64
    uses: I64

    @property
    def num_accesses(self) -> int:
        return int(self.uses.sum())


def count_rows(trace: Trace, progress: Callable[[int], None] | None = None) -> list[TableCounts]:
    """Count the uses of every row in one pass; needs 16 to 48 bytes per distinct row.

    ``progress`` is called with the number of accesses of each chunk. Raises as the trace does.
    """
    counters = [_Counter() for _ in trace.tables]
    for chunk in trace.chunks():
        for counter, (_, ids) in zip(counters, chunk.table_ids, strict=True):
            counter.add(ids)
        if progress is not None:
            progress(chunk.num_ids)
    return [counter.counts() for counter in counters]


class _Counter:
    """Distinct ids and their uses; they are merged whenever their number has doubled."""

    def __init__(self) -> None:
        self._parts: list[tuple[I64, I64]] = []
        self._merged = 0
        self._gathered = 0

    def add(self, ids: I64) -> None:
        if len(ids) == 0:
            return
        part, uses = np.unique(ids, return_counts=True)
        self._parts.append((part, uses.astype(np.int64)))
        self._gathered += len(part)
        if self._gathered > max(1 << 20, self._merged):
            self.counts()

    def counts(self) -> TableCounts:
        if len(self._parts) != 1:
            empty = np.empty(0, np.int64)
            ids = np.concatenate([empty, *(part for part, _ in self._parts)])
            uses = np.concatenate([empty, *(uses for _, uses in self._parts)])
            order = np.argsort(ids, kind="stable")
            ids, uses = ids[order], uses[order]
            first = np.flatnonzero(np.append(True, ids[1:] != ids[:-1])[: len(ids)])
            summed = np.add.reduceat(uses, first) if len(first) else uses
            self._parts = [(ids[first], summed)]
        ids, uses = self._parts[0]
        self._merged, self._gathered = len(ids), 0
        return TableCounts(ids, uses)
