"""Lanes: order within one, turns between many, few threads for all, and forks."""

import os
import threading
from concurrent.futures import Future

import pytest

from tiered_embed.engine.lanes import Lane, SharedThreads

WAIT_S = 30


@pytest.fixture(scope="module")
def threads() -> SharedThreads:
    return SharedThreads("test", 3)


def test_jobs_of_a_narrow_lane_keep_their_order_and_many_lanes_share_few_threads(threads):
    lanes = [Lane(threads) for _ in range(50)]
    ran: list[list[int]] = [[] for _ in lanes]
    names = set()

    def job(which: int, number: int) -> None:
        names.add(threading.current_thread().name)
        ran[which].append(number)

    for number in range(40):
        for which, lane in enumerate(lanes):
            lane.submit(job, which, number)
    for lane in lanes:
        lane.shutdown()
    assert ran == [list(range(40))] * len(lanes)
    assert names <= {f"tiered_embed-test_{i}" for i in range(3)}


def test_a_lane_runs_as_many_jobs_at_once_as_it_is_wide(threads):
    lane = Lane(threads, width=2)
    two, third = threading.Barrier(3), threading.Event()

    def wait() -> None:
        two.wait(WAIT_S)

    first = [lane.submit(wait) for _ in range(2)]
    last = lane.submit(third.set)
    assert not third.is_set()  # both places are taken until the barrier opens
    two.wait(WAIT_S)
    for future in (*first, last):
        future.result(WAIT_S)


def test_a_job_that_waits_holds_up_its_own_lane_alone(threads):
    stuck, other = Lane(threads), Lane(threads)
    go_on = threading.Event()
    waiting = stuck.submit(go_on.wait, WAIT_S)
    behind = stuck.submit(lambda: "behind")
    assert other.submit(lambda: "other").result(WAIT_S) == "other"
    assert not behind.done()
    go_on.set()
    assert waiting.result(WAIT_S)
    assert behind.result(WAIT_S) == "behind"


def test_an_error_is_its_jobs_own(threads):
    lane = Lane(threads)

    def fail() -> None:
        raise MemoryError("full")

    failed: Future[None] = lane.submit(fail)
    assert lane.submit(lambda: 7).result(WAIT_S) == 7
    with pytest.raises(MemoryError, match="full"):
        failed.result(WAIT_S)
    lane.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        lane.submit(fail)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_threads_of_its_own(threads):
    Lane(threads).submit(int).result(WAIT_S)
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(Lane(threads).submit(lambda: 42).result(WAIT_S))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
