"""The planner: which row is where, decided ahead of time and without a clock.

This module shapes budgets into slots and wraps the native planner (``native/residency``), which
turns a window of future batches into step plans. It moves no bytes; a simulator and a training run
that feed it the same batches get the same plans.

Large pools with a store below are cut into shards: planners of their own over the rows and slots
that a hash deals to them, which run on the threads of ``native/core`` and whose plans are merged
(``native/residency/sharded_planner.h``). Shards follow from a pool's shape alone, and no plan
depends on the number of threads. Unique rows, their order and their occurrences are those of one
planner; only who is evicted, and so which slots rows get, is decided shard by shard.

A row's life in a tier::

    absent ──push──► awaited ──plan──► pinned ──last pin drops──► evictable
       ▲                ▲                 ▲                           │  │
       │                │                 └────────── plan ───────────┘  │
       └── no use ahead ┴──── use ahead ◄───────────── evict ────────────┘
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from . import _native
from ._native import StepPlan
from .config import Tiers
from .errors import CapacityError, ConfigError
from .stats import Counts

if TYPE_CHECKING:
    from ._native import TableCounts

__all__ = [
    "BASE_POLICIES",
    "POLICIES",
    "BatchedIds",
    "Planner",
    "PoolSlots",
    "Replay",
    "Segment",
    "StepPlan",
    "allocate",
    "allocate_tiers",
    "fair_shares",
    "num_shards",
    "plan_text",
]

BASE_POLICIES = ("lru", "lfu", "s3fifo")
POLICIES = (*BASE_POLICIES, "lookahead", *(f"lookahead:{base}" for base in BASE_POLICIES))

# (table index in its pool, row ids (n,) int64)
Segment = tuple[int, npt.NDArray[np.int64]]

# (table index in its pool, offsets (B + 1,) int64, ids (N,) int64): batch b is ids[o[b]:o[b + 1]]
BatchedIds = tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]

MAX_SLOTS = 2**31 - 1
OVERFLOW_SLOTS = 2**24
SHARDS = 32  # of a pool that is planned in parallel
SHARDED_SLOTS = 2**20  # from so many slots on that its tables share
WHOLE_SHARE = 4  # small tables may take a quarter of a tier that does not hold everything


@dataclass(frozen=True)
class PoolSlots:
    """How one pool's share of a tier is cut.

    first_slot: per table, where a whole table starts, or -1 for one that shares `cached` slots.
    """

    first_slot: tuple[int, ...]
    whole: int
    cached: int
    overflow: int


def allocate(
    tables: Sequence[Sequence[tuple[str, int | None]]],
    record_bytes: Sequence[int],
    tier_bytes: int,
    *,
    backed: bool,
    tier: str,
) -> list[PoolSlots]:
    """Shares a tier among pools, and each pool's share among its tables.

    Pools get max-min fair shares of the bytes. Inside a pool every table is whole when all fit;
    otherwise the smallest are, up to a quarter of the slots, and the others share the rest.

    Args:
        tables: per pool, its tables' (name, rows or None for unbounded).
        record_bytes: per pool.
        tier_bytes: the tier's budget.
        backed: a tier below takes evicted rows.
        tier: its name, for messages.

    Raises:
        ConfigError: a share too small for one record.
    """
    wanted: list[float] = [
        sum(float("inf") if rows is None else float(rows) for _, rows in pool) * size
        for pool, size in zip(tables, record_bytes, strict=True)
    ]
    shares = fair_shares(wanted, tier_bytes)
    return [
        _cut(pool, size, share, backed=backed, tier=tier)
        for pool, size, share in zip(tables, record_bytes, shares, strict=True)
    ]


def allocate_tiers(
    tables: Sequence[Sequence[tuple[str, int | None]]],
    record_bytes: Sequence[int],
    tiers: Tiers,
) -> tuple[list[PoolSlots], list[int]]:
    """Shares the memory tiers among pools: of each, its slots in the topmost one, and how many it
    has in DDR below that (0 where DDR is the topmost). Arguments and errors as :func:`allocate`.
    """
    if tiers.hbm is None:
        assert tiers.ddr is not None
        only = allocate(tables, record_bytes, tiers.ddr, backed=tiers.ssd is not None, tier="DDR")
        return only, [0] * len(only)
    backed = tiers.ddr is not None or tiers.ssd is not None
    upper = allocate(tables, record_bytes, tiers.hbm, backed=backed, tier="HBM")
    if tiers.ddr is None:
        return upper, [0] * len(upper)
    # A row is in one tier at a time: DDR gets what HBM does not hold.
    left = [
        [
            (name, rows)
            for (name, rows), first in zip(pool, cut.first_slot, strict=True)
            if first < 0
        ]
        for pool, cut in zip(tables, upper, strict=True)
    ]
    rows_left = [
        float("inf")
        if any(rows is None for _, rows in pool)
        else sum(rows or 0 for _, rows in pool)
        for pool in left
    ]
    wanted = [
        max(0.0, rows - cut.cached) * size
        for rows, cut, size in zip(rows_left, upper, record_bytes, strict=True)
    ]
    lower = []
    shares = fair_shares(wanted, tiers.ddr)
    for pool, want, share, size, cut in zip(left, wanted, shares, record_bytes, upper, strict=True):
        most = MAX_SLOTS - cut.whole - cut.cached - cut.overflow
        slots = min(share // size, most)
        if want and slots < 1:
            raise _too_small("DDR", share, [name for name, _ in pool], size)
        lower.append(slots)
    return upper, lower


def fair_shares(wanted: Sequence[float], total: int) -> list[int]:
    """Max-min fair shares of ``total``: what one does not want goes to the others."""
    shares = [0] * len(wanted)
    left = total
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    for taken, i in enumerate(order):
        fair = left // (len(order) - taken)
        shares[i] = int(min(wanted[i], fair))
        left -= shares[i]
    return shares


def _cut(
    tables: Sequence[tuple[str, int | None]],
    record_bytes: int,
    share: int,
    *,
    backed: bool,
    tier: str,
) -> PoolSlots:
    slots = min(share // record_bytes, MAX_SLOTS - OVERFLOW_SLOTS)
    if slots < 1:
        raise _too_small(tier, share, [name for name, _ in tables], record_bytes)
    everything = sum(MAX_SLOTS if rows is None else rows for _, rows in tables)
    whole_limit = slots if everything <= slots else slots // WHOLE_SHARE
    first_slot = [-1] * len(tables)
    whole = 0
    rest: int | None = 0
    for i in sorted(range(len(tables)), key=lambda i: (tables[i][1] is None, tables[i][1] or 0)):
        rows = tables[i][1]
        if rows is not None and whole + rows <= whole_limit:
            first_slot[i] = whole
            whole += rows
        else:
            rest = None if rows is None or rest is None else rest + rows
    cached = slots - whole if rest is None else min(slots - whole, rest)
    overflow = OVERFLOW_SLOTS if backed and cached else 0
    return PoolSlots(tuple(first_slot), whole, cached, overflow)


def _too_small(tier: str, share: int, tables: Sequence[str], record_bytes: int) -> ConfigError:
    names = ", ".join(map(repr, tables))
    return ConfigError(
        f"{tier} has {share} bytes for table {names}, less than one record of {record_bytes}; "
        f"raise {tier.lower()}"
    )


def num_shards(slots: PoolSlots, lower_slots: int, *, backed: bool) -> int:
    """Parts of a pool that are planned apart, hence in parallel: of a large one with a store below.

    It decides who is evicted, so it depends on nothing but the pool's shape.
    """
    large = slots.cached >= max(SHARDS, SHARDED_SLOTS) and (
        lower_slots == 0 or lower_slots >= SHARDS
    )
    return SHARDS if backed and large else 1


class Replay:
    """Feeds a planner a whole stream as a training run does, natively; no row moves.

    Batch t is planned when ``lookahead`` batches behind it are known or the stream has ended, and
    is released, its rows changed, before the next plan. REQUIRES: nobody else feeds the planner.
    """

    COLUMNS = ("lookups", "unique", "misses", "evicted", "written_back", "overflow", "cold")

    def __init__(
        self, planner: Planner, *, lookahead: int, depth: int, per_step: bool = False
    ) -> None:
        self._planner = planner
        self._native = _native.Replay(
            planner._native,
            num_tables=planner.num_tables,
            lookahead=lookahead,
            depth=depth,
            updated=True,
            per_step=per_step,
        )

    def push(self, tables: Sequence[BatchedIds]) -> None:
        """Appends batches: of each, every table's ids in the order given.

        Raises:
            CapacityError: a batch found no room, with nothing changed by it.
        """
        try:
            self._native.push(list(tables))
        except (_native.NoCapacity, _native.TooManyHeld) as error:
            raise self._planner._capacity_error(error) from None

    def finish(self) -> None:
        """No batch follows: plans what is left with the window that it has. Raises as push."""
        try:
            self._native.finish()
        except (_native.NoCapacity, _native.TooManyHeld) as error:
            raise self._planner._capacity_error(error) from None

    def take_steps(self) -> npt.NDArray[np.int64]:
        """(steps since the last call, tables, COLUMNS); asked for by ``per_step``."""
        steps = self._native.take_steps()
        return steps.reshape(-1, self._planner.num_tables, len(self.COLUMNS))

    @property
    def num_steps(self) -> int:
        return self._native.num_steps

    @property
    def cold(self) -> list[int]:
        """Per table, misses of rows that had never been resident."""
        return self._native.cold


class Planner:
    """One pool's residency in the tier that computes, and in the memory tier below it if there is
    one. See ``native/residency/planner.h`` and ``lower_tier.h`` for the rules.

    Args:
        tables: (name, rows or None for unbounded).
        slots: of the tier that computes.
        policy: of both tiers.
        backed: a store at the bottom takes evicted rows.
        tier: the upper tier's name, for messages.
        lower_slots: of the memory tier that takes what loses its slot above; 0: there is none.
        num_threads: that plan a pool of several shards; no plan depends on it.

    Threading: calls lock; their order is the caller's business and decides the plans.
    """

    def __init__(
        self,
        tables: Sequence[tuple[str, int | None]],
        slots: PoolSlots,
        *,
        policy: str,
        backed: bool,
        tier: str,
        lower_slots: int = 0,
        num_threads: int = 1,
    ) -> None:
        if not isinstance(policy, str) or policy not in POLICIES:
            raise ConfigError(f"policy is {policy!r}; choose one of {', '.join(POLICIES)}")
        self._tier = tier
        self._whole = slots.whole
        self._names = [name for name, _ in tables]
        self._backed = backed
        self._lower = lower_slots > 0
        self._native = _native.Planner(
            [
                (-1 if rows is None else rows, first)
                for (_, rows), first in zip(tables, slots.first_slot, strict=True)
            ],
            whole_slots=slots.whole,
            cached_slots=slots.cached,
            overflow_slots=slots.overflow,
            lower_slots=lower_slots,
            policy=policy,
            backed=backed,
            num_shards=num_shards(slots, lower_slots, backed=backed),
            num_threads=num_threads,
        )

    def push(self, segments: Sequence[Segment]) -> None:
        """Appends a batch to the window. The ids lie inside their tables."""
        self._native.push(list(segments))

    def plan(self, depth: int) -> StepPlan:
        """Plans the window's oldest batch; the last ``depth`` plans' slots stay pinned.

        Raises:
            CapacityError: no room, with nothing changed.
        """
        try:
            return self._native.plan(depth)
        except (_native.NoCapacity, _native.TooManyHeld) as error:
            raise self._capacity_error(error) from None

    def plan_now(self, segments: Sequence[Segment]) -> StepPlan:
        """Plans a batch alone, ahead of whatever the window holds. Raises as :meth:`plan`."""
        try:
            return self._native.plan_now(list(segments))
        except (_native.NoCapacity, _native.TooManyHeld) as error:
            raise self._capacity_error(error) from None

    def release(self, number: int, *, updated: bool) -> None:
        """The batch of plan ``number`` is done; ``updated`` says that its rows were changed."""
        self._native.release(number, updated)

    def cancel(self) -> None:
        """Drops every batch of the window that has no plan yet."""
        self._native.cancel()

    def find(self, table: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """The slot of each id (n,), -1 where the row is not resident.

        The lower tier's slots are numbered behind the upper tier's: see ``first_lower_slot``.
        """
        return self._native.find(table, ids)

    def dirty_rows(
        self,
    ) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """(table, row id, slot) of rows that the store does not hold as they are here; slots are
        numbered as in :meth:`find`."""
        return self._native.dirty_rows()

    def mark_clean(self) -> None:
        """The dirty rows have been written back."""
        self._native.mark_clean()

    def renumber(self) -> None:
        """Renumbers the window's positions; happens by itself before they run out."""
        self._native.renumber()

    def counts(self, record_bytes: int) -> list[Counts]:
        """Of the upper tier, per table, in the order given at construction."""
        return _counts(self._native.counts(), record_bytes)

    def lower_counts(self, record_bytes: int) -> list[Counts]:
        """Of the lower tier: lookups are the rows that the upper tier staged, and overflow those
        that passed through for want of a slot. Empty without one."""
        return _counts(self._native.lower_counts(), record_bytes)

    def num_cached(self, plan: StepPlan) -> int:
        """Rows of the plan that share slots with others."""
        return int(np.count_nonzero(plan.slots >= self._whole))

    @property
    def num_tables(self) -> int:
        return len(self._names)

    @property
    def num_shards(self) -> int:
        return self._native.num_shards

    @property
    def window_size(self) -> int:
        return self._native.window_size

    @property
    def num_resident(self) -> int:
        """In the upper tier."""
        return self._native.num_resident

    @property
    def num_lower_resident(self) -> int:
        return self._native.num_lower_resident

    @property
    def first_lower_slot(self) -> int:
        """Slots from here on are the lower tier's."""
        return self._native.first_lower_slot

    @property
    def all_resident(self) -> bool:
        """Every row is in its slot for good: a plan moves nothing."""
        return self._native.all_resident

    @property
    def overhead_bytes(self) -> int:
        return self._native.overhead_bytes

    def _capacity_error(self, error: RuntimeError) -> CapacityError:
        if isinstance(error, _native.TooManyHeld):
            return CapacityError(
                f"{error.args[0]} forwards still await their backward and hold their rows; "
                "run forwards that never train in eval() or torch.no_grad()"
            )
        missing, slots = error.args
        names = ", ".join(repr(name) for name in self._names)
        tiers = f"{self._tier} and DDR" if self._lower else self._tier
        have = "have" if self._lower else "has"
        remedy = f"raise {tiers.lower()}" + ("" if self._backed else " or add an ssd tier")
        have = "have" if self._lower else "has"
        return CapacityError(
            f"{tiers} {have} {slots} slots for table {names} and {missing} rows of this batch "
            f"found none; {remedy}"
        )


