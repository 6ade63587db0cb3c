"""The directory of checkpoints: which steps are committed, how one becomes so, who may write.

::

    path/.lock             flock held while a save runs
    path/step-N.tmp/       being written, or left by a crash: removed by the next save
    path/step-N/           committed: manifest.json, store/K/..., delta/K/..., extra.*
    path/step-N.replaced/  the delta that `compact` is replacing with a whole step
    path/reading-*/        links to a step's files, made by a reader; also removed

Threading: one save at a time in a process; the lock keeps other processes away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError, StoreError
from ..spec import absolute_path
from ..store import make_directory, os_errors, remove_tree, sync_path, sync_tree

__all__ = [
    "check_step",
    "commit",
    "committed_steps",
    "current_folder",
    "directory",
    "drop_runtime_files",
    "lock",
    "prepare",
    "remove",
    "step_folder",
    "sweep",
]

SCRATCH = "reading-"  # how the names of copies begin that readers open
_STEP = re.compile(r"step-(0|[1-9][0-9]{0,18})")


def step_folder(path: Path, step: int) -> Path:
    return path / f"step-{step}"


def check_step(step: object) -> int:
    """``step`` as an int.

    Raises:
        ConfigError: not an integer in [0, 2**63).
    """
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**63:
        raise ConfigError(f"step is {step!r}; it must be an integer, 0 or more")
    return step


def directory(path: object) -> Path:
    """A directory of checkpoints as an absolute path: the working directory may change later.

    Raises:
        ConfigError: this is not a path.
    """
    return absolute_path(path, "the path of the checkpoints")


def committed_steps(path: Path) -> list[int]:
    """The numbers of the committed steps, ascending; empty where there is no directory."""
    with os_errors(f"cannot list '{path}'"):
        if not stat_is_directory(path):
            return []
    with os_errors(f"cannot list '{path}'"):
        names = [entry.name for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    found = [_STEP.fullmatch(name) for name in names]
    replaced = [_STEP.fullmatch(n.removesuffix(".replaced")) for n in names if "." in n]
    return sorted({int(m[1]) for m in [*found, *replaced] if m})


def current_folder(path: Path, step: int) -> Path:
    """The folder of a committed step: it has another name after a crash between two renames."""
    folder = step_folder(path, step)
    aside = folder.with_name(folder.name + ".replaced")
    return aside if aside.is_dir() and not folder.is_dir() else folder


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Creates ``path`` (0700) and keeps other processes' saves away.

    Raises:
        StoreError: another save is under way there, or it is not writable.
    """
    with os_errors(f"cannot create '{path}'"):
        make_directory(path)
    with os_errors(f"cannot open '{path / '.lock'}'"):
        fd = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(
                f"another save into '{path}' is under way; wait for it, or choose another path"
            ) from error
        yield
    finally:
        # A forked child shares the lock: closing our descriptor alone would leave it held.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def prepare(path: Path, step: int) -> Path:
    """Removes what a crash left and creates ``step-N.tmp``. REQUIRES: the lock.

    Raises:
        ConfigError: the step is committed already.
    """
    with os_errors(f"cannot prepare '{path}'"):
        sweep(path)
        if step_folder(path, step).exists():
            raise ConfigError(
                f"'{step_folder(path, step)}' is committed already; save another step, or remove it"
            )
        folder = path / f"step-{step}.tmp"
        folder.mkdir(mode=0o700)
        return folder


def sweep(path: Path) -> None:
    """Removes what crashes left and completes what they interrupted. REQUIRES: the lock."""
    with os_errors(f"cannot clean up '{path}'"):
        for entry in list(os.scandir(path)):
            name, _, suffix = entry.name.rpartition(".")
            if entry.name.startswith(SCRATCH) or (suffix == "tmp" and _STEP.fullmatch(name)):
                remove_tree(Path(entry.path))
            elif suffix == "replaced" and _STEP.fullmatch(name):
                if (path / name).is_dir():
                    remove_tree(Path(entry.path))
                else:
                    os.rename(entry.path, path / name)
                    sync_path(path)


def commit(folder: Path) -> None:
    """Renames ``step-N.tmp`` to ``step-N``, once its files and folders are durable."""
    with os_errors(f"cannot commit '{folder}'"):
        sync_tree(folder)
        os.rename(folder, folder.with_suffix(""))
        sync_path(folder.parent)


def remove(path: Path, step: int) -> None:
    """Removes a step. After a crash it is still committed, or the next sweep removes the rest.

    REQUIRES: the lock, and that :func:`sweep` has run.
    """
    folder = step_folder(path, step)
    aside = path / f"step-{step}.tmp"
    with os_errors(f"cannot remove '{folder}'"):
        os.rename(folder, aside)
        sync_path(path)
        remove_tree(aside)


def drop_runtime_files(store: Path) -> None:
    """Removes the files in a store's folder that only an open store needs."""
    with os_errors(f"cannot write into '{store}'"):
        for path in (store / "LOCK", *(store / "db").glob("LO[CG]*")):
            path.unlink(missing_ok=True)


def stat_is_directory(path: Path) -> bool:
    """As ``Path.is_dir``, but raises errors that leave the question open."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
