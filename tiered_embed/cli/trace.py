"""``tiered-embed trace``: record, look at, convert, shorten id streams."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.console import Console
from rich.table import Table

from .. import traces
from ..errors import ConfigError
from ..traces.opening import Format
from ..traces.raw import Layout
from ..traces.reuse import TableCounts
from .progress import LateBar

__all__ = ["trace"]

trace = typer.Typer(no_args_is_help=True, help="Record, inspect, convert and shorten id streams.")

Source = Annotated[Path, typer.Argument(help="A trace in any format, plain or compressed.")]
Out = Annotated[Path, typer.Argument(help="The .tet file to write.")]
FormatName = Annotated[
    str, typer.Option("--format", help=", ".join(get_args(Format)), show_default=True)
]
Batch = Annotated[
    int | None,
    typer.Option(min=1, help="Samples to a batch: 1024, or the file's own where it has some."),
]
ColumnNames = Annotated[
    str | None, typer.Option("--columns", help="Id columns, as in user,item or u=userId,i=itemId.")
]
Missing = Annotated[int | None, typer.Option(help="The id of an empty field.")]
LayoutName = Annotated[
    str | None, typer.Option("--layout", help=f"Of raw integers: {', '.join(get_args(Layout))}")
]
ObjectColumn = Annotated[int, typer.Option(min=1, help="Of libcachesim_csv, from 1.")]
Codec = Annotated[str, typer.Option(help="auto, none, zlib, zstd")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@trace.command()
def info(
    source: Source,
    format: FormatName = "auto",
    batch: Batch = None,
    columns: ColumnNames = None,
    missing: Missing = None,
    layout: LayoutName = None,
    object_column: ObjectColumn = 2,
    count: Annotated[
        bool, typer.Option(help="Read all of it and count distinct rows and their reuse.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Tell what a trace holds: tables, batches, accesses, distinct rows, reuse."""
    opened = _open(source, format, batch, columns, missing, layout, object_column)
    out: dict[str, Any] = {
        "format": traces.find_format(source) if format == "auto" else format,
        "file_bytes": source.stat().st_size,
        "batches": opened.num_batches,
        "accesses": opened.num_accesses,
        "tables": {table.name: {"num_rows": table.num_rows} for table in opened.tables},
    }
    if count:
        with LateBar("counting", opened.num_accesses) as bar:
            counts, num_batches = _count(opened, bar.advance)
        out["batches"] = num_batches
        out["accesses"] = sum(each.num_accesses for each in counts)
        for own, each in zip(out["tables"].values(), counts, strict=True):
            own.update(_describe(each))
    if as_json:
        typer.echo(json.dumps(out, indent=2))
    else:
        _show(out)


@trace.command()
def convert(
    source: Source,
    out: Out,
    format: FormatName = "auto",
    batch: Batch = None,
    columns: ColumnNames = None,
    missing: Missing = None,
    layout: LayoutName = None,
    object_column: ObjectColumn = 2,
    codec: Codec = "auto",
    as_json: AsJson = False,
) -> None:
    """Write a trace of any format as .tet."""
    opened = _open(source, format, batch, columns, missing, layout, object_column)
    _write(opened, out, codec, as_json)


@trace.command()
def head(
    source: Source,
    batches: Annotated[int, typer.Option(min=1, help="How many batches.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Write them as .tet instead.")] = None,
    format: FormatName = "auto",
    batch: Batch = None,
    columns: ColumnNames = None,
    missing: Missing = None,
    layout: LayoutName = None,
    object_column: ObjectColumn = 2,
    codec: Codec = "auto",
    as_json: AsJson = False,
) -> None:
    """Show or write the first batches; nothing behind them is read."""
    opened = _open(source, format, batch, columns, missing, layout, object_column)
    first = traces.head(opened, batches)
    if out is not None:
        _write(first, out, codec, as_json)
        return
    names = [table.name for table in first.tables]
    if as_json:
        listed = [
            {name: ids.tolist() for name, ids in zip(names, parts, strict=True)} for parts in first
        ]
        typer.echo(json.dumps({"batches": listed}))
        return
    console = Console(highlight=False)
    for b, parts in enumerate(first):
        for name, ids in zip(names, parts, strict=True):
            more = f" ... of {len(ids):,}" if len(ids) > 10 else ""
            shown = " ".join(map(str, ids[:10].tolist()))
            console.print(f"batch {b} {name}: {shown}{more}", soft_wrap=True)


@trace.command()
def sample(
    source: Source,
    out: Out,
    rate: Annotated[float, typer.Option(help="The share of the rows to keep, in (0, 1].")] = 0.01,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    format: FormatName = "auto",
    batch: Batch = None,
    columns: ColumnNames = None,
    missing: Missing = None,
    layout: LayoutName = None,
    object_column: ObjectColumn = 2,
    codec: Codec = "auto",
    as_json: AsJson = False,
) -> None:
    """Write the accesses to a sample of the rows: a small trace with the whole one's locality."""
    opened = _open(source, format, batch, columns, missing, layout, object_column)
    _write(traces.sample(opened, rate, seed), out, codec, as_json)


