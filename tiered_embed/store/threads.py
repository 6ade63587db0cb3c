"""Whether the process may have the threads that a store needs, told before the store is opened.

RocksDB ends the process where it cannot start a thread.

Threading: any thread.
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

from .. import _native
from ..errors import StoreError

__all__ = ["check_threads"]

# Of a process's first store, and of a later one: one thread for flushes and one for merges, which
# stay; one for timers, which may end with the last store. The wheel opens files on 15 more.
NEEDED = {"rocksdb": (3, 1), "rocksdb_py": (18, 16)}


def check_threads(backend: str, path: str | os.PathLike[str], *, first: bool) -> None:
    """Refuses to open a store that the process has no threads for.

    ``first``: this process has had no store of the backend.

    Raises:
        StoreError: with the limits that there are, and the remedy.
    """
    needed = NEEDED[backend][0 if first else 1]
    available = _native.available_threads(needed)
    if available < needed:
        raise StoreError(
            f"cannot open the store in '{path}': it needs {needed} more threads, and this process "
            f"can start {available}. The limits are {_limits()}. Raise them, with `ulimit -u` or "
            "the pids limit of the container, or end other threads and processes"
        )


def _limits() -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    found = [
        "none on the processes of this user (RLIMIT_NPROC)"
        if soft == resource.RLIM_INFINITY
        else f"{soft} processes of this user (RLIMIT_NPROC)"
    ]
    for group in _groups():
        try:
            most = (group / "pids.max").read_text().strip()
        except OSError:
            continue
        if most != "max":
            found.append(f"{most} in '{group}' (pids.max)")
    with contextlib.suppress(OSError):
        found.append(f"{Path('/proc/sys/kernel/threads-max').read_text().strip()} on the machine")
    return ", ".join(found)


def _groups() -> list[Path]:
    """Folders of the control groups that may limit the number of this process's threads."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    out = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "" or "pids" in controllers.split(","):
            root = Path("/sys/fs/cgroup") / ("pids" if controllers else "")
            below = root / name.lstrip("/")
            out += [root, below] if below != root else [root]
    return out
