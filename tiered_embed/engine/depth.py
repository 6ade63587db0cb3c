"""Finds the smallest depth that hides I/O, from how long the trainer waited.

A greater depth gives reads more time, and pins more slots. The tuner watches spans of steps:

- If the trainer waits, it tries one batch more, and keeps it if steps became faster by a twentieth.
- If the trainer does not wait, it tries one batch less, and keeps it if there is still no waiting.

A try that failed is repeated only after a pause, which doubles each time. Depth changes the waiting
and the evictions, never a trained byte. With a fixed depth, counts are reproducible; with
``depth="auto"`` they depend on timing.

It only decides: it has no clock. Threading: the trainer's thread.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DepthTuner"]

SPAN = 16  # steps that are judged together
WAITING = 0.02  # share of a step's time from which waiting counts
GAIN = 0.05  # share of a step's time that a greater depth must save
PATIENCE = 8  # spans before a failed try is repeated for the first time
MOST_PATIENCE = 512
PINNED_SHARE = 2  # at most half of the slots may be pinned ahead


@dataclass
class _Span:
    steps: int = 0
    wait_s: float = 0.0
    step_s: float = 0.0

    @property
    def waits(self) -> bool:
        return self.wait_s > WAITING * self.step_s


class DepthTuner:
    """The depth of one pool.

    Args:
        most: the greatest depth that the window allows.
        num_slots: slots that the pool's rows share; None where every row has its own.
    """

    def __init__(self, most: int, num_slots: int | None) -> None:
        self.depth = min(1, most)
        self._most = most
        self._num_slots = num_slots
        self._span = _Span()
        self._changing = self.depth + 1  # next steps that were planned with another depth
        self._tried_from: tuple[int, float] | None = None  # (depth, seconds a step) before a try
        self._patience = PATIENCE
        self._quiet = 0  # spans until the next try
        self._most_unique = (0, 0)  # in a batch of the last span, and of this one

    def observe(self, step_s: float, wait_s: float, num_unique: int) -> int:
        """Notes that a step took ``step_s``, of which the trainer waited ``wait_s``.

        Returns the depth from now on.

        Args:
            num_unique: rows of the step's batch that take shared slots.
        """
        last, now = self._most_unique
        self._most_unique = last, max(now, num_unique)
        limit = self._limit()
        if self.depth > limit:
            self._go(limit)
            self._tried_from = None
        if self._changing > 0:
            self._changing -= 1
            return self.depth
        span = self._span
        span.steps += 1
        span.step_s += step_s
        span.wait_s += wait_s
        if span.steps == SPAN:
            self._span = _Span()
            self._most_unique = self._most_unique[1], 0
            self._judge(span, limit)
        return self.depth

    def _limit(self) -> int:
        """How deep the window and the slots let it be."""
        unique = max(self._most_unique)
        if self._num_slots is None or unique == 0:
            return self._most
        batches = self._num_slots // (PINNED_SHARE * unique)
        return max(0, min(self._most, batches - 1))

    def _judge(self, span: _Span, limit: int) -> None:
        step_s = span.step_s / span.steps
        if self._tried_from is not None:
            before, before_s = self._tried_from
            self._tried_from = None
            deeper = self.depth > before
            failed = step_s > before_s * (1 - GAIN) if deeper else span.waits
            # A greater depth that ended the waiting is kept even if steps are no faster.
            if failed and not (deeper and not span.waits):
                self._go(before)
                self._quiet = self._patience
                self._patience = min(2 * self._patience, MOST_PATIENCE)
                return
            self._patience = PATIENCE
        if self._quiet > 0:
            self._quiet -= 1
            return
        if span.waits and self.depth < limit:
            self._try(self.depth + 1, step_s)
        elif not span.waits and self.depth > 0:
            self._try(self.depth - 1, step_s)

    def _try(self, depth: int, step_s: float) -> None:
        self._tried_from = (self.depth, step_s)
        self._go(depth)

    def _go(self, depth: int) -> None:
        self._changing = max(self.depth, depth) + 1
        self.depth = depth
        self._span = _Span()
