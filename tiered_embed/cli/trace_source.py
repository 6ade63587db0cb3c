"""What the ``trace`` commands share: how a source is described, opened, and written as .tet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from .. import traces
from ..traces import Format, Layout
from .progress import LateBar

__all__ = [
    "Batch",
    "Codec",
    "ColumnNames",
    "FormatName",
    "HeaderNames",
    "LayoutName",
    "Missing",
    "ObjectColumn",
    "Out",
    "Source",
    "column_names",
    "open_source",
    "report_written",
    "write",
]

Source = Annotated[Path, typer.Argument(help="A trace in any format, plain or compressed.")]
Out = Annotated[Path, typer.Argument(help="The .tet file to write.")]
FormatName = Annotated[
    str,
    typer.Option(
        "--format",
        help=f"Format of the trace; auto looks into the file. {', '.join(get_args(Format))}.",
        show_default=True,
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(min=1, help="Samples in a batch; by default the file's own batches, or 1024."),
]
ColumnNames = Annotated[
    str | None,
    typer.Option(
        "--columns", help="Id columns of csv, tsv and parquet: user,item or table=column,..."
    ),
]
HeaderNames = Annotated[
    str | None,
    typer.Option(
        "--header",
        help="Names of all columns of a csv or tsv without a header line: user,item,time.",
    ),
]
Missing = Annotated[
    int | None, typer.Option(help="The id that an empty field stands for; an error by default.")
]
LayoutName = Annotated[
    str | None,
    typer.Option(
        "--layout",
        help=f"Layout of raw integers, where the file's name does not say: "
        f"{', '.join(get_args(Layout))}.",
    ),
]
ObjectColumn = Annotated[
    int, typer.Option(min=1, help="The column of libcachesim_csv that holds ids, counted from 1.")
]
Codec = Annotated[str, typer.Option(help="Compression of the .tet file: auto, none, zlib, zstd.")]


def column_names(columns: str | None) -> dict[str, str] | None:
    """``"user,i=itemId"`` as {table: column}; a usage error where a table is named twice."""
    if columns is None:
        return None
    out: dict[str, str] = {}
    for each in columns.split(","):
        table, equals, column = each.partition("=")
        if not table or (equals and not column):
            raise typer.BadParameter(
                f"--columns is {columns!r}; pass names as user,item or table=column,..."
            )
        if table in out:
            raise typer.BadParameter(
                f"--columns names table {table!r} twice; give each table another name, as in"
                f" {table}={out[table]},{table}2={column or table}"
            )
        out[table] = column or table
    return out


def open_source(
    source: Path,
    format: str = "auto",
    batch: int | None = None,
    columns: str | None = None,
    missing: int | None = None,
    layout: str | None = None,
    object_column: int = 2,
    header: str | None = None,
) -> traces.Trace:
    """The trace in an existing file, as the options describe it."""
    options = traces.TraceOptions(
        batch=batch,
        columns=column_names(columns),
        missing=missing,
        header=None if header is None else header.split(","),
        layout=cast(Any, layout),
        object_column=object_column,
    )
    return traces.open_trace(source, cast(Any, format), options)


def write(opened: traces.Trace, out: Path, codec: str, as_json: bool) -> None:
    """Write a trace as .tet and print its size."""
    with LateBar(f"writing {out.name}", opened.num_accesses) as bar:
        traces.write_tet(opened, out, cast(Any, codec), bar.advance)
    written = traces.read_tet(out)
    report_written(out, written.num_batches or 0, written.num_accesses or 0, as_json)


def report_written(out: Path, num_batches: int, num_accesses: int, as_json: bool) -> None:
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
        f" ({size / max(1, num_accesses):.2f} bytes per id)"
    )
