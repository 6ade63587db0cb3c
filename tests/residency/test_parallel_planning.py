"""A partitioned pool plans what its partitions plan alone, and its plans are like any other.

Small pools are partitioned here too: ``budgets.PARTITIONS`` and ``PARTITIONED_SLOTS`` are set.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streams
import tiered_embed as te
from id_traces import make_collection, ten_tables, train
from plan_text import plan_text
from reference import Stream
from running import RECIPES, Prepared, make_module
from tiered_embed.errors import CapacityError
from tiered_embed.residency import budgets
from tiered_embed.residency.budgets import PoolSlots
from tiered_embed.residency.planner import POLICIES, Planner, StepPlan
from tiered_embed.simulate.planner_replay import replay
from tiered_embed.spec import Counts

Row = tuple[int, int]  # (table, id)
Segments = list[tuple[int, np.ndarray]]

WHOLE, WHOLE_ROWS = 1, 7  # table 1 lives in slots [0, 7); tables 0 and 2 share the others
FIRST_SLOT = (-1, 0, -1)
TABLES = [("unbounded", None), ("whole", WHOLE_ROWS), ("bounded", 40)]


@contextlib.contextmanager
def partitions(count: int) -> Iterator[None]:
    """Pools with a store below get so many partitions, however small they are."""
    with (
        mock.patch.object(budgets, "PARTITIONS", count),
        mock.patch.object(budgets, "PARTITIONED_SLOTS", 0),
    ):
        yield


@dataclass(frozen=True)
class Setup:
    partitions: int
    cached: int
    overflow: int
    lower: int
    policy: str

    def planner(self, num_threads: int = 1) -> Planner:
        with partitions(self.partitions):
            slots = PoolSlots(FIRST_SLOT, WHOLE_ROWS, self.cached, self.overflow)
            made = Planner(
                TABLES,
                slots,
                policy=self.policy,
                backed=True,
                tier="DDR",
                lower_slots=self.lower,
                num_threads=num_threads,
            )
        assert made.num_partitions == self.partitions
        return made


# --- the partitions, one by one -----------------------------------------------------------------


def row_hash(table: int, id_: int) -> int:
    """``RowTable::hash``."""
    x = (id_ + table * 0x9E3779B97F4A7C15) % 2**64
    x ^= x >> 32
    x = x * 0xD6E8FEB86659FD93 % 2**64
    x ^= x >> 32
    return (x * 0xD6E8FEB86659FD93 % 2**64) >> 32


def share(n: int, count: int, turn: int) -> int:
    """How many of ``n`` things dealt to ``count`` in turn the one at ``turn`` gets."""
    return len(range(turn, n, count))


class Twins:
    """A plain planner per partition, each fed with its rows alone; their plans put together.

    Raises CapacityError from the first that raises, the others having gone on or not.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        count = setup.partitions
        self.planners = []
        for s in range(count):
            whole = share(WHOLE_ROWS, count, self.first_whole(s))
            slots = PoolSlots(
                FIRST_SLOT, whole, share(setup.cached, count, s), share(setup.overflow, count, s)
            )
            with partitions(1):
                planner = Planner(
                    [TABLES[0], ("whole", whole), TABLES[2]],
                    slots,
                    policy=setup.policy,
                    backed=True,
                    tier="DDR",
                    lower_slots=share(setup.lower, count, s),
                )
            self.planners.append(planner)
        self.window: list[Segments] = []

    def first_whole(self, s: int) -> int:
        """The first row of the whole table in partition ``s``."""
        return (s - WHOLE) % self.setup.partitions

    def outer(self, s: int, table: int, key: int) -> Row:
        """A row of partition ``s``, as the pool calls it."""
        return table, key * self.setup.partitions + self.first_whole(s) if table == WHOLE else key

    def partition_of(self, row: Row) -> int:
        table, id_ = row
        if table == WHOLE:
            return (id_ + WHOLE) % self.setup.partitions
        return (row_hash(table, id_) * 0x9E3779B1 % 2**32) * self.setup.partitions >> 32

    def slot(self, s: int, row: Row, slot: int) -> int:
        """As the pool calls the slot of a row in partition ``s``."""
        if slot < 0 or row[0] == WHOLE:
            return slot if slot < 0 else row[1]
        setup = self.setup
        first, at = WHOLE_ROWS, slot - share(WHOLE_ROWS, setup.partitions, self.first_whole(s))
        for size in (setup.cached, setup.overflow, setup.lower):
            mine = share(size, setup.partitions, s)
            if at < mine:
                return first + at * setup.partitions + s
            first, at = first + size, at - mine
        raise AssertionError("no such slot")

    def parts(self, segments: Segments) -> list[Segments]:
        out: list[Segments] = [[] for _ in self.planners]
        for table, ids in segments:
            of = np.array([self.partition_of((table, i)) for i in ids.tolist()], np.int64)
            inner = ids // self.setup.partitions if table == WHOLE else ids
            for s, part in enumerate(out):
                part.append((table, np.ascontiguousarray(inner[of == s])))
        return out

    def push(self, segments: Segments) -> None:
        for planner, part in zip(self.planners, self.parts(segments), strict=True):
            planner.push(part)
        self.window.append(segments)

    def plan(self, depth: int) -> dict[str, Any]:
        plans = [planner.plan(depth) for planner in self.planners]
        return self.joined(plans, rows_of(self.window.pop(0)))

    def plan_now(self, segments: Segments) -> dict[str, Any]:
        parts = self.parts(segments)
        plans = [p.plan_now(part) for p, part in zip(self.planners, parts, strict=True)]
        return self.joined(plans, rows_of(segments))

    def release(self, number: int, updated: bool) -> None:
        for planner in self.planners:
            planner.release(number, updated=updated)

    def cancel(self) -> None:
        self.each("cancel")
        self.window.clear()

    def each(self, name: str) -> list[Any]:
        return [getattr(planner, name)() for planner in self.planners]

    def find(self, row: Row) -> int:
        s = self.partition_of(row)
        id_ = row[1] // self.setup.partitions if row[0] == WHOLE else row[1]
        return self.slot(s, row, int(self.planners[s].find(row[0], np.array([id_]))[0]))

    def joined(self, plans: list[StepPlan], rows: list[Row]) -> dict[str, Any]:
        unique = list(dict.fromkeys(rows))
        places = [[i for i, row in enumerate(rows) if row == u] for u in unique]
        slots: dict[Row, int] = {}
        staged: dict[Row, int | None] = {}
        victims, fallen = [], []

        def below(s: int, at: int | None) -> int | None:
            return at if at is None or at < 0 else at * self.setup.partitions + s

        for s, plan in enumerate(plans):
            mine = [
                self.outer(s, t, k)
                for t, k in zip(plan.tables.tolist(), plan.keys.tolist(), strict=True)
            ]
            slots |= {
                row: self.slot(s, row, at)
                for row, at in zip(mine, plan.slots.tolist(), strict=True)
            }
            origin = plan.staged_from.tolist() or [None] * len(plan.staged)
            for u, at in zip(plan.staged.tolist(), origin, strict=True):
                staged[mine[u]] = below(s, at)
            to = plan.victim_to.tolist() or [None] * len(plan.victim_keys)
            for t, k, at, dirty, down in zip(
                plan.victim_tables.tolist(),
                plan.victim_keys.tolist(),
                plan.victim_slots.tolist(),
                plan.victim_dirty.tolist(),
                to,
                strict=True,
            ):
                victims.append((t, k, self.slot(s, (t, k), at), dirty, below(s, down)))
            for t, k, at, dirty in zip(
                plan.fallen_tables.tolist(),
                plan.fallen_keys.tolist(),
                plan.fallen_slots.tolist(),
                plan.fallen_dirty.tolist(),
                strict=True,
            ):
                fallen.append((t, k, below(s, at), dirty))
        place = {row: u for u, row in enumerate(unique)}
        to_stage = [row for row in unique if row in staged]
        return {
            "number": plans[0].number,
            "rows": [(*row, slots[row]) for row in unique],
            "inverse": [place[row] for row in rows],
            "group": [i for group in places for i in group],
            "group_start": np.cumsum([0, *map(len, places)]).tolist(),
            "staged": [(place[row], staged[row]) for row in to_stage],
            "victims": victims,
            "fallen": fallen,
            "overflow": sum(plan.overflow for plan in plans),
        }


