"""``DepthTuner`` against invented pipelines."""

from collections.abc import Callable

import pytest

from tiered_embed.engine.depth import SPAN, DepthTuner


def follow(tuner: DepthTuner, wait_s: Callable[[int], float], steps: int) -> list[int]:
    """Steps that compute for 1 s and wait as told by the depth; the depths."""
    seen = []
    for _ in range(steps):
        waited = wait_s(tuner.depth)
        seen.append(tuner.observe(1.0 + waited, waited, 100))
    return seen


@pytest.mark.parametrize("needed", range(7))
def test_it_finds_the_smallest_depth_that_hides_latency(needed):
    """I/O of ``needed`` seconds in all: every batch of depth hides a second of it."""
    tuner = DepthTuner(16, None)
    seen = follow(tuner, lambda depth: max(0.0, needed - depth), 4000)
    settled = seen[500:]
    assert max(settled) <= needed + 1
    assert settled.count(needed) > 0.9 * len(settled)


def test_it_stays_shallow_where_depth_does_not_help():
    """Bound by bandwidth: the wait is the same at every depth."""
    tuner = DepthTuner(16, None)
    seen = follow(tuner, lambda depth: 2.0 if depth else 3.0, 4000)
    assert max(seen) == 2
    assert seen[500:].count(1) > 0.9 * len(seen[500:])


def test_it_follows_a_change():
    tuner = DepthTuner(16, None)
    assert follow(tuner, lambda depth: max(0.0, 5.0 - depth), 1000)[-1] == 5
    seen = follow(tuner, lambda depth: max(0.0, 1.0 - depth), 20000)
    assert seen[-1] == 1


@pytest.mark.parametrize(("slots", "most"), [(200, 0), (800, 3), (100_000, 4)])
def test_it_pins_at_most_half_of_the_slots(slots, most):
    tuner = DepthTuner(4, slots)
    seen = follow(tuner, lambda depth: 9.0 - depth, 1000)
    assert max(seen[1:]) == most


def test_one_slow_step_changes_nothing():
    """A span is judged as a whole: noise below its threshold is ignored."""
    tuner = DepthTuner(8, None)
    follow(tuner, lambda depth: 0.0, 40 * SPAN)
    assert tuner.depth == 0
    tuner.observe(1.2, 0.2, 100)
    follow(tuner, lambda depth: 0.0, 4 * SPAN)
    assert tuner.depth == 0
