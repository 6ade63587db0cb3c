"""Builds the store that a restore puts in the place of a working one.

It holds the rows of the step for the pool's tables, and the working store's rows for every other
table: a restore changes nothing that the model does not have.

Threading: the thread that restores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np

from ..engine import Pool
from ..errors import StoreError
from ..store import RowStore, StoreLayout, copy_tree, open_store, read_description, table_range
from .chain import Chain, other_tables, reading, without_tables
from .delta import delta_chunks
from .manifest import PoolEntry

__all__ = ["apply_deltas", "build_empty", "build_store"]


def build_store(chain: Chain, index: int, pool: Pool, target: Path) -> None:
    """Makes ``target`` a store with the rows of pool ``index`` of the step, for the backend of
    ``pool``, which is open.

    Raises:
        CorruptionError, StoreError: nothing but ``target`` was written.
    """
    assert pool.store is not None
    (base, entry), *deltas = chain.pool_links(index)
    wanted = entry.store_layout()
    working, stored = read_description(pool.store.path), read_description(base)
    assert working is not None
    foreign = other_tables(base, wanted.tables)
    if stored is not None and stored.backend == working.backend:
        copy_tree(base, target)
        if foreign:
            with _opened(target, wanted) as store:
                for name in foreign:
                    _delete(store, name)
    else:
        backend: Any = working.backend
        layout = (wanted.record_bytes, wanted.record)
        with (
            reading(base, entry, target.parent) as source,
            open_store(backend, target, *layout, "create", tables=wanted.tables) as store,
        ):
            store.import_sorted(without_tables(foreign, source.scan()))
    apply_deltas(target, deltas)
    _keep_others(pool.store, target, wanted)


def build_empty(pool: Pool, target: Path) -> None:
    """Makes ``target`` a store without a row of the tables of ``pool``, which is open.

    Raises:
        CorruptionError, StoreError: nothing but ``target`` was written.
    """
    assert pool.store is not None
    working = read_description(pool.store.path)
    assert working is not None
    wanted, backend = pool.layout.store_layout(), cast(Any, working.backend)
    layout = (wanted.record_bytes, wanted.record)
    open_store(backend, target, *layout, "create", tables=wanted.tables).close()
    _keep_others(pool.store, target, wanted)


def apply_deltas(store_folder: Path, deltas: list[tuple[Path, PoolEntry]]) -> None:
    """Writes the rows of ``deltas``, oldest first, into a copy of the store they stand on."""
    if not deltas:
        return
    entry = deltas[-1][1]
    with _opened(store_folder, entry.store_layout()) as store:
        for folder, _ in deltas:
            for keys, records in delta_chunks(folder, entry.record_bytes):
                store.put(keys, records)
        store.flush()


def _opened(folder: Path, wanted: StoreLayout) -> RowStore:
    return open_store(
        "auto", folder, wanted.record_bytes, wanted.record, "read_write", tables=wanted.tables
    )


def _delete(store: RowStore, table: str) -> None:
    start, stop = table_range(table)
    for keys, _ in store.scan(start, stop):
        store.delete(np.ascontiguousarray(keys))
    store.flush()


def _keep_others(working: RowStore, target: Path, wanted: StoreLayout) -> None:
    """Copies the rows of the tables that the model does not have."""
    others = other_tables(working.path, wanted.tables)
    if not others:
        return
    try:
        with _opened(target, wanted) as store:
            for name in others:
                for keys, records in working.scan(*table_range(name)):
                    store.put(np.ascontiguousarray(keys), np.ascontiguousarray(records))
            store.flush()
    except StoreError as error:
        raise StoreError(
            f"cannot copy the tables {others}, which share '{working.path}' with the model's: "
            f"{error}. Close the module, make it again, and repeat the restore"
        ) from error
