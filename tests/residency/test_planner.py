"""``residency.Planner`` alone, against an independent planner made of dicts.

What the base policies choose is held to models in ``test_policies.py``; here they may choose.

The model says which rows may be victims and in what order; where a rule leaves a tie, any choice is
accepted and followed. Everything else (uniques, misses, slots, dirty bits, counts) must be equal.
"""

import hashlib
import heapq
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streams
import tiered_embed as te
from plan_text import plan_text
from reference import Stream
from running import OPTIMIZERS, Prepared, make_module, record_bytes
from tiered_embed import traces
from tiered_embed.errors import CapacityError, ConfigError
from tiered_embed.residency.budgets import PoolSlots, allocate
from tiered_embed.residency.planner import BASE_POLICIES, POLICIES, Planner, StepPlan
from tiered_embed.spec import Counts

Row = tuple[int, int]  # (table, id)
Segments = list[tuple[int, list[int]]]

WHOLE_ROWS = 6  # table 0 lives in slots [0, 6) as a whole; tables 1 and 2 share the others


def rows_of(segments: Segments) -> list[Row]:
    return [(table, id_) for table, ids in segments for id_ in ids]


def arrays(segments: Segments) -> list[tuple[int, np.ndarray]]:
    return [(table, np.array(ids, np.int64)) for table, ids in segments]


@dataclass
class Held:
    number: int
    rows: list[Row]
    uses: list[tuple[str, int]]  # (count, table) once for each that the plan added
    aside: bool = False  # it came from outside a window
    released: bool = False
    updated: bool = False