def rows_of(segments: Segments) -> list[Row]:
    return [(table, id_) for table, ids in segments for id_ in ids.tolist()]


def as_dict(plan: StepPlan, *, lower: bool) -> dict[str, Any]:
    """Everything that a plan says, in the form of ``Twins.joined``."""
    none = [None] * max(len(plan.staged), len(plan.victim_keys))
    staged_from = plan.staged_from.tolist() if lower else none[: len(plan.staged)]
    victim_to = plan.victim_to.tolist() if lower else none[: len(plan.victim_keys)]
    assert lower or len(plan.staged_from) == len(plan.victim_to) == len(plan.fallen_keys) == 0

    def rows(*parts: Any) -> list[tuple[Any, ...]]:
        return list(zip(*(p if isinstance(p, list) else p.tolist() for p in parts), strict=True))

    return {
        "number": plan.number,
        "rows": rows(plan.tables, plan.keys, plan.slots),
        "inverse": plan.inverse.tolist(),
        "group": plan.group.tolist(),
        "group_start": plan.group_start.tolist(),
        "staged": rows(plan.staged, staged_from),
        "victims": rows(
            plan.victim_tables, plan.victim_keys, plan.victim_slots, plan.victim_dirty, victim_to
        ),
        "fallen": rows(plan.fallen_tables, plan.fallen_keys, plan.fallen_slots, plan.fallen_dirty),
        "overflow": plan.overflow,
    }


