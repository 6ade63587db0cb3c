"""Replays a trace through the runtime's own planner, without moving a row.

The planner never looks at a clock. What it decides for a trace is what it decides in a training run
that reads the same batches through ``te.prefetch``, so all counts are equal. Only ``depth="auto"``
depends on time, and is refused.

Threads: planners of large pools start their own. Memory: one chunk of the trace, the window, and 38
bytes per distinct row, to know which misses are cold.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..residency import OVERFLOW_SLOTS, Planner, PoolSlots, Replay, allocate_tiers
from ..spec import Counts, Stats, Tiers
from ..traces import Trace
from .records import RecordPool, Records

__all__ = ["STEP_COLUMNS", "Difference", "ReplayResult", "SimulatedCounts", "replay"]

I64 = npt.NDArray[np.int64]
Progress = Callable[[int], None]

STEP_COLUMNS = Replay.COLUMNS


@dataclass
class SimulatedCounts(Counts):
    """What a run counts, and how many misses no cache size could avoid.

    cold: misses of rows that were never resident before; all other misses are for lack of room.
    """

    cold: int = 0

    def add(self, other: Counts) -> None:
        super().add(other)
        if isinstance(other, SimulatedCounts):
            self.cold += other.cold

    def subtract(self, other: Counts) -> None:
        super().subtract(other)
        if isinstance(other, SimulatedCounts):
            self.cold -= other.cold

    @property
    def capacity_misses(self) -> int:
        return self.misses - self.cold

    @property
    def hit_rate(self) -> float:
        """Per access: a repeat inside a batch is a hit."""
        return 1.0 - self.misses / self.lookups if self.lookups else 0.0

    @property
    def unique_hit_rate(self) -> float:
        """Per unique row of a batch."""
        return self.hits / self.unique if self.unique else 0.0

    def as_dict(self) -> dict[str, Any]:
        out = asdict(self)
        del out["stall_s"]
        return {**out, "capacity_misses": self.capacity_misses, "hit_rate": self.hit_rate}


@dataclass(frozen=True)
class Difference:
    """A count in which a run and a simulation differ."""

    where: str
    count: str
    simulated: int
    measured: int


@dataclass(frozen=True)
class ReplayResult:
    """What a run over the trace would have counted.

    tiers, tables: as ``stats()`` has them once every batch has been trained and every write has
    finished, with an SSD tier that was empty at the start. flushed_tiers, flushed: the same after a
    ``flush()``. per_step: None, or (steps, tables, ``STEP_COLUMNS``) int64 of the topmost tier, in
    the trace's order of tables. All of them are without the first ``first_step`` steps, and
    ``steps`` is the number of the others.
    """

    steps: int
    policy: str
    lookahead: int
    depth: int
    slots: int
    tiers: Mapping[str, SimulatedCounts]
    tables: Mapping[str, SimulatedCounts]
    flushed: Mapping[str, SimulatedCounts]
    flushed_tiers: Mapping[str, SimulatedCounts]
    per_step: I64 | None = field(default=None, repr=False)
    first_step: int = 0

    @property
    def total(self) -> SimulatedCounts:
        """The topmost tier."""
        return next(iter(self.tiers.values()))

    def differences(self, stats: Stats, *, flushed: bool = False) -> list[Difference]:
        """The counts in which a run's ``stats()`` differ; empty when all are equal.

        ``flushed``: whether the run has flushed since its last batch. Stall seconds and memory are
        not compared, and the SSD tier only where the run has one.
        """
        tables = self.flushed if flushed else self.tables
        pairs: list[tuple[str, SimulatedCounts, Counts]] = []
        for name, counts in tables.items():
            pairs.append((f"table {name!r}", counts, stats.tables.get(name, Counts())))
        for name, counts in (self.flushed_tiers if flushed else self.tiers).items():
            if name != "SSD" or name in stats.tiers:
                pairs.append((name, counts, stats.tiers.get(name, Counts())))
        return [
            Difference(where, f.name, getattr(mine, f.name), getattr(theirs, f.name))
            for where, mine, theirs in pairs
            for f in fields(Counts)
            if f.name != "stall_s" and getattr(mine, f.name) != getattr(theirs, f.name)
        ]

    def as_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "policy": self.policy,
            "lookahead": self.lookahead,
            "depth": self.depth,
            "slots": self.slots,
            "tiers": {name: c.as_dict() for name, c in self.tiers.items()},
            "tables": {name: c.as_dict() for name, c in self.tables.items()},
        }


def replay(
    trace: Trace,
    tiers: Tiers | int,
    policy: str = "lookahead",
    lookahead: int = 32,
    depth: int = 2,
    batch: int | None = None,
    *,
    records: Records | None = None,
    per_step: bool = False,
    first_step: int = 0,
    progress: Progress | None = None,
    num_threads: int = 1,
) -> ReplayResult:
    """Counts what training over ``trace`` would count, exactly.

    Args:
        trace: the batches of the run.
        tiers: budgets, as a module takes them; or a number of rows that all tables share in the
            topmost tier, with an SSD tier below.
        policy, lookahead, depth: as a module takes them.
        batch: samples in a batch, instead of the trace's own batches; see ``Trace.rebatch``.
        records: how large a row is, and so which tables share slots; by default 64 float32 columns
            with row-wise Adagrad. ``Records.of`` gives those of a module.
        per_step: whether to keep the counts of every step: 56 bytes per step and table.
        first_step: counts begin with this step; those before it only fill the tiers.
        progress: called after every chunk with the number of steps so far.
        num_threads: for large pools, which are planned in parallel; no count depends on it.

    Raises:
        ConfigError: options that a module would refuse as well.
        CapacityError: the rows do not fit, and there is no tier below; the run would raise it too.
        IdRangeError: an id outside its table.
    """
    records = records or Records()
    _check_window(lookahead, depth)
    if isinstance(first_step, bool) or not isinstance(first_step, int) or first_step < 0:
        raise ConfigError(f"first_step is {first_step!r}; pass an integer of at least 0")
    if batch is not None:
        trace = trace.rebatch(batch)
    pools = records.pools(trace.tables)
    shape = _Shape.of(pools, tiers)
    planners = [
        Planner(
            pool.tables,
            slots,
            policy=policy,
            backed=shape.backed,
            tier=shape.upper_name,
            lower_slots=lower,
            num_threads=num_threads,
        )
        for pool, slots, lower in zip(pools, shape.slots, shape.lower_slots, strict=True)
    ]
    replays = [
        Replay(planner, lookahead=lookahead, depth=depth, per_step=per_step, updated=pool.trains)
        for pool, planner in zip(pools, planners, strict=True)
    ]
    steps: list[list[I64]] = [[] for _ in pools]
    start = _Tables.of(pools, planners, replays)
    num_pushed = 0
    for chunk in trace.chunks():
        # The step before the first one that counts is planned once its window is known.
        here = min(max(first_step + lookahead - num_pushed, 0), chunk.num_batches)
        for first, last in ((0, here), (here, chunk.num_batches)):
            part = chunk.batches(first, last)
            for pool, one in zip(pools, replays, strict=True):
                one.push([(i, *part.table_ids[t]) for i, t in enumerate(pool.members)])
            num_pushed += part.num_batches
            if 0 < num_pushed == first_step + lookahead:
                start = _Tables.of(pools, planners, replays)
        for kept, one in zip(steps, replays, strict=True):
            kept.append(one.take_steps())
        if progress is not None:
            progress(replays[0].num_steps)
    if num_pushed < first_step + lookahead:
        for one in replays:
            one.finish(first_step)
        start = _Tables.of(pools, planners, replays)
    for kept, one in zip(steps, replays, strict=True):
        one.finish()
        kept.append(one.take_steps())
    if first_step > replays[0].num_steps:
        raise ConfigError(
            f"first_step is {first_step}, but the trace has only {replays[0].num_steps} batches;"
            " lower it"
        )
    before = _Tables.of(pools, planners, replays)
    after = before
    if shape.backed:
        for planner in planners:
            planner.dirty_rows()  # also handles the batches released last
            planner.mark_clean()
        after = _Tables.of(pools, planners, replays)
    before, after = before.since(start), after.since(start)
    return ReplayResult(
        steps=replays[0].num_steps - first_step,
        policy=policy,
        lookahead=lookahead,
        depth=depth,
        slots=sum(slots.whole + slots.cached for slots in shape.slots),
        tiers=before.tiers(shape, before),
        tables={table.name: before.upper[table.name] for table in trace.tables},
        flushed={table.name: after.upper[table.name] for table in trace.tables},
        flushed_tiers=after.tiers(shape, before),
        per_step=_in_trace_order(pools, steps)[first_step:] if per_step else None,
        first_step=first_step,
    )


def _check_window(lookahead: object, depth: object) -> None:
    for name, value in (("lookahead", lookahead), ("depth", depth)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            clock = ", as 'auto' depends on time" if value == "auto" else ""
            raise ConfigError(
                f"{name} is {value!r}; a simulation needs an integer of at least 0{clock}"
            )
    assert isinstance(lookahead, int)
    assert isinstance(depth, int)
    if depth > lookahead:
        raise ConfigError(
            f"depth is {depth} but lookahead is {lookahead}: only batches in the window can be "
            "staged; raise lookahead or lower depth"
        )


@dataclass(frozen=True)
class _Shape:
    """How the memory tiers are divided among the pools, and whether there is a store below."""

    upper_name: str
    slots: list[PoolSlots]
    lower_slots: list[int]
    has_lower: bool
    backed: bool

    @classmethod
    def of(cls, pools: list[RecordPool], tiers: Tiers | int) -> _Shape:
        if isinstance(tiers, int):
            if isinstance(tiers, bool) or tiers < 1:
                raise ConfigError(
                    f"tiers is {tiers!r}; pass a positive number of rows, or te.Tiers"
                )
            if len(pools) != 1:
                raise ConfigError(
                    f"the tables make {len(pools)} pools, which cannot share slots; pass te.Tiers "
                    "with a number of bytes, or tables of one dim and with equal options"
                )
            first = (-1,) * len(pools[0].members)
            return cls("DDR", [PoolSlots(first, 0, tiers, OVERFLOW_SLOTS)], [0], False, True)
        if tiers.ddr is None and tiers.hbm is None:
            raise ConfigError("the topmost tier holds the rows in use: pass te.Tiers(ddr=...)")
        sizes = [pool.record_bytes for pool in pools]
        slots, lower_slots = allocate_tiers([p.tables for p in pools], sizes, tiers)
        name = "DDR" if tiers.hbm is None else "HBM"
        has_lower = tiers.hbm is not None and tiers.ddr is not None
        return cls(name, slots, lower_slots, has_lower, tiers.ssd is not None)


@dataclass(frozen=True)
class _Tables:
    """Counts of every table in the topmost tier, and in the lower one where its pool has slots."""

    upper: dict[str, SimulatedCounts]
    lower: dict[str, SimulatedCounts]
    record_bytes: dict[str, int]
    trained: set[str]

    @classmethod
    def of(cls, pools: list[RecordPool], planners: list[Planner], replays: list[Replay]) -> _Tables:
        upper: dict[str, SimulatedCounts] = {}
        lower: dict[str, SimulatedCounts] = {}
        sizes: dict[str, int] = {}
        trained: set[str] = set()
        for pool, planner, one in zip(pools, planners, replays, strict=True):
            names = [name for name, _ in pool.tables]
            for counts, found in (
                (planner.counts(pool.record_bytes), upper),
                (planner.lower_counts(pool.record_bytes), lower),
            ):
                for name, c, cold in zip(names, counts, one.cold, strict=False):
                    found[name] = SimulatedCounts(**vars(c), cold=cold)
            sizes.update(dict.fromkeys(names, pool.record_bytes))
            if pool.trains:
                trained.update(names)
        return cls(upper, lower, sizes, trained)

    def since(self, start: _Tables) -> _Tables:
        """What was counted after ``start``."""
        upper, lower = copy.deepcopy((self.upper, self.lower))
        for now, then in ((upper, start.upper), (lower, start.lower)):
            for name, counts in now.items():
                counts.subtract(then[name])
        return replace(self, upper=upper, lower=lower)

    def tiers(self, shape: _Shape, unflushed: _Tables) -> dict[str, SimulatedCounts]:
        out = {shape.upper_name: _sum(self.upper.values())}
        if shape.has_lower:
            out["DDR"] = _sum(self.lower.values())
        if shape.backed:
            out["SSD"] = _sum(self._stored(name, unflushed) for name in self.upper)
        return out

    def _stored(self, name: str, unflushed: _Tables) -> SimulatedCounts:
        """What the store sees of a table. It is asked for every row that the memory tiers miss. It
        has the rows that left them before, since training has changed each of those, and none of a
        table that does not train."""
        above = self.lower.get(name, self.upper[name])
        written = above.written_back
        if name in self.lower:  # only a flush writes past it
            written += self.upper[name].written_back - unflushed.upper[name].written_back
        hits = above.misses - above.cold if name in self.trained else 0
        size = self.record_bytes[name]
        return SimulatedCounts(
            lookups=above.misses,
            unique=above.misses,
            hits=hits,
            misses=above.misses - hits,
            staged=written,
            bytes_in=written * size,
            bytes_out=hits * size,
            cold=above.cold,
        )


def _sum(parts: Iterable[SimulatedCounts]) -> SimulatedCounts:
    total = SimulatedCounts()
    for part in parts:
        total.add(part)
    return total


def _in_trace_order(pools: list[RecordPool], steps: list[list[I64]]) -> I64:
    parts = [np.concatenate(kept) for kept in steps]
    order = [t for pool in pools for t in pool.members]
    joined = np.concatenate(parts, axis=1)
    out = np.empty_like(joined)
    out[:, order] = joined
    return out
