"""Evaluation beside ``nn.EmbeddingBag``, and beside the same loop in training.

``memory``: a forward under ``no_grad`` with all rows in memory, for several dims and bag sizes.
``below``: one cache over a store of trained rows: training, evaluation, and evaluation under
``te.prefetch``, over one stream of ids. Contestants take turns; figures are medians.

  python benchmarks/evaluation memory
  python benchmarks/evaluation below --rows 1000000 --cache 0.1
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the folder of `benchmarks`

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

import tiered_embed as te
from benchmarks.support.reports import (
    Target,
    console,
    print_origin,
    print_targets,
    report,
    write_json,
)

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


def in_turns(calls: dict[str, Callable[[int], object]], budget_s: float) -> dict[str, float]:
    """Median seconds of a call of each contestant; a call gets the number of its turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + budget_s
    turn = 0
    while time.perf_counter() < end or turn < 8:
        for name, call in calls.items():
            start = time.perf_counter()
            call(turn)
            times[name].append(time.perf_counter() - start)
        turn += 1
    return {name: statistics.median(mine[3:]) for name, mine in times.items()}


def memory_cell(rows: int, dim: int, bags: int, ids: int, budget_s: float) -> dict[str, Any]:
    """One dim and bag size, every row in memory."""
    weights = torch.randn(rows, dim)
    ours = te.TieredEmbeddingBag(
        rows, dim, mode="sum", tiers=te.Tiers(ddr=rows * dim * 8), optimizer=te.optim.SGD(lr=0.01)
    )
    ours.load_rows(torch.arange(rows), weights)
    theirs = torch.nn.EmbeddingBag.from_pretrained(weights, mode="sum")
    ours.eval()
    rng = np.random.default_rng(0)
    batches = [torch.from_numpy(rng.integers(0, rows, (bags, ids))) for _ in range(8)]
    with torch.no_grad():
        torch.testing.assert_close(ours(batches[0]), theirs(batches[0]), rtol=1e-5, atol=1e-4)
        seconds = in_turns(
            {
                "ours": lambda turn: ours(batches[turn % 8]),
                "torch": lambda turn: theirs(batches[turn % 8]),
            },
            budget_s,
        )
    ours.close()
    return {"dim": dim, "ids_per_bag": ids, **seconds, "ratio": seconds["torch"] / seconds["ours"]}


def the_loop(module: Any, batches: list[torch.Tensor], *, training: bool, prefetch: bool) -> float:
    """Seconds for one pass over the batches."""
    module.train(training)
    grad = torch.ones(len(batches[0]), module.embedding_dim)
    start = time.perf_counter()
    with torch.set_grad_enabled(training):
        source: Iterator[torch.Tensor] = iter(batches)
        for ids in te.prefetch(source, module, ids=lambda i: {module: i}) if prefetch else source:
            out = module(ids)
            if training:
                out.backward(grad)
    return time.perf_counter() - start


@app.command()
def memory(
    rows: Annotated[int, typer.Option(help="Rows of the table.")] = 1_000_000,
    dims: Annotated[str, typer.Option(help="Dims, comma-separated.")] = "32,64,128",
    ids: Annotated[str, typer.Option(help="Ids a bag, comma-separated.")] = "1,4,20,100",
    bags: Annotated[int, typer.Option(help="Bags a batch.")] = 4096,
    seconds: Annotated[float, typer.Option(help="Time for a cell.")] = 4.0,
    json: Annotated[Path | None, typer.Option(help="Where the report goes.")] = None,
) -> None:
    """Forward under no_grad beside nn.EmbeddingBag, every row in memory."""
    made = report("evaluation in memory", {"rows": rows, "bags": bags})
    print_origin(made)
    cells = []
    table = Table("D", "ids a bag", "ours, ms", "nn.EmbeddingBag, ms", "ratio")
    for dim in map(int, dims.split(",")):
        for n in map(int, ids.split(",")):
            cell = memory_cell(rows, dim, bags, n, seconds)
            cells.append(cell)
            table.add_row(
                str(dim),
                str(n),
                f"{1e3 * cell['ours']:.3f}",
                f"{1e3 * cell['torch']:.3f}",
                f"{cell['ratio']:.2f}",
            )
    console.print(table)
    targets = [Target("worst cell beside nn.EmbeddingBag", 1.2, min(c["ratio"] for c in cells))]
    print_targets(targets, full_size=rows == 1_000_000)
    write_json(json, {**made, "cells": cells, "targets": [t.as_dict() for t in targets]})


@app.command()
def below(
    rows: Annotated[int, typer.Option(help="Rows of the table.")] = 1_000_000,
    dim: Annotated[int, typer.Option(help="Dim.")] = 64,
    cache: Annotated[float, typer.Option(help="Share of the rows that DDR holds.")] = 0.1,
    bags: Annotated[int, typer.Option(help="Bags a batch.")] = 1024,
    ids: Annotated[int, typer.Option(help="Ids a bag.")] = 20,
    steps: Annotated[int, typer.Option(help="Batches a pass.")] = 60,
    rounds: Annotated[int, typer.Option(help="Passes of each contestant.")] = 3,
    direct: Annotated[bool, typer.Option(help="Reads bypass the page cache.")] = True,
    json: Annotated[Path | None, typer.Option(help="Where the report goes.")] = None,
) -> None:
    """Rows/s of training, evaluation and prefetched evaluation over a store on disk."""
    made = report("evaluation over a store", {k: v for k, v in locals().items() if k != "json"})
    print_origin(made)
    rng = np.random.default_rng(0)
    batches = [torch.from_numpy(rng.integers(0, rows, (bags, ids))) for _ in range(steps)]
    ways = {
        "training": {"training": True, "prefetch": False},
        "evaluation": {"training": False, "prefetch": False},
        "training, prefetched": {"training": True, "prefetch": True},
        "evaluation, prefetched": {"training": False, "prefetch": True},
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        module = te.TieredEmbeddingBag(
            rows,
            dim,
            mode="sum",
            tiers=te.Tiers(ddr=int(cache * rows) * (4 * dim + 4), ssd=folder, direct_io=direct),
            optimizer=te.optim.RowWiseAdagrad(lr=0.01),
        )
        for start in range(0, rows, 200_000):
            part = torch.arange(start, min(rows, start + 200_000))
            module.load_rows(part, torch.randn(len(part), dim))
        module.flush()
        for _ in range(rounds):
            for name, way in ways.items():
                times[name].append(the_loop(module, batches, **way))
        module.close()
    rates = {name: bags * ids * steps / statistics.median(t) for name, t in times.items()}
    table = Table("loop", "ids/s")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:,.0f}")
    console.print(table)
    targets = [
        Target("evaluation over training", 1.0, rates["evaluation"] / rates["training"]),
        Target(
            "prefetched evaluation over prefetched training",
            1.0,
            rates["evaluation, prefetched"] / rates["training, prefetched"],
        ),
        Target(
            "prefetched evaluation over plain",
            1.5,
            rates["evaluation, prefetched"] / rates["evaluation"],
        ),
    ]
    print_targets(targets, full_size=True)
    write_json(json, {**made, "rates": rates, "targets": [t.as_dict() for t in targets]})


if __name__ == "__main__":
    app()
