"""Replaces a whole store by another one, so that a crash at any moment leaves one or the other.

A restore from a checkpoint and the removal of a table both end so. ``NAME`` is the store's folder
without ``pool-``:

=========  ==========================================  =====================================
state      what lies there                             what the next opening finds
=========  ==========================================  =====================================
preparing  pool-NAME; restoring-NAME, incomplete       pool-NAME as it was
prepared   pool-NAME; restoring-NAME, complete         pool-NAME as it was
marked     pool-NAME, marked as training; the other    pool-NAME, which must be restored
moved      discarded-NAME; restoring-NAME              renames discarded-NAME back to
                                                       pool-NAME, which must be restored
exchanged  pool-NAME is the new one, marked as         the new store, which must be restored:
           training; discarded-NAME                    other stores of the model may not be
finished   pool-NAME, marked as finished               the new store
=========  ==========================================  =====================================

An opening removes restoring-NAME and discarded-NAME once it has the store. The marks are what makes
a restore of *several* stores one step: none is marked as finished before all are exchanged. A
replacement that changes no row of the tables that stay needs no marks: it goes from *prepared* to
*moved*, and is finished once it is exchanged.

Both renames happen under the lock of the working directory, which openings take too: they never
take another process's exchange for one that crashed.

Threading: one thread at a time per store.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from .directory import make_directory, os_errors, read_description, sync_path, write_description
from .marks import Mark, mark_finished, mark_training, read_marks, write_marks
from .trees import remove_tree, sync_tree

__all__ = [
    "POOL",
    "Replacement",
    "finish_interrupted",
    "locked",
    "remove_leftovers",
    "remove_store",
]

POOL = "pool-"  # what the names of all stores in a working directory begin with
_RESTORING, _DISCARDED, _DROPPED = "restoring-", "discarded-", "dropped-"


class Replacement:
    """Replaces the store in ``working``, in which ``tables`` get other rows.

    What the store holds of other tables belongs to the new one too; the caller copies it there.
    Methods are called in their order here; :meth:`abandon` may follow any of them.
    """

    def __init__(self, working: Path, tables: Sequence[str]) -> None:
        self.working = working
        self.tables = tuple(tables)
        self.restoring, self.discarded = _sides(working)

    def prepare(self) -> None:
        """Makes room for the new store, which the caller then creates in ``restoring``."""
        with os_errors(f"cannot write '{self.restoring}'"):
            if self.restoring.exists():
                remove_tree(self.restoring)

    def seal(self, step: int) -> None:
        """Takes the new store for complete: its rows of ``tables`` are as of ``step``.

        It gets the old one's description and marks, and is made durable. REQUIRES: closed.
        """
        description = read_description(self.working)
        assert description is not None
        write_description(self.restoring, description)
        training = dict.fromkeys(self.tables, Mark(step, finished=False))
        write_marks(self.restoring, read_marks(self.working) | training)
        self.make_durable()

    def make_durable(self) -> None:
        """Brings every file of the new store to the disk."""
        with os_errors(f"cannot write '{self.restoring}'"):
            sync_tree(self.restoring)
            sync_path(self.restoring.parent)

    def mark(self) -> None:
        """From here on an opening of the old store demands a restore. REQUIRES: closed."""
        mark_training(self.working, self.tables)

    def exchange(self) -> None:
        """Puts the new store in the old one's place. REQUIRES: both closed."""
        with locked(self.working.parent):
            self.exchange_locked()

    def exchange_locked(self) -> None:
        """As :meth:`exchange`. REQUIRES: the working directory's lock."""
        with os_errors(f"cannot replace '{self.working}'"):
            if self.discarded.exists():
                remove_tree(self.discarded)
            os.rename(self.working, self.discarded)
            try:
                os.rename(self.restoring, self.working)
            except OSError:
                os.rename(self.discarded, self.working)
                raise
            sync_path(self.working.parent)
            remove_tree(self.discarded)

    def finish(self, step: int) -> None:
        """Marks the new store's rows as complete. REQUIRES: every other store is exchanged."""
        mark_finished(self.working, self.tables, step)

    def abandon(self) -> None:
        """Removes what was prepared; after an exchange there is nothing to remove."""
        shutil.rmtree(self.restoring, ignore_errors=True)


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Holds the lock of a working directory, which is created (0700) if it is missing.

    Waits for other processes: they hold it while they open, exchange or drop. Not to be nested.
    """
    with os_errors(f"cannot create the store directory '{root}'"):
        make_directory(root)
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with os_errors(f"cannot lock '{root}'"):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        # A child forked meanwhile shares the lock: closing alone would leave it held.
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def finish_interrupted(root: Path) -> None:
    """Renames every store back whose exchange ended between its two renames, and removes those
    that were dropped.

    REQUIRES: the working directory's lock.
    """
    with os_errors(f"cannot read '{root}'"):
        names = sorted(os.listdir(root))
    for discarded in [root / name for name in names if name.startswith(_DISCARDED)]:
        working = root / f"{POOL}{discarded.name.removeprefix(_DISCARDED)}"
        if discarded.is_dir() and not working.exists():
            with os_errors(f"cannot rename '{discarded}'"):
                os.rename(discarded, working)
    for dropped in [root / name for name in names if name.startswith(_DROPPED)]:
        shutil.rmtree(dropped, ignore_errors=True)


def remove_store(working: Path) -> None:
    """Removes a store, at once in the eyes of every opening.

    REQUIRES: closed, and the working directory's lock.
    """
    dropped = working.with_name(f"{_DROPPED}{working.name.removeprefix(POOL)}")
    with os_errors(f"cannot remove '{working}'"):
        os.rename(working, dropped)
        sync_path(working.parent)
        remove_tree(dropped)


def remove_leftovers(working: Path) -> None:
    """Removes what a crash left of a replacement. REQUIRES: the store in ``working`` is open."""
    for leftover in _sides(working):
        shutil.rmtree(leftover, ignore_errors=True)


def _sides(working: Path) -> tuple[Path, Path]:
    name = working.name.removeprefix(POOL)
    return working.with_name(f"{_RESTORING}{name}"), working.with_name(f"{_DISCARDED}{name}")
