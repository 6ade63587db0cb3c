"""Opens one store: chooses the backend, checks the arguments, creates or compares the directory.

Threading: any thread may open stores. Of two openings of one directory, one is refused.
"""

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from ..errors import ConfigError, StoreError
from ..spec import absolute_path
from . import memory, rocksdb, rocksdb_py
from .base import RowStore, StoreOptions, close_at_exit
from .description import Tables
from .directory import Mode, StoreDirectory, read_description
from .forked import is_first_use, note_use, refuse_in_child
from .handles import check_handles
from .threads import check_threads

__all__ = ["Backend", "default_backend", "open_store"]

Backend = Literal["auto", "rocksdb", "rocksdb_py", "memory"]

_BACKENDS: dict[str, Callable[[StoreDirectory, int, StoreOptions], RowStore]] = {
    "rocksdb": rocksdb.RocksDbRowStore,
    "rocksdb_py": rocksdb_py.RocksDbPyRowStore,
    "memory": memory.MemoryRowStore,
}


@functools.cache
def _notice_fallback() -> None:
    logging.getLogger("tiered_embed").warning(
        "built without RocksDB: the SSD tier uses the rocksdb-py wheel, which reads on one thread; "
        "install librocksdb-dev and rebuild for the native store"
    )


def default_backend() -> str:
    """The backend that ``"auto"`` chooses for a new store.

    Raises:
        StoreError: this installation has no backend.
    """
    if rocksdb.available():
        return "rocksdb"
    if not rocksdb_py.available():
        raise StoreError(
            "no store backend: install librocksdb-dev and rebuild, or pip install rocksdb-py"
        )
    return "rocksdb_py"


def _choose_backend(path: str | os.PathLike[str]) -> str:
    description = read_description(path)
    return default_backend() if description is None else description.backend


def _parse_options(options: Mapping[str, Any]) -> StoreOptions:
    known = [field.name for field in dataclasses.fields(StoreOptions)]
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown store option {name!r}; the options are {', '.join(known)}")
    return StoreOptions(**options)


def open_store(
    backend: Backend,
    path: str | os.PathLike[str],
    record_bytes: int,
    layout: Mapping[str, Any],
    mode: Literal["create", "read_write", "read_only", "auto"] = "auto",
    *,
    tables: Tables | None = None,
    **options: Any,
) -> RowStore:
    """Open or create the store in directory ``path``.

    ``layout`` is what the caller must find unchanged (dim, dtype, optimizer, ...): JSON values that
    are stored on creation and compared on every opening. ``tables`` are the tables that the caller
    will use. A store lists all tables that it was ever opened with, and compares the facts that it
    knows of each (see ``description.py``); None leaves the list as it is. ``mode="auto"`` creates a
    store where there is none. ``options`` are the fields of ``StoreOptions``.

    Raises:
        ConfigError: layout, record size, backend or tables differ from the stored ones, or an
            argument is bad.
        StoreError: open elsewhere, not writable, absent, or present with ``mode="create"``; or the
            process has too few file handles or threads left, or was forked from one that has used
            RocksDB.
        CorruptionError: its description is damaged.
    """
    if backend not in get_args(Backend):
        raise ConfigError(f"backend is {backend!r}; choose one of {', '.join(get_args(Backend))}")
    if mode not in {*get_args(Mode), "auto"}:
        raise ConfigError(f"mode is {mode!r}; choose one of auto, {', '.join(get_args(Mode))}")
    if isinstance(record_bytes, bool) or not isinstance(record_bytes, int) or record_bytes < 1:
        raise ConfigError(f"record_bytes={record_bytes!r} must be a positive integer")
    try:
        json.dumps([dict(layout), {name: dict(t) for name, t in (tables or {}).items()}])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"layout must hold JSON values only: {error}") from error
    path = absolute_path(path, "path")
    parsed = _parse_options(options)
    name = _choose_backend(path) if backend == "auto" else backend
    if name not in _BACKENDS:
        raise ConfigError(f"the store in '{path}' was written by the unknown backend {name!r}")
    if backend == "auto" and name == "rocksdb_py":
        _notice_fallback()
    if mode == "auto":
        mode = "read_write" if StoreDirectory.exists(path) else "create"

    if name != "memory":
        if mode != "read_only":
            refuse_in_child(name, path)
        check_handles(path)
        check_threads(name, path, first=is_first_use(name))
        note_use(name)

    directory = StoreDirectory(path, mode)
    try:
        if mode != "create":
            stored = directory.description
            stored.check(str(directory.path), name, record_bytes, layout, tables)
            if tables is not None:
                directory.register(tables)
        store = _BACKENDS[name](directory, record_bytes, parsed)
        directory.remember_db()
    except BaseException:
        if mode == "create":
            directory.abandon_creation()
        directory.release()
        raise
    if mode == "create":
        try:
            directory.commit_layout(name, record_bytes, layout, tables)
        except BaseException:
            store.close()
            raise
    close_at_exit(store)
    return store
