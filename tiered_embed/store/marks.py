"""Up to which step the rows of each table in a store are complete: the marks in ``meta.json``.

While a process trains, rows reach the store one after another, and those that are there are older
than the process's last step, or come from different steps. So a table is marked as *training*
before its first row changes, be it in memory, and as *finished* at a step once every row is in the
store, durably. A process that finds a table marked as training knows that the one before it was
killed.

::

    {"step": 12, "settled": false, "tables": {"user": {"step": 12, "finished": false}, ...}}

Version 0.1 wrote ``step`` and ``settled`` (every table is finished) alone, for all tables of a
store. Both are still written, and are what counts for a store without ``tables``.

Threading: as ``write_meta``: one writer at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from .directory import read_description, read_meta, write_meta

__all__ = ["Mark", "has_marks", "mark_finished", "mark_training", "read_marks", "write_marks"]


class Mark(NamedTuple):
    """What is known of one table's rows. A table that was never trained is finished at step 0."""

    step: int = 0
    finished: bool = True


def has_marks(path: str | os.PathLike[str]) -> bool:
    """Whether the store in ``path`` has marks. One that lacks them has never held a row."""
    return bool(read_meta(path))


def read_marks(path: str | os.PathLike[str]) -> dict[str, Mark]:
    """The mark of every table that the store in ``path`` holds."""
    meta = read_meta(path)
    description = read_description(path)
    names = [] if description is None else list(description.tables)
    if "tables" not in meta:
        every = Mark(int(meta.get("step", 0)), bool(meta.get("settled", True)))
        return dict.fromkeys(names, every)
    marks = {
        name: Mark(int(mark["step"]), bool(mark["finished"]))
        for name, mark in meta["tables"].items()
    }
    return {name: marks.get(name, Mark()) for name in names}


def write_marks(path: str | os.PathLike[str], marks: dict[str, Mark]) -> None:
    """Replaces the marks of the store in ``path``, durably."""
    write_meta(
        path,
        {
            "step": max((mark.step for mark in marks.values()), default=0),
            "settled": all(mark.finished for mark in marks.values()),
            "tables": {name: marks[name]._asdict() for name in sorted(marks)},
        },
    )


def mark_finished(path: str | os.PathLike[str], tables: Iterable[str], step: int) -> None:
    """The store holds every row of ``tables`` as of ``step``, durably."""
    write_marks(path, read_marks(path) | dict.fromkeys(tables, Mark(step)))


def mark_training(path: str | os.PathLike[str], tables: Iterable[str]) -> None:
    """From here on the rows of ``tables`` may come from different training steps."""
    marks = read_marks(path)
    training = {name: marks.get(name, Mark())._replace(finished=False) for name in tables}
    write_marks(path, marks | training)
