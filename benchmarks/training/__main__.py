"""Training speed, side by side with what one would use instead.

``in-memory``: forward, backward and row-wise Adagrad with every row in memory, against FBGEMM's CPU
kernels and ``nn.EmbeddingBag`` with ``torch.optim.Adagrad``. ``beyond-memory``: a table several
times larger than its memory limit, against a memory-mapped tensor and plain ``rocksdb-py``. Results
are compared before anything is timed. Needs the ``cpu`` extra; about 3 and 10 minutes, 14 GB of
memory and 25 GB of disk at full size. In half a minute each, to see that everything works:

  python benchmarks/training in-memory --rows 200000 --rounds 2

  python benchmarks/training beyond-memory --rows 200000 --batch-size 256 --budget-s 2
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the folder of `benchmarks`

import tempfile
from typing import Annotated, Any

import typer

from benchmarks.support.reports import Target, print_origin, print_targets, report, write_json
from benchmarks.training import beyond_memory as beyond
from benchmarks.training import in_memory as inside

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode="markdown"
)

Json = Annotated[Path | None, typer.Option("--json", help="Write the report here.")]
Threads = Annotated[int, typer.Option(help="Threads of every contestant.")]
Pooling = Annotated[int, typer.Option(help="Ids in a bag.")]
BatchSize = Annotated[int, typer.Option(help="Bags in a batch.")]
Dim = Annotated[int, typer.Option(help="Columns of the table.")]
Directory = Annotated[
    Path, typer.Option("--dir", help="Where the large files go; on the disk to be measured.")
]
_TMP = Path(tempfile.gettempdir())


def _finish(made: dict[str, Any], json: Path | None, full_size: bool) -> None:
    made["full_size"] = full_size
    write_json(json, made)
    sections = [made[name] for name in ("in_memory", "beyond_memory") if name in made]
    if "in_memory" in made:
        inside.show(made["in_memory"])
    if "beyond_memory" in made:
        beyond.show(made["beyond_memory"])
    found = [t for section in sections for t in section["targets"]]
    print_targets([Target(**{k: v for k, v in t.items() if k != "met"}) for t in found], full_size)


@app.command()
def in_memory(
    rows: Annotated[int, typer.Option(help="Rows of the table.")] = 4_000_000,
    dim: Dim = 128,
    batch_size: BatchSize = 4096,
    pooling: Pooling = 20,
    rounds: Annotated[int, typer.Option(help="Turns that each contestant gets.")] = 7,
    batches: Annotated[int, typer.Option(help="Timed batches in a turn.")] = 24,
    threads: Threads = 2,
    scatter: Annotated[
        bool, typer.Option(help="Spread popular rows over the table, as hashed ids lie.")
    ] = True,
    json: Json = None,
) -> None:
    """Every row in memory: against FBGEMM CPU and torch."""
    p = inside.InMemory(
        rows=rows,
        dim=dim,
        batch_size=batch_size,
        pooling=pooling,
        rounds=rounds,
        batches=batches,
        threads=threads,
        scatter_rows=scatter,
    )
    made = report("training in memory", {})
    print_origin(made)
    made["in_memory"] = inside.run(p)
    _finish(made, json, p.full_size)


@app.command()
def beyond_memory(
    rows: Annotated[int, typer.Option(help="Rows of the table.")] = beyond.FULL_ROWS,
    directory: Directory = _TMP,
    dim: Dim = 128,
    batch_size: BatchSize = 4096,
    pooling: Pooling = 20,
    threads: Threads = 2,
    ddr_bytes: Annotated[
        int | None, typer.Option(help="Our DDR tier; 1.6 GB at 16 M rows, less for fewer.")
    ] = None,
    limit_bytes: Annotated[
        int | None, typer.Option(help="Memory group of each contestant; 3 GiB at 16 M rows.")
    ] = None,
    lookahead: Annotated[int, typer.Option(help="Ours: batches of the window.")] = 32,
    depth: Annotated[int, typer.Option(help="Ours: batches staged ahead.")] = 2,
    policy: Annotated[str, typer.Option(help="Ours: which row leaves a full tier.")] = "lookahead",
    store: Annotated[str, typer.Option(help="Ours: auto, rocksdb or rocksdb_py.")] = "auto",
    direct_io: Annotated[bool, typer.Option(help="Ours: bypass the page cache.")] = False,
    budget_s: Annotated[float, typer.Option(help="Timed seconds of each contestant.")] = 40.0,
    warm_s: Annotated[float, typer.Option(help="Most seconds of a peer's warm-up.")] = 30.0,
    ours_warm_s: Annotated[
        float, typer.Option(help="Most seconds until our DDR tier is full.")
    ] = 150.0,
    batches: Annotated[int, typer.Option(help="Most timed batches of each contestant.")] = 400,
    contestant: Annotated[
        list[str] | None, typer.Option(help=f"Only these of {', '.join(beyond.NAMES)}.")
    ] = None,
    json: Json = None,
) -> None:
    """A table larger than memory: against a memory-mapped tensor and rocksdb-py."""
    unknown = set(contestant or ()) - set(beyond.NAMES)
    if unknown:
        raise typer.BadParameter(f"{unknown}; choose of {', '.join(beyond.NAMES)}", None, "")
    p = beyond.BeyondMemory(
        rows=rows,
        dim=dim,
        batch_size=batch_size,
        pooling=pooling,
        threads=threads,
        ddr_bytes=ddr_bytes,
        limit_bytes=limit_bytes,
        lookahead=lookahead,
        depth=depth,
        policy=policy,
        store=store,
        direct_io=direct_io,
        budget_s=budget_s,
        warm_s=warm_s,
        ours_warm_s=ours_warm_s,
        max_batches=batches,
        contestants=tuple(contestant or beyond.NAMES),
    )
    made = report("training beyond memory", {"dir": str(directory)})
    print_origin(made)
    made["beyond_memory"] = beyond.run(p, directory)
    _finish(made, json, p.full_size)


@app.command("all")
def both(directory: Directory = _TMP, json: Json = None) -> None:
    """Both at full size, with the defaults of the two commands."""
    p, q = inside.InMemory(), beyond.BeyondMemory()
    made = report("training in and beyond memory", {"dir": str(directory)})
    print_origin(made)
    made["in_memory"] = inside.run(p)
    made["beyond_memory"] = beyond.run(q, directory)
    _finish(made, json, full_size=True)


if __name__ == "__main__":
    app()
