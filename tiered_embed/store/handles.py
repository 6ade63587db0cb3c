"""How many files the process may have open, told before a store runs out of them.

A store keeps 3 files open, and a few more while it flushes or merges. Those that are read are
bounded for the whole process (``native/store/file_handles.h``), and give way to others.

Threading: any thread.
"""

import logging
import os
import resource
from pathlib import Path

from ..errors import StoreError
from . import rocksdb

__all__ = ["check_handles", "share_of_handles"]

NEEDED = 16  # by one store, at most
HANDLES = Path("/proc/self/fd")


def _limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (1 << 20) if soft == resource.RLIM_INFINITY else soft


def share_of_handles() -> int:
    """Files that one store may keep open, where nothing bounds those of all stores together.

    A quarter of what the process may have: a file that is closed costs more to open again there
    than in the native store, which keeps its index in memory.
    """
    return max(32, _limit() // 4)


def check_handles(path: str | os.PathLike[str]) -> None:
    """Refuses to open a store that the process has no file handles for.

    Warns once, in the log, when few are left.

    Raises:
        StoreError: with the remedy.
    """
    limit = _limit()
    try:
        used = len(os.listdir(HANDLES)) - rocksdb.num_read_handles()
    except FileNotFoundError:  # no Linux, or no /proc
        return
    except OSError:  # not even one is left, to count them
        used = limit
    remedy = (
        f"Raise the limit with `ulimit -n {max(4096, 4 * limit)}` before the process starts, or "
        "with resource.setrlimit; tables of one dim, dtype and optimizer that are in one collection"
        " share a store"
    )
    if limit - used < NEEDED:
        raise StoreError(
            f"cannot open the store in '{path}': this process may have {limit} files open, has "
            f"{used}, and a store needs up to {NEEDED}. {remedy}"
        )
    if limit - used < max(4 * NEEDED, limit // 4):
        _warn(limit, used, remedy)


_warned = False


def _warn(limit: int, used: int, remedy: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        logging.getLogger("tiered_embed").warning(
            "this process may have %d files open and has %d; each further store needs 3, and up to "
            "%d at times. %s",
            limit,
            used,
            NEEDED,
            remedy,
        )
