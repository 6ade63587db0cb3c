"""Where commands print: a console that never cuts a table.

A table that is wider than the terminal is printed upright, a line per cell; what is piped or
written to a file has no width.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["Screen"]

WITHOUT_END = 1 << 16  # columns, where nothing says how wide the output is


class Screen(Console):
    """A console on stdout, or on stderr."""

    def __init__(self, *, stderr: bool = False) -> None:
        stream = sys.stderr if stderr else sys.stdout
        narrow = stream.isatty() or "COLUMNS" in os.environ
        super().__init__(
            stderr=stderr,
            highlight=False,
            markup=False,  # names are printed as they are
            emoji=False,
            width=None if narrow else WITHOUT_END,
        )

    def print(self, *objects: Any, **given: Any) -> None:
        shown = [
            _upright(each) if isinstance(each, Table) and self._is_too_wide(each) else each
            for each in objects
        ]
        super().print(*shown, **given)

    def _is_too_wide(self, table: Table) -> bool:
        whole = self.options.update(max_width=WITHOUT_END)
        return self.measure(table, options=whole).maximum > self.width


def _upright(table: Table) -> str:
    """A table as text: the first cell of each row, and below it a line for each other cell."""
    heads = [str(column.header).replace("\n", " ") for column in table.columns]
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    lines = [] if table.title is None else [str(table.title)]
    for first, *others in zip(*columns, strict=True):
        lines.append(f"{heads[0]} {first}".strip())
        named = zip(heads[1:], others, strict=True)
        lines += [f"  {head}: {cell}".replace("  : ", "  ") for head, cell in named if cell]
    return "\n".join(lines)