@dataclass
class ModelPlanner:
    """What DESIGN section 4 says about residency, with no eye to speed."""

    capacity: int
    policy: str
    backed: bool = True
    slots: dict[Row, int] = field(default_factory=dict)
    dirty: set[Row] = field(default_factory=set)
    dropped: dict[Row, tuple[int, int]] = field(default_factory=dict)  # when its last pin dropped
    unordered: set[Row] = field(default_factory=set)  # whose place among the unused is not told
    # Rows that a batch aside dropped last: their last use at that time counts as the next one.
    last_use: dict[Row, Segments] = field(default_factory=dict)
    window: list[Segments] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    next_number: int = 0
    counts: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0, 0]))

    # --- what can be asked ------------------------------------------------------------------------

    @property
    def looks_ahead(self) -> bool:
        return self.policy.startswith("lookahead")

    def cached(self, row: Row) -> bool:
        return row[0] != 0

    def is_overflow(self, row: Row) -> bool:
        return self.slots[row] >= WHOLE_ROWS + self.capacity

    def pinned(self) -> set[Row]:
        return {row for held in self.held for row in held.rows}

    def all_dirty(self) -> set[Row]:
        updated = {r for h in self.held if h.released and h.updated for r in h.rows}
        return self.dirty | updated

    def evictable(self, pinned: set[Row], dirty: set[Row]) -> set[Row]:
        return {
            r
            for r in self.slots
            if self.cached(r)
            and r not in pinned
            and not self.is_overflow(r)
            and (self.backed or r not in dirty)
        }

    def next_use(self, row: Row) -> int | None:
        last = self.last_use.get(row)
        for distance, segments in enumerate(self.window):
            if segments is last or (last is None and row in rows_of(segments)):
                return distance
        return None

    def counted(self, name: str, table: int, unused: list[int]) -> int:
        """The count as it is without the plans ``unused``."""
        without = (h for h in self.held if h.number in unused and not h.released)
        return self.counts[name][table] - sum(h.uses.count((name, table)) for h in without)

    # --- what happens -----------------------------------------------------------------------------

    def release(self, number: int, updated: bool, used: bool) -> None:
        for held in self.held:
            if held.number == number:
                held.released, held.updated = True, updated
                if not used:
                    for name, table in held.uses:
                        self.counts[name][table] -= 1

    def leaving(self, depth: int) -> list[Held]:
        """Released plans before the last ``depth``: they drop their pins."""
        return [h for h in self.held if h.number < self.next_number - depth and h.released]

    def let_go(self, depth: int, batch: set[Row]) -> None:
        for held in self.leaving(depth):
            self.held.remove(held)
            if held.updated:
                self.dirty.update(held.rows)
            for row in held.rows:
                self.dropped[row] = (self.next_number, held.number)
                self.unordered.discard(row)
                uses = [s for s in self.window if row in rows_of(s)]
                if held.aside and uses and row not in self.pinned() | batch:
                    self.last_use[row] = uses[-1]

    def fits(self, segments: Segments, depth: int) -> bool:
        """Whether the batch finds slots; without a tier below there is no overflow."""
        batch = set(rows_of(segments))
        leaving = self.leaving(depth)
        pinned = batch.union(*(h.rows for h in self.held if h not in leaving))
        dirty = self.dirty.union(*(h.rows for h in leaving if h.updated))
        misses = [r for r in batch if r not in self.slots and self.cached(r)]
        resident = sum(1 for r in self.slots if self.cached(r))
        free = self.capacity - resident + len(self.evictable(pinned, dirty))
        return self.backed or len(misses) <= free

    def follow(self, plan: StepPlan, segments: Segments, depth: int, *, aside: bool) -> None:
        """Checks ``plan`` of the batch ``segments`` and applies it."""
        occurrences = rows_of(segments)
        unique = list(dict.fromkeys(occurrences))
        assert plan.number == self.next_number
        got = list(zip(plan.tables.tolist(), plan.keys.tolist(), strict=True))
        assert got == unique
        assert [got[u] for u in plan.inverse.tolist()] == occurrences
        for u, row in enumerate(unique):
            group = plan.group[plan.group_start[u] : plan.group_start[u + 1]].tolist()
            assert group == [i for i, r in enumerate(occurrences) if r == row]

        misses = [r for r in unique if r not in self.slots]
        assert [unique[u] for u in plan.staged.tolist()] == misses

        self.let_go(depth, set(unique))
        for row in unique:
            self.last_use.pop(row, None)
        victims = self._check_victims(plan, misses, set(unique))
        for row in victims:
            del self.slots[row]
            self.dirty.discard(row)

        for row, slot in zip(unique, plan.slots.tolist(), strict=True):
            if row in self.slots:
                assert self.slots[row] == slot, f"{row} moved"
            self.slots[row] = slot
            if not self.cached(row):
                assert slot == row[1]
            else:
                assert slot >= WHOLE_ROWS
        assert len(set(self.slots.values())) == len(self.slots), "two rows share a slot"
        overflow = [r for r in misses if self.cached(r) and self.is_overflow(r)]
        assert plan.overflow == len(overflow)
        num_cached = sum(1 for r in self.slots if self.cached(r) and not self.is_overflow(r))
        assert num_cached <= self.capacity

        uses: list[tuple[str, int]] = []
        for name, rows in (
            ("lookups", occurrences),
            ("unique", unique),
            ("misses", misses),
            ("overflow", overflow),
        ):
            uses += [(name, table) for table, _ in rows]
        moves = [("staged", table) for table, _ in misses]
        moves += [("evicted", table) for table, _ in victims]
        for name, table in uses + moves:
            self.counts[name][table] += 1
        self.held.append(Held(self.next_number, unique, uses, aside))
        self.next_number += 1

    def _check_victims(self, plan: StepPlan, misses: list[Row], batch: set[Row]) -> list[Row]:
        victims = list(zip(plan.victim_tables.tolist(), plan.victim_keys.tolist(), strict=True))
        assert len(set(victims)) == len(victims)
        pinned = self.pinned() | batch
        for row, slot, dirty in zip(
            victims, plan.victim_slots.tolist(), plan.victim_dirty.tolist(), strict=True
        ):
            assert row not in pinned, f"{row} is pinned and was evicted"
            assert self.cached(row), f"{row} of a whole table was evicted"
            assert self.slots[row] == slot
            assert bool(dirty) == (row in self.dirty), row
            self.counts["written_back"][row[0]] += dirty

        # Rows in transient slots leave as soon as nothing pins them.
        transient = {r for r in self.slots if self.is_overflow(r) and r not in pinned}
        assert transient <= set(victims)
        chosen = [r for r in victims if r not in transient]

        # Evicted as few as needed, overflowed only when nothing could be evicted.
        candidates = self.evictable(pinned, self.dirty)
        assert set(chosen) <= candidates
        in_cache = sum(1 for r in self.slots if self.cached(r) and not self.is_overflow(r))
        wanted = sum(1 for r in misses if self.cached(r)) - (self.capacity - in_cache)
        assert len(chosen) == min(max(wanted, 0), len(candidates))

        def order(row: Row) -> tuple[int, ...]:
            """Smaller goes first."""
            use = self.next_use(row) if self.looks_ahead else None
            if use is not None:
                return (1, -use)
            return (0, *self.dropped[row]) if self.policy.endswith("lru") else (0,)

        told = candidates - self.unordered
        gone = [order(r) for r in told & set(chosen)]
        kept = [order(r) for r in told - set(chosen)]
        assert not gone or not kept or max(gone) <= min(kept), "another row should have gone first"
        return victims

    def cancel(self) -> None:
        """``lookahead`` does not restore the place of rows whose use in the window is gone."""
        if self.looks_ahead:
            self.unordered.update(r for s in self.window for r in rows_of(s) if r in self.slots)
        self.window.clear()
        self.last_use.clear()


