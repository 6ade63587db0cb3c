"""A planner with a lower tier, held to a model of both and to what a lookup must see.

The model is ``policy_models.Series``. What happens in the upper tier must besides be what a planner
without a lower tier does.
"""

import copy
from collections import Counter

import numpy as np
import pytest

from policy_models import Moves, Series, row_of
from tiered_embed.errors import CapacityError
from tiered_embed.residency.budgets import PoolSlots
from tiered_embed.residency.planner import Planner, StepPlan

Row = tuple[int, int]  # (table, id)
Segments = list[tuple[int, list[int]]]

WHOLE_ROWS = 5  # table 0 lives in slots [0, 5) as a whole; tables 1 and 2 share the others
TABLES = [("whole", WHOLE_ROWS), ("bounded", 40), ("unbounded", None)]


def arrays(segments: Segments) -> list[tuple[int, np.ndarray]]:
    return [(table, np.array(ids, np.int64)) for table, ids in segments]


def rows_of(segments: Segments) -> list[Row]:
    return list(dict.fromkeys((table, i) for table, ids in segments for i in ids))


def cached(segments: Segments) -> list[int]:
    return [row_of(*row) for row in rows_of(segments) if row[0] != 0]


def named(tables: np.ndarray, keys: np.ndarray) -> list[Row]:
    return list(zip(tables.tolist(), keys.tolist(), strict=True))


def victims_of(plan: StepPlan) -> list[Row]:
    return named(plan.victim_tables, plan.victim_keys)


def fallen_of(plan: StepPlan) -> list[Row]:
    return named(plan.fallen_tables, plan.fallen_keys)


def staged_of(plan: StepPlan) -> list[Row]:
    return named(plan.tables[plan.staged], plan.keys[plan.staged])


