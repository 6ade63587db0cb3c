"""Plain, validated configuration: byte sizes, tiers, tables, and how rows share a budget.

Nothing here touches memory or disk; every value is checked on construction, so that whoever holds
one of these objects may trust it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .errors import ConfigError

__all__ = ["Mode", "TableConfig", "Tiers", "parse_bytes", "table_hash"]

Mode = Literal["sum", "mean", "max"]
StoreKind = Literal["auto", "rocksdb", "rocksdb_py", "memory"]
MODES: tuple[Mode, ...] = ("sum", "mean", "max")

_UNITS = {"": 1, "b": 1}
for _i, _p in enumerate("kmgtp", start=1):
    _UNITS[f"{_p}b"] = 1000**_i
    _UNITS[f"{_p}ib"] = 1024**_i


def parse_bytes(value: int | str, what: str = "size") -> int:
    """A positive number of bytes from ``4096``, ``"512MiB"``, ``"1.5 GB"``.

    Raises:
        ConfigError: not a number, an unknown unit, or not positive.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ConfigError(f"{what} is {value!r}; pass bytes as an int, or a string such as '8GiB'")
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", value)
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise ConfigError(f"{what} is {value!r}; pass bytes, or a string such as '512MiB'")
        size = int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    else:
        size = value
    if size <= 0:
        raise ConfigError(f"{what} is {value!r}; it must be positive")
    return size


def table_hash(name: str) -> bytes:
    """The table's identity in keys and in initial values: 4 bytes of SHA-256 of its name."""
    return hashlib.sha256(name.encode()).digest()[:4]


@dataclass(frozen=True, init=False)
class Tiers:
    """Sizes of the memory tiers and the place of the SSD tier; ``None`` leaves a tier out.

    The DDR budget counts record bytes (weights and optimizer state). The index, pins and plan
    buffers come on top and are reported by ``stats()`` as ``overhead_bytes``.

    Args:
        hbm: GPU memory budget, bytes or a string such as ``"8GiB"``.
        ddr: host memory budget, likewise.
        ssd: a directory, created when absent.
        store: ``"auto"``, ``"rocksdb"``, ``"rocksdb_py"`` or ``"memory"``: what keeps the SSD rows.
        direct_io: bypass the page cache where the store can.

    Raises:
        ConfigError: a size that is not positive, or an unknown store.
    """

    hbm: int | None
    ddr: int | None
    ssd: Path | None
    store: StoreKind
    direct_io: bool

    def __init__(
        self,
        hbm: int | str | None = None,
        ddr: int | str | None = None,
        ssd: str | os.PathLike[str] | None = None,
        *,
        store: StoreKind = "auto",
        direct_io: bool = False,
    ) -> None:
        if not isinstance(store, str) or store not in ("auto", "rocksdb", "rocksdb_py", "memory"):
            raise ConfigError(
                f"store is {store!r}; choose 'auto', 'rocksdb', 'rocksdb_py' or 'memory'"
            )
        if ssd is not None and (not isinstance(ssd, (str, os.PathLike)) or "\0" in str(ssd)):
            raise ConfigError(f"ssd is {ssd!r}; pass a directory's path")
        set_ = object.__setattr__
        set_(self, "hbm", None if hbm is None else parse_bytes(hbm, "hbm"))
        set_(self, "ddr", None if ddr is None else parse_bytes(ddr, "ddr"))
        set_(self, "ssd", None if ssd is None else Path(ssd))
        set_(self, "store", store)
        set_(self, "direct_io", direct_io)


@dataclass(frozen=True)
class TableConfig:
    """One embedding table and the features that look rows up in it.

    Args:
        name: unique among the tables of one store.
        num_embeddings: rows, or ``None`` when any int64 is a row id.
        embedding_dim: columns of float32.
        feature_names: features that read this table; its own name by default.
        mode: how a bag's rows are pooled.
        padding_idx: a row that takes no part in pooling and is not trained; negative ones count
            from the end.

    Raises:
        ConfigError: an empty name, a non-positive count, an unknown mode, no feature, a
            padding_idx outside the table.
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
            raise ConfigError(f"a table's name is {self.name!r}, which is no Unicode text")
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
            raise ConfigError(f"{where}: feature_names {self.feature_names!r} are not all names")
        names = tuple(self.feature_names) or (self.name,)
        if len(set(names)) != len(names):
            raise ConfigError(f"{where}: feature_names has duplicates: {list(names)}")
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