# --- the bytes ------------------------------------------------------------------------------------


class Memory:
    """Rows in slots, moved as plans say; a row's bytes are how often it was updated."""

    def __init__(self, setup: Setup) -> None:
        self.upper: dict[int, tuple[Row, int]] = {}
        self.lower: dict[int, tuple[Row, int]] = {}
        self.store: dict[Row, int] = {}
        self.truth: dict[Row, int] = {}
        self.num_upper = WHOLE_ROWS + setup.cached + setup.overflow
        self.num_lower = setup.lower
        self.plans: dict[int, list[tuple[Row, int]]] = {}

    def execute(self, plan: dict[str, Any]) -> None:
        rows = [((t, k), slot) for t, k, slot in plan["rows"]]
        rising = {}
        for u, origin in plan["staged"]:
            if origin is not None and origin >= 0:
                row, version = self.lower.pop(origin)
                assert row == rows[u][0]
                rising[u] = version
        for t, k, slot, dirty in plan["fallen"]:
            self.write(*self.lower.pop(slot), (t, k), dirty)
        for t, k, slot, dirty, down in plan["victims"]:
            row, version = self.upper.pop(slot)
            if down is not None and down >= 0:
                assert row == (t, k)
                assert down < self.num_lower
                assert down not in self.lower, "two rows share a slot below"
                self.lower[down] = row, version
            else:
                self.write(row, version, (t, k), dirty)
        for u, _ in plan["staged"]:
            row, slot = rows[u]
            assert 0 <= slot < self.num_upper
            assert slot not in self.upper, "two rows share a slot"
            self.upper[slot] = row, rising[u] if u in rising else self.store.get(row, 0)
        for row, slot in rows:
            assert self.upper[slot] == (row, self.truth.get(row, 0)), "another row's bytes"
        self.plans[plan["number"]] = rows

    def write(self, row: Row, version: int, planned: Row, dirty: int) -> None:
        assert row == planned
        if dirty:
            self.store[row] = version
        assert self.store.get(row, 0) == version, "an update is lost"

    def update(self, number: int) -> None:
        for row, slot in self.plans[number]:
            assert self.upper[slot][0] == row, "a row left while its batch held it"
            self.truth[row] = self.truth.get(row, 0) + 1
            self.upper[slot] = row, self.truth[row]

    def written_back(self, rows: list[tuple[Row, int]]) -> None:
        for row, slot in rows:
            below = slot >= self.num_upper
            held = self.lower[slot - self.num_upper] if below else self.upper[slot]
            assert held[0] == row
            self.store[row] = held[1]
        for row, version in self.truth.items():
            assert self.store[row] == version, "an update was not written back"


# --- random walks ---------------------------------------------------------------------------------