class Pair:
    """The planner and the model, driven together."""

    def __init__(self, capacity: int, policy: str, backed: bool) -> None:
        tables = [("whole", WHOLE_ROWS), ("bounded", 40), ("unbounded", None)]
        slots = PoolSlots((0, -1, -1), WHOLE_ROWS, capacity, 1000 if backed else 0)
        self.planner = Planner(tables, slots, policy=policy, backed=backed, tier="DDR")
        self.model = ModelPlanner(capacity, policy, backed)

    def push(self, segments: Segments) -> None:
        self.planner.push(arrays(segments))
        self.model.window.append(segments)

    def plan(self, depth: int) -> StepPlan | None:
        if not self.model.window:
            return None
        segments = self.model.window[0]
        if not self.model.fits(segments, depth):
            with pytest.raises(CapacityError, match=f"DDR has {self.model.capacity} slots"):
                self.planner.plan(depth)
            self.check()
            return None
        plan = self.planner.plan(depth)
        self.model.window.pop(0)
        self.model.follow(plan, segments, depth, aside=False)
        self.check()
        return plan

    def plan_now(self, segments: Segments) -> StepPlan | None:
        if not self.model.fits(segments, 0):
            with pytest.raises(CapacityError):
                self.planner.plan_now(arrays(segments))
            self.check()
            return None
        plan = self.planner.plan_now(arrays(segments))
        # With an empty window the batch is planned as if it had been pushed.
        self.model.follow(plan, segments, 0, aside=bool(self.model.window))
        self.check()
        return plan

    def release(self, which: int, updated: bool, used: bool = True) -> None:
        waiting = [h.number for h in self.model.held if not h.released]
        if waiting:
            number = waiting[which % len(waiting)]
            self.planner.release(number, updated=updated, used=used)
            self.model.release(number, updated, used)

    def cancel(self) -> None:
        self.planner.cancel()
        self.model.cancel()
        self.check()

    def flush(self) -> None:
        tables, keys, slots = self.planner.dirty_rows()
        got = dict(
            zip(zip(tables.tolist(), keys.tolist(), strict=True), slots.tolist(), strict=True)
        )
        assert got == {r: self.model.slots[r] for r in self.model.all_dirty()}
        self.planner.mark_clean()
        for table, _ in self.model.all_dirty():
            self.model.counts["written_back"][table] += 1
        self.model.dirty.clear()
        for held in self.model.held:
            if held.released:
                held.updated = False
        assert len(self.planner.dirty_rows()[0]) == 0

    def check(self) -> None:
        planner, model = self.planner, self.model
        assert planner.window_size == len(model.window)
        assert planner.num_resident == len(model.slots)
        for table, high in ((0, WHOLE_ROWS), (1, 40), (2, 40)):
            ids = np.arange(high, dtype=np.int64)
            found = planner.find(table, ids).tolist()
            assert found == [model.slots.get((table, i), -1) for i in range(high)]
        # Plans that a forward may still use, released ones and ones that never were.
        some = [h.number for h in model.held[::2]] + [model.next_number]
        for unused in ([], some):
            used = [h.number for h in model.held if h.number not in unused] if unused else None
            for table, counts in enumerate(planner.counts(8, used)):
                for name in ("lookups", "unique", "misses", "overflow"):
                    assert getattr(counts, name) == model.counted(name, table, unused), name
                for name in ("staged", "evicted", "written_back"):
                    assert getattr(counts, name) == model.counts[name][table], (table, name)
                assert counts.hits == counts.unique - counts.misses
                assert counts.bytes_in == 8 * counts.staged
                assert counts.bytes_out == 8 * counts.written_back


