"""Whether one pool's scheduler can be used, and what it says when it cannot.

Threading: as the scheduler.
"""

from __future__ import annotations

import contextlib
import os

from ..errors import ClosedError, TieredEmbedError
from .mover import Mover

__all__ = ["Condition"]


class Condition:
    """Open, in the process that made it, not refused, and no background job has failed.

    Args:
        mover: knows what a background job ran into.
    """

    def __init__(self, mover: Mover) -> None:
        self.closed = False
        self.refusal: TieredEmbedError | None = None  # what every later call raises
        self._mover = mover
        self._pid = os.getpid()

    @property
    def in_own_process(self) -> bool:
        """False in a forked child."""
        return self._pid == os.getpid()

    @property
    def usable(self) -> bool:
        """Whether :meth:`check` would raise nothing."""
        with contextlib.suppress(Exception):
            self.check()
            return True
        return False

    def check(self) -> None:
        """Raises what a background job ran into, or ClosedError."""
        if self.refusal is not None:
            raise self.refusal
        if self.closed:
            raise ClosedError("this module was closed; make a new one to go on")
        self.check_process()
        failure = self._mover.failure
        if failure is None:
            return
        if isinstance(failure, TieredEmbedError):
            raise type(failure)(f"staging failed: {failure}") from failure
        raise TieredEmbedError(f"staging failed: {failure!r}") from failure

    def check_process(self) -> None:
        """Raises ClosedError in a forked child."""
        if not self.in_own_process:
            raise ClosedError(
                f"this module belongs to process {self._pid}, and a forked child has none of its "
                "threads; start workers by spawn, and make a module there"
            )