@dataclass
class Walk:
    """Partitioned planners on different numbers of threads, the twins and the memory, in step."""

    setup: Setup
    log: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    failures: int = 0

    def __post_init__(self) -> None:
        self.planners = [self.setup.planner(n) for n in (1, 2, 4)]
        self.twins = Twins(self.setup)
        self.memory = Memory(self.setup)

    def step(self, segments: Segments) -> None:
        """As a trainer goes on, at depth 1."""
        self.push(segments)
        self.plan(1)
        if len(self.held) > 1:
            self.release(0, updated=len(self.log) % 3 > 0)

    def push(self, segments: Segments) -> None:
        for planner in self.planners:
            planner.push(segments)
        self.on_twins("push", segments)

    def plan(self, depth: int) -> None:
        if self.twins.window:
            self._planned("plan", depth)

    def plan_now(self, segments: Segments) -> None:
        self._planned("plan_now", segments)

    def release(self, which: int, updated: bool) -> None:
        if not self.held:
            return
        number = self.held.pop(which % len(self.held))
        for planner in self.planners:
            planner.release(number, updated=updated)
        self.on_twins("release", number, updated)
        if updated:
            self.memory.update(number)
        del self.memory.plans[number]

    def cancel(self) -> None:
        for planner in self.planners:
            planner.cancel()
        self.on_twins("cancel")

    def flush(self) -> None:
        found = [dirty_of(planner) for planner in self.planners]
        assert found[1:] == found[:-1]
        expected = sorted(
            self.twins.outer(s, *row)
            for s, planner in enumerate(self.twins.planners)
            for row, _ in dirty_of(planner)
        )
        assert found[0] == [(row, self.twins.find(row)) for row in expected]
        for planner in self.planners:
            planner.mark_clean()
        self.log.append(("each", ("dirty_rows",)))
        self.on_twins("each", "mark_clean")
        self.memory.written_back(found[0])

    def on_twins(self, name: str, *args: Any) -> Any:
        self.log.append((name, args))
        return getattr(self.twins, name)(*args)

    def _planned(self, name: str, argument: Any) -> None:
        before = self.views(self.planners[0])
        plans, messages = [], []
        for planner in self.planners:
            try:
                plans.append(getattr(planner, name)(argument))
            except CapacityError as error:
                messages.append(str(error))
        if messages:
            assert not plans
            assert messages[1:] == messages[:-1]
            self.failures += 1
            self._fails_alone(name, argument)
            assert self.views(self.planners[0]) == before
            return
        texts = [plan_text(plan) for plan in plans]
        assert texts[1:] == texts[:-1]
        found = [as_dict(plan, lower=self.setup.lower > 0) for plan in plans]
        assert found[1:] == found[:-1]
        assert found[0] == self.on_twins(name, argument)
        self.memory.execute(found[0])
        self.held.append(found[0]["number"])
        self.check()

    def _fails_alone(self, name: str, argument: Any) -> None:
        """Partitions with this history have no room either. The twins must not try: those that have
        room would go on."""
        others = Twins(self.setup)
        for done, args in self.log:
            getattr(others, done)(*args)
        with pytest.raises(CapacityError):
            getattr(others, name)(argument)

    def views(self, planner: Planner) -> list[Any]:
        ids = [np.arange(n, dtype=np.int64) for n in (60, WHOLE_ROWS, 40)]
        return [
            planner.window_size,
            planner.num_resident,
            planner.num_lower_resident,
            planner.all_resident,
            planner.first_lower_slot,
            planner.counts(8),
            planner.lower_counts(8),
            [planner.find(t, i).tolist() for t, i in enumerate(ids)],
        ]

    def check(self) -> None:
        views = [self.views(planner) for planner in self.planners]
        assert views[1:] == views[:-1]
        window, upper, lower, everything, first_lower, counts, lower_counts, found = views[0]
        assert [window] * self.setup.partitions == [p.window_size for p in self.twins.planners]
        assert upper == sum(p.num_resident for p in self.twins.planners)
        assert lower == sum(p.num_lower_resident for p in self.twins.planners)
        assert not everything
        assert first_lower == WHOLE_ROWS + self.setup.cached + self.setup.overflow
        for of, told in (("counts", counts), ("lower_counts", lower_counts)):
            parts = [getattr(p, of)(8) for p in self.twins.planners]
            for t, mine in enumerate(told):
                total = Counts()
                for part in parts:
                    total.add(part[t])
                assert mine == total
        for t, slots in enumerate(found):
            assert slots == [self.twins.find((t, i)) for i in range(len(slots))]


