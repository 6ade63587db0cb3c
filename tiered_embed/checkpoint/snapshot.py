"""Fixes the rows of one pool as they are between two steps, while training goes on.

With a store below, dirty rows are copied out and written down, and the store links its files as
soon as they have arrived. Without one, every row is copied into a new store at once.

Threading: called by the thread that trains; the store's part runs in the pool's writing thread.
"""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from ..engine import Pool
from ..store import encode_keys, mark_finished, open_store
from ..tiers import ChangedKeys
from .delta import write_delta
from .folders import drop_runtime_files

__all__ = ["take_snapshot"]


def take_snapshot(
    pool: Pool, target: Path, steps: int, since: ChangedKeys | None, changed: list[ChangedKeys]
) -> Future[None]:
    """Fixes what the step holds of a pool; the future is done once it is in ``target``."""
    ssd, store = pool.scheduler.ssd, pool.store
    if ssd is None or store is None:
        changed.append(ChangedKeys())
        return _copied(pool, target, steps)

    def job() -> None:
        # This runs between two writes: what the tier writes later belongs to the next step.
        changed[place] = ssd.track()
        if since is not None:
            write_delta(store, since.keys(), target)
            return
        store.checkpoint(target)
        mark_finished(target, [name for name, _ in pool.layout.tables], steps)

    place = len(changed)
    changed.append(ChangedKeys())
    return pool.scheduler.snapshot(job)


def _copied(pool: Pool, target: Path, steps: int) -> Future[None]:
    """For a pool without a store: writes a store with every materialised row, then returns."""
    pool.scheduler.quiesce()
    layout = pool.layout

    def chunks() -> Any:
        hashes = [layout.table_hashes[i].tobytes() for i in range(len(layout.tables))]
        for key, i in sorted((h, i) for i, h in enumerate(hashes)):
            for rows, records in pool.materialised(i):
                yield encode_keys(key, rows), np.ascontiguousarray(records)

    wanted = layout.store_layout()
    with open_store(
        "auto", target, wanted.record_bytes, wanted.record, "create", tables=wanted.tables
    ) as store:
        store.import_sorted(chunks())
    mark_finished(target, [name for name, _ in pool.layout.tables], steps)
    drop_runtime_files(target)
    done: Future[None] = Future()
    done.set_result(None)
    return done
