"""Ids that somebody chose so that they share one place of an index cost no more than others."""

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tiered_embed import _native
from tiered_embed.simulate.numbering import Numbering

I64 = npt.NDArray[np.int64]

# `fixed_hash` in native/residency/row_table.h is public, and can be computed backwards. The index
# went by it.
FACTOR = 0xD6E8FEB86659FD93
INVERSE = pow(FACTOR, -1, 2**64)


def fixed_hash(ids: I64) -> npt.NDArray[np.uint64]:
    x = ids.view(np.uint64)
    for _ in range(2):
        x = (x ^ (x >> np.uint64(32))) * np.uint64(FACTOR)
    return x >> np.uint64(32)


def crafted(num: int) -> I64:
    """Ids of table 0 whose hash is 0."""
    x = np.arange(num, dtype=np.uint64)
    for _ in range(2):
        x = x * np.uint64(INVERSE)
        x ^= x >> np.uint64(32)
    ids = x.view(np.int64)
    assert len(np.unique(ids)) == num
    assert not fixed_hash(ids).any()
    return ids


def cpu_seconds(call: Callable[[], object]) -> float:
    """Of this thread, whatever else the machine does."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def push(ids: I64) -> None:
    planner = _native.Planner(
        [(-1, -1)],
        whole_slots=0,
        cached_slots=1 << 16,
        overflow_slots=1 << 16,
        lower_slots=0,
        policy="lru",
        backed=True,
        num_partitions=1,
        num_threads=1,
    )
    planner.push([(0, ids)])


def name_missing(ids: I64) -> None:
    _native.name_missing([(0, ids)], np.full(len(ids), -1, np.int32))


def buffer(ids: I64) -> None:
    tables = np.zeros(len(ids), np.uint16)
    _native.WriteBuffer(8, 1 << 24).add(tables, ids, np.zeros((len(ids), 8), np.uint8))


def test_crafted_ids_cost_no_more_than_others() -> None:
    bad = crafted(30000)
    others = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, len(bad))
    for call in (push, name_missing, buffer):
        usual = min(cpu_seconds(lambda call=call: call(others)) for _ in range(3))
        # It was several hundred times as much.
        assert min(cpu_seconds(lambda call=call: call(bad)) for _ in range(3)) < 50 * usual


def test_crafted_ids_cost_a_simulation_no_more_than_others() -> None:
    """Its index went by the top bits of the product with a known number."""
    inverse = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))
    bad = (np.arange(30000, dtype=np.uint64) * inverse).view(np.int64)
    others = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, len(bad))

    def number(ids: I64) -> None:
        assert np.array_equal(Numbering(1).number(0, ids), np.arange(len(ids)))

    number(others)  # compiled from here on
    usual = min(cpu_seconds(lambda: number(others)) for _ in range(3))
    assert min(cpu_seconds(lambda: number(bad)) for _ in range(3)) < 50 * usual