def dirty_of(planner: Planner) -> list[tuple[Row, int]]:
    tables, keys, slots = planner.dirty_rows()
    rows = zip(tables.tolist(), keys.tolist(), strict=True)
    return sorted(zip(rows, slots.tolist(), strict=True))


def ids(low: int, high: int, most: int) -> st.SearchStrategy[np.ndarray]:
    return st.lists(st.integers(low, high), max_size=most).map(lambda x: np.array(x, np.int64))


segments_of = st.lists(
    st.one_of(
        st.tuples(st.just(WHOLE), ids(0, WHOLE_ROWS - 1, 4)),
        st.tuples(st.sampled_from([0, 2]), ids(0, 25, 20)),
    ),
    min_size=1,
    max_size=4,
)
push = st.tuples(st.sampled_from(["push", "step"]), segments_of)
plan = st.tuples(st.just("plan"), st.integers(0, 3))
release = st.tuples(st.just("release"), st.integers(0, 3), st.booleans())
other = st.one_of(
    st.sampled_from([("flush",), ("cancel",)]),
    st.tuples(st.just("plan_now"), segments_of),
)
setups = st.builds(
    Setup,
    partitions=st.sampled_from([2, 4]),
    cached=st.integers(4, 24),
    overflow=st.sampled_from([8, 100]),
    lower=st.sampled_from([0, 4, 9, 20]),
    policy=st.sampled_from(POLICIES),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(setups, st.lists(st.one_of(push, push, plan, plan, release, release, other), max_size=50))
def test_partitions_plan_as_planners_of_their_own(setup, operations):
    walk = Walk(setup)
    for name, *args in operations:
        getattr(walk, name)(*args)


@pytest.mark.parametrize("policy", ["lookahead", "lookahead:s3fifo", "lru", "lfu"])
@pytest.mark.parametrize("lower", [0, 25])
def test_a_long_walk(policy, lower):
    """More steps than hypothesis takes; now and then a batch finds no room."""
    draw = np.random.default_rng(len(policy) + lower)
    walk = Walk(Setup(4, 60, 80, lower, policy))
    for t in range(100):
        ids = [(draw.random(n) ** 2 * high).astype(np.int64) for n, high in ((24, 150), (3, 7))]
        if t % 30 == 20:
            walk.plan_now([(0, draw.integers(0, 2**50, 160))])  # there are 140 slots
        if t % 31 == 30:
            walk.flush()
        walk.push([(0, ids[0]), (WHOLE, ids[1]), (2, ids[0] % 40), (0, ids[0][:5] - 2**40)])
        if t >= 4:
            walk.plan(t % 3)
            while len(walk.held) > t % 3:
                walk.release(0, t % 5 > 0)
    assert walk.failures >= 3
    counts = walk.planners[0].counts(8)
    assert min(counts[0].evicted, counts[2].evicted) > 100


def test_more_plans_than_pins_can_count_are_refused_in_every_shard():
    planner = Setup(2, 8, 8, 0, "lru").planner()
    batch = [(0, np.arange(6, dtype=np.int64))]
    for _ in range(2**12 - 1):
        planner.plan_now(batch)
    before = planner.counts(8)
    with pytest.raises(CapacityError, match="4095 forwards still await their backward"):
        planner.plan_now(batch)
    assert planner.window_size == 0
    assert planner.counts(8) == before
    planner.release(0, updated=True)
    assert planner.plan_now(batch).number == 2**12 - 1


# --- batches that are worth several threads -------------------------------------------------------


def test_large_batches_are_planned_the_same_by_any_number_of_threads():
    """Many pieces, and segments of many sizes; also against the pool that is not partitioned."""
    setup = Setup(16, 20_000, 60_000, 9000, "lookahead")
    planners = [setup.planner(threads) for threads in (1, 2, 4)]
    plain = Setup(1, setup.cached, setup.overflow, setup.lower, setup.policy).planner()
    draw = np.random.default_rng(3)
    for t in range(8):
        sizes = (9000, 3, 0, 30_000, 8192, 1)
        batch = [
            (i % 3, (draw.random(n) ** 3 * (60_000, WHOLE_ROWS, 40)[i % 3]).astype(np.int64))
            for i, n in enumerate(sizes)
        ]
        for planner in (*planners, plain):
            planner.push(batch)
        if t < 2:
            continue
        plans = [planner.plan(1) for planner in planners]
        whole = plain.plan(1)
        fields = [as_dict(plan, lower=True) for plan in plans]
        assert fields[1:] == fields[:-1]
        for name in ("keys", "tables", "inverse", "group", "group_start"):
            assert np.array_equal(getattr(plans[0], name), getattr(whole, name)), name
        if t >= 3:
            for planner in (*planners, plain):
                planner.release(plans[0].number - 1, updated=True)
    assert planners[0].counts(8) == planners[1].counts(8) == planners[2].counts(8)
    assert planners[0].lower_counts(8) == planners[2].lower_counts(8)
    assert planners[0].counts(8)[0].evicted > 1000


def test_the_number_of_partitions_follows_from_the_pools_shape():
    def number(cached: int, lower: int = 0, *, backed: bool = True) -> int:
        return budgets.num_partitions(PoolSlots((-1,), 0, cached, 0), lower, backed=backed)

    assert number(2**20) == number(2**30, 10**6) == budgets.PARTITIONS > 1
    assert number(2**20 - 1) == 1
    assert number(2**20, backed=False) == 1, "its updated rows could not make room for one another"
    assert number(2**20, budgets.PARTITIONS - 1) == 1
    for setup in (Setup(3, 40, 10, 0, "lru"), Setup(512, 1000, 10, 0, "lru")):
        with pytest.raises(ValueError, match="must be a power of two, at most 256"):
            setup.planner()


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiers", ["two", "three"])
@pytest.mark.parametrize("policy", ["lookahead", "s3fifo"])
def test_simulated_counts_are_the_runs(tiers, policy, tmp_path):
    trace, records = ten_tables()
    budgets = {"hbm": 9000, "ddr": 30_000} if tiers == "three" else {"ddr": 30_000}
    budget = te.Tiers(ssd=tmp_path, store="memory", **budgets)
    with partitions(4):
        wanted = replay(trace, budget, policy, 16, 2, records=records, num_threads=2)
        module = make_collection(trace, records, budget, policy=policy, lookahead=16, depth=2)
    with module:
        assert 4 in {pool.planner.num_partitions for pool in module.engine.pools}
        train(trace, module)
        for pool in module.engine.pools:
            pool.scheduler.quiesce()
        assert wanted.differences(module.stats()) == []
        assert min(module.stats().tiers[name].evicted for name in wanted.tiers if name != "SSD") > 0
        module.flush()
        assert wanted.differences(module.stats(), flushed=True) == []


def trained(stream: Stream, kind: str, tiers: te.Tiers, count: int) -> tuple[str, te.Stats]:
    recipe = RECIPES[kind]
    options = recipe.options() | {"device": "cpu", "num_threads": 2, "lookahead": 8, "depth": 2}
    with (
        partitions(count),
        make_module(stream.tables, tiers, recipe.optimizer, kernel="native", **options) as module,
    ):
        assert count in {pool.planner.num_partitions for pool in module.engine.pools}
        Prepared(stream).train(module)
        return module.digest(), module.stats()


# lamb: its clipping adds up all rows of a batch in the order of the plan.
@pytest.mark.parametrize("kind", ["rowwise_adagrad", "lamb", "adagrad_float16"])
@pytest.mark.parametrize("tiers", ["two", "three"])
def test_trained_bytes_do_not_depend_on_partitions(kind, tiers, tmp_path):
    stream = streams.duplicates(24)
    recipe = RECIPES[kind]
    trainer = recipe.trainer(stream.tables)
    for batch, gradients in zip(stream.batches, stream.gradients, strict=True):
        trainer.forward(batch)
        trainer.backward(batch, gradients)
    touched = stream.touched()
    total = sum(touched[t.name] * recipe.record_bytes(t) for t in stream.tables)
    budgets = {"hbm": total // 8, "ddr": total // 6} if tiers == "three" else {"ddr": total // 4}
    for count in (1, 2, 8):
        budget = te.Tiers(ssd=tmp_path / str(count), store="memory", **budgets)
        digest, stats = trained(stream, kind, budget, count)
        assert digest == trainer.digest(), f"{count} partitions: another digest"
        assert next(iter(stats.tiers.values())).evicted > 0
