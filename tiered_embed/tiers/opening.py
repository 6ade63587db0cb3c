"""Opens the SSD tier of a pool: finds the store's folder and reads what it was left with.

Threading: pure functions of a directory; one thread at a time.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, StoreError
from ..spec import Tiers
from ..store import RowStore, StoreDirectory, beside, open_store, read_meta, recover
from .layout import PoolLayout
from .ssd import SsdTier

__all__ = ["open_ssd"]


def open_ssd(layout: PoolLayout, tiers: Tiers) -> SsdTier:
    """Opens or creates the store of a pool below ``tiers.ssd``.

    ``SsdTier.stored_step`` and ``SsdTier.unfinished`` say what the last process left.

    Raises:
        ConfigError: the directory holds these tables with another layout or in another grouping.
        StoreError: open elsewhere, or not writable. CorruptionError: its description is damaged.
    """
    assert tiers.ssd is not None
    store = _open(layout, tiers, tiers.ssd)
    try:
        meta = read_meta(store.path)
        step = int(meta.get("step", 0))
        unfinished = None
        if not meta.get("settled", True):
            unfinished = StoreError(
                f"the process that trained in '{store.path}' ended without close() or flush(): "
                "its rows are of no one step. Restore them with te.checkpoint.load(model, path), "
                "or remove the directory to start anew"
            )
        return SsdTier(layout, store, stored_step=step, unfinished=unfinished)
    except BaseException:
        store.close()
        raise


def _open(layout: PoolLayout, tiers: Tiers, root: Path) -> RowStore:
    names = sorted(name for name, _ in layout.tables)
    folder = root / f"pool-{hashlib.sha256(chr(0).join(names).encode()).hexdigest()[:16]}"
    recover(folder)
    _refuse_other_pools(root, names)
    options: dict[str, Any] = {"direct_io": True} if tiers.direct_io else {}
    store = open_store(tiers.store, folder, layout.record_bytes, layout.describe(), **options)
    for leftover in beside(folder):
        shutil.rmtree(leftover, ignore_errors=True)
    return store


def _refuse_other_pools(root: Path, names: Sequence[str]) -> None:
    """A table's rows live in one pool; a changed set of tables must not leave them behind."""
    if not root.is_dir():
        return
    for path in sorted(root.glob("pool-*")):
        stored = StoreDirectory.recorded_layout(path).get("tables", [])
        shared = sorted(set(stored) & set(names))
        if shared and sorted(stored) != list(names):
            raise ConfigError(
                f"table {shared[0]!r} is stored in '{path}' together with {sorted(stored)}, but "
                f"the configuration groups it with {list(names)}; use another ssd directory"
            )
