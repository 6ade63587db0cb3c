"""Staging jobs of one pool: they run one after another, in the order in which they were posted.

Threading: one thread at a time, the trainer's.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TypeVar

from .executors import Executors

__all__ = ["Jobs", "run_here", "submit"]

T = TypeVar("T")


def run_here(job: Callable[[], T]) -> Future[T]:
    """Runs ``job`` in this thread; for when the interpreter shuts down and takes no more jobs."""
    future: Future[T] = Future()
    try:
        future.set_result(job())
    except Exception as error:
        future.set_exception(error)
    return future


def submit(executor: Executor, job: Callable[[], T]) -> Future[T]:
    """Runs ``job`` there, or here when the interpreter shuts down and takes no more jobs."""
    try:
        return executor.submit(job)
    except RuntimeError:
        return run_here(job)


class Jobs:
    """The queue of staging jobs."""

    def __init__(self, executors: Executors) -> None:
        self.executors = executors
        self._last: Future[object] | None = None  # newest posted job

    @property
    def idle(self) -> bool:
        """No job is queued or running."""
        if self._last is not None and self._last.done():
            self._last = None
        return self._last is None

    def post(self, job: Callable[[], T]) -> Future[T]:
        """Queues a job after all others."""
        try:
            future = self.executors.staging.submit(job)
        except RuntimeError:
            self.wait()
            future = run_here(job)
        self._last = future  # type: ignore[assignment]
        return future

    def post_brief(self, job: Callable[[], T]) -> None:
        """As :meth:`post`, but at once when nothing is queued: cheaper than waking a thread."""
        if self.idle:
            job()
        else:
            self.post(job)

    def wait(self) -> None:
        """Returns when every job has ended; an error is for whoever holds the job's future."""
        if self._last is not None:
            self._last.exception()
