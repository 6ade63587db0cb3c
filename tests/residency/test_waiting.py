"""Who waits for a native lock, or works in native code, lets other Python threads run."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from tiered_embed import _native

TICK_S = 0.02  # several times the interval after which a thread is asked for the interpreter
TICKS = 4
NUM_IDS = 1 << 19


def native_planner(num_partitions: int) -> _native.Planner:
    return _native.Planner(
        [(-1, -1)],
        whole_slots=0,
        cached_slots=1 << 16,
        overflow_slots=1 << 22,
        lower_slots=0,
        policy="lru",
        backed=True,
        num_partitions=num_partitions,
        num_threads=1,
    )


class Busy(threading.Thread):
    """A call that takes long, in a thread of its own."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__()
        self._call = call
        self.begun = threading.Event()
        self.over = False

    def run(self) -> None:
        self.begun.set()
        self._call()
        self.over = True


QUESTIONS: dict[str, Callable[[_native.Planner], object]] = {
    "num_resident": lambda p: p.num_resident,
    "all_resident": lambda p: p.all_resident,
    "overhead_bytes": lambda p: p.overhead_bytes,
    "window_size": lambda p: p.window_size,
    "num_lower_resident": lambda p: p.num_lower_resident,
    "counts": lambda p: p.counts(),
    "lower_counts": lambda p: p.lower_counts(),
    "dirty_rows": lambda p: p.dirty_rows(),
    "find": lambda p: p.find([(0, np.arange(3))], 1),
    "mark_clean": lambda p: p.mark_clean(),
    "cancel": lambda p: p.cancel(),
}


@pytest.mark.parametrize("num_partitions", [1, 2])
def test_threads_that_wait_for_a_planner_hold_up_no_other(num_partitions: int) -> None:
    """One that waited with the interpreter's lock would stop this thread until the planner ends."""
    planner = native_planner(num_partitions)
    ask = dict(QUESTIONS)
    if num_partitions == 2:
        del ask["all_resident"]  # never true there: it needs no lock
    rng = np.random.default_rng(0)
    size, ticks = NUM_IDS, 0
    for _ in range(6):
        ids = rng.integers(-(2**62), 2**62, size)
        holder = Busy(lambda ids=ids: planner.push([(0, ids)]))
        waiters = [Busy(lambda question=question: question(planner)) for question in ask.values()]
        holder.start()
        holder.begun.wait()
        time.sleep(TICK_S)  # by now it most likely has the planner's lock
        for waiter in waiters:
            waiter.start()
        for waiter in waiters:
            waiter.begun.wait()
        ticks = 0
        while ticks < TICKS and not any(waiter.over for waiter in waiters):
            time.sleep(TICK_S)
            ticks += 1
        for thread in (holder, *waiters):
            thread.join()
        planner.cancel()
        if ticks == TICKS:
            return
        size *= 2  # too short a call says nothing
    pytest.fail(f"{ticks} ticks: a waiting thread stopped this one, or planning is too fast")
