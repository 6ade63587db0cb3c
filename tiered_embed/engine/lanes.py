"""Threads that all engines of the process share, and lanes: one pool's queue of jobs on them.

There are a few threads of each kind (staging, reading, ...), however many pools there are. A *lane*
starts its jobs in the order in which they were submitted, and runs at most ``width`` of them at
once; a lane of width 1 keeps its jobs in order. Lanes take turns, job by job.

A job may wait for jobs of another kind, and never for one of its own kind: with all threads of a
kind waiting, none would be left to run what they wait for. Staging jobs wait for reading and
writing jobs, and saving jobs for writing jobs. Reading and writing jobs wait for no job.

Threading: any thread may submit. A garbage collection may run inside ``submit`` and close another
pool there, which waits for that pool's jobs. So nothing here holds a lock that another lane needs.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

__all__ = ["Lane", "SharedThreads", "apart_from_own_threads"]

P = ParamSpec("P")
T = TypeVar("T")
THREADS = "tiered_embed-"  # how the names of the shared threads begin
CLOSING = "closing"


def apart_from_own_threads(call: Callable[[], None]) -> None:
    """Runs ``call`` here, or in a new thread if this is one of our threads.

    The garbage collector may close a module in any thread, and closing waits for our threads: one
    of them would wait for itself.
    """
    if threading.current_thread().name.startswith(THREADS):
        # A thread inherits `daemon`; the interpreter must wait for this one.
        threading.Thread(target=call, name=CLOSING, daemon=False).start()
    else:
        call()


class SharedThreads:
    """Up to ``number`` threads, started when there is work for them, that never end.

    In a forked child, which has none of the parent's threads, they are started anew.
    """

    def __init__(self, name: str, number: int) -> None:
        assert number > 1, "one that a garbage collection holds up must not be the only one"
        self._name = name
        self._number = number
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._calls: SimpleQueue[Lane] = SimpleQueue()  # whose `put` is re-entrant
        self._num_started = 0

    def run_one(self, lane: Lane) -> None:
        """Has some thread call ``lane.run_one()``.

        Raises:
            RuntimeError: the process cannot have another thread, and there is none yet.
        """
        self._calls.put(lane)
        # Two callers at once may start one more than `number`; no lock is worth that.
        if self._num_started < self._number:
            self._num_started += 1
            name = f"{THREADS}{self._name}_{self._num_started - 1}"
            try:
                threading.Thread(
                    target=self._main, args=(self._calls,), name=name, daemon=True
                ).start()
            except RuntimeError:
                self._num_started -= 1
                if self._num_started == 0:
                    raise

    @staticmethod
    def _main(calls: SimpleQueue[Lane]) -> None:
        while True:
            lane = calls.get()
            lane.run_one()
            del lane  # what it holds may be freed while this thread waits


class Lane(Executor):
    """A queue of jobs on shared threads, of which at most ``width`` run at once."""

    def __init__(self, threads: SharedThreads, width: int = 1) -> None:
        self._threads = threads
        self._width = width
        self._state = threading.Condition(threading.Lock())
        # Guarded by _state.
        self._jobs: deque[tuple[Future[object], Callable[[], object]]] = deque()
        self._num_running = 0
        self._closed = False
        _lanes.add(self)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queues a call.

        Raises:
            RuntimeError: after :meth:`shutdown`, or without a thread to run it. It is not queued.
        """
        future: Future[T] = Future()
        job = (future, lambda: fn(*args, **kwargs))
        with self._state:
            if self._closed:
                raise RuntimeError("this lane was shut down")
            self._jobs.append(job)  # type: ignore[arg-type]
            full = self._num_running >= self._width
        # An interrupt here leaves the job to the next call.
        if not full:
            try:
                self._threads.run_one(self)
            except RuntimeError:
                with self._state, contextlib.suppress(ValueError):
                    self._jobs.remove(job)  # type: ignore[arg-type]
                raise
        return future

    def run_one(self) -> None:
        """Runs the oldest waiting job, unless ``width`` jobs run already."""
        with self._state:
            if not self._jobs or self._num_running >= self._width:
                return
            self._num_running += 1
            future, job = self._jobs.popleft()
        if future.set_running_or_notify_cancel():
            try:
                result = job()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
                del result
        del future, job
        with self._state:
            self._num_running -= 1
            more = bool(self._jobs)
            if not more and self._num_running == 0:
                self._state.notify_all()
        if more:
            self._threads.run_one(self)  # behind the lanes that wait

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more jobs. Idempotent, and to be repeated when it was interrupted."""
        with self._state:
            self._closed = True
            if cancel_futures:
                for future, _ in self._jobs:
                    future.cancel()
            busy = bool(self._jobs)
        if busy:
            self._threads.run_one(self)  # an interrupted `submit` may have left a job
        if wait:
            with self._state:
                self._state.wait_for(lambda: not self._jobs and self._num_running == 0)


_lanes: weakref.WeakSet[Lane] = weakref.WeakSet()


@atexit.register
def _finish() -> None:
    """The threads are daemons: what they run would be cut off."""
    for lane in list(_lanes):
        lane.shutdown()
    for thread in threading.enumerate():
        if thread.name == CLOSING:
            thread.join()


os.register_at_fork(after_in_child=_lanes.clear)  # their jobs are the parent's
