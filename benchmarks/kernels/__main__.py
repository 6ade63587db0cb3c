"""Every optimizer in memory, kernel by kernel: against FBGEMM CPU, torch, and memory bandwidth.

A step is forward, backward and fused update of one batch. Peers: FBGEMM's CPU kernels, and
``nn.EmbeddingBag(sparse=True)`` with the ``torch.optim`` class that takes sparse gradients, where
there is one, and with torch operations on the touched rows; each with one thread and with all. The
fastest counts. Results are compared before anything is timed; a mismatch ends with status 1. Needs
the ``cpu`` extra and a calm machine; about 25 minutes and 10 GB of memory. In a minute, to see that
everything works:

  python benchmarks/kernels --quick
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the folder of `benchmarks`

from typing import Annotated, Any

import torch
import typer

from benchmarks.kernels.cells import SKEWS, Cell, Copier, Tables, check, measure
from benchmarks.kernels.contestants import FORMS, TorchTable
from benchmarks.kernels.optimizers import ENTRIES
from benchmarks.kernels.summary import HEADLINE, draw, show_cell, show_summary, targets
from benchmarks.support.reports import console, print_origin, print_targets, report, write_json

DIMS, POOLINGS = "16,64,128,256", "1,20,100"
GRID_ROWS, HEADLINE_ROWS = 1_000_000, 4_000_000


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str, known: list[str], what: str) -> list[str]:
    names = text.split(",")
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise typer.BadParameter(f"no {what} {unknown}; choose of {','.join(known)}")
    return names


def _measure_all(
    cells: list[Cell], threads: int, rounds: int, budget_s: float
) -> list[dict[str, Any]]:
    """Cells of one dim and table size stand together, as do those of one optimizer."""
    copier = Copier(threads)
    done: list[dict[str, Any]] = []
    shared: TorchTable | None = None
    tables: Tables | None = None
    last: tuple[int, int, str] | None = None
    for number, cell in enumerate(cells, 1):
        if last is None or last[:2] != (cell.rows, cell.dim):
            shared = tables = None  # the old ones go before the new ones come
            shared = TorchTable(cell.rows, cell.dim)
        if last != (cell.rows, cell.dim, cell.optimizer):
            if tables is not None:
                tables.close()
            tables = None
            assert shared is not None
            tables = Tables(ENTRIES[cell.optimizer], shared, threads)
        last = (cell.rows, cell.dim, cell.optimizer)
        assert tables is not None
        torch.set_num_threads(threads)
        off = check(tables.entry, cell, threads)
        result = measure(tables, cell, copier, rounds, budget_s)
        done.append({**result, "deviation_of_tolerance": off})
        show_cell(result, f"{number}/{len(cells)}")
    if tables is not None:
        tables.close()
    return done


def main(
    optimizers: Annotated[str, typer.Option(help="Names of te.optim, with commas.")] = ",".join(
        ENTRIES
    ),
    dims: Annotated[str, typer.Option(help="Columns.")] = DIMS,
    poolings: Annotated[str, typer.Option(help="Ids in a bag.")] = POOLINGS,
    skews: Annotated[str, typer.Option(help="uniform, zipf (exponent 1.05).")] = ",".join(SKEWS),
    rows: Annotated[int, typer.Option(help="Rows of the grid's tables.")] = GRID_ROWS,
    headline_rows: Annotated[int, typer.Option(help="Rows of the headline's.")] = HEADLINE_ROWS,
    batch_size: Annotated[int, typer.Option(help="Bags in a batch.")] = 4096,
    rounds: Annotated[int, typer.Option(help="Turns that each contestant gets.")] = 5,
    budget_s: Annotated[float, typer.Option(help="Timed seconds of a cell, about.")] = 2.0,
    threads: Annotated[int, typer.Option(help="Threads of every contestant.")] = 2,
    headline_only: Annotated[bool, typer.Option(help="Not the grid.")] = False,
    quick: Annotated[bool, typer.Option(help="Small and short: says whether it works.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the ratios here (PNG).")] = None,
) -> None:
    if quick:
        rows = headline_rows = 100_000
        dims, poolings, rounds, budget_s = "64", "1,20", 3, 0.3
    full_size = (headline_rows, batch_size, threads) == (HEADLINE_ROWS, 4096, 2)
    names = _names(optimizers, list(ENTRIES), "optimizer")
    chosen_skews = _names(skews, list(SKEWS), "skew")
    parameters = {
        "optimizers": names,
        "dims": dims,
        "poolings": poolings,
        "skews": chosen_skews,
        "rows": rows,
        "headline_rows": headline_rows,
        "batch_size": batch_size,
        "rounds": rounds,
        "budget_s": budget_s,
        "threads": threads,
    }
    made = report("kernels", parameters)
    print_origin(made)
    made["forms"] = FORMS
    for form, meaning in FORMS.items():
        console.print(f"{form}: {meaning}")

    try:
        name, dim, pooling = HEADLINE
        cells = [Cell(name, dim, pooling, s, headline_rows, batch_size) for s in chosen_skews]
        made["headline"] = _measure_all(cells, threads, rounds + 4, 4 * budget_s)
        made["cells"] = []
        if not headline_only:
            grid = [
                Cell(name, dim, pooling, skew, rows, batch_size)
                for dim in _numbers(dims)
                for name in names
                for skew in chosen_skews
                for pooling in _numbers(poolings)
            ]
            made["cells"] = _measure_all(grid, threads, rounds, budget_s)
    except AssertionError as error:
        console.print(f"[red]results differ, nothing more is timed: {error}[/red]")
        sys.exit(1)
    found = targets(made["headline"], made["cells"])
    made["targets"] = [t.as_dict() for t in found]
    write_json(json, made)
    show_summary(made)
    print_targets(found, full_size and (headline_only or rows == GRID_ROWS))
    if picture is not None:
        draw(made["cells"], picture)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    app.command(help=__doc__)(main)
    app()
