"""What is printed: a line for each cell, a summary by optimizer, targets, a picture."""

import statistics
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.kernels.contestants import BARE, KERNELS
from benchmarks.kernels.optimizers import ENTRIES
from benchmarks.support.reports import Target, console

__all__ = ["HEADLINE", "draw", "show_cell", "show_summary", "targets"]

HEADLINE = ("RowWiseAdagrad", 128, 20)
HEADLINE_RATIO, SHARED_RATIO, TORCH_RATIO, FLOOR_SHARE = 5.0, 3.0, 10.0, 0.5
FLOOR_DIM = 64
CALM_CORES = 0.15


def show_cell(cell: dict[str, Any], number: str) -> None:
    seconds, best = cell["seconds"], cell["best_peer"]
    console.print(
        f"{number} {cell['optimizer']} D={cell['dim']} pooling {cell['pooling']} {cell['skew']}"
        f" ({cell['rows']} rows, {cell['unique_rows']:.0f} unique):"
        f" bare {seconds[BARE] * 1e3:.2f} ms, kernels {seconds[KERNELS] * 1e3:.2f} ms,"
        f" {best} {seconds[best] * 1e3:.2f} ms;"
        f" {cell['ratio'][BARE]:.2f} x, kernels {cell['ratio'][KERNELS]:.2f} x;"
        f" floor {cell['floor_share'][BARE]:.0%}, kernels {cell['floor_share'][KERNELS]:.0%}"
        + (
            f" [yellow](others took {cell['neighbour_cores']:.1f} cores)[/yellow]"
            if cell["neighbour_cores"] > CALM_CORES
            else ""
        )
    )


def _wanted(optimizer: str) -> float:
    return TORCH_RATIO if ENTRIES[optimizer].fbgemm is None else SHARED_RATIO


def targets(headline: list[dict[str, Any]], cells: list[dict[str, Any]]) -> list[Target]:
    """Every target holds for the worst cell."""
    name, dim, pooling = HEADLINE
    out = [
        Target(
            f"headline {name} D={dim} pooling {pooling} {cell['skew']}, {cell['rows']} rows",
            HEADLINE_RATIO,
            cell["ratio"][BARE],
        )
        for cell in headline
    ]
    for optimizer, own in _by_optimizer(cells).items():
        peer = (
            "torch, FBGEMM CPU lacks it" if ENTRIES[optimizer].fbgemm is None else "FBGEMM, torch"
        )
        worst = min(c["ratio"][BARE] for c in own)
        out.append(Target(f"{optimizer} over its best peer ({peer})", _wanted(optimizer), worst))
    wide = [c for c in [*headline, *cells] if c["dim"] >= FLOOR_DIM]
    if wide:
        share = min(c["floor_share"][KERNELS] for c in wide)
        what = f"kernels: share of the floor at copy bandwidth, D >= {FLOOR_DIM}"
        out.append(Target(what, FLOOR_SHARE * 100, share * 100, "%"))
    return out


def _by_optimizer(cells: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        out.setdefault(cell["optimizer"], []).append(cell)
    return out


def _extremes(values: list[float]) -> str:
    return f"{min(values):.2f} / {statistics.median(values):.2f} / {max(values):.2f}"


def show_summary(made: dict[str, Any]) -> None:
    """By optimizer: min / median / max over its cells, headline first."""
    copied = [c["copy_bytes_per_s"] for c in [*made["headline"], *made["cells"]]]
    console.print(
        "floor: bytes that must move (each unique row read once by the forward, read and written"
        " with its state by the update; outputs written, gradients read) over the copy bandwidth of"
        f" the same round; {min(copied) / 1e9:.1f} to {max(copied) / 1e9:.1f} GB/s, read plus"
        " written"
    )
    everything = [*made["headline"], *made["cells"]]
    disturbed = sum(c["neighbour_cores"] > CALM_CORES for c in everything)
    if disturbed:
        console.print(
            f"[yellow]other processes took more than {CALM_CORES} cores in {disturbed} of"
            f" {len(everything)} cells: these ratios are not to be trusted[/yellow]"
        )
    table = Table(title="min / median / max over cells", title_justify="left")
    for column in ("", "bare / best peer", "kernels / best peer", "bare / torch", "wanted"):
        table.add_column(column, justify="right" if column else "left")
    table.add_column(f"min floor share, D >= {FLOOR_DIM}: bare, kernels", justify="right")
    groups = [("headline", made["headline"], HEADLINE_RATIO)]
    groups += [(n, own, _wanted(n)) for n, own in _by_optimizer(made["cells"]).items()]
    for name, own, wanted in groups:
        worst = min(c["ratio"][BARE] for c in own)
        wide = [c for c in own if c["dim"] >= FLOOR_DIM]
        shares = "-"
        if wide:
            low = [min(c["floor_share"][form] for c in wide) for form in (BARE, KERNELS)]
            shares = f"{low[0]:.0%}, {low[1]:.0%}"
        table.add_row(
            name,
            _extremes([c["ratio"][BARE] for c in own]),
            _extremes([c["ratio"][KERNELS] for c in own]),
            _extremes([c["ratio_torch"] for c in own]),
            f"{wanted:g} x " + ("[green]met[/green]" if worst >= wanted else "[red]missed[/red]"),
            shares,
        )
    console.print(table)


def draw(cells: list[dict[str, Any]], path: Path) -> None:
    """A map of the bare form's ratio to the best peer: optimizers by shapes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    rows = list(_by_optimizer(cells))
    shapes = sorted({(c["skew"], c["dim"], c["pooling"]) for c in cells})
    values = {(c["optimizer"], c["skew"], c["dim"], c["pooling"]): c["ratio"][BARE] for c in cells}
    grid = [[values.get((name, *shape), float("nan")) for shape in shapes] for name in rows]
    figure, axes = plt.subplots(figsize=(2 + 0.5 * len(shapes), 2 + 0.4 * len(rows)))
    image = axes.imshow(grid, norm=LogNorm(1, 20), cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(shapes)), [f"{s} D={d} L={p}" for s, d, p in shapes], rotation=90)
    axes.set_yticks(range(len(rows)), rows)
    for y, line in enumerate(grid):
        for x, value in enumerate(line):
            axes.text(x, y, f"{value:.1f}", ha="center", va="center", color="white", fontsize=7)
    figure.colorbar(image, label="times the best peer's speed, bare")
    figure.savefig(path, bbox_inches="tight", dpi=120)
    console.print(f"drawn: {path}")
