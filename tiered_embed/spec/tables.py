"""One embedding table: its name, its shape, and the features that read it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

__all__ = ["Lookup", "Mode", "TableConfig", "table_hash"]

Mode = Literal["sum", "mean", "max"]
MODES: tuple[Mode, ...] = ("sum", "mean", "max")

Lookup = tuple[str, int | None, npt.NDArray[np.int64], npt.NDArray[np.int64] | None]
"""A feature of a forward: table name, its rows, ids (N,), and the bags' starts (B + 1,) into them,
None where every bag is one id."""


def table_hash(name: str) -> bytes:
    """A table's identity in keys and initial values: 4 bytes of the SHA-256 of its name."""
    return hashlib.sha256(name.encode()).digest()[:4]


@dataclass(frozen=True)
class TableConfig:
    """One embedding table and the features that look rows up in it.

    Args:
        name: must be unique among the tables of a store.
        num_embeddings: the number of rows, or ``None`` if any int64 is a row id.
        embedding_dim: columns.
        feature_names: features that read this table; by default one with the table's name.
        mode: how a bag's rows are pooled.
        padding_idx: a row that is left out of pooling and is not trained. A negative one counts
            from the end.

    Raises:
        ConfigError: an empty name, a count that is not positive, an unknown mode, a feature name
            that is empty or given twice, or a padding_idx outside the table.
    """

    name: str
    num_embeddings: int | None
    embedding_dim: int
    feature_names: Sequence[str] = field(default=())
    mode: Mode = "sum"
    padding_idx: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"a table's name is {self.name!r}; it must be a non-empty string")
        if any("\ud800" <= letter <= "\udfff" for letter in self.name):
            raise ConfigError(f"a table's name is {self.name!r}; it must be valid Unicode text")
        where = f"table {self.name!r}"
        if self.num_embeddings is not None and not _positive_int(self.num_embeddings):
            raise ConfigError(
                f"{where}: num_embeddings is {self.num_embeddings!r}; "
                "it must be a positive integer, or None for any int64 id"
            )
        if not _positive_int(self.embedding_dim):
            raise ConfigError(
                f"{where}: embedding_dim is {self.embedding_dim!r}; it must be a positive integer"
            )
        if not isinstance(self.mode, str) or self.mode not in MODES:
            raise ConfigError(f"{where}: mode is {self.mode!r}; choose 'sum', 'mean' or 'max'")
        if isinstance(self.feature_names, str) or not isinstance(self.feature_names, Sequence):
            raise ConfigError(
                f"{where}: feature_names is {self.feature_names!r}; pass a sequence of names"
            )
        if not all(isinstance(name, str) and name for name in self.feature_names):
            raise ConfigError(
                f"{where}: feature_names is {self.feature_names!r}; pass non-empty strings"
            )
        names = tuple(self.feature_names) or (self.name,)
        if len(set(names)) != len(names):
            raise ConfigError(f"{where}: feature_names is {list(names)}; name each feature once")
        object.__setattr__(self, "feature_names", names)
        object.__setattr__(self, "padding_idx", self._padding())

    def _padding(self) -> int | None:
        row, num_rows = self.padding_idx, self.num_embeddings
        if row is None:
            return None
        if isinstance(row, bool) or not isinstance(row, int):
            raise ConfigError(f"table {self.name!r}: padding_idx is {row!r}; it must be an integer")
        if num_rows is None:
            return row
        if not -num_rows <= row < num_rows:
            raise ConfigError(
                f"table {self.name!r}: padding_idx is {row}; it must be in "
                f"[{-num_rows}, {num_rows})"
            )
        return row % num_rows


def _positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63
