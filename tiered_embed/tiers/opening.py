"""Opens the SSD tier of a pool: its store, and what the process before left there.

Threading: any thread; the store's directory is locked meanwhile.
"""

from __future__ import annotations

from typing import Any

from ..errors import StoreError
from ..spec import Tiers
from ..store import has_marks, open_pool_store, read_marks
from .layout import PoolLayout
from .ssd import SsdTier

__all__ = ["open_ssd"]


def open_ssd(layout: PoolLayout, tiers: Tiers) -> SsdTier:
    """Opens or creates the store of a pool below ``tiers.ssd``.

    ``SsdTier.stored_step`` is the step that the rows there are of, and ``SsdTier.unfinished`` an
    error to raise on every use where they are not all of one step.

    Raises:
        ConfigError: a table was stored otherwise, or the tables lie in several stores.
        StoreError: open elsewhere, or not writable. CorruptionError: a description is damaged.
    """
    assert tiers.ssd is not None
    options: dict[str, Any] = {"direct_io": True} if tiers.direct_io else {}
    store = open_pool_store(tiers.ssd, layout.store_layout(), tiers.store, options)
    try:
        marks = read_marks(store.path)
        mine = {name: marks[name] for name, _ in layout.tables}
        unfinished = sorted(name for name, mark in mine.items() if not mark.finished)
        error = None
        if not has_marks(store.path) and next(store.scan(chunk_rows=1), None) is not None:
            error = StoreError(
                f"'{store.path / 'meta.json'}' is gone: nobody knows which step the rows are of. "
                "te.checkpoint.load(model, path, missing='start') restores the latest "
                "checkpoint or, where there is none, starts anew"
            )
        elif unfinished:
            error = StoreError(
                f"a process trained {unfinished} in '{store.path}' and ended without close() or "
                "flush(), so the rows there are older than its last step, or come from different "
                "training steps. te.checkpoint.load(model, path, missing='start') restores the "
                "latest checkpoint or, where there is none, starts anew"
            )
        step = max(mark.step for mark in mine.values())
        return SsdTier(layout, store, stored_step=step, unfinished=error)
    except BaseException:
        store.close()
        raise
