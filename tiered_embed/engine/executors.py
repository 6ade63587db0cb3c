"""Who runs the background jobs: the only owner of threads.

Threading: any thread may submit jobs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field

__all__ = ["Executors", "apart_from_own_threads"]

THREADS = "tiered_embed-"  # how their names begin
PLANS_READING = 4  # at once; each spreads over the store's own threads


def apart_from_own_threads(call: Callable[[], None]) -> None:
    """Runs ``call`` here, or in a new thread if this is one of our threads.

    The garbage collector may close a module in any thread, and closing waits for our threads: one
    of them would wait for itself.
    """
    if threading.current_thread().name.startswith(THREADS):
        threading.Thread(target=call, name="closing").start()
    else:
        call()


def _threads(number: int, name: str) -> Callable[[], Executor]:
    def make() -> Executor:
        return ThreadPoolExecutor(number, THREADS + name)

    return make


@dataclass(frozen=True)
class Executors:
    """Who runs a pool's background jobs; threads by default. Tests step them by hand.

    staging: plans, in order, one at a time. reading: several plans' reads at once.
    writing: write-backs, in order, one at a time. saving: what follows a checkpoint's snapshot.
    """

    staging: Executor = field(default_factory=_threads(1, "staging"))
    reading: Executor = field(default_factory=_threads(PLANS_READING, "reading"))
    writing: Executor = field(default_factory=_threads(1, "writing"))
    saving: Executor = field(default_factory=_threads(1, "saving"))

    def shutdown(self) -> None:
        """Returns when every job has ended."""
        for executor in (self.staging, self.reading, self.writing, self.saving):
            executor.shutdown(wait=True)
