"""Hit rates of our eviction policies beside libCacheSim's and Belady's, on real id streams.

`python benchmarks/policies --json out.json --picture out.png`. Nothing is timed. A table per
trace: hit rate per access with slots for 1, 10 and 20 % of the ids. Ours are given per depth:
batches whose rows stay pinned while later ones are staged. "-": the pinned rows do not fit, or a
peer keeps nothing in so few slots.

Needs the extra `sim` and the traces in TIERED_EMBED_DATA.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the folder of `benchmarks`

from typing import Annotated, Any

import typer
from rich.progress import track
from rich.table import Table

from benchmarks.policies.runs import (
    DEPTHS,
    Stream,
    belady_of_accesses,
    belady_of_batches,
    check,
    our_variants,
    ours,
    peers,
    read_streams,
)
from benchmarks.support.reports import (
    Target,
    console,
    print_origin,
    print_targets,
    report,
    write_json,
)
from tiered_embed import traces

PERCENTS = (1, 10, 20)
Rates = list[float | None]  # by percent

# On Scarab, depth 0: (what, policy, window, wanted by percent).
WANTED = (
    ("a base policy alone (s3fifo)", "s3fifo", 0, (0.420, 0.625, 0.700)),
    ("lookahead, 64 batches", "lookahead:lfu", 64, (0.512, 0.685, 0.728)),
    ("lookahead, 256 batches", "lookahead:lfu", 256, (0.512, 0.748, 0.764)),
)


def measure(stream: Stream) -> dict[str, Any]:
    """All hit rates of one trace."""
    slots = [stream.slots(percent) for percent in PERCENTS]
    found: list[dict[str, Any]] = []
    for policy, window in track(our_variants(), f"{stream.name}: ours", console=console):
        rates = {d: [ours(stream, policy, s, window, d) for s in slots] for d in DEPTHS}
        found.append({"policy": policy, "window": window, "by_depth": rates})
    result = {
        "trace": stream.name,
        "accesses": stream.num_accesses,
        "rows": stream.num_rows,
        "ids_per_batch": stream.ids_per_batch,
        "slots": slots,
        "ours": found,
        "libcachesim": peers(stream, slots),
        "belady_of_batches": {d: [belady_of_batches(stream, s, d) for s in slots] for d in DEPTHS},
        "belady_of_accesses": [belady_of_accesses(stream, s) for s in slots],
    }
    nothing_beats_belady(result)
    return result


def nothing_beats_belady(result: dict[str, Any]) -> None:
    """A rate above the bound would be an error of counting."""
    for one in result["ours"]:
        for depth, rates in one["by_depth"].items():
            for rate, bound in zip(rates, result["belady_of_batches"][depth], strict=True):
                assert rate is None or rate <= bound + 1e-12, one
    for policy, rates in result["libcachesim"].items():
        for rate, bound in zip(rates, result["belady_of_accesses"], strict=True):
            assert rate is None or rate <= bound + 1e-12, policy


def show(result: dict[str, Any]) -> None:
    """Print one trace's table."""
    title = (
        f"{result['trace']}: {result['accesses']} accesses, {result['rows']} rows,"
        f" {result['ids_per_batch']} ids a batch"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("policy")
    table.add_column("window", justify="right")
    for percent in PERCENTS:
        table.add_column(f"{percent} %", justify="right")
    for percent in PERCENTS:
        table.add_column(f"{percent} %, depth {DEPTHS[1]}", justify="right")

    def cells(rates: Rates) -> list[str]:
        return ["-" if rate is None else f"{rate:.4f}" for rate in rates]

    for one in result["ours"]:
        window = str(one["window"] or "")
        both = [cell for depth in DEPTHS for cell in cells(one["by_depth"][depth])]
        table.add_row(one["policy"], window, *both)
    bounds = [cell for depth in DEPTHS for cell in cells(result["belady_of_batches"][depth])]
    table.add_row("Belady between batches", "all", *bounds, end_section=True)
    for policy, rates in result["libcachesim"].items():
        table.add_row(f"libCacheSim {policy}", "", *cells(rates))
    table.add_row("Belady at each access", "all", *cells(result["belady_of_accesses"]))
    console.print(table)


def targets(scarab: dict[str, Any]) -> list[Target]:
    """The rates that the project wants to reach on Scarab."""
    rates = {(one["policy"], one["window"]): one["by_depth"][0] for one in scarab["ours"]}
    return [
        Target(f"{what}, {percent} %", wanted, rates[policy, window][i], "")
        for what, policy, window, by_percent in WANTED
        for i, (percent, wanted) in enumerate(zip(PERCENTS, by_percent, strict=True))
    ]


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """One panel per trace and size: a dot per policy, the bounds as lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        len(results), len(PERCENTS), figsize=(15, 5.2 * len(results)), squeeze=False
    )
    for row, result in zip(panels, results, strict=True):
        for i, (axes, percent) in enumerate(zip(row, PERCENTS, strict=True)):
            lines = [(name, rates[i], "tab:gray") for name, rates in result["libcachesim"].items()]
            for one in result["ours"]:
                name = one["policy"] + (f" {one['window']}" if one["window"] else "")
                color = "tab:blue" if one["window"] else "tab:orange"
                lines.append((name, one["by_depth"][0][i], color))
            lines = sorted((line for line in lines if line[1] is not None), key=lambda x: x[1])
            names, rates, colors = zip(*lines, strict=True)
            axes.hlines(range(len(names)), min(rates), rates, color=colors, alpha=0.35)
            axes.scatter(rates, range(len(names)), c=colors, s=22)
            axes.set_yticks(range(len(names)), names, fontsize=7)
            for bound, style, label in (
                (result["belady_of_batches"][0][i], "--", "Belady between batches"),
                (result["belady_of_accesses"][i], ":", "Belady at each access"),
            ):
                axes.axvline(bound, color="black", linestyle=style, linewidth=1, label=label)
            axes.set_title(f"{result['trace']}: slots for {percent} % of the rows", fontsize=10)
            axes.set_xlabel("hit rate per access", fontsize=9)
            axes.grid(axis="x", alpha=0.3)
    panels[0][0].legend(fontsize=7, loc="lower right")
    figure.suptitle(
        "blue: ours, with the window in batches; orange: ours without; grey: libCacheSim, which"
        " evicts at each access",
        fontsize=11,
    )
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    console.print(f"written: {path}")


def main(
    batch_size: Annotated[int, typer.Option(min=1, help="Ids of a batch of Scarab.")] = 1024,
    check_ins: Annotated[int, typer.Option(min=1, help="Check-ins of a batch, 4 ids each.")] = 12,
    json: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the rates here (PNG).")] = None,
) -> None:
    root = traces.data_root()
    if root is None:
        console.print(f"[red]set {traces.DATA_VARIABLE} to the folder of the traces[/red]")
        sys.exit(1)
    made = report("policies", {"batch_size": batch_size, "check_ins": check_ins})
    print_origin(made)
    streams = read_streams(root, batch_size, check_ins)
    made["results"] = []
    try:
        for stream in streams:
            check(stream)
            made["results"].append(measure(stream))
            show(made["results"][-1])
    except AssertionError as error:
        console.print(f"[red]the two sides count differently: {error}[/red]")
        sys.exit(1)
    found = targets(made["results"][0])
    made["targets"] = [t.as_dict() for t in found]
    write_json(json, made)
    print_targets(found, batch_size == 1024)
    if picture is not None:
        draw(made["results"], picture)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    app.command(help=__doc__)(main)
    app()
