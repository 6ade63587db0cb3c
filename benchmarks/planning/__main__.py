"""Planning in parallel: a step of a million ids by number of threads, and by a single planner.

Steps run turn by turn over one stream, every planner with its own window. Before anything is
timed, plans of all thread counts are compared with one another, and with those of the single
planner where they must be equal (all but slots and victims). Turns in which other processes took
part of the cores are left out, if enough remain.

  python benchmarks/planning --json benchmarks/results/planning.json
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the folder of `benchmarks`

import contextlib
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any
from unittest import mock

import numpy as np
import typer
from rich.table import Table

from benchmarks.support.machine import Neighbours
from benchmarks.support.reports import (
    Target,
    console,
    print_origin,
    print_targets,
    report,
    spread,
    write_json,
)
from tiered_embed.residency import budgets
from tiered_embed.residency.budgets import PoolSlots
from tiered_embed.residency.planner import BASE_POLICIES, Planner, Segment, StepPlan
from tiered_embed.simulate.planner_replay import replay
from tiered_embed.traces.trace import Trace

__all__ = ["app"]

CALM = 0.15  # cores that others may take in a turn that counts
CALM_TURNS = 9  # fewer: all count
SPEEDUP = 8.0
CORES = 16  # that it is asked for

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@dataclass(frozen=True)
class Planning:
    """Sizes of one comparison. ``ids``: per table and step."""

    tables: int = 10
    rows: int = 1_000_000
    ids: int = 104_858
    cached_share: float = 0.2
    exponent: float = 1.05
    lookahead: int = 4
    depth: int = 2
    batches: int = 24
    warm_steps: int = 12
    steps: int = 120
    hit_rows: int = 8_000_000
    hit_slots: int = 2**20
    hit_ids: int = 2**17
    hit_batches: int = 100


@contextlib.contextmanager
def partitioned(*, always: bool) -> Iterator[None]:
    """Whether planners made inside are partitioned, whatever their size."""
    with mock.patch.object(budgets, "PARTITIONED_SLOTS", 0 if always else 2**40):
        yield


class Zipf:
    """Ids with the popularity of ``exponent``, popular ones anywhere."""

    def __init__(self, rows: int, exponent: float, seed: int) -> None:
        weights = np.arange(1, rows + 1, dtype=np.float64) ** -exponent
        self._edges = np.cumsum(weights) / weights.sum()
        self._draw = np.random.default_rng(seed)
        self._place = self._draw.permutation(rows)

    def draw(self, n: int) -> np.ndarray:
        ranks = np.searchsorted(self._edges, self._draw.random(n))
        return np.ascontiguousarray(self._place[ranks], np.int64)


class Contestant:
    """A planner in the middle of a training run."""

    def __init__(self, p: Planning, batches: list[list[Segment]], threads: int | None) -> None:
        """``threads``: None for the single planner."""
        self.p = p
        self.batches = batches
        self.times: list[float] = []
        self.cpu: list[float] = []
        self.held: list[int] = []
        self.pushed = 0
        slots = PoolSlots((-1,) * p.tables, 0, int(p.tables * p.rows * p.cached_share), 1 << 24)
        with partitioned(always=threads is not None):
            self.planner = Planner(
                [(f"t{t}", p.rows) for t in range(p.tables)],
                slots,
                policy="lookahead",
                backed=True,
                tier="DDR",
                num_threads=threads or 1,
            )
        for _ in range(p.lookahead):
            self._push()

    def _push(self) -> None:
        self.planner.push(self.batches[self.pushed % len(self.batches)])
        self.pushed += 1

    def step(self) -> StepPlan:
        cpu = time.process_time()
        start = time.perf_counter()
        self._push()
        plan = self.planner.plan(self.p.depth)
        if len(self.held) == self.p.depth:
            self.planner.release(self.held.pop(0), updated=True)
        self.times.append(time.perf_counter() - start)
        self.cpu.append(time.process_time() - cpu)
        self.held.append(plan.number)
        return plan

    def keep_turns(self, which: list[int]) -> None:
        for values in (self.times, self.cpu):
            values[:] = [values[turn] for turn in which]


def same_rows(a: StepPlan, b: StepPlan) -> bool:
    parts = ("tables", "keys", "inverse", "group", "group_start")
    return all(np.array_equal(getattr(a, part), getattr(b, part)) for part in parts)


def same(a: StepPlan, b: StepPlan) -> bool:
    parts = ("slots", "staged", "victim_keys", "victim_tables", "victim_slots", "victim_dirty")
    return same_rows(a, b) and all(
        np.array_equal(getattr(a, part), getattr(b, part)) for part in parts
    )


def steps(p: Planning, threads: list[int]) -> dict[str, Any]:
    """Seconds of a step, by contestant."""
    tables = [Zipf(p.rows, p.exponent, t) for t in range(p.tables)]
    batches = [[(t, table.draw(p.ids)) for t, table in enumerate(tables)] for _ in range(p.batches)]
    named: dict[str, int | None] = {"single": None} | {str(n): n for n in threads}
    contestants = {name: Contestant(p, batches, n) for name, n in named.items()}
    for _ in range(p.warm_steps):
        plans = {name: contestant.step() for name, contestant in contestants.items()}
        assert all(same(plans[str(n)], plans[str(threads[0])]) for n in threads)
        assert same_rows(plans["single"], plans[str(threads[0])])
    unique = len(plans["single"].keys)
    for contestant in contestants.values():
        contestant.keep_turns([])
    order = list(contestants.values())
    busy = []
    for turn in range(p.steps):
        neighbours = Neighbours()
        for contestant in order if turn % 2 else order[::-1]:
            contestant.step()
        busy.append(neighbours.cores())
    calm = [turn for turn in range(p.steps) if busy[turn] < CALM]
    turns = calm if len(calm) >= CALM_TURNS else list(range(p.steps))
    for contestant in order:
        contestant.keep_turns(turns)
    one = contestants[str(threads[0])]
    whole = statistics.median(contestants["single"].times)
    alone = statistics.median(one.times)
    table = Table()
    for column in ("threads", "step", "CPU", "over one thread", "over the single planner"):
        table.add_column(column, justify="left" if column == "threads" else "right")
    ratios: dict[str, dict[str, float]] = {}
    for name, contestant in contestants.items():
        mine = statistics.median(contestant.times)
        # Turn for turn, so that a busy moment meets all of them.
        ratios[name] = {
            "over_one_thread": _ratio(one.times, contestant.times),
            "over_single": _ratio(contestants["single"].times, contestant.times),
        }
        shown = [f"{ratio:.2f} x" for ratio in ratios[name].values()]
        cpu = statistics.median(contestant.cpu)
        table.add_row(name, f"{mine * 1e3:.1f} ms", f"{cpu * 1e3:.1f} ms", *shown)
    console.print(table)
    console.print(
        f"{p.tables * p.ids:,} ids, {unique:,} unique; {len(calm)} of {p.steps} turns were calm"
    )
    return {
        "ids": p.tables * p.ids,
        "unique": unique,
        "partitions": one.planner.num_partitions,
        "step_s": {name: spread(c.times) for name, c in contestants.items()},
        "cpu_s": {name: spread(c.cpu) for name, c in contestants.items()},
        "speedup": ratios,
        "one_thread_of_single": alone / whole,
        "calm_turns": len(calm),
        "neighbours_cores": spread([busy[turn] for turn in turns]),
        "overhead_bytes": {
            name: contestants[name].planner.overhead_bytes for name in ("single", str(threads[0]))
        },
    }


def _ratio(reference: list[float], mine: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(reference, mine, strict=True))


def hit_rates(p: Planning) -> dict[str, Any]:
    """Hits per access with and without partitions, on one skewed stream."""
    source = Zipf(p.hit_rows, p.exponent, 99)
    trace = Trace.from_ids(source.draw(p.hit_ids * p.hit_batches), batch=p.hit_ids)
    table = Table()
    for column in ("policy", "single", "partitioned", "difference"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    out = {}
    for policy in (*BASE_POLICIES, "lookahead"):
        rates = []
        for always in (False, True):
            with partitioned(always=always):
                rates.append(replay(trace, p.hit_slots, policy, 4, 2).total.hit_rate)
        out[policy] = {
            "single": rates[0],
            "partitioned": rates[1],
            "difference": rates[1] - rates[0],
        }
        shown = (f"{rate:.5f}" for rate in rates)
        table.add_row(policy, *shown, f"{rates[1] - rates[0]:+.5f}")
    console.print(table)
    return out


def main(
    quick: Annotated[bool, typer.Option(help="Small and short: says whether it works.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
) -> None:
    small: dict[str, Any] = {
        "rows": 50_000,
        "ids": 5000,
        "batches": 6,
        "warm_steps": 6,
        "steps": 8,
        "hit_rows": 100_000,
        "hit_slots": 2**14,
        "hit_ids": 4096,
        "hit_batches": 30,
    }
    p = Planning(**small if quick else {})
    cores = len(os.sched_getaffinity(0))
    threads = [n for n in (1, 2, 4, 8, 12, 16, 24, 32) if n < cores] + [cores]
    made = report("planning", asdict(p) | {"threads": threads})
    print_origin(made)
    made["steps"] = steps(p, threads)
    made["hit_rates"] = hit_rates(p)
    at = next((str(n) for n in threads if n >= CORES), None)
    speedup = made["steps"]["speedup"][at]["over_one_thread"] if at else None
    least = min(rates["difference"] for rates in made["hit_rates"].values())
    targets = [
        Target(f"a step on {CORES} cores over one core", SPEEDUP, speedup),
        Target("hit rate that partitions cost at most: room left", 0.0, 0.001 + least, ""),
    ]
    made["targets"] = [target.as_dict() for target in targets]
    write_json(json, made)
    print_targets(targets, not quick)


app.command(help=__doc__)(main)

if __name__ == "__main__":
    app()
