"""``training in-memory``: every row in memory, against FBGEMM's CPU kernels and torch.

One process, two threads each, the same ids and output gradients. The contestants take turns in
rounds, so that a busy machine meets all of them alike; each turn begins with a few untimed batches.
Legend: ``N`` ids of a batch, ``U`` unique rows, ``B`` bags, ``D`` dim.
"""

import statistics
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from rich.table import Table

from benchmarks.support.machine import Neighbours
from benchmarks.support.reports import Target, console, spread
from benchmarks.training.parts import components
from benchmarks.training.tables import (
    FBGEMM,
    Contestant,
    Fbgemm,
    InMemory,
    Ours,
    Torch,
    gradient,
    id_batches,
)

__all__ = ["InMemory", "run", "show"]

TOLERANCE = 1e-5
CALM_CORES = 0.15
LOAD_ROWS = 1 << 18
CHECK_ROWS, CHECK_STEPS = 20_000, 5
LOOKAHEAD, DEPTH = 32, 2  # the module's defaults
OURS = f"tiered_embed, lookahead {LOOKAHEAD} depth {DEPTH}"  # the form that targets are held to


def _load(contestants: list[Contestant], p: InMemory, rows: int) -> None:
    """The same initial rows for everybody."""
    draw = torch.Generator().manual_seed(p.seed)
    for start in range(0, rows, LOAD_ROWS):
        weights = torch.empty(min(LOAD_ROWS, rows - start), p.dim).uniform_(
            -0.01, 0.01, generator=draw
        )
        for contestant in contestants:
            contestant.load(start, weights)


def check(p: InMemory) -> dict[str, float]:
    """Largest differences on a small table: to FBGEMM after training, to torch in the forward.

    Raises:
        AssertionError: one is beyond the tolerance; nothing is timed then.
    """
    rows = min(p.rows, CHECK_ROWS)
    batches = id_batches(p, rows)[:CHECK_STEPS]
    ours = Ours(p, rows, batches, lookahead=4, depth=1)
    bare = Ours(p, rows, batches, lookahead=4, depth=None)
    fbgemm = Fbgemm(p, rows, batches)
    reference = Torch(p, rows, batches)
    # A prefetched batch is planned when the loop is first asked for one: rows may still be loaded.
    _load([ours, bare, fbgemm, reference], p, rows)
    grad = gradient(p)
    off: dict[str, float] = {}

    def compare(what: str, a: torch.Tensor, b: torch.Tensor) -> None:
        off[what] = max(off.get(what, 0.0), float((a.detach() - b.detach()).abs().max()))

    for step in range(CHECK_STEPS):
        outs = [c.forward(c.next()) for c in (ours, bare, fbgemm)]
        compare("forward, to FBGEMM", outs[0], outs[2])
        compare("forward, prefetched to bare", outs[0], outs[1])
        if step == 0:
            compare("forward, to torch", outs[0], reference.forward(batches[0]))
        for contestant, out in zip((ours, bare, fbgemm), outs, strict=True):
            contestant.backward(out, grad)
    every = torch.arange(rows)
    trained = ours.rows(every)
    compare("trained rows, to FBGEMM", trained, fbgemm.rows(every))
    compare("trained rows, prefetched to bare", trained, bare.rows(every))
    for contestant in (ours, bare):
        contestant.close()
    wrong = {what: value for what, value in off.items() if not value <= TOLERANCE}
    assert not wrong, f"results differ by more than {TOLERANCE}: {wrong}"
    return off


def run(p: InMemory) -> dict[str, Any]:
    """Check, time, and take apart; returns everything measured."""
    torch.set_num_threads(p.threads)
    console.print(f"in memory: checking against FBGEMM on {min(p.rows, CHECK_ROWS)} rows")
    checked = check(p)
    batches = id_batches(p, p.rows)
    unique = [len(np.unique(batch.ids.numpy())) for batch in batches]
    contestants: list[Any] = [
        Ours(p, p.rows, batches, lookahead=4, depth=1),
        Ours(p, p.rows, batches, lookahead=LOOKAHEAD, depth=DEPTH),
        Ours(p, p.rows, batches, lookahead=0, depth=None),
        Fbgemm(p, p.rows, batches),
        Torch(p, p.rows, batches),
    ]
    console.print(f"in memory: loading {p.rows} rows into {len(contestants)} tables")
    _load(contestants, p, p.rows)
    if p.threads > 1:
        contestants.insert(4, contestants[3].single())
    timed = _time(p, contestants)
    torch.set_num_threads(p.threads)
    stats = [c.emb.stats().as_dict()["tiers"]["DDR"] for c in contestants if isinstance(c, Ours)]
    for contestant in contestants:
        contestant.close()
    del contestants
    console.print("in memory: timing planner and kernels alone")
    neighbours = Neighbours()
    parts = components(p, batches, float(np.mean(unique)))
    parts["neighbour_cores"] = neighbours.cores()
    result = {
        "parameters": asdict(p),
        "checked": checked,
        "unique_rows_per_batch": float(np.mean(unique)),
        "contestants": timed,
        "overhead_share": max(s["overhead_bytes"] / s["budget_bytes"] for s in stats),
        "components": parts,
    }
    result["targets"] = [t.as_dict() for t in targets(result)]
    return result


