"""Folders of files: copied, made durable, removed. Knows neither stores nor checkpoints.

Pure functions of a path; two calls on the same folder follow one another.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .directory import os_errors, sync_path

__all__ = ["copy_tree", "file_bytes", "remove_tree", "sync_tree"]


def sync_tree(folder: Path) -> None:
    """fsyncs every file below ``folder``, then every folder, the deepest first."""
    for below, _, names in os.walk(folder, topdown=False, onerror=_raise):
        for name in names:
            sync_path(Path(below) / name)
        sync_path(Path(below))


def copy_tree(source: Path, target: Path) -> None:
    """Makes ``target`` a copy of a store's folder. Immutable files are shared by hard links where
    the file system allows; what a store rewrites in place is copied."""
    with os_errors(f"cannot copy '{source}' to '{target}'"):
        target.mkdir(mode=0o700, parents=True)
        for entry in sorted(os.scandir(source), key=lambda e: e.name):
            here = target / entry.name
            if entry.is_dir(follow_symlinks=False):
                copy_tree(Path(entry.path), here)
            elif not (entry.name.endswith(".sst") and _linked(entry.path, here)):
                shutil.copyfile(entry.path, here, follow_symlinks=False)


def remove_tree(folder: Path) -> None:
    """Removes a folder with all that is in it, or whatever else has that name."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink()


def file_bytes(folder: Path) -> int:
    """The sizes of all files below ``folder``."""
    return sum(
        (Path(below) / name).lstat().st_size
        for below, _, names in os.walk(folder, onerror=_raise)
        for name in names
    )


def _raise(error: OSError) -> None:
    raise error


def _linked(source: str, target: Path) -> bool:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system, or one without hard links
        return False
    return True
