"""Where the time of a step goes: stages, timed where they run.

The trainer's own thread passes through ``wait`` (rows are not there yet), ``lookup`` and
``update``; what is left of ``step``, from one backward's end to the next, belongs to the model and
the loader. Other phases run in the background and overlap: ``plan`` (decide), ``evict`` (copy
victims out), ``read`` (from the tier below), ``fill`` (into slots, or computed on first touch),
``write`` (to the tier below) and ``back_pressure`` (a plan waits for room in the write buffer).

Every stage is also a ``torch.profiler`` range ``tiered_embed::<stage>``. Ranges of the background
threads appear in a profile that asks for all threads
(``experimental_config=torch._C._profiler._ExperimentalConfig(profile_all_threads=True)``).

Threading: any thread may time a stage.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch.profiler import record_function

from ..spec import PhaseTimes

__all__ = ["PHASES", "Phases", "Timer"]

PHASES = (
    *("step", "wait", "lookup", "update"),
    *("plan", "evict", "read", "fill", "write", "back_pressure"),
)
KEPT = 4096  # newest samples of a stage, for its percentiles


class Timer:
    """One pass through a stage, as a context; ``seconds`` afterwards."""

    __slots__ = ("_add", "_name", "_range", "_start", "seconds")

    def __init__(self, name: str, add: Callable[[str, float], None]) -> None:
        self._name = name
        self._add = add
        self._range: Any = None
        self.seconds = 0.0

    def __enter__(self) -> Timer:
        # A range costs microseconds even when nobody profiles.
        if getattr(torch.autograd.profiler, "_is_profiler_enabled", True):
            self._range = record_function(f"tiered_embed::{self._name}")
            self._range.__enter__()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        self._add(self._name, self.seconds)
        if self._range is not None:
            self._range.__exit__(kind, error, traceback)


class Phases:
    """The times of one module's phases."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guarded by _lock.
        self._count = dict.fromkeys(PHASES, 0)
        self._total_s = dict.fromkeys(PHASES, 0.0)
        self._newest = {name: deque[float](maxlen=KEPT) for name in PHASES}

    def time(self, name: str) -> Timer:
        """``with phases.time("read"): ...``"""
        return Timer(name, self.add)

    def add(self, name: str, seconds: float) -> None:
        with self._lock:
            self._count[name] += 1
            self._total_s[name] += seconds
            self._newest[name].append(seconds)

    def newest(self, name: str) -> list[float]:
        """Seconds of the stage's newest passes, oldest first; at most 4096."""
        with self._lock:
            return list(self._newest[name])

    def clear(self) -> None:
        """Forgets everything so far, such as a warm-up."""
        with self._lock:
            for name in PHASES:
                self._count[name] = 0
                self._total_s[name] = 0.0
                self._newest[name].clear()

    def times(self) -> dict[str, PhaseTimes]:
        """Per stage that has run."""
        with self._lock:
            seen = [
                (name, self._count[name], self._total_s[name], list(self._newest[name]))
                for name in PHASES
                if self._count[name]
            ]
        out = {}
        for name, count, total_s, newest in seen:
            p50, p95, p99 = np.percentile(newest, [50, 95, 99]).tolist()
            out[name] = PhaseTimes(count, total_s, p50, p95, p99)
        return out