class Tiers:
    """Calls both planners and the model alike, and executes every plan.

    Every plan is executed at once, as the pipeline does it: what goes up is read out, then what
    falls, then victims come down, then staged rows are filled in.
    """

    def __init__(
        self, policy: str, upper: int, lower: int, *, backed: bool = True, overflow: int = 10_000
    ) -> None:
        slots = PoolSlots((0, -1, -1), WHOLE_ROWS, upper, overflow)
        self.planner = Planner(
            TABLES, slots, policy=policy, backed=backed, tier="HBM", lower_slots=lower
        )
        self.single = Planner(TABLES, slots, policy=policy, backed=True, tier="HBM")
        self.model = Series(policy, upper, lower, backed=backed)
        self.backed, self.overflow, self.lower_slots = backed, overflow, lower
        self.first_lower = WHOLE_ROWS + upper + overflow
        self.can_fail = not backed or overflow < 10_000
        self.window: list[Segments] = []
        self.waiting: dict[int, list[Row]] = {}  # plans that are not released
        self.where: dict[Row, int] = {}  # slot as `find` tells it
        self.dirty: set[Row] = set()
        self.counts: Counter[tuple[str, int]] = Counter()  # of the lower tier
        self.upper_counts: Counter[tuple[str, int]] = Counter()
        # What the tiers hold; a row that is nowhere has the value 0.
        self.values: dict[int, int] = {}  # by slot as `find` tells it
        self.store: dict[Row, int] = {}
        self.newest: dict[Row, int] = {}
        self.clock = 0

    # --- operations -------------------------------------------------------------------------------

    def push(self, segments: Segments) -> None:
        for planner in (self.planner, self.single):
            planner.push(arrays(segments))
        self.model.push(cached(segments))
        self.window.append(segments)

    def plan(self, depth: int) -> None:
        if not self.window:
            return
        moves = self.moves(depth)
        if moves is None:
            with pytest.raises(CapacityError, match="HBM and DDR have"):
                self.planner.plan(depth)
            self.check()
            return
        self.window.pop(0)
        self.follow(self.planner.plan(depth), self.single.plan(depth), moves)

    def plan_now(self, segments: Segments) -> None:
        moves = self.moves(0, aside=cached(segments))
        if moves is not None:
            ids = arrays(segments)
            self.follow(self.planner.plan_now(ids), self.single.plan_now(ids), moves)
            return
        with pytest.raises(CapacityError):
            self.planner.plan_now(arrays(segments))
        self.check()

    def moves(self, depth: int, aside: list[int] | None = None) -> Moves | None:
        """The model's next plan, of the window or of a batch ``aside``; None, with nothing changed,
        when it finds no room."""
        model = copy.deepcopy(self.model) if self.can_fail else self.model
        if aside is not None:
            model.put_aside(aside)
        stays = model.place.keys() - model.can_fall
        room = len(model.unused) + len(model.can_fall) + len(stays & set(model.window[0][1]))
        moves = model.move(depth)
        if moves.num_transient > self.overflow:
            return None
        # Without a store nothing may pass on, and rows in transient slots keep their room.
        if not self.backed and len(moves.to) + moves.num_transient > room:
            return None
        self.model = model
        return moves

    def release(self, which: int, updated: bool) -> None:
        if not self.waiting:
            return
        number = list(self.waiting)[which % len(self.waiting)]
        for row in self.waiting.pop(number):
            assert self.values[self.where[row]] == self.newest.get(row, 0), "a held row's slot"
            if updated:
                self.clock += 1
                self.newest[row] = self.values[self.where[row]] = self.clock
                self.dirty.add(row)
        for planner in (self.planner, self.single):
            planner.release(number, updated=updated)
        self.model.done(number, updated)

    def cancel(self) -> None:
        for planner in (self.planner, self.single, self.model):
            planner.cancel()
        self.window.clear()
        self.check()

    def flush(self) -> None:
        tables, keys, slots = self.planner.dirty_rows()
        rows = named(tables, keys)
        assert dict(zip(rows, slots.tolist(), strict=True)) == {
            r: self.where[r] for r in self.dirty
        }
        if not self.backed:
            return
        for row, slot in zip(rows, slots.tolist(), strict=True):
            self.store[row] = self.values[slot]
            counts = self.counts if slot >= self.first_lower else self.upper_counts
            counts["written_back", row[0]] += 1
        assert self.newest.items() <= self.store.items(), "the store has every row as it is"
        for planner in (self.planner, self.single):
            planner.mark_clean()
        self.dirty.clear()
        self.model.dirty.clear()
        assert len(self.planner.dirty_rows()[0]) == 0
        self.check()

    # --- what a plan must be ----------------------------------------------------------------------

    def follow(self, plan: StepPlan, single: StepPlan, moves: Moves) -> None:
        for name in ("number", "keys", "tables", "slots", "inverse", "group_start", "group"):
            np.testing.assert_array_equal(getattr(plan, name), getattr(single, name))
        for name in ("staged", "victim_keys", "victim_tables", "victim_slots", "overflow"):
            np.testing.assert_array_equal(getattr(plan, name), getattr(single, name))
        staged, victims, fallen = staged_of(plan), victims_of(plan), fallen_of(plan)
        assert [row_of(*r) for r in victims] == moves.victims
        assert plan.victim_dirty.tolist() == moves.dirty
        assert plan.victim_to.tolist() == moves.to
        assert plan.staged_from.tolist() == [moves.rose.get(row_of(*r), -1) for r in staged]
        got = zip(fallen, plan.fallen_slots.tolist(), plan.fallen_dirty.tolist(), strict=True)
        assert [(row_of(*r), slot, dirty) for r, slot, dirty in got] == moves.fallen
        self.execute(plan, staged, victims, fallen)
        self.count(plan, staged, victims, fallen)
        self.waiting[plan.number] = named(plan.tables, plan.keys)
        self.check()

    def execute(
        self, plan: StepPlan, staged: list[Row], victims: list[Row], fallen: list[Row]
    ) -> None:
        base = self.first_lower
        rose = {
            row: self.leave(row, base + slot)
            for row, slot in zip(staged, plan.staged_from.tolist(), strict=True)
            if slot >= 0
        }
        for row, slot, dirty in zip(
            fallen, plan.fallen_slots.tolist(), plan.fallen_dirty.tolist(), strict=True
        ):
            self.sink(row, self.leave(row, base + slot), dirty)
        for row, slot, dirty, to in zip(
            victims,
            plan.victim_slots.tolist(),
            plan.victim_dirty.tolist(),
            plan.victim_to.tolist(),
            strict=True,
        ):
            value = self.leave(row, slot)
            if to >= 0:
                assert to < self.lower_slots
                self.enter(row, base + to, value)
            else:
                self.sink(row, value, dirty)
        slots = plan.slots[plan.staged].tolist()
        for row, slot in zip(staged, slots, strict=True):
            self.enter(row, slot, rose[row] if row in rose else self.store.get(row, 0))
        for row, slot in zip(named(plan.tables, plan.keys), plan.slots.tolist(), strict=True):
            assert self.values[slot] == self.newest.get(row, 0), "a lookup sees the newest value"

    def leave(self, row: Row, slot: int) -> int:
        assert self.where.pop(row) == slot
        return self.values.pop(slot)

    def enter(self, row: Row, slot: int, value: int) -> None:
        assert row not in self.where, "a row is in one place"
        assert slot not in self.values, "a slot has one row"
        self.where[row] = slot
        self.values[slot] = value

    def sink(self, row: Row, value: int, dirty: bool) -> None:
        """The row leaves memory."""
        assert dirty == (row in self.dirty)
        if dirty:
            assert self.backed, "a changed row has nowhere to go"
            self.store[row] = value
            self.dirty.remove(row)

    def count(
        self, plan: StepPlan, staged: list[Row], victims: list[Row], fallen: list[Row]
    ) -> None:
        passed = plan.victim_to < 0
        for counts, name, rows, of in (
            (self.upper_counts, "unique", named(plan.tables, plan.keys), None),
            (self.upper_counts, "misses", staged, None),
            (self.upper_counts, "evicted", victims, None),
            (self.upper_counts, "written_back", victims, plan.victim_dirty),
            (self.counts, "unique", staged, None),
            (self.counts, "misses", staged, plan.staged_from < 0),
            (self.counts, "staged", victims, None),
            (self.counts, "overflow", victims, passed),
            (self.counts, "evicted", victims, passed),
            (self.counts, "written_back", victims, passed & (plan.victim_dirty != 0)),
            (self.counts, "evicted", fallen, None),
            (self.counts, "written_back", fallen, plan.fallen_dirty),
        ):
            chosen = [True] * len(rows) if of is None else of.tolist()
            for (table, _), counted in zip(rows, chosen, strict=True):
                counts[name, table] += bool(counted)

    def check(self) -> None:
        planner = self.planner
        assert planner.first_lower_slot == self.first_lower
        num_lower = sum(slot >= self.first_lower for slot in self.where.values())
        assert planner.num_lower_resident == num_lower == len(self.model.place)
        assert planner.num_resident == self.single.num_resident == len(self.where) - num_lower
        assert planner.window_size == len(self.window)
        for table, high in ((0, WHOLE_ROWS), (1, 40), (2, 40)):
            found = planner.find(table, np.arange(high, dtype=np.int64)).tolist()
            assert found == [self.where.get((table, i), -1) for i in range(high)]
        for got, wanted in (
            (planner.counts(8), self.upper_counts),
            (planner.lower_counts(8), self.counts),
        ):
            for table, counts in enumerate(got):
                for name in ("unique", "misses", "evicted", "written_back"):
                    assert getattr(counts, name) == wanted[name, table], (table, name)
                assert counts.hits == counts.unique - counts.misses
                assert counts.bytes_in == 8 * counts.staged
                assert counts.bytes_out == 8 * counts.written_back
        for table, counts in enumerate(planner.lower_counts(8)):
            assert counts.lookups == counts.unique
            assert counts.staged == self.counts["staged", table]
            assert counts.overflow == self.counts["overflow", table]
