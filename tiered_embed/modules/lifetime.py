"""The open modules of this process: how they open their stores, and how they are closed.

What was trained reaches the store even when nobody calls ``close``: when a module is collected, or
when the interpreter exits.

Threading: a module is opened and closed in its own thread; the garbage collector may close it in
any.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..engine import Engine, apart_from_own_threads
from ..errors import StoreError
from ..spec import EngineOptions, TableConfig
from ..store import OpenHereError

__all__ = ["close_all", "close_unattended", "open_engine"]


class _Open(NamedTuple):
    finalizer: weakref.finalize[Any, Any]
    pid: int


_open: weakref.WeakKeyDictionary[Any, _Open] = weakref.WeakKeyDictionary()


def open_engine(
    tables: Sequence[TableConfig],
    features: Sequence[tuple[str, int]],
    options: EngineOptions,
    *,
    pooled: bool,
) -> Engine:
    """The engine of a new module. Where a module that nothing refers to has its store open, that
    one is closed first.

    Raises:
        StoreError: as ``Engine``; if this process has the store open, it says which module.
    """
    try:
        return Engine(tables, features, options, pooled=pooled)
    except StoreError as error:
        if _held(error) is None:
            raise
    gc.collect()  # a module in a cycle of references is closed by this
    try:
        return Engine(tables, features, options, pooled=pooled)
    except StoreError as error:
        owner = _owner(_held(error))
        if owner is None:
            raise
        names = [table.name for table in owner.engine.tables]
        raise StoreError(
            f"{error}. It is the {type(owner).__name__} of the tables {names[:8]}, which something "
            "still refers to"
        ) from error


def close_unattended(module: Any) -> weakref.finalize[Any, Any]:
    """Closes ``module`` when it is collected, or at exit; ``detach`` what this returns to prevent
    it."""
    pid = os.getpid()
    finalizer = weakref.finalize(module, _close, module.engine, pid)
    _open[module] = _Open(finalizer, pid)
    return finalizer


def close_all() -> None:
    """Closes every tiered module that this process has open: flushes rows, releases directories.

    For notebooks, where a cell that is run again finds the directory of its old module in use.

    Raises:
        StoreError: rows of a module could not be written. All others are closed.
    """
    errors: list[Exception] = []
    for module in _modules():
        try:
            module.close()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _modules() -> list[Any]:
    mine = os.getpid()
    return [m for m, known in list(_open.items()) if known.finalizer.alive and known.pid == mine]


def _held(error: BaseException | None) -> OpenHereError | None:
    """The error that says that this process has a store open already, if it is the reason."""
    while error is not None and not isinstance(error, OpenHereError):
        error = error.__cause__
    return error


def _owner(error: OpenHereError | None) -> Any:
    """The module that has the store open; None if it is no module."""
    if error is None or error.path is None:
        return None
    for module in _modules():
        stores = [pool.store for pool in module.engine.pools]
        if any(s is not None and s.path.resolve() == error.path.resolve() for s in stores):
            return module
    return None


# Registered after the stores' own hook, so it runs before that one closes the stores.
@atexit.register
def _close_at_exit() -> None:
    for known in list(_open.values()):
        known.finalizer()


def _close(engine: Engine, pid: int) -> None:
    if pid != os.getpid():
        return

    def close() -> None:
        try:
            engine.close()
        except Exception:
            log = logging.getLogger("tiered_embed")
            log.exception(
                "a tiered module could not be closed; rows trained since its last flush are lost"
            )

    apart_from_own_threads(close)
