"""Where real data is. It is never copied into the project's own tree."""

import os
from pathlib import Path

__all__ = ["DATA_VARIABLE", "data_root"]

DATA_VARIABLE = "TIERED_EMBED_DATA"


def data_root() -> Path | None:
    """Return the folder of real data, or None if there is none.

    If ``TIERED_EMBED_DATA`` is set, it alone decides; the result is None if it names no folder.
    Otherwise the folder is ``shared/data`` next to the project, which is found from this file in a
    source tree, or from the working directory if the package is installed elsewhere.
    """
    named = os.environ.get(DATA_VARIABLE)
    if named:
        path = Path(named)
        return path if path.is_dir() else None
    for project in (Path(__file__).resolve().parents[2], Path.cwd()):
        path = project.parent / "shared" / "data"
        if (project / "pyproject.toml").is_file() and path.is_dir():
            return path
    return None