def _time(p: InMemory, contestants: list[Contestant]) -> dict[str, Any]:
    grad = gradient(p)
    rates: dict[str, list[float]] = {c.name: [] for c in contestants}
    forward: dict[str, list[float]] = {c.name: [] for c in contestants}
    backward: dict[str, list[float]] = {c.name: [] for c in contestants}
    neighbours: dict[str, list[float]] = {c.name: [] for c in contestants}
    for number in range(p.rounds):
        console.print(f"in memory: round {number + 1} of {p.rounds}")
        for contestant in contestants:
            # The slowest does fewer; a rate needs no more.
            count = max(2, p.batches // 4) if isinstance(contestant, Torch) else p.batches
            torch.set_num_threads(contestant.threads)
            begin, others = 0.0, Neighbours()
            for i in range(p.warm_batches + count):
                if i == p.warm_batches:
                    begin, others = time.perf_counter(), Neighbours()
                start = time.perf_counter()
                out = contestant.forward(contestant.next())
                middle = time.perf_counter()
                contestant.backward(out, grad)
                if i >= p.warm_batches:
                    forward[contestant.name].append(middle - start)
                    backward[contestant.name].append(time.perf_counter() - middle)
            elapsed = time.perf_counter() - begin
            neighbours[contestant.name].append(others.cores())
            rates[contestant.name].append(count * p.ids_per_batch / elapsed)

    def over(name: str, *peers: str) -> float:
        """Median over rounds of the ratio to the faster peer: one round met one machine."""
        best = [max(pair) for pair in zip(*(rates[peer] for peer in peers), strict=True)]
        return statistics.median(a / b for a, b in zip(rates[name], best, strict=True))

    fbgemm = [name for name in FBGEMM if name in rates]

    return {
        c.name: {
            "rows_per_s": spread(rates[c.name]),
            "rounds_rows_per_s": rates[c.name],
            "over_fbgemm": over(c.name, *fbgemm),
            "over_torch": over(c.name, Torch.name),
            "forward_s": spread(forward[c.name]),
            "backward_s": spread(backward[c.name]),
            "neighbour_cores": spread(neighbours[c.name]),
        }
        for c in contestants
    }


# --- the verdict ----------------------------------------------------------------------------------


def targets(result: dict[str, Any]) -> list[Target]:
    planner = next(iter(result["components"]["planner_ids_per_s"].values()))["median"]
    return [
        Target(
            "in memory: rows/s over FBGEMM CPU (the faster of its runs)",
            4.0,
            result["contestants"][OURS]["over_fbgemm"],
        ),
        Target("planner on one core, the batch of (a)", 15.0, planner / 1e6, "M ids/s"),
    ]


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    p = result["parameters"]
    title = (
        f"in memory: {p['rows']} rows x {p['dim']}, batch {p['batch_size']} x {p['pooling']}"
        f" log-uniform ids ({result['unique_rows_per_batch']:.0f} unique), {p['threads']} threads,"
        f" {p['rounds']} rounds"
    )
    table = Table(title=title, title_justify="left")
    for column in (
        "",
        "M rows/s",
        "min - max",
        "forward ms",
        "backward ms",
        "/ FBGEMM",
        "/ torch",
        "others' CPU",
    ):
        table.add_column(column, justify="right" if column else "left")
    for name, c in result["contestants"].items():
        rate = c["rows_per_s"]
        table.add_row(
            name,
            f"{rate['median'] / 1e6:.2f}",
            f"{rate['min'] / 1e6:.2f} - {rate['max'] / 1e6:.2f}",
            f"{c['forward_s']['median'] * 1e3:.2f}",
            f"{c['backward_s']['median'] * 1e3:.2f}",
            f"{c['over_fbgemm']:.2f}",
            f"{c['over_torch']:.2f}",
            f"{c['neighbour_cores']['median']:.2f}",
        )
    console.print(table)
    others = max(c["neighbour_cores"]["median"] for c in result["contestants"].values())
    if others > CALM_CORES:
        console.print(
            f"[yellow]other processes took up to {others:.1f} cores meanwhile: these ratios are not"
            " to be trusted[/yellow]"
        )
    parts = result["components"]
    title = f"parts, alone ({parts['isa']}; others took {parts['neighbour_cores']:.2f} cores)"
    table = Table(title=title, title_justify="left")
    for column in ("part", "ms a batch", "M ids/s"):
        table.add_column(column, justify="left" if column == "part" else "right")
    num_ids = p["batch_size"] * p["pooling"]
    for name, rate in parts["planner_ids_per_s"].items():
        ms = num_ids / rate["median"] * 1e3
        table.add_row(f"planner, {name}", f"{ms:.2f}", f"{rate['median'] / 1e6:.1f}")
    for name, by_threads in parts["kernels_s"].items():
        for threads, span in by_threads.items():
            ms = span["median"] * 1e3
            table.add_row(
                f"{name}, {threads} thread{'s'[: int(threads) - 1]}",
                f"{ms:.2f}",
                f"{num_ids / ms / 1e3:.1f}",
            )
    floor = parts["copy_floor_s"] * 1e3
    copied = parts["copy_bytes_per_s"][str(p["threads"])] / 1e9
    table.add_row(
        f"floor: its bytes at copy speed ({copied:.1f} GB/s)",
        f"{floor:.2f}",
        f"{num_ids / floor / 1e3:.1f}",
    )
    console.print(table)
    console.print(f"DDR overhead: {result['overhead_share']:.1%} of the budget")
