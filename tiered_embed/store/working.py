"""A working directory: which of its stores holds which tables.

::

    root/pool-<record layout>-<number>/   one store each
    root/restoring-*, discarded-*         a replacement under way (replacing.py)
    root/dropped-*                        a store being removed

The folder's name follows from the record layout, not from the tables, so tables come and go: a pool
opens the store that lists its tables, whatever else that store lists, and tables that are nowhere
yet join it. What a table has stays there until it is dropped. The number keeps apart pools of one
layout that are open at the same time, such as the modules of one model: with one store for all of
them a restore of one module would replace the rows of the others, and a write that fails would end
them all. There is no index besides the stores' own lists: nothing can disagree with them.

A table's *shard* says which part of it a store holds; a table is found by name and shard. Several
ranks with shards of one table therefore never share a store, whichever rank has which shard.

Version 0.1 named folders ``pool-<tables>``. They are found by their lists like all others, and keep
their names.

Threading: openings and drops take the directory's lock, so any process and thread may call.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, StoreError
from ..spec import absolute_path, refuse_lookalikes, table_hash
from .base import RowStore
from .description import WHOLE, Description, StoreLayout, merged
from .directory import StoreDirectory, description_path, os_errors, read_description
from .keys import decode_rows, encode_keys, table_range
from .marks import read_marks, write_marks
from .opening import Backend, open_store
from .replacing import (
    POOL,
    Replacement,
    finish_interrupted,
    locked,
    remove_leftovers,
    remove_store,
)
from .trees import file_bytes

__all__ = ["check_grouping", "drop_table", "open_pool_store"]


def open_pool_store(
    root: Path,
    layout: StoreLayout,
    backend: Backend,
    options: Mapping[str, Any],
) -> RowStore:
    """Opens the store below ``root`` that holds the tables of ``layout``, or creates one.

    Raises:
        ConfigError: a table was stored otherwise, or the tables lie in several stores.
        StoreError: open elsewhere, or not writable. CorruptionError: a description is damaged.
    """
    with locked(root):
        finish_interrupted(root)
        folder = _home(root, layout)
        before = read_description(folder)
        try:
            store = open_store(
                backend, folder, layout.record_bytes, layout.record, tables=layout.tables, **options
            )
        except StoreError as error:
            others = sorted(before.tables.keys() - layout.tables.keys()) if before else []
            if others and isinstance(error.__cause__, BlockingIOError):
                raise StoreError(
                    f"{error}. The tables {sorted(layout.tables)} were trained in one module with "
                    f"{others}; keep them in one module, or use another ssd directory"
                ) from error
            raise
        if before is not None:
            with _closed_on_error(store):
                _refuse_rows_outside(store, before, layout)
    remove_leftovers(folder)
    return store


@contextlib.contextmanager
def _closed_on_error(store: RowStore) -> Iterator[None]:
    """Closes ``store`` if what is done inside fails."""
    try:
        yield
    except BaseException:
        store.close()
        raise


def _refuse_rows_outside(store: RowStore, stored: Description, layout: StoreLayout) -> None:
    """Raises ConfigError if a table has fewer rows now than ids in the store.

    Only for tables whose number of rows was not recorded; the others are compared by that number.
    """
    for name, facts in layout.tables.items():
        rows = facts.get("rows")
        if rows is None or "rows" in stored.tables.get(name, {"rows": None}):
            continue
        outside = encode_keys(table_hash(name), np.array([rows], np.int64))[0].tobytes()
        for keys, _ in store.scan(outside, table_range(name)[1], chunk_rows=1):
            raise ConfigError(
                f"table {name!r} was stored in '{store.path}' with id {decode_rows(keys)[0]}, and "
                f"num_embeddings is {rows}; pass the num_embeddings that it was trained with, or "
                f"remove its rows with te.drop_table(directory, {name!r})"
            )


def check_grouping(root: Path, layouts: Sequence[StoreLayout]) -> None:
    """Checks that no two of these pools, which one engine wants to have open together, lie in one
    store below ``root``.

    Raises:
        ConfigError: two do, or one lies in several stores.
    """
    if not _is_directory(root):
        return
    with locked(root):
        finish_interrupted(root)
        stores = _stores(root)
    pools: dict[Path, StoreLayout] = {}
    for layout in layouts:
        folder = _found(root, stores, layout)
        if folder is None:
            continue
        other = pools.setdefault(folder, layout)
        if other is layout:
            continue
        # What cannot be opened for another reason as well is told that first.
        stored = stores[folder.name]
        for each in (other, layout):
            record = each.record_bytes, each.record, each.tables
            stored.check(str(folder), stored.backend, *record)
            merged(stored.tables, each.tables, str(folder))
        names, others = sorted(layout.tables), sorted(other.tables)
        raise ConfigError(
            f"the tables {others} and {names} lie in one store, '{folder}', because their options "
            "were equal when it was written. Now their options differ, and each group needs a "
            "store of its own; give them equal options again, choose another ssd directory, or "
            "remove the rows of one group with te.drop_table"
        )


def _is_directory(root: Path) -> bool:
    with os_errors(f"cannot read '{root}'"):
        return root.is_dir()


def drop_table(directory: str | os.PathLike[str], name: str) -> int:
    """Removes what ``directory`` holds of table ``name``; returns the bytes that this freed.

    The store is written anew without the table's rows: the disk space comes back at once, and an
    interrupted drop leaves the directory as it was. Meanwhile the rows that stay take their space
    twice.

    Raises:
        ConfigError: there is no such table. StoreError: its store is open, or cannot be written.
    """
    root = absolute_path(directory, "directory")
    if not _is_directory(root):
        raise ConfigError(f"there is no directory '{root}'; pass the one given as Tiers(ssd=...)")
    with locked(root):
        finish_interrupted(root)
        stores = _stores(root)
        homes = [store for store, stored in stores.items() if name in stored.tables]
        if not homes:
            for store, stored in stores.items():
                refuse_lookalikes([name], stored.tables, f"in '{root / store}'")
            known = sorted({table for stored in stores.values() for table in stored.tables})
            raise ConfigError(f"'{root}' holds no table {name!r}; it holds {known}")
        return sum(_drop(root / store, stores[store], name) for store in homes)


def _drop(folder: Path, stored: Description, name: str) -> int:
    before = file_bytes(folder)
    left = {table: facts for table, facts in stored.tables.items() if table != name}
    if not left:
        StoreDirectory(folder, "read_write").release()  # nobody has it open
        remove_store(folder)
        return before
    replacement = Replacement(folder, ())
    replacement.prepare()
    backend: Any = stored.backend
    record = (stored.record_bytes, stored.record)
    start, stop = table_range(name)
    try:
        with (
            # Not read_only, which would share the lock with other readers.
            open_store(backend, folder, *record, "read_write", tables={}) as source,
            open_store(backend, replacement.restoring, *record, "create", tables=left) as target,
        ):
            after = () if stop is None else source.scan(start=stop)
            target.import_sorted(itertools.chain(source.scan(stop=start), after))
        marks = read_marks(folder)
        del marks[name]
        write_marks(replacement.restoring, marks)
        replacement.make_durable()
        replacement.exchange_locked()
    finally:
        replacement.abandon()
    return max(0, before - file_bytes(folder))


def _home(root: Path, layout: StoreLayout) -> Path:
    """The folder where the tables lie; a free one where none of them is stored yet."""
    stores = _stores(root)
    return _found(root, stores, layout) or _free_folder(root, layout, stores)


def _found(root: Path, stores: Mapping[str, Description], layout: StoreLayout) -> Path | None:
    """The folder where the tables lie; None where none of them is stored yet."""
    for store, stored in stores.items():
        refuse_lookalikes(layout.tables, stored.tables, f"in '{root / store}'")
    homes: dict[Path, list[str]] = {}
    for store, stored in stores.items():
        for name, facts in layout.tables.items():
            shard = facts.get("shard", WHOLE)
            if name in stored.tables and stored.tables[name].get("shard", WHOLE) == shard:
                homes.setdefault(root / store, []).append(name)
    if len(homes) > 1:
        (first, some), (second, others) = list(homes.items())[:2]
        raise ConfigError(
            f"table {some[0]!r} is stored in '{first}' and table {others[0]!r} in '{second}', "
            "because they were in different modules, or had different options, when they were "
            "trained; keep it so, choose another ssd directory, or remove the rows of one with "
            "te.drop_table"
        )
    return next(iter(homes), None)


def _free_folder(root: Path, layout: StoreLayout, taken: Container[str]) -> Path:
    record = json.dumps([dict(layout.record), layout.record_bytes], sort_keys=True)
    digest = hashlib.sha256(record.encode()).hexdigest()[:16]
    for number in itertools.count():
        name = f"{POOL}{digest}-{number}"
        if name not in taken:
            return root / name
    raise AssertionError("unreachable")


def _stores(root: Path) -> dict[str, Description]:
    """Every store in a working directory, by the name of its folder.

    Raises:
        StoreError: a folder has files of a store but lacks its description.
    """
    found = {}
    with os_errors(f"cannot read '{root}'"):
        names = sorted(name for name in os.listdir(root) if name.startswith(POOL))
    base = str(root)
    for name in names:
        description = _described(f"{base}{os.sep}{name}")
        if description is not None:
            found[name] = description
        elif _has_rows(root / name):
            folder = root / name
            raise StoreError(
                f"'{folder / 'db'}' has files but '{folder / 'layout.json'}' is missing; "
                "restore the file, or choose another directory"
            )
    return found


# A model of many modules opens as many stores, and looks for each among all others.
_read: dict[str, tuple[tuple[int, ...], Description]] = {}  # by folder; what was read when
_NEW_NS = 100_000_000  # a younger file may change and look the same: clocks of files are coarse


def _described(folder: str) -> Description | None:
    """As :func:`read_description`; read again only if the file has changed since."""
    now_ns = time.time_ns()
    try:
        facts = os.stat(description_path(folder))
    except OSError:
        return read_description(folder)
    stamp = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    known = _read.get(folder)
    if known is not None and known[0] == stamp:
        return known[1]
    description = read_description(folder)
    if description is not None and now_ns - max(facts.st_mtime_ns, facts.st_ctime_ns) > _NEW_NS:
        _read[folder] = (stamp, description)
    return description


def _has_rows(folder: Path) -> bool:
    """Whether the folder is more than a creation that was killed."""
    with os_errors(f"cannot read '{folder}'"):
        if not folder.is_dir() or (folder / "CREATING").exists():
            return False
        return (folder / "db").is_dir() and any((folder / "db").iterdir())