@trace.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def record(
    out: Out,
    program: Annotated[
        list[str],
        typer.Argument(help="A Python script with its arguments, or train or bench with theirs."),
    ],
    codec: Codec = "auto",
    evaluation: Annotated[bool, typer.Option(help="Forwards without gradients, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a program and record what its model looks up.

    The model is the first module with embeddings whose forward runs: nn.Embedding, nn.EmbeddingBag,
    TorchRec's collections, tiered modules. A batch is one forward of it. In a program of your own,
    tiered_embed.traces.record(model, path) records any model.
    """
    # A program's own output does not mix with the JSON.
    aside = redirect_stdout(sys.stderr) if as_json else nullcontext()
    recording = traces.record_first(out, codec=cast(Any, codec), evaluation=evaluation)
    with recording as recorders, aside:
        _run(program)
    if not recorders:
        raise ConfigError(
            f"{' '.join(program)}: no module with embeddings ran its forward; nothing was recorded"
        )
    (recorder,) = recorders
    _report(out, recorder.num_batches, recorder.num_accesses, as_json)


def _run(program: Sequence[str]) -> None:
    if program[0] in ("train", "bench"):
        from . import app  # which has this command in it

        app(list(program), standalone_mode=False)
        return
    script = Path(program[0])
    if not script.is_file():
        raise typer.BadParameter(f"no script {script}, and it is not train or bench")
    before, path = sys.argv, list(sys.path)
    sys.argv = list(program)
    sys.path.insert(0, str(script.parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    finally:
        sys.argv, sys.path[:] = before, path


def _open(
    source: Path,
    format: str,
    batch: int | None,
    columns: str | None,
    missing: int | None,
    layout: str | None,
    object_column: int,
) -> traces.Trace:
    if not source.is_file():
        raise typer.BadParameter(f"no file {source}")
    names = None
    if columns is not None:
        pairs = [each.partition("=") for each in columns.split(",")]
        names = {table: column or table for table, _, column in pairs}
    options = traces.TraceOptions(
        batch=batch,
        columns=names,
        missing=missing,
        layout=cast(Any, layout),
        object_column=object_column,
    )
    return traces.open_trace(source, cast(Any, format), options)


def _count(opened: traces.Trace, progress: Callable[[int], None]) -> tuple[list[TableCounts], int]:
    num_batches = 0

    def counted() -> Iterator[traces.TraceChunk]:
        nonlocal num_batches
        for chunk in opened.chunks():
            num_batches += chunk.num_batches
            yield chunk

    counts = traces.count_rows(traces.Trace(opened.tables, counted), progress)
    return counts, num_batches


def _describe(counts: TableCounts) -> dict[str, Any]:
    out: dict[str, Any] = {"accesses": counts.num_accesses, "unique": len(counts.ids)}
    if len(counts.ids):
        reuse = traces.ReuseHistogram.of_counts(counts.uses)
        out |= {
            "least_id": int(counts.ids[0]),
            "largest_id": int(counts.ids[-1]),
            "mean_uses": reuse.mean_uses,
            "most_uses": int(counts.uses.max()),
            "reuse": {
                label: {"rows": rows, "accesses": accesses}
                for label, rows, accesses in zip(
                    reuse.labels(), reuse.rows, reuse.accesses, strict=True
                )
            },
        }
    return out


def _show(out: dict[str, Any]) -> None:
    console = Console(highlight=False)
    numbers = [f"{out[key]:,} {key}" for key in ("batches", "accesses") if out[key] is not None]
    numbers.append(f"{out['file_bytes']:,} bytes")
    console.print(f"{out['format']}: {', '.join(numbers)}")
    table = Table("table", "rows", "accesses", "unique", "uses a row", "once", "ids")
    for name, own in out["tables"].items():
        once = own.get("reuse", {}).get("(0, 1]", {}).get("rows")
        table.add_row(
            name,
            "any" if own["num_rows"] is None else f"{own['num_rows']:,}",
            f"{own['accesses']:,}" if "accesses" in own else "",
            f"{own['unique']:,}" if "unique" in own else "",
            f"{own['mean_uses']:.2f}" if "mean_uses" in own else "",
            "" if once is None else f"{once:.1%}",
            f"{own['least_id']} to {own['largest_id']}" if "least_id" in own else "",
        )
    console.print(table)


def _write(opened: traces.Trace, out: Path, codec: str, as_json: bool) -> None:
    with LateBar(f"writing {out.name}", opened.num_accesses) as bar:
        traces.write_tet(opened, out, cast(Any, codec), bar.advance)
    written = traces.read_tet(out)
    _report(out, written.num_batches or 0, written.num_accesses or 0, as_json)


def _report(out: Path, num_batches: int, num_accesses: int, as_json: bool) -> None:
    size = out.stat().st_size
    if as_json:
        result = {
            "path": str(out),
            "batches": num_batches,
            "accesses": num_accesses,
            "file_bytes": size,
        }
        typer.echo(json.dumps(result, indent=2))
        return
    typer.echo(
        f"{out}: {num_batches:,} batches, {num_accesses:,} accesses, {size:,} bytes"
        f" ({size / max(1, num_accesses):.2f} an id)"
    )