# --- random walks ---------------------------------------------------------------------------------

segments_of = st.lists(
    st.one_of(
        st.tuples(st.just(0), st.lists(st.integers(0, WHOLE_ROWS - 1), max_size=4)),
        st.tuples(st.sampled_from([1, 2]), st.lists(st.integers(0, 15), max_size=8)),
    ),
    min_size=1,
    max_size=3,
)
push = st.tuples(st.just("push"), segments_of)
plan = st.tuples(st.just("plan"), st.integers(0, 3))
release = st.tuples(
    st.just("release"), st.integers(0, 3), st.booleans(), st.sampled_from([True, True, False])
)
flush = st.just(("flush",))
upset = st.one_of(st.just(("cancel",)), st.tuples(st.just("plan_now"), segments_of))

walk = settings(max_examples=250, deadline=None, derandomize=True)
setups = st.tuples(st.integers(1, 14), st.sampled_from(POLICIES), st.booleans())


@walk
@given(
    setups,
    st.lists(st.one_of(push, push, plan, plan, release, release, flush), max_size=60),
)
def test_plans_follow_the_rules(setup, operations):
    pair = Pair(*setup)
    for name, *args in operations:
        getattr(pair, name)(*args)


@walk
@given(
    setups,
    st.lists(st.one_of(push, push, plan, plan, release, release, flush, upset), max_size=60),
)
def test_plans_follow_the_rules_around_lone_batches_and_cancelled_windows(setup, operations):
    pair = Pair(*setup)
    for name, *args in operations:
        getattr(pair, name)(*args)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_a_long_walk(policy, seed):
    """Larger windows and many more batches than hypothesis tries."""
    rng = np.random.default_rng(seed)
    pair = Pair(int(rng.integers(20, 60)), policy, backed=True)
    lookahead, depth = int(rng.integers(1, 12)), int(rng.integers(0, 4))
    for t in range(300):
        ids = (rng.random(12) ** 3 * 200).astype(int).tolist()
        pair.push([(2, ids), (1, [i % 40 for i in ids[:4]]), (0, [t % WHOLE_ROWS])])
        if t >= lookahead:
            planned = pair.plan(depth)
            assert planned is not None
            done = planned.number - depth
            if done >= 0:
                pair.planner.release(done, updated=done % 3 != 0)
                pair.model.release(done, done % 3 != 0, used=True)
        if t % 97 == 0:
            pair.flush()


# --- the planner alone ----------------------------------------------------------------------------


def make_planner(capacity: int, policy: str, num_tables: int = 1, overflow: int = 1000) -> Planner:
    tables = [(f"t{i}", None) for i in range(num_tables)]
    slots = PoolSlots((-1,) * num_tables, 0, capacity, overflow)
    return Planner(tables, slots, policy=policy, backed=True, tier="DDR")


def ids(*values: int) -> list[tuple[int, np.ndarray]]:
    return [(0, np.array(values, np.int64))]


