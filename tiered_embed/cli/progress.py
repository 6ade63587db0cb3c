"""A progress bar that shows itself only on work that takes longer than two seconds."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["LateBar"]

QUIET_S = 2.0


class LateBar:
    """Counts what is done, on stderr; ``total`` is None where nobody knows it beforehand."""

    def __init__(self, what: str, total: int | None) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(what, total=total)
        self._begun = time.monotonic()
        self._shown = False

    def advance(self, done: int) -> None:
        """``done`` more."""
        self._bar.advance(self._task, done)
        if not self._shown and time.monotonic() - self._begun > QUIET_S:
            self._shown = True
            self._bar.start()

    def __enter__(self) -> LateBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown:
            self._bar.stop()
