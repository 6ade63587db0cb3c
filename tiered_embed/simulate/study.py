"""A whole study of one trace: curves, policies at some sizes, bounds, tables.

``study`` runs it; ``Study`` is plain data, which ``report`` and ``charts`` show. One thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import CapacityError, ConfigError
from ..residency import POLICIES
from ..traces import Trace
from .curve import CurveError, MissRatioCurve, Within
from .curves import aet, che, lru_curve
from .peers import PeerTrace, least_slots
from .planner_replay import SimulatedCounts, replay
from .policies import misses_of, policy_names, within_of
from .records import Records
from .sampling import shards

__all__ = ["PolicyResult", "Study", "StudyOptions", "study", "table_rows"]

PEER = "libcachesim:"
_OTHER: dict[Within, Within] = {"batch": "access", "access": "batch"}
Progress = Callable[[str, int, int], None]
"""Called with what is done now, the number of steps done, and of all steps."""


@dataclass(frozen=True)
class StudyOptions:
    """What to simulate.

    sizes: numbers of rows, or shares of the distinct rows where below 1. policies: names that
    ``policies`` knows. lookahead, depth: used by the planner's policies. within: see ``curves``.
    estimates: whether to estimate the curve too, and measure the errors. records: how large a row
    is.
    """

    sizes: Sequence[float] = (0.01, 0.05, 0.1, 0.2)
    policies: Sequence[str] = ("lru", "lfu", "s3fifo", "lookahead", "belady:batch")
    lookahead: int = 32
    depth: int = 2
    within: Within = "batch"
    estimates: bool = True
    records: Records = field(default_factory=Records)

    def __post_init__(self) -> None:
        if not self.sizes or any(not size > 0 for size in self.sizes):
            raise ConfigError(
                f"sizes are {list(self.sizes)}; pass rows, or shares of the distinct rows below 1"
            )


@dataclass(frozen=True)
class PolicyResult:
    """One policy at the study's sizes.

    counts: of the topmost tier, for each size; None where the policy does not fit. tables: the same
    by table, for policies that count by table.
    """

    policy: str
    counts: list[SimulatedCounts | None]
    tables: list[dict[str, SimulatedCounts]] = field(default_factory=list)

    @property
    def within(self) -> Within:
        """What a lookup is to the policy. Hit rates that differ in it are not compared."""
        return within_of(self.policy)

    @property
    def hit_rates(self) -> list[float | None]:
        return [None if c is None else c.hit_rate for c in self.counts]

    def as_dict(self) -> dict[str, Any]:
        return {
            "policy": self.policy,
            "within": self.within,
            "hit_rate": self.hit_rates,
            "counts": [None if c is None else c.as_dict() for c in self.counts],
            "tables": [{n: c.as_dict() for n, c in t.items()} for t in self.tables],
        }


@dataclass(frozen=True)
class Study:
    """What was found. steps: batches. rows: distinct rows by table. sizes: in rows.

    curve: LRU's, with lookups as the options say. other: the same with the other kind of lookups,
    for the policies that count those; None where there are none.
    """

    name: str
    options: StudyOptions
    steps: int
    rows: dict[str, int]
    record_bytes: int
    sizes: list[int]
    curve: MissRatioCurve
    estimates: list[MissRatioCurve]
    policies: list[PolicyResult]
    other: MissRatioCurve | None = None

    @property
    def kinds(self) -> list[Within]:
        """The kinds of lookups that some curve or policy counts; the options' kind first."""
        mine = self.options.within
        return [mine] if self.other is None else [mine, _OTHER[mine]]

    def curve_of(self, within: Within) -> MissRatioCurve:
        """LRU's curve with this kind of lookups, one of ``kinds``."""
        if within == self.options.within:
            return self.curve
        assert self.other is not None
        return self.other

    def policies_of(self, within: Within) -> list[PolicyResult]:
        """The policies that count this kind of lookups."""
        return [policy for policy in self.policies if policy.within == within]

    @property
    def num_rows(self) -> int:
        return sum(self.rows.values())

    @property
    def errors(self) -> dict[str, CurveError]:
        """How far each estimate is from the exact curve, by method."""
        return {curve.method: curve.error_to(self.curve) for curve in self.estimates}

    def as_dict(self) -> dict[str, Any]:
        grid = np.unique(np.geomspace(1, max(2, self.num_rows), 64).astype(np.int64))
        return {
            "trace": self.name,
            "steps": self.steps,
            "lookups": int(self.curve.lookups),
            "unique": int(self.curve.unique),
            "rows": self.rows,
            "record_bytes": self.record_bytes,
            "lookahead": self.options.lookahead,
            "depth": self.options.depth,
            "sizes": self.sizes,
            "within": self.options.within,
            "curve": self.curve.as_dict(grid),
            "other_curve": None if self.other is None else self.other.as_dict(grid),
            "estimates": [
                {**curve.as_dict(grid), "error": vars(self.errors[curve.method])}
                for curve in self.estimates
            ],
            "policies": [p.as_dict() for p in self.policies],
        }