def test_plan_text_is_stable():
    planner = make_planner(3, "lookahead", num_tables=2)
    texts = []
    for batch in (
        [(0, [5, -7, 5]), (1, [5])],
        [(0, [-7])],
        [(1, [8, 9]), (0, [5])],
        [(0, [1, 2, 3, 4, 1])],
        [],
    ):
        planner.push(arrays(batch))
    for t in range(5):
        plan_ = planner.plan(0)
        texts.append(plan_text(plan_))
        planner.release(plan_.number, updated=t < 2)
    assert "\n\n".join(texts) == (
        "plan 0\n"
        "rows 0:5@0 0:-7@1 1:5@2\n"
        "inverse 0 1 0 2\n"
        "staged 0:5@0 0:-7@1 1:5@2\n"
        "victims \n"
        "overflow 0\n"
        "\n"
        "plan 1\n"
        "rows 0:-7@1\n"
        "inverse 0\n"
        "staged \n"
        "victims \n"
        "overflow 0\n"
        "\n"
        "plan 2\n"
        "rows 1:8@2 1:9@1 0:5@0\n"
        "inverse 0 1 2\n"
        "staged 1:8@2 1:9@1\n"
        "victims 1:5@2* 0:-7@1*\n"
        "overflow 0\n"
        "\n"
        "plan 3\n"
        "rows 0:1@2 0:2@1 0:3@0 0:4@3\n"
        "inverse 0 1 2 3 0\n"
        "staged 0:1@2 0:2@1 0:3@0 0:4@3\n"
        "victims 1:8@2 1:9@1 0:5@0*\n"
        "overflow 1\n"
        "\n"
        "plan 4\n"
        "rows \n"
        "inverse \n"
        "staged \n"
        "victims 0:4@3\n"
        "overflow 0"
    )


