"""One progress bar for all commands: on stderr, and only for work of more than two seconds."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["LateBar"]

QUIET_S = 2.0


class LateBar:
    """Counts what is done; ``total`` is None where it is not known beforehand."""

    def __init__(self, what: str, total: int | None) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(what, total=total, count="")
        self._done = 0
        self._total = total
        self._begun = time.monotonic()
        self._shown = False

    def advance(self, done: int) -> None:
        """Counts ``done`` more."""
        self.update(self._done + done, self._total)

    def update(self, done: int, total: int | None, what: str | None = None) -> None:
        """``done`` of ``total`` so far; ``what`` is being done now."""
        self._done, self._total = done, total
        count = f"{done:,}" if total is None else f"{done:,} of {total:,}"
        self._bar.update(self._task, completed=done, total=total, description=what, count=count)
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
