"""Where the real data lies. It is never copied into the project's own tree."""

import os
from pathlib import Path

__all__ = ["DATA_VARIABLE", "data_root"]

DATA_VARIABLE = "TIERED_EMBED_DATA"


def data_root() -> Path | None:
    """Return the folder of real data, or None where there is none.

    ``TIERED_EMBED_DATA`` decides where it is set, even when it names no folder (then: None).
    Otherwise it is ``../shared/data`` beside the project, found from this file in a source tree
    and from the working directory when the package is installed elsewhere.
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