def study(
    trace: Trace,
    options: StudyOptions | None = None,
    *,
    name: str = "trace",
    progress: Progress = lambda what, done, total: None,
) -> Study:
    """Simulates everything that the options ask for; ``progress`` is called before each step.

    Raises:
        ConfigError: an unknown policy, tables of several record layouts, a trace without accesses.
    """
    options = options or StudyOptions()
    _check_policies(options.policies)
    pools = options.records.pools(trace.tables)
    if len(pools) != 1:
        raise ConfigError(
            f"the tables make {len(pools)} pools, which cannot share slots; study tables of one "
            "dim and with equal options at a time"
        )
    methods = ["shards"] if options.estimates else []
    if options.estimates and options.within == "access":
        methods += ["aet", "che"]  # which do not model batches
    other = any(within_of(policy) != options.within for policy in options.policies)
    total = 1 + other + len(methods) + len(options.policies)
    progress("exact curve", 0, total)
    curve = lru_curve(trace, options.within)
    if curve.lookups == 0:
        raise ConfigError("the trace is empty: it has no access to simulate")
    rows = {table: round(c.cold) for table, c in curve.by_table.items()}
    sizes = sorted({_rows_of(size, sum(rows.values())) for size in options.sizes})
    second = None
    if other:
        progress("exact curve", 1, total)
        second = lru_curve(trace, _OTHER[options.within])
    estimates = []
    for done, method in enumerate(methods, 1 + other):
        progress(method, done, total)
        estimates.append(_estimate(trace, method, options, sum(rows.values())))
    found = []
    peers = any(policy.startswith(PEER) for policy in options.policies)
    with PeerTrace.of(trace) if peers else nullcontext() as written:
        for done, policy in enumerate(options.policies, 1 + other + len(methods)):
            progress(policy, done, total)
            found.append(_policy(trace, policy, sizes, options, written))
    steps = sum(chunk.num_batches for chunk in trace.chunks())
    progress("done", total, total)
    size = pools[0].record_bytes
    return Study(name, options, steps, rows, size, sizes, curve, estimates, found, second)


def _check_policies(policies: Sequence[str]) -> None:
    for policy in policies:
        if policy not in policy_names():
            raise ConfigError(f"policy is {policy!r}; choose one of {', '.join(policy_names())}")


def _rows_of(size: float, num_rows: int) -> int:
    return max(1, round(size * num_rows) if size < 1 else round(size))


def _estimate(trace: Trace, method: str, options: StudyOptions, num_rows: int) -> MissRatioCurve:
    if method == "shards":
        # A small trace needs a sample of at least some thousand rows to say anything.
        rate = min(1.0, max(0.01, 8000 / max(1, num_rows)))
        return shards(trace, rate, batched=options.within == "batch")
    return aet(trace) if method == "aet" else che(trace)


def _policy(
    trace: Trace,
    policy: str,
    sizes: Sequence[int],
    options: StudyOptions,
    written: PeerTrace | None,
) -> PolicyResult:
    counts: list[SimulatedCounts | None] = []
    tables: list[dict[str, SimulatedCounts]] = []
    for size in sizes:
        if policy in POLICIES:
            result = replay(
                trace, size, policy, options.lookahead, options.depth, records=options.records
            )
            counts.append(None if result.total.overflow else result.total)
            tables.append(dict(result.tables))
        elif written is not None and policy.startswith(PEER):
            name = policy.removeprefix(PEER)
            counts.append(written.counts(name, size) if size >= least_slots(name) else None)
        else:
            try:
                counts.append(misses_of(trace, size, policy, depth=options.depth))
            except CapacityError:
                counts.append(None)
    return PolicyResult(policy, counts, tables)


def table_rows(found: Study) -> list[dict[str, Any]]:
    """Per table, most lookups first: its share of lookups, and its LRU hit rate at each size."""
    out = []
    for table, curve in found.curve.by_table.items():
        out.append(
            {
                "table": table,
                "lookups": int(curve.lookups),
                "unique": int(curve.unique),
                "rows": found.rows[table],
                "share": curve.lookups / max(1.0, found.curve.lookups),
                "hit_rates": curve.hit_rate(found.sizes).tolist(),
                "compulsory": 1 - curve.cold / max(1.0, curve.lookups),
            }
        )
    return sorted(out, key=lambda row: -row["lookups"])
