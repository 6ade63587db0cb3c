"""``tiered-embed trace``: record, generate, inspect, convert and shorten id streams."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .. import traces
from ..traces import TableCounts
from .console import Screen
from .options import AsJson, Seed, existing, refuse_given
from .progress import LateBar
from .trace_generate import generate
from .trace_record import record
from .trace_source import (
    Batch,
    Codec,
    ColumnNames,
    FormatName,
    HeaderNames,
    LayoutName,
    Missing,
    ObjectColumn,
    Out,
    Source,
    open_source,
    write,
)

__all__ = ["trace"]

trace = typer.Typer(
    no_args_is_help=True, help="Record, generate, inspect, convert and shorten id streams."
)
trace.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(
    record
)
trace.command()(generate)


@trace.command()
def info(
    source: Source,
    format: FormatName = "auto",
    batch: Batch = None,
    columns: ColumnNames = None,
    missing: Missing = None,
    layout: LayoutName = None,
    object_column: ObjectColumn = 2,
    header: HeaderNames = None,
    count: Annotated[
        bool, typer.Option(help="Read the whole trace to count distinct rows and their reuse.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Show what a trace holds: tables, batches, accesses, distinct rows, reuse."""
    source = existing(source)
    opened = open_source(source, format, batch, columns, missing, layout, object_column, header)
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
    header: HeaderNames = None,
    codec: Codec = "auto",
    as_json: AsJson = False,
) -> None:
    """Write a trace of any format as .tet."""
    source = existing(source)
    opened = open_source(source, format, batch, columns, missing, layout, object_column, header)
    write(opened, out, codec, as_json)


@trace.command()
def head(
    context: typer.Context,
    source: Source,
    batches: Annotated[int, typer.Option(min=1, help="Number of batches.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the batches to this .tet file, instead of showing them."),
    ] = None,
    format: FormatName = "auto",
    batch: Batch = None,
    columns: ColumnNames = None,
    missing: Missing = None,
    layout: LayoutName = None,
    object_column: ObjectColumn = 2,
    header: HeaderNames = None,
    codec: Codec = "auto",
    as_json: AsJson = False,
) -> None:
    """Show or write the first batches; nothing after them is read."""
    source = existing(source)
    opened = open_source(source, format, batch, columns, missing, layout, object_column, header)
    first = traces.head(opened, batches)
    if out is not None:
        write(first, out, codec, as_json)
        return
    refuse_given(context, ["codec"], "is of the file that --out names, and there is none")
    names = [table.name for table in first.tables]
    if as_json:
        listed = [
            {name: ids.tolist() for name, ids in zip(names, parts, strict=True)} for parts in first
        ]
        typer.echo(json.dumps({"batches": listed}))
        return
    console = Screen()
    for b, parts in enumerate(first):
        for name, ids in zip(names, parts, strict=True):
            more = f" ... of {len(ids):,}" if len(ids) > 10 else ""
            shown = " ".join(map(str, ids[:10].tolist()))
            console.print(f"batch {b} {name}: {shown}{more}", soft_wrap=True)


@trace.command()
def sample(
    source: Source,
    out: Out,
    rate: Annotated[
        float, typer.Option(help="The share of the rows to keep, above 0 and at most 1.")
    ] = 0.01,
    seed: Seed = 0,
    format: FormatName = "auto",
    batch: Batch = None,
    columns: ColumnNames = None,
    missing: Missing = None,
    layout: LayoutName = None,
    object_column: ObjectColumn = 2,
    header: HeaderNames = None,
    codec: Codec = "auto",
    as_json: AsJson = False,
) -> None:
    """Write the accesses to a sample of the rows: a smaller trace with the same locality."""
    source = existing(source)
    opened = open_source(source, format, batch, columns, missing, layout, object_column, header)
    write(traces.sample(opened, rate, seed), out, codec, as_json)


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
    console = Screen()
    numbers = [f"{out[key]:,} {key}" for key in ("batches", "accesses") if out[key] is not None]
    numbers.append(f"{out['file_bytes']:,} bytes")
    console.print(f"{out['format']}: {', '.join(numbers)}")
    table = Table("table")
    for column in ("rows", "accesses", "unique", "uses per row", "used once", "ids"):
        table.add_column(column, justify="right")
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
