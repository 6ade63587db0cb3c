"""Where the time of a step goes: phases, timed where they run.

The trainer's own thread passes through ``wait`` (rows are not there yet), ``lookup`` and
``update``; what is left of ``step``, from one backward's end to the next, belongs to the model and
the loader. Other phases run in the background and overlap: ``plan`` (decide), ``evict`` (copy
victims out), ``read`` (from the tier below), ``fill`` (into slots, or computed on first touch),
``write`` (to the tier below) and ``back_pressure`` (a plan waits for room in the write buffer).

Every phase is also a ``torch.profiler`` range ``tiered_embed::<phase>``. Ranges of the background
threads appear in a profile that asks for all threads
(``experimental_config=torch._C._profiler._ExperimentalConfig(profile_all_threads=True)``).

Threading: any thread may time a phase.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch.profiler import record_function

from ..residency import StepPlan
from ..spec import PhaseTimes

__all__ = ["PHASES", "Phases", "Stalls", "Timer"]

PHASES = (
    *("step", "wait", "lookup", "update"),
    *("plan", "evict", "read", "fill", "write", "back_pressure"),
)
_profiling = torch.autograd.profiler
KEPT = 4096  # newest samples of a phase, for its percentiles


class _Phase:
    """One phase's times: how many passes, their sum, and the newest of them."""

    __slots__ = ("_lock", "_name", "count", "newest", "total_s")

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        # Guarded by _lock.
        self.count = 0
        self.total_s = 0.0
        self.newest = deque[float](maxlen=KEPT)

    def add(self, seconds: float) -> None:
        with self._lock:
            self.count += 1
            self.total_s += seconds
            self.newest.append(seconds)

    def copy(self) -> tuple[int, float, list[float]]:
        with self._lock:
            return self.count, self.total_s, list(self.newest)

    def clear(self) -> None:
        with self._lock:
            self.count, self.total_s = 0, 0.0
            self.newest.clear()


class Timer:
    """One pass through a phase, as a context; ``seconds`` afterwards."""

    __slots__ = ("_name", "_phase", "_range", "_start", "seconds")

    def __init__(self, name: str, phase: _Phase) -> None:
        self._name = name
        self._phase = phase
        self._range: Any = None
        self.seconds = 0.0

    def __enter__(self) -> Timer:
        # A range costs microseconds even when nobody profiles.
        if getattr(_profiling, "_is_profiler_enabled", True):
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
        self.seconds = seconds = time.perf_counter() - self._start
        self._phase.add(seconds)
        if self._range is not None:
            self._range.__exit__(kind, error, traceback)


class Phases:
    """The times of one engine's phases."""

    def __init__(self) -> None:
        self._phases = {name: _Phase(name) for name in PHASES}

    def time(self, name: str) -> Timer:
        """``with phases.time("read"): ...``"""
        return Timer(name, self._phases[name])

    def add(self, name: str, seconds: float) -> None:
        self._phases[name].add(seconds)

    def newest(self, name: str) -> list[float]:
        """Seconds of the phase's newest passes, oldest first; at most 4096."""
        return self._phases[name].copy()[2]

    def clear(self) -> None:
        """Forgets everything so far, such as a warm-up."""
        for phase in self._phases.values():
            phase.clear()

    def times(self) -> dict[str, PhaseTimes]:
        """Per phase that has run."""
        out = {}
        for name, phase in self._phases.items():
            count, total_s, newest = phase.copy()
            if count:
                p50, p95, p99 = np.percentile(newest, [50, 95, 99]).tolist()
                out[name] = PhaseTimes(count, total_s, p50, p95, p99)
        return out


class Stalls:
    """How long the trainer waited for rows, per table of one pool.

    seconds: (tables,) float64.
    """

    def __init__(self, num_tables: int) -> None:
        self.seconds = np.zeros(num_tables)

    def note(self, plan: StepPlan, waited_s: float) -> None:
        """Divides a wait among the tables by the rows that the plan staged."""
        if len(self.seconds) == 1:
            self.seconds += waited_s
            return
        tables = plan.tables[plan.staged] if len(plan.staged) else plan.tables
        rows = np.bincount(tables, minlength=len(self.seconds))
        if len(tables):
            self.seconds += waited_s * rows / len(tables)
