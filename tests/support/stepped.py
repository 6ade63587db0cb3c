"""Executors whose jobs run when a test says so: nothing sleeps.

``Steps`` runs one job after another, when told or waited for. ``Clock`` invents time: every job
takes a drawn time, lanes have as many workers as a pool of threads would, and whoever waits for a
job lets time pass until it is done. Jobs of one lane may so end in another order than they began.
"""

import heapq
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, Protocol

import numpy as np

from tiered_embed.engine.checking import CheckedBatch
from tiered_embed.residency import Segments

Job = Callable[[], Any]


class Runner(Protocol):
    def run_until(self, future: Future) -> None: ...


class Stepped(Future):
    """A wait for it runs the jobs up to it, as threads would have."""

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self._runner = runner

    def result(self, timeout: float | None = None) -> Any:
        self._runner.run_until(self)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._runner.run_until(self)
        return super().exception(0)

    def complete(self, job: Job) -> None:
        try:
            self.set_result(job())
        except BaseException as error:
            self.set_exception(error)


class Steps(Executor):
    """Runs jobs one after another, when told or waited for."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[Stepped, Job]] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Stepped:
        future = Stepped(self)
        self.jobs.append((future, lambda: fn(*args, **kwargs)))
        return future

    def step(self) -> None:
        future, job = self.jobs.popleft()
        future.complete(job)

    def run(self) -> None:
        while self.jobs:
            self.step()

    def run_until(self, future: Future) -> None:
        while not future.done():
            self.step()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.run()


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self, seed: int) -> None:
        self.now_s = 0.0
        self.reordered = 0  # jobs that ended before one that had begun earlier in their lane
        self._draw = np.random.default_rng(seed)
        self._number = 0
        self._running: list[tuple[float, int, Lane, Stepped, Job]] = []  # a heap by end

    def lane(self, workers: int, most_s: float) -> "Lane":
        """An executor whose jobs take up to ``most_s`` each."""
        return Lane(self, workers, most_s)

    def start(self, lane: "Lane", future: Stepped, job: Job) -> None:
        self._number += 1
        end_s = self.now_s + float(self._draw.random()) * lane.most_s
        heapq.heappush(self._running, (end_s, self._number, lane, future, job))

    def run_until(self, future: Future) -> None:
        while not future.done():
            end_s, number, lane, ended, job = heapq.heappop(self._running)
            self.reordered += any(n < number and at is lane for _, n, at, *_ in self._running)
            self.now_s = max(self.now_s, end_s)
            ended.complete(job)
            lane.free()

    def pass_s(self, seconds: float) -> None:
        """Lets time pass, as a trainer that computes does."""
        until_s = self.now_s + seconds
        while self._running and self._running[0][0] <= until_s:
            self.run_until(self._running[0][3])
        self.now_s = until_s


class Lane(Executor):
    def __init__(self, clock: Clock, workers: int, most_s: float) -> None:
        self.most_s = most_s
        self._clock = clock
        self._idle = workers
        self._waiting: deque[tuple[Stepped, Job]] = deque()
        self._newest: Stepped | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Stepped:
        future = Stepped(self._clock)
        self._newest = future
        self._waiting.append((future, lambda: fn(*args, **kwargs)))
        self._start()
        return future

    def free(self) -> None:
        self._idle += 1
        self._start()

    def _start(self) -> None:
        while self._idle and self._waiting:
            self._idle -= 1
            self._clock.start(self, *self._waiting.popleft())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if self._newest is not None:
            self._newest.exception()


def batch_of(*segments: tuple[int, Any]) -> CheckedBatch:
    """A batch of one pool, as a stream takes it."""
    return CheckedBatch([], [Segments(list(segments))], len(segments))
