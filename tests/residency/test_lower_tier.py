"""The planner's lower tier: random calls and streams through ``two_tiers.Tiers``, which holds every
plan to a model and every lookup to the newest value."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streams
from plan_text import plan_text
from tiered_embed.residency.budgets import PoolSlots
from tiered_embed.residency.planner import POLICIES, Planner
from two_tiers import WHOLE_ROWS, Segments, Tiers

# --- random walks ---------------------------------------------------------------------------------

segments_of = st.lists(
    st.one_of(
        st.tuples(st.just(0), st.lists(st.integers(0, WHOLE_ROWS - 1), max_size=3)),
        st.tuples(st.sampled_from([1, 2]), st.lists(st.integers(0, 15), max_size=8)),
        st.tuples(st.sampled_from([1, 2]), st.lists(st.integers(0, 39), max_size=8)),
    ),
    min_size=1,
    max_size=3,
)
push = st.tuples(st.just("push"), segments_of)
plan = st.tuples(st.just("plan"), st.integers(0, 4))
release = st.tuples(st.just("release"), st.integers(0, 3), st.booleans())
rest = st.one_of(
    st.sampled_from([("flush",), ("cancel",)]),
    st.tuples(st.just("plan_now"), segments_of),
)
walks = st.lists(
    st.one_of(push, push, plan, plan, release, release, rest), min_size=20, max_size=70
)
sizes = (st.sampled_from(POLICIES), st.integers(1, 12), st.integers(1, 24))


def walk(tiers: Tiers, operations: list[tuple]) -> None:
    for name, *args in operations:
        getattr(tiers, name)(*args)
    tiers.flush()


@settings(max_examples=250, deadline=None, derandomize=True)
@given(*sizes, walks)
def test_plans_are_the_models(policy, upper, lower, operations):
    walk(Tiers(policy, upper, lower), operations)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    st.sampled_from(POLICIES),
    st.integers(1, 8),
    st.integers(1, 10),
    st.sampled_from([0, 2, 10_000, 10_000]),
    walks,
)
def test_changed_rows_stay_where_no_store_lies_below(policy, upper, lower, overflow, operations):
    """And a plan without room for them changes nothing: the next ones are as if it had not been."""
    walk(Tiers(policy, upper, lower, backed=False, overflow=overflow), operations)


@pytest.mark.parametrize("policy", POLICIES)
def test_long_walks_between_plans_that_find_no_room(policy):
    """Longer than hypothesis likes them, and mostly with both tiers full."""
    rng = random.Random(policy)

    def segments() -> Segments:
        tables = rng.choices([0, 1, 2], [1, 2, 2], k=rng.randint(1, 3))
        high = rng.choice([16, 40])
        return [
            (t, [rng.randrange(WHOLE_ROWS if t == 0 else high) for _ in range(rng.randint(0, 6))])
            for t in tables
        ]

    for _ in range(15):
        tiers = Tiers(policy, rng.randint(1, 10), rng.randint(1, 12), backed=False)
        for _ in range(80):
            name = rng.choices(
                ["push", "plan", "release", "plan_now", "flush", "cancel"],
                [30, 28, 30, 5, 3, 2],
            )[0]
            if name in ("push", "plan_now"):
                getattr(tiers, name)(segments())
            elif name == "plan":
                tiers.plan(rng.randint(0, 4))
            elif name == "release":
                tiers.release(rng.randint(0, 3), updated=rng.random() < 0.25)
            else:
                getattr(tiers, name)()
        tiers.flush()


@pytest.mark.parametrize("policy", POLICIES)
def test_transient_rows_outlive_plans_that_find_no_room(policy):
    """Rows 2 and 3 are in transient slots, and below there is room for two: for one no batch."""
    small = Tiers(policy, 1, 1, backed=False)
    small.plan_now([(1, [1, 2, 3])])
    assert not small.where, "refused"
    tiers = Tiers(policy, 1, 2, backed=False)
    tiers.plan_now([(1, [1, 2, 3])])
    tiers.release(0, updated=True)
    for ids in ([2, 4], [3, 4], [4], [2], [3], [1, 2, 3]):
        tiers.plan_now([(1, ids)])
        tiers.release(0, updated=True)
    assert len(tiers.where) == 3


batches_of = st.lists(segments_of, min_size=20, max_size=40)


def stream(
    tiers: Tiers, batches: list[Segments], window: int, depth: int, lag: int, unchanged: int
) -> None:
    """Batch t is planned when `window` more are known; released `lag` plans later."""
    for t in range(len(batches) + window):
        if t < len(batches):
            tiers.push(batches[t])
        if t >= window:
            tiers.plan(depth)
            if len(tiers.waiting) > lag:
                tiers.release(0, updated=t % unchanged != 0)
    tiers.flush()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(*sizes, st.integers(0, 6), st.integers(0, 4), st.integers(0, 2), batches_of)
def test_streams_are_planned_as_the_model_says(policy, upper, lower, window, depth, lag, batches):
    stream(Tiers(policy, upper, lower), batches, window, depth, lag, unchanged=3)


# --- long runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("window", "depth"), [(0, 0), (6, 2)])
def test_a_long_skewed_stream(policy, window, depth):
    draw = streams.Draw(window)
    batches: list[Segments] = [
        [(2, draw.skewed(600, 24).tolist()), (1, draw.skewed(40, 6).tolist()), (0, [t % 5])]
        for t in range(250)
    ]
    batches[100:106] = [[(2, list(range(2000 + 30 * i, 2030 + 30 * i)))] for i in range(6)]
    tiers = Tiers(policy, 80, 120)
    stream(tiers, batches, window, depth, depth, unchanged=2)
    rose = sum(counts.hits for counts in tiers.planner.lower_counts(8))
    assert rose > 200
    assert tiers.counts["evicted", 2] > 400


def misses_of_store(planner: Planner, batches: list[list[int]]) -> list[int]:
    """Rows per batch that no tier has."""
    out = []
    for ids in batches:
        planner.push([(0, np.array(ids, np.int64))])
        plan = planner.plan(0)
        out.append(int((plan.staged_from < 0).sum()) if len(plan.staged_from) else len(plan.staged))
        planner.release(plan.number, updated=True)
    return out


@pytest.mark.parametrize("lower", [37, 300])
def test_capacities_add_up(lower):
    """LRU above LRU is one LRU as large as both."""
    draw = streams.Draw(lower)
    batches = [draw.skewed(900, 30).tolist() for _ in range(300)]

    def planner(upper: int, lower: int) -> Planner:
        slots = PoolSlots((-1,), 0, upper, 1000)
        return Planner(
            [("t", None)], slots, policy="lru", backed=True, tier="HBM", lower_slots=lower
        )

    two = misses_of_store(planner(100, lower), batches)
    assert two == misses_of_store(planner(100 + lower, 0), batches)
    assert sum(two[20:]) > 0


# --- by hand --------------------------------------------------------------------------------------


def test_plan_text_tells_where_rows_come_from_and_go():
    planner = Planner(
        [("t", None)],
        PoolSlots((-1,), 0, 2, 4),
        policy="lru",
        backed=True,
        tier="HBM",
        lower_slots=2,
    )
    texts = []
    for t, ids in enumerate([[1, 2], [3, 4], [1], [5, 6, 7]]):
        planner.push([(0, np.array(ids, np.int64))])
        plan = planner.plan(0)
        texts.append(plan_text(plan).split("\n")[3:])
        planner.release(plan.number, updated=t == 0)
    assert texts == [
        [
            "staged 0:1@0 0:2@1",
            "victims ",
            "overflow 0",
            "staged from -1 -1",
            "victims to ",
            "fallen ",
        ],
        [
            "staged 0:3@0 0:4@1",
            "victims 0:1@0* 0:2@1*",
            "overflow 0",
            "staged from -1 -1",
            "victims to 0 1",
            "fallen ",
        ],
        [
            "staged 0:1@0",
            "victims 0:3@0",
            "overflow 0",
            "staged from 0",
            "victims to 0",
            "fallen ",
        ],
        [
            "staged 0:5@1 0:6@0 0:7@2",
            "victims 0:4@1 0:1@0*",
            "overflow 1",
            "staged from -1 -1 -1",
            "victims to 0 1",
            "fallen 0:2@1* 0:3@0",
        ],
    ]
