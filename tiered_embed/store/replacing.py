"""Where a restore puts the store that it prepares and the one that it replaces."""

from __future__ import annotations

import os
from pathlib import Path

from .directory import os_errors

__all__ = ["beside", "recover"]


def beside(folder: Path) -> tuple[Path, Path]:
    """Where a restore prepares a store, and where it puts the one that it replaces."""
    name = folder.name.removeprefix("pool-")
    return folder.with_name(f"restoring-{name}"), folder.with_name(f"discarded-{name}")


def recover(folder: Path) -> None:
    """Puts a store back whose restore ended between its two renames."""
    _, discarded = beside(folder)
    if discarded.is_dir() and not folder.exists():
        # The restore had marked these rows as unfinished before it moved them.
        with os_errors(f"cannot rename '{discarded}'"):
            os.rename(discarded, folder)
