"""Lists the committed steps, and removes old ones.

Threading: one call at a time per directory; other processes are kept away by its lock.
"""

from __future__ import annotations

import builtins
import os

from ..errors import ConfigError
from . import folders
from .chain import open_chain

__all__ = ["list", "prune"]


def list(path: str | os.PathLike[str]) -> builtins.list[int]:
    """The committed steps in ``path``, ascending; empty where there is no directory."""
    return folders.committed_steps(folders.directory(path))


def prune(path: str | os.PathLike[str], *, keep: int) -> builtins.list[int]:
    """Removes all steps except the ``keep`` newest and those they stand on; returns the removed.

    Raises:
        ConfigError: ``keep`` is below 1.
        CorruptionError: the manifest of a step to keep is damaged; nothing was removed.
        StoreError: another save is under way, or a folder cannot be removed.
    """
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
        raise ConfigError(f"keep is {keep!r}; it must be an integer of at least 1")
    directory = folders.directory(path)
    if not folders.committed_steps(directory):
        return []
    with folders.lock(directory):
        folders.sweep(directory)
        steps = folders.committed_steps(directory)
        needed: set[int] = set()
        for step in steps[-keep:]:
            needed.update(manifest.step for _, manifest in open_chain(directory, step).links)
        removed = [step for step in steps if step not in needed]
        # Newest first, so that no delta ever lacks its base.
        for step in reversed(removed):
            folders.remove(directory, step)
    return removed
