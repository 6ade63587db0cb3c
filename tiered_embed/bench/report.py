"""How a benchmark's result is shown: tables, a stacked bar in the terminal, a stacked chart.

Nothing is measured here. Phases are named as in ``Stats.phases``.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..simulate import ReplayResult
from ..spec import PhaseTimes
from .measuring import BenchResult

__all__ = ["as_dict", "draw", "show"]

TRAINER = ("wait", "lookup", "update")
BACKGROUND = ("plan", "evict", "read", "fill", "write", "back_pressure")
MEANING = {
    "wait": "waiting for rows",
    "lookup": "pooling rows",
    "update": "applying gradients to rows",
    "rest": "the model and the loader",
    "plan": "choosing rows to stage and to evict",
    "evict": "copying changed rows out",
    "read": "reading from the tier below",
    "fill": "putting rows into their slots",
    "write": "writing to the tier below",
    "back_pressure": "plans that wait for writes",
}
COLOURS = {"wait": "red", "lookup": "green", "update": "blue", "rest": "bright_black"}
CHART_COLOURS = {"wait": "#c1432e", "lookup": "#3f8f5f", "update": "#33658a", "rest": "#b9b9b9"}
COUNTS = (
    *("lookups", "unique", "hits", "misses", "staged", "evicted", "written_back", "overflow"),
    *("bytes_in", "bytes_out"),
)
BAR_CELLS = 60
CHART_BINS = 100


def as_dict(result: BenchResult) -> dict[str, Any]:
    """The result as plain data."""
    options, engine = result.options, result.options.engine
    return {
        "steps": result.steps,
        "seconds": result.seconds,
        "ids_per_s": result.ids_per_s,
        "staged_per_s": result.staged_per_s,
        "hit_rate": result.hit_rate,
        "depth": result.stats.depth,
        "options": {
            name: getattr(options, name)
            for name in (
                *("rows", "tables", "dim", "batch_size", "pooling", "distribution", "exponent"),
                *("model", "warm_steps"),
            )
        }
        | {n: getattr(engine, n) for n in ("policy", "lookahead", "depth", "seed", "kernel")}
        | {"hbm_bytes": engine.tiers.hbm, "ddr_bytes": engine.tiers.ddr}
        | {"direct_io": engine.tiers.direct_io},
        "step_shares": shares(result),
        "stats": result.stats.as_dict(),
        **_comparison(result),
    }


def _comparison(result: BenchResult) -> dict[str, Any]:
    if result.simulated is None or result.differences is None:
        return {}
    return {
        "simulated": result.simulated.as_dict(),
        "differences": [asdict(difference) for difference in result.differences],
        "not_compared": [list(pair) for pair in result.not_compared],
        "simulate_s": result.simulate_s,
    }


def shares(result: BenchResult) -> dict[str, float]:
    """The share of the trainer's time that each of its phases took; ``rest`` is the model's."""
    phases = result.stats.phases
    out = {n: phases[n].total_s / result.seconds if n in phases else 0.0 for n in TRAINER}
    return {**out, "rest": max(0.0, 1.0 - sum(out.values()))}


def show(console: Console, result: BenchResult) -> None:
    """Prints rates, the phases of a step, those in the background, and the tables."""
    topmost = result.stats.topmost
    console.print(
        f"{result.ids_per_s:,.0f} ids/s, {result.steps / result.seconds:,.1f} steps/s, "
        f"hit rate {result.hit_rate:.3f}, {result.staged_per_s:,.0f} rows staged/s, "
        f"{topmost.written_back / result.seconds:,.0f} written back/s, depth {result.stats.depth}"
    )
    console.print(_phases(result))
    console.print(_bar(shares(result)))
    if len(result.stats.tables) > 1:
        console.print(_tables(result))
    if result.simulated is not None:
        console.print(_simulation(result, result.simulated))
        console.print(_verdict(result), soft_wrap=True)


def _simulation(result: BenchResult, simulated: ReplayResult) -> Table:
    """The counts of the timed steps, measured and simulated."""
    wrong = {(d.where, d.count) for d in result.differences or []}
    table = Table(title="timed steps: measured and simulated", title_justify="left")
    table.add_column("count")
    for name in result.stats.tiers:
        table.add_column(name, justify="right")
        table.add_column("simulated", justify="right")
    for count in COUNTS:
        cells = []
        for name, ran in result.stats.tiers.items():
            cells.append(f"{getattr(ran, count):,}")
            unknown = (name, count) in result.not_compared
            cells.append("-" if unknown else f"{getattr(simulated.tiers[name], count):,}")
        style = "red" if any((name, count) in wrong for name in result.stats.tiers) else ""
        table.add_row(count.replace("_", " "), *cells, style=style)
    return table


def _verdict(result: BenchResult) -> str:
    differences = result.differences or []
    verdict = "all counts are equal, by tier and table"
    if differences:
        verdict = f"{len(differences)} counts differ: " + "; ".join(
            f"{d.where} {d.count}: {d.measured:,} measured, {d.simulated:,} simulated"
            for d in differences[:5]
        )
    if result.not_compared:
        verdict += (
            "; the store held rows before, which a simulation does not know, so its hits and misses"
            " are not compared"
        )
    return f"{verdict} (simulated in {result.simulate_s:.2f} s)"


def _phases(result: BenchResult) -> Table:
    table = Table(title="where a step's time goes", title_justify="left")
    for column in ("phase", "", "ms per step", "share", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(column, justify="left" if column in ("phase", "") else "right")
    phases = result.stats.phases
    for name in TRAINER:
        _row(table, name, phases.get(name), result)
    rest = shares(result)["rest"]
    table.add_row(
        *("rest", MEANING["rest"], f"{1e3 * rest * result.seconds / result.steps:.2f}"),
        f"{rest:.1%}",
    )
    if "step" in phases:
        step = phases["step"]
        table.add_row(
            *("step", "", f"{1e3 * result.seconds / result.steps:.2f}", "100.0%"),
            *(f"{1e3 * s:.2f}" for s in (step.p50_s, step.p95_s, step.p99_s)),
            end_section=True,
        )
    for name in BACKGROUND:
        _row(table, name, phases.get(name), result)
    return table


def _row(table: Table, name: str, times: PhaseTimes | None, result: BenchResult) -> None:
    if times is None:
        return
    table.add_row(
        name,
        MEANING[name],
        f"{1e3 * times.total_s / result.steps:.2f}",
        f"{times.total_s / result.seconds:.1%}",
        *(f"{1e3 * s:.2f}" for s in (times.p50_s, times.p95_s, times.p99_s)),
    )


def _bar(parts: dict[str, float]) -> RenderableType:
    bar, legend = Text(), Text()
    ends = [round(BAR_CELLS * end) for end in itertools.accumulate(parts.values())]
    for (name, share), start, end in zip(parts.items(), [0, *ends], ends, strict=False):
        bar.append("█" * (end - start), style=COLOURS[name])
        legend.append("■ ", style=COLOURS[name]).append(f"{name} {share:.0%}   ")
    return Group(bar, legend)


def _tables(result: BenchResult) -> Table:
    table = Table(title="tables", title_justify="left")
    for column in ("table", "lookups", "hit rate", "staged", "written back", "waited, s"):
        table.add_column(column, justify="left" if column == "table" else "right")
    for name, c in sorted(result.stats.tables.items(), key=lambda item: -item[1].stall_s):
        table.add_row(
            *(name, f"{c.lookups:,}", f"{1 - c.misses / max(1, c.lookups):.3f}"),
            *(f"{c.staged:,}", f"{c.written_back:,}", f"{c.stall_s:.3f}"),
        )
    return table


def draw(result: BenchResult, path: Path) -> None:
    """Draws the trainer's time of every step, stacked by phase (PNG)."""
    samples = {
        "wait": result.waits_s,
        "lookup": result.lookups_s,
        "update": result.updates_s,
        "step": result.spans_s,
    }
    count = min(len(values) for values in samples.values())
    newest = {name: np.array(values[len(values) - count :]) for name, values in samples.items()}
    own = newest["wait"] + newest["lookup"] + newest["update"]
    newest["rest"] = np.maximum(newest.pop("step") - own, 0.0)
    edges = np.linspace(0, count, min(CHART_BINS, count) + 1).astype(int)[:-1]
    widths = np.diff([*edges, count])
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot()
    bottom = np.zeros(len(edges))
    for name in ("rest", "lookup", "update", "wait"):
        means = 1e3 * np.add.reduceat(newest[name], edges) / widths
        axes.bar(
            edges,
            means,
            width=widths,
            bottom=bottom,
            align="edge",
            color=CHART_COLOURS[name],
            label=f"{name}: {MEANING[name]}",
        )
        bottom += means
    axes.set(xlabel="step", ylabel="ms", xlim=(0, count))
    axes.set_title(
        f"{result.options.model}, {result.ids_per_s:,.0f} ids/s, hit rate {result.hit_rate:.3f}, "
        f"depth {result.stats.depth}",
        loc="left",
        fontsize=10,
    )
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=130)
