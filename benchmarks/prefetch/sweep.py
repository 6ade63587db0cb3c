"""The sweeps of the prefetch benchmark: one setting varies at a time around a base, on one store.

Each point trains through ``tiered_embed.bench`` and stands beside two bounds: a step lasts at
least as long as it takes to compute (measured with every row in memory), and, past the page cache,
as long as the disk takes to read the rows that the step stages, at its own random-read rate.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

import tiered_embed as te
from benchmarks.support.machine import disk_random_reads
from benchmarks.support.reports import console
from tiered_embed.bench import BenchOptions, BenchResult, engine_options, run
from tiered_embed.bench.report import shares

__all__ = ["Sweep", "draw", "run_sweep", "show"]

RECORD_STATE_FLOATS = 1  # row-wise Adagrad
MEMORY = "64GiB"
LOG_FROM = 8  # times between the least and the most


@dataclass(frozen=True)
class Sweep:
    """What varies: ``shares`` of the rows that DDR holds in percent, ``depths``, ``windows``.

    base: (share, depth, window) of the points where another one varies.
    """

    name: str
    options: BenchOptions
    direct_io: bool
    shares: Sequence[float]
    depths: Sequence[int | str]
    windows: Sequence[int]
    base: tuple[float, int | str, int]

    def points(self) -> list[tuple[str, float, int | str, int]]:
        """(what varies, share, depth, window)."""
        share, depth, window = self.base
        return [
            *(("share", s, depth, window) for s in self.shares),
            *(("depth", share, d, window) for d in self.depths),
            *(("window", share, min_depth(depth, w), w) for w in self.windows),
        ]


def min_depth(depth: int | str, window: int) -> int | str:
    """Only batches in the window can be staged."""
    return depth if depth == "auto" else min(int(depth), window)


def run_sweep(sweep: Sweep, parent: Path) -> dict[str, Any]:
    """Every point of a sweep, with its bounds."""
    record_bytes = 4 * (sweep.options.dim + RECORD_STATE_FLOATS)
    rows = sweep.options.rows_per_table * sweep.options.tables
    parent.mkdir(parents=True, exist_ok=True)
    in_memory = engine_options(te.Tiers(ddr=MEMORY))
    memory = replace(sweep.options, engine=in_memory, materialise=True, fill=False)
    console.print(f"{sweep.name}: every row in memory")
    inside = [run(memory)]
    results: list[tuple[dict[str, Any], BenchResult]] = []
    out: dict[str, Any] = {
        "name": sweep.name,
        "direct_io": sweep.direct_io,
        "base": sweep.base,
        "options": {
            f.name: getattr(sweep.options, f.name)
            for f in fields(sweep.options)
            if f.name not in ("engine", "trace")
        }
        | {
            name: getattr(sweep.options.engine, name)
            for name in ("policy", "num_threads", "device", "kernel", "seed")
        },
    }
    with tempfile.TemporaryDirectory(dir=parent, prefix="tiered-embed-prefetch-") as scratch:
        reads: float | None = None
        for what, share, depth, window in sweep.points():
            ddr = max(record_bytes, int(rows * record_bytes * share / 100))
            options = replace(
                sweep.options,
                engine=engine_options(
                    te.Tiers(ddr=ddr, ssd=scratch, direct_io=sweep.direct_io),
                    depth=depth,
                    lookahead=window,
                ),
                materialise=True,
                fill=True,
            )
            result = run(options)
            if reads is None and sweep.direct_io:
                reads = _disk_reads(Path(scratch))
                out["disk_reads_per_s"] = reads
            at = {"varies": what, "share": share, "depth": depth, "window": window}
            results.append((at, result))
            console.print(
                f"  {what:6} share {share:g} %, depth {depth}, window {window}: "
                f"{1e3 * result.seconds / result.steps:.1f} ms a step, "
                f"hit rate {result.hit_rate:.3f}"
            )
    # Before and after: the machine may have changed meanwhile.
    inside.append(run(memory))
    compute_s = sum(r.seconds for r in inside) / sum(r.steps for r in inside)
    out["in_memory"] = [_point(r, compute_s, None) for r in inside]
    out["points"] = [at | _point(result, compute_s, reads) for at, result in results]
    return out


def _disk_reads(store: Path) -> float:
    largest = max(store.rglob("*.sst"), key=lambda path: path.stat().st_size)
    return float(disk_random_reads(largest, 5.0)["reads_per_s"])


def _point(result: BenchResult, compute_s: float, reads: float | None) -> dict[str, Any]:
    # The mean: a rare long stall is throughput lost all the same.
    step_s = result.seconds / result.steps
    io_s = 0.0 if reads is None else result.stats.tiers["DDR"].staged / result.steps / reads
    return {
        "step_s": step_s,
        "ids_per_s": result.ids_per_s,
        "staged_per_s": result.staged_per_s,
        "hit_rate": result.hit_rate,
        "compute_s": compute_s,
        "io_s": io_s,
        "of_in_memory": compute_s / step_s,
        "of_bound": max(compute_s, io_s) / step_s,
        "shares": shares(result),
        "final_depth": result.stats.depth,
    }


def show(sweep: dict[str, Any]) -> None:
    """One table a sweep."""
    inside = " and ".join(f"{1e3 * p['step_s']:.1f}" for p in sweep["in_memory"])
    title = f"{sweep['name']}: {inside} ms a step in memory, before and after"
    if "disk_reads_per_s" in sweep:
        title += f", disk {sweep['disk_reads_per_s']:,.0f} random 4 KiB reads/s"
    table = Table(title=title, title_justify="left")
    for column in (
        *("DDR share", "depth", "window", "ms a step", "hit rate", "staged/s"),
        *("waiting", "of in memory", "of the bound"),
    ):
        table.add_column(column, justify="right")
    last = None
    for p in sweep["points"]:
        if last is not None and p["varies"] != last:
            table.add_section()
        last = p["varies"]
        table.add_row(
            *(f"{p['share']:g} %", str(p["depth"]), str(p["window"]), f"{1e3 * p['step_s']:.1f}"),
            *(f"{p['hit_rate']:.3f}", f"{p['staged_per_s']:,.0f}", f"{p['shares']['wait']:.0%}"),
            *(f"{p['of_in_memory']:.2f}", f"{p['of_bound']:.2f}"),
        )
    console.print(table)


def draw(sweeps: Sequence[dict[str, Any]], path: Path) -> None:
    """One row a sweep: throughput against share, depth and window, with the bound."""
    figure = Figure(figsize=(11, 3.1 * len(sweeps)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(sweeps), 3, squeeze=False)
    for axes, sweep in zip(rows, sweeps, strict=True):
        for axis, what in zip(axes, ("share", "depth", "window"), strict=True):
            points = [p for p in sweep["points"] if p["varies"] == what]
            at = range(len(points))
            ids = [p["ids_per_s"] * p["step_s"] / 1e3 for p in points]
            bounds = [n / max(p["compute_s"], p["io_s"]) for n, p in zip(ids, points, strict=True)]
            axis.plot(
                at,
                bounds,
                color="#888888",
                linestyle="--",
                label="bound: max(compute, disk reads)",
            )
            axis.plot(
                at,
                [p["ids_per_s"] / 1e3 for p in points],
                color="#33658a",
                marker="o",
                label="tiered_embed",
            )
            axis.set_xticks(list(at), [f"{p[what]}" for p in points])
            if max(bounds) > LOG_FROM * min(bounds):
                axis.set_yscale("log")
            else:
                axis.set_ylim(0, 1.15 * max(bounds))
            axis.set_xlabel(
                {"share": "DDR, % of rows", "window": "window, batches"}.get(what, what)
            )
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylabel("k ids/s")
        axes[0].set_title(sweep["name"], loc="left", fontsize=10)
        axes[1].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)
