"""Prefetching: what a small cache costs when I/O can be hidden, and when it cannot.

``compute``: a DLRM with its MLPs, throughput against cache share, depth and window, beside the
same model with every row in memory. ``ssd``: an embedding alone past the page cache, beside the
disk's own random reads. ``peers``: the same kind of training, a table ten times the DDR tier,
against a memory-mapped tensor and rocksdb-py under one memory limit. ``all``: everything.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the folder of `benchmarks`

import statistics
from typing import Annotated, Any

import torch
import typer

import tiered_embed as te
from benchmarks.prefetch.sweep import Sweep, draw, run_sweep, show
from benchmarks.support.reports import (
    Target,
    console,
    print_origin,
    print_targets,
    report,
    write_json,
)
from benchmarks.training import beyond_memory as beyond
from tiered_embed.bench import BenchOptions, engine_options

__all__ = ["app"]

DISK_SHARE, OVER_MMAP, OVER_ROCKSDB_PY, OF_IN_MEMORY = 0.7, 50.0, 10.0, 0.9
BASE_SHARE = 20.0

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", help=__doc__)
Directory = Annotated[Path, typer.Option("--dir", help="Where the stores go (4 to 25 GB).")]
Json = Annotated[Path | None, typer.Option(help="Write the report here.")]
Picture = Annotated[Path | None, typer.Option(help="Draw the sweeps here (PNG).")]
Quick = Annotated[bool, typer.Option(help="Small and short: says whether it works.")]
TMP = Path("/var/tmp")


def compute_sweep(quick: bool, direct_io: bool) -> Sweep:
    """MLPs of 17 MFLOP an example forward: where dense layers, not embeddings, are the bound.

    Without direct I/O the store's 680 MB stay in the page cache: a miss costs CPU time alone.
    """
    small = {"rows": 26_000, "batch_size": 64, "warm_steps": 5, "steps": 10}
    options = BenchOptions(
        engine_options(te.Tiers(ddr=1)),
        tables=26,
        dim=64,
        pooling=1,
        model="dlrm",
        bottom=(1024, 512, 256),
        top=(2048, 2048, 1024, 512),
        **small if quick else {"rows": 2_600_000, "warm_steps": 5, "steps": 20},
    )
    return Sweep(
        "compute-bound DLRM, " + ("direct I/O" if direct_io else "store in the page cache"),
        options,
        direct_io=direct_io,
        shares=(5, 10, 20, 50) if not quick else (20,),
        depths=(0, 1, 4, "auto") if not quick else (0, 2),
        windows=(4, 16, 256) if not quick else (8,),
        base=(BASE_SHARE, 2, 64),
    )


def ssd_sweep(quick: bool) -> Sweep:
    small = {"rows": 20_000, "batch_size": 64, "warm_steps": 5, "steps": 10}
    options = BenchOptions(
        engine_options(te.Tiers(ddr=1)),
        dim=128,
        pooling=20,
        distribution="log_uniform",
        **small if quick else {"rows": 2_000_000, "warm_steps": 30, "steps": 120},
    )
    return Sweep(
        "SSD-bound embedding, direct I/O",
        options,
        direct_io=True,
        shares=(5, 10, 20, 50, 100) if not quick else (20,),
        depths=(0, 1, 2, 4, 8, "auto") if not quick else (0, 2),
        windows=(1, 8, 64, 256) if not quick else (8,),
        base=(10.0, 4, 32),
    )


def hidden_targets(sweep: dict[str, Any]) -> list[Target]:
    at = [p for p in sweep["points"] if p["share"] == BASE_SHARE and p["depth"] != 0]
    ratio = statistics.median(p["of_in_memory"] for p in at) if at else None
    what = f"{sweep['name']}: of in-memory throughput at 20 % cache, median of depths and windows"
    return [Target(what, OF_IN_MEMORY, ratio)]


def peer_targets(result: dict[str, Any]) -> list[Target]:
    contestants = result["contestants"]
    ours = contestants["ours"]
    reads = [d["reads_per_s"] for d in result["disk"]]
    staged = None
    if "timed_stats" in ours and reads:
        disk = sum(reads) / len(reads)
        staged = ours["timed_stats"]["tiers"]["DDR"]["staged"] / ours["timed_s"] / disk

    def over(peer: str) -> float | None:
        theirs = contestants.get(peer, {}).get("rows_per_s")
        return ours["rows_per_s"] / theirs if theirs and "rows_per_s" in ours else None

    return [
        Target("SSD-bound: rows staged/s over the disk's random reads/s", DISK_SHARE, staged),
        Target("SSD-bound: rows/s over the memory-mapped tensor", OVER_MMAP, over("mmap")),
        Target("SSD-bound: rows/s over plain rocksdb-py", OVER_ROCKSDB_PY, over("rocksdb_py")),
    ]


def _peers(rows: int, directory: Path, made: dict[str, Any]) -> list[Target]:
    record_bytes = 129 * 4
    p = beyond.BeyondMemory(
        rows=rows,
        ddr_bytes=rows * record_bytes // 10,
        direct_io=True,
        depth="auto",
        lookahead=64,
        ours_warm_s=90.0,
        warm_s=20.0,
        budget_s=30.0,
        contestants=("mmap", "ours", "mmap_random", "rocksdb_py"),
    )
    made["peers"] = beyond.run(p, directory)
    beyond.show(made["peers"])
    return peer_targets(made["peers"])


def _finish(made: dict[str, Any], targets: list[Target], json: Path | None, full: bool) -> None:
    made["targets"] = [t.as_dict() for t in targets]
    print_targets(targets, full)
    write_json(json, made)


def _sweep(which: Sweep, directory: Path, made: dict[str, Any]) -> list[Target]:
    swept = run_sweep(which, directory)
    made.setdefault("sweeps", []).append(swept)
    show(swept)
    return hidden_targets(swept) if which.options.model == "dlrm" else []


def _start(name: str) -> dict[str, Any]:
    torch.set_num_threads(2)
    made = report(name, {})
    print_origin(made)
    return made


@app.command()
def compute(
    directory: Directory = TMP,
    quick: Quick = False,
    direct_io: Annotated[bool, typer.Option(help="Past the page cache.")] = False,
    json: Json = None,
    picture: Picture = None,
) -> None:
    """A DLRM that computes longer than its rows take to come."""
    made = _start("prefetch, compute-bound")
    targets = _sweep(compute_sweep(quick, direct_io), directory, made)
    if picture is not None:
        draw(made["sweeps"], picture)
    _finish(made, targets, json, not quick)


@app.command()
def ssd(
    directory: Directory = TMP, quick: Quick = False, json: Json = None, picture: Picture = None
) -> None:
    """An embedding alone, bound by the disk."""
    made = _start("prefetch, SSD-bound")
    targets = _sweep(ssd_sweep(quick), directory, made)
    if picture is not None:
        draw(made["sweeps"], picture)
    _finish(made, targets, json, not quick)


@app.command()
def peers(
    rows: Annotated[int, typer.Option(help="Rows of the table.")] = 16_000_000,
    directory: Directory = TMP,
    json: Json = None,
) -> None:
    """Against a memory-mapped tensor and rocksdb-py, under one memory limit."""
    made = _start("prefetch, peers")
    targets = _peers(rows, directory, made)
    _finish(made, targets, json, rows == 16_000_000)


@app.command("all")
def everything(
    rows: Annotated[int, typer.Option(help="Rows of the peers' table.")] = 16_000_000,
    directory: Directory = TMP,
    quick: Quick = False,
    json: Json = None,
    picture: Picture = None,
) -> None:
    """Both sweeps and the peers."""
    made = _start("prefetch")
    targets: list[Target] = []
    try:
        for which in (
            compute_sweep(quick, direct_io=False),
            compute_sweep(quick, direct_io=True),
            ssd_sweep(quick),
        ):
            targets += _sweep(which, directory, made)
        targets += _peers(rows, directory, made)
    except AssertionError as error:
        console.print(f"[red]results differ, nothing more is timed: {error}[/red]")
        sys.exit(1)
    if picture is not None:
        draw(made["sweeps"], picture)
    _finish(made, targets, json, not quick)


if __name__ == "__main__":
    app()