def skewed_batches(num: int, size: int, high: int, seed: int) -> list[np.ndarray]:
    draw = streams.Draw(seed)
    return [draw.skewed(high, size) for _ in range(num)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("depth", [0, 1, 4])
def test_plans_do_not_depend_on_when_a_batch_is_released(policy, depth):
    batches = skewed_batches(120, 10, 300, 5)

    def texts(lag: int) -> list[str]:
        planner = make_planner(60, policy)
        out = []
        for t, batch in enumerate(batches):
            planner.push([(0, batch)])
            if t < 8:
                continue
            plan_ = planner.plan(depth)
            out.append(plan_text(plan_))
            if plan_.number >= lag:
                planner.release(plan_.number - lag, updated=True)
        return out

    first = texts(0)
    for lag in range(depth + 1):
        assert texts(lag) == first


@pytest.mark.parametrize("policy", POLICIES)
def test_a_cancelled_window_leaves_no_trace(policy):
    batches = skewed_batches(60, 10, 300, 6)
    never, cancelled = make_planner(40, policy), make_planner(40, policy)
    for t, batch in enumerate(batches):
        for planner in (never, cancelled):
            planner.push([(0, batch)])
            planner.release(planner.plan(0).number, updated=t % 2 == 0)
    for batch in skewed_batches(20, 10, 600, 7):
        cancelled.push([(0, batch)])
    cancelled.cancel()
    assert cancelled.window_size == 0
    assert cancelled.num_resident == never.num_resident
    everything = np.arange(600, dtype=np.int64)
    np.testing.assert_array_equal(cancelled.find(0, everything), never.find(0, everything))
    for a, b in zip(cancelled.dirty_rows(), never.dirty_rows(), strict=True):
        np.testing.assert_array_equal(np.sort(a), np.sort(b))
    assert cancelled.counts(8) == never.counts(8)
    if policy in BASE_POLICIES:
        for batch in batches:
            texts = []
            for planner in (never, cancelled):
                planner.push([(0, batch)])
                plan_ = planner.plan(0)
                planner.release(plan_.number, updated=True)
                texts.append(plan_text(plan_))
            assert texts[0] == texts[1]


def test_a_lone_batch_does_not_change_what_is_farthest():
    """Rows 1 and 2 are pinned when a bare forward comes; 1 is used next before 2, and after it."""
    victims = {}
    for lone in (False, True):
        planner = make_planner(3, "lookahead")
        planner.push(ids(1, 2))
        held = [planner.plan(0).number]
        for batch in ([4, 5], [1], [2], [1]):
            planner.push(ids(*batch))
        if lone:
            held.append(planner.plan_now(ids(3)).number)
        for number in held:
            planner.release(number, updated=True)
        victims[lone] = planner.plan(0).victim_keys.tolist()
    assert victims == {False: [2], True: [3, 2]}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_lone_batch_without_room_leaves_no_trace(policy):
    """Rows that the batch shares with the window and the tier keep their places and their order."""
    batches = skewed_batches(80, 10, 300, 9)
    plain, refused = (make_planner(40, policy, overflow=30) for _ in range(2))
    for t, batch in enumerate(batches):
        plain.push([(0, batch)])
        refused.push([(0, batch)])
        if t % 3 == 0:
            found = [refused.find(0, np.arange(900)).tolist(), refused.counts(8)]
            lone = np.concatenate([batch, batches[t // 2], np.arange(t, t + 80)])
            with pytest.raises(CapacityError, match="DDR has 40 slots"):
                refused.plan_now([(0, lone)])
            assert found == [refused.find(0, np.arange(900)).tolist(), refused.counts(8)]
        if t < 5:
            continue
        plans = [planner.plan(1) for planner in (plain, refused)]
        assert plan_text(plans[0]) == plan_text(plans[1])
        for planner in (plain, refused):
            planner.release(plans[0].number, updated=t % 2 == 0)


def test_a_batch_that_no_forward_used_is_not_counted():
    planner = make_planner(2, "lru")

    def counted(*unused: int) -> tuple[int, ...]:
        (c,) = planner.counts(8, [n for n in range(9) if n not in unused])
        return c.lookups, c.unique, c.misses, c.overflow, c.staged, c.evicted

    for batch in ([1, 2, 1], [1, 3, 4, 4]):
        planner.push(ids(*batch))
        planner.plan(0)
    assert counted() == (7, 5, 4, 2, 4, 0)
    assert counted(0) == (4, 3, 2, 2, 4, 0)
    assert counted(1) == (3, 2, 2, 0, 4, 0)
    assert counted(0, 1) == (0, 0, 0, 0, 4, 0)
    planner.release(1, updated=False, used=False)
    assert counted() == counted(1) == (3, 2, 2, 0, 4, 0), "once, however often it is asked for"
    planner.release(0, updated=True)
    assert counted(0, 1, 99) == (3, 2, 2, 0, 4, 0), "only plans that wait can still be unused"
    planner.push(ids(5))
    planner.plan(0)
    assert counted() == (4, 3, 3, 0, 5, 3)


def test_a_cancelled_window_does_not_change_what_is_farthest():
    planner = make_planner(3, "lookahead")
    planner.push(ids(1, 2, 3))
    planner.plan(0)
    for batch in ([1], [2]):
        planner.push(ids(*batch))
    planner.cancel()
    for batch in ([4], [1], [2, 3], [1]):
        planner.push(ids(*batch))
    planner.release(0, updated=True)
    assert planner.plan(0).victim_keys.tolist()[0] in (2, 3)


def test_a_window_longer_than_the_position_ring_changes_nothing():
    """And renumbering changes nothing: ``make test-checked`` repeats this with few positions."""
    planner = make_planner(200, "lookahead")
    texts = hashlib.sha256()
    for t, batch in enumerate(skewed_batches(400, 30, 5000, 8)):
        planner.push([(0, batch)])
        if t >= 150:
            plan_ = planner.plan(2)
            texts.update(plan_text(plan_).encode())
            planner.release(plan_.number, updated=True)
    assert texts.hexdigest() == "0b80c5a744a9fff9e43b5829cf97a0bd4c3f8bae31fafb2203147ff611457dd9"


def test_held_plans_have_a_limit_that_says_so():
    planner = make_planner(10, "lru")
    for _ in range(4095):
        planner.push(ids(1))
        planner.plan(0)
    planner.push(ids(1))
    with pytest.raises(CapacityError, match=r"4095 forwards still await .* torch.no_grad\(\)"):
        planner.plan(0)
    assert planner.window_size == 1
    for number in range(4000):
        planner.release(number, updated=False)
    assert planner.plan(0).number == 4095


def belady_misses(batches: list[np.ndarray], capacity: int, depth: int) -> int:
    """Misses when every batch evicts the rows that are needed farthest ahead, or never.

    Rows of the last ``depth`` batches stay. REQUIRES: these and the batch fit the capacity.
    """
    uses: dict[int, list[int]] = defaultdict(list)
    for t in reversed(range(len(batches))):
        for row in set(batches[t].tolist()):
            uses[row].append(t)
    resident: set[int] = set()
    misses = 0
    for t, batch in enumerate(batches):
        rows = set(batch.tolist())
        for row in rows:
            uses[row].pop()
        new = rows - resident
        misses += len(new)
        resident |= rows
        held = set().union(*(b.tolist() for b in batches[max(0, t - depth) : t + 1]))
        surplus = len(resident) - capacity
        if surplus > 0:
            free = resident - held
            assert surplus <= len(free)
            resident -= set(
                heapq.nlargest(surplus, free, key=lambda r: uses[r][-1] if uses[r] else 2**60)
            )
    return misses


@pytest.mark.parametrize("depth", [0, 1, 4])
@pytest.mark.parametrize("capacity", [60, 150, 400])
def test_with_the_whole_future_lookahead_is_belady(capacity, depth, data_file):
    trace = traces.read_raw(data_file("scarab_recs.i64be.xz"))[: 500 * 10]
    batches = list(trace.reshape(-1, 10))
    planner = make_planner(capacity, "lookahead")
    for batch in batches:
        planner.push([(0, batch)])
    for _ in batches:
        planner.release(planner.plan(depth).number, updated=True)
    (counts,) = planner.counts(4)
    assert counts.misses == belady_misses(batches, capacity, depth)
    assert counts.overflow == 0

    lru = make_planner(capacity, "lru")
    for batch in batches:
        lru.push([(0, batch)])
        lru.release(lru.plan(depth).number, updated=True)
    assert lru.counts(4)[0].misses > counts.misses


@pytest.mark.long
@pytest.mark.parametrize(("slots", "hit_rate"), [(2583, 0.3471), (25836, 0.6060)])
def test_published_lru_hit_rates_of_scarab(slots, hit_rate, data_file):
    trace = traces.read_raw(data_file("scarab_recs.i64be.xz"))
    planner = make_planner(slots, "lru")
    for i in range(len(trace)):
        planner.push([(0, trace[i : i + 1])])
        planner.release(planner.plan(0).number, updated=False)
    (counts,) = planner.counts(4)
    assert counts.lookups == len(trace) == 1_245_184
    assert 1 - counts.misses / counts.lookups == pytest.approx(hit_rate, abs=5e-5)


# --- what is simulated is what happens ------------------------------------------------------------


def simulate(
    stream: Stream, ddr: int, optimizer: te.optim.Optimizer, policy: str, lookahead: int, depth: int
) -> tuple[list[int], list[int]]:
    """Counts of a one-table stream by the planner alone, before and after a flush."""
    (table,) = stream.tables
    rows = [(table.name, table.num_embeddings)]
    (slots,) = allocate([rows], [record_bytes(table, optimizer)], ddr, backed=True, tier="DDR")
    planner = Planner(rows, slots, policy=policy, backed=True, tier="DDR")
    batches = [b[table.name].ids for b in stream.batches]
    pushed = 0
    for t in range(len(batches)):
        while pushed < len(batches) and pushed <= t + lookahead:
            planner.push([(0, batches[pushed])])
            pushed += 1
        planner.plan(depth)
        planner.release(t, updated=True)
    (counts,) = planner.counts(record_bytes(table, optimizer))
    planner.dirty_rows()
    planner.mark_clean()
    (flushed,) = planner.counts(record_bytes(table, optimizer))
    return compared(counts), compared(flushed)


def compared(c: Counts) -> list[int]:
    return [
        *(c.lookups, c.unique, c.hits, c.misses, c.staged, c.evicted, c.written_back, c.overflow),
        *(c.bytes_in, c.bytes_out),
    ]


@pytest.mark.parametrize("policy", ["lru", "s3fifo", "lookahead"])
@pytest.mark.parametrize(("lookahead", "depth"), [(0, 0), (1, 1), (8, 0), (8, 4), (500, 1)])
@pytest.mark.parametrize("slots", [20, 150, 700])
def test_simulated_counts_are_the_runs(policy, lookahead, depth, slots, data_file, tmp_path):
    optimizer = OPTIMIZERS["rowwise_adagrad"]
    stream = streams.scarab(data_file("scarab_recs.i64be.xz"), 4, num_batches=90)
    ddr = slots * record_bytes(stream.tables[0], optimizer)
    wanted, flushed = simulate(stream, ddr, optimizer, policy, lookahead, depth)
    tiers = te.Tiers(ddr=ddr, ssd=tmp_path, store="memory")
    options = {"policy": policy, "lookahead": lookahead, "depth": depth, "num_threads": 2}
    with make_module(stream.tables, tiers, optimizer, **options) as module:
        Prepared(stream).train(module)
        stats = module.stats()
        assert compared(stats.tables["scarab"]) == wanted
        assert compared(stats.tiers["DDR"]) == wanted
        module.rows([0])  # waits for the last write
        assert module.stats().tiers["SSD"].bytes_in == stats.tiers["DDR"].bytes_out
        assert module.digest()  # flushes
        assert compared(module.stats().tables["scarab"]) == flushed, "reading is no access"
        assert module.stats().tiers["SSD"].bytes_in == module.stats().tiers["DDR"].bytes_out


# --- cutting a tier -------------------------------------------------------------------------------


def test_small_tables_are_whole_and_the_others_share():
    (cut,) = allocate(
        [[("big", 10**9), ("small", 20), ("any", None), ("middle", 30)]],
        [10],
        1000,
        backed=True,
        tier="DDR",
    )
    assert cut.first_slot == (-1, 0, -1, -1)
    assert (cut.whole, cut.cached) == (20, 80)
    (all_fit,) = allocate([[("a", 60), ("b", 40)]], [10], 1000, backed=True, tier="DDR")
    assert all_fit.whole == 100
    assert all_fit.cached == all_fit.overflow == 0
    assert sorted(all_fit.first_slot) == [0, 40]


def test_pools_get_fair_shares_and_never_more_than_the_tier():
    pools = [[("a", 10)], [("b", None)], [("c", 1000)]]
    cuts = allocate(pools, [10, 20, 40], 10_000, backed=True, tier="DDR")
    used = [10 * (c.whole + c.cached) // 10 for c in cuts]
    assert used[0] == 10, "a pool that wants less than its share gets all of it"
    total = sum(s * (c.whole + c.cached) for s, c in zip([10, 20, 40], cuts, strict=True))
    assert 9_900 <= total <= 10_000
    with pytest.raises(ConfigError, match=r"DDR has 13 bytes for table 'a'.*raise ddr"):
        allocate([[("a", 9)], [("b", 9)]], [20, 20], 27, backed=True, tier="DDR")


def test_an_unknown_policy_is_refused():
    choices = "lru, lfu, s3fifo, lookahead, lookahead:lru, lookahead:lfu, lookahead:s3fifo"
    for name in ("belady", "lookahead:", "lookahead:lookahead", "LRU"):
        with pytest.raises(ConfigError, match=f"policy is '{name}'; choose one of {choices}"):
            make_planner(3, name)
