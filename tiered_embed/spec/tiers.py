"""Sizes and places of the tiers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import ConfigError
from .sizes import parse_bytes

__all__ = ["StoreKind", "Tiers"]

StoreKind = Literal["auto", "rocksdb", "rocksdb_py", "memory"]


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
