"""How large the memory tiers are, and where the SSD tier is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import ConfigError
from .paths import absolute_path
from .sizes import parse_bytes

__all__ = ["StoreKind", "Tiers"]

StoreKind = Literal["auto", "rocksdb", "rocksdb_py", "memory"]


@dataclass(frozen=True, init=False)
class Tiers:
    """The sizes of the memory tiers and the place of the SSD tier; ``None`` leaves a tier out.

    A budget counts record bytes (weights and optimizer state). Index, pins and plan buffers come on
    top; ``stats()`` reports them as ``overhead_bytes``.

    Args:
        hbm: budget of GPU memory, in bytes or as a string such as ``"8GiB"``.
        ddr: budget of host memory, likewise.
        ssd: a directory; it is made if it does not exist. A relative one is below the working
            directory of now, and ``~`` is the home directory.
        store: what keeps the rows of the SSD tier: ``"rocksdb"``, ``"rocksdb_py"``, ``"memory"``,
            or ``"auto"`` for RocksDB in whichever form is installed.
        direct_io: bypass the page cache, if the store can.

    Raises:
        ConfigError: a size is not positive, the store is unknown, or ssd is not a path.
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
        set_ = object.__setattr__
        set_(self, "hbm", None if hbm is None else parse_bytes(hbm, "hbm"))
        set_(self, "ddr", None if ddr is None else parse_bytes(ddr, "ddr"))
        set_(self, "ssd", None if ssd is None else absolute_path(ssd, "ssd"))
        set_(self, "store", store)
        set_(self, "direct_io", direct_io)
