"""A planner whose call failed halfway says so at every later one, and still tells what it can.

``native/tests/stress_memory.cc`` has every allocation fail; here memory really runs out.
"""

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tiered_embed as te
from tiered_embed.residency import Planner, PoolSlots, Replay

MIB = 1 << 20
# Positions for so many rows take 128 MiB, 64 more while they grow; their numbers 128 twice.
MANY = np.zeros(2**25 - 100, np.int64)  # never touched
FEW = np.array([5, 7, 5], np.int64)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")


@contextlib.contextmanager
def no_more_than(num_bytes: int) -> Iterator[None]:
    """The process can map so much in addition to what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def make_planner() -> Planner:
    return Planner(
        [("user", None)], PoolSlots((-1,), 0, 100, 100), policy="lru", backed=True, tier="DDR"
    )


def test_what_fails_before_anything_changed_can_be_repeated() -> None:
    planner = make_planner()
    with no_more_than(40 * MIB), pytest.raises(te.TieredEmbedError, match="could not be planned"):
        planner.push([(0, MANY)])
    planner.push([(0, FEW)])
    assert planner.plan(0).keys.tolist() == [5, 7]


def test_after_half_a_push_rows_are_known_and_nothing_is_planned() -> None:
    planner = make_planner()
    planner.push([(0, FEW)])
    first = planner.plan(0)
    planner.release(first.number, updated=True)
    with no_more_than(300 * MIB), pytest.raises(te.TieredEmbedError, match=r"bad_alloc.* more or"):
        planner.push([(0, MANY)])
    for call in (
        lambda: planner.push([(0, FEW)]),
        lambda: planner.plan(0),
        lambda: planner.plan_now([(0, FEW)]),
    ):
        with pytest.raises(
            te.TieredEmbedError,
            match=r"planner of table 'user' stopped when an earlier call failed \(std::bad_alloc\)",
        ):
            call()
    planner.cancel()
    tables, rows, slots = planner.dirty_rows()
    assert (tables.tolist(), rows.tolist()) == ([0, 0], [5, 7])
    assert slots.tolist() == first.slots.tolist()
    assert planner.find(0, np.array([7, 8, 5])).tolist() == [slots[1], -1, slots[0]]
    planner.mark_clean()
    assert planner.counts(4)[0].written_back == 2


def test_a_replay_does_not_go_on_after_it_failed() -> None:
    replay = Replay(make_planner(), lookahead=0, depth=0)
    offsets = np.array([0, len(MANY)], np.int64)
    with no_more_than(300 * MIB), pytest.raises(te.TieredEmbedError, match="bad_alloc"):
        replay.push([(0, offsets, MANY)])
    with pytest.raises(te.TieredEmbedError, match="earlier call failed"):
        replay.push([(0, np.array([0, 3], np.int64), FEW)])
    with pytest.raises(te.TieredEmbedError, match="earlier call failed"):
        replay.finish()
