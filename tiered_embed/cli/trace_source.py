"""What the ``trace`` commands share: how a source is named, opened, and written as .tet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from .. import traces
from ..traces import Format, Layout
from .progress import LateBar

__all__ = [
    "AsJson",
    "Batch",
    "Codec",
    "ColumnNames",
    "FormatName",
    "LayoutName",
    "Missing",
    "ObjectColumn",
    "Out",
    "Source",
    "open_source",
    "tell",
    "write",
]

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


def open_source(
    source: Path,
    format: str,
    batch: int | None,
    columns: str | None,
    missing: int | None,
    layout: str | None,
    object_column: int,
) -> traces.Trace:
    """The trace that the options name; a missing file is a bad parameter."""
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


def write(opened: traces.Trace, out: Path, codec: str, as_json: bool) -> None:
    """Write a trace as .tet and tell its size."""
    with LateBar(f"writing {out.name}", opened.num_accesses) as bar:
        traces.write_tet(opened, out, cast(Any, codec), bar.advance)
    written = traces.read_tet(out)
    tell(out, written.num_batches or 0, written.num_accesses or 0, as_json)


def tell(out: Path, num_batches: int, num_accesses: int, as_json: bool) -> None:
    """Print what was written."""
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
        f" ({size / max(1, num_accesses):.2f} bytes an id)"
    )