def _counts(native: Sequence[TableCounts], record_bytes: int) -> list[Counts]:
    return [
        Counts(
            lookups=lookups,
            unique=unique,
            misses=misses,
            hits=unique - misses,
            staged=staged,
            evicted=evicted,
            written_back=written_back,
            overflow=overflow,
            bytes_in=staged * record_bytes,
            bytes_out=written_back * record_bytes,
        )
        for lookups, unique, misses, staged, evicted, written_back, overflow in native
    ]


def plan_text(plan: StepPlan) -> str:
    """The plan as text, one line per part; equal plans have equal texts."""

    def row(table: int, key: int, slot: int) -> str:
        return f"{table}:{key}@{slot}"

    rows = [
        row(t, k, s)
        for t, k, s in zip(
            plan.tables.tolist(), plan.keys.tolist(), plan.slots.tolist(), strict=True
        )
    ]
    victims = [
        row(t, k, s) + ("*" if dirty else "")
        for t, k, s, dirty in zip(
            plan.victim_tables.tolist(),
            plan.victim_keys.tolist(),
            plan.victim_slots.tolist(),
            plan.victim_dirty.tolist(),
            strict=True,
        )
    ]
    lines = [
        f"plan {plan.number}",
        "rows " + " ".join(rows),
        "inverse " + " ".join(map(str, plan.inverse.tolist())),
        "staged " + " ".join(rows[u] for u in plan.staged.tolist()),
        "victims " + " ".join(victims),
        f"overflow {plan.overflow}",
    ]
    if len(plan.staged_from) or len(plan.victim_to):
        fallen = [
            row(t, k, s) + ("*" if dirty else "")
            for t, k, s, dirty in zip(
                plan.fallen_tables.tolist(),
                plan.fallen_keys.tolist(),
                plan.fallen_slots.tolist(),
                plan.fallen_dirty.tolist(),
                strict=True,
            )
        ]
        lines += [
            "staged from " + " ".join(map(str, plan.staged_from.tolist())),
            "victims to " + " ".join(map(str, plan.victim_to.tolist())),
            "fallen " + " ".join(fallen),
        ]
    return "\n".join(lines)
