"""What a forked child may do of a library with threads: RocksDB, in either backend.

A library starts threads and keeps them as long as the process lives. A forked child has none of
them, and the library does not know: a flush would wait for them for ever, and so would the
destructors that run at the end of the process, where they do not crash.

Threading: any thread.
"""

from __future__ import annotations

import os

from .. import _native
from ..errors import StoreError

__all__ = ["is_first_use", "note_use", "refuse_in_child"]

_first_user: dict[str, int] = {}  # backend -> the process that opened its first store


def refuse_in_child(backend: str, path: str | os.PathLike[str]) -> None:
    """REQUIRES: the store would be written to.

    Raises:
        StoreError: a process from which this one was forked has used the backend.
    """
    first = _first_user.get(backend, os.getpid())
    if first != os.getpid():
        raise StoreError(
            f"cannot open the store in '{path}': process {os.getpid()} was forked from process "
            f"{first}, which has used RocksDB, and lacks the threads that RocksDB started there. "
            "Start workers by spawn, or open no store before the fork; mode='read_only' works"
        )


def is_first_use(backend: str) -> bool:
    """No store of the backend was opened in this process."""
    return _first_user.get(backend) != os.getpid()


def note_use(backend: str) -> None:
    """This process is about to open a store of a backend that starts threads."""
    _first_user.setdefault(backend, os.getpid())


def _after_fork() -> None:
    """In a child. Python ends as ever: it runs its exit handlers, and frees its objects."""
    if _first_user:
        _native.end_without_destructors()


os.register_at_fork(after_in_child=_after_fork)
