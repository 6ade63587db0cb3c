"""``tiered-embed checkpoint``: what a directory of checkpoints holds, and whether it is intact."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import checkpoint as checkpoints
from ..errors import TieredEmbedError

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Inspect, verify, compare and compact checkpoints.")

Directory = Annotated[Path, typer.Argument(help="The directory given to te.checkpoint.save.")]
Step = Annotated[int | None, typer.Option(help="A committed step; the latest by default.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def inspect(path: Directory, as_json: Json = False) -> None:
    """Every committed step: what it stands on, its pools and bytes."""
    steps: list[dict[str, Any]] = []
    for step in checkpoints.list(path):
        manifest = checkpoints.open_chain(path, step).manifest
        steps.append(
            {
                "step": step,
                "base": manifest.base,
                "files": len(manifest.files),
                "bytes": sum(entry.size for entry in manifest.files.values()),
                "pools": [
                    {
                        **pool.layout.model_dump(),
                        "record_bytes": pool.record_bytes,
                        "updates": pool.steps,
                    }
                    for pool in manifest.pools
                ],
            }
        )
    if as_json:
        typer.echo(json.dumps(steps, indent=2))
        return
    table = Table(title=escape(str(path)), title_justify="left")
    for column in ("step", "stands on", "updates", "tables", "files", "bytes"):
        table.add_column(column, justify="left" if column == "tables" else "right")
    for each in steps:
        pools = each["pools"]
        names = ", ".join(name for pool in pools for name in pool.get("tables", []))
        table.add_row(
            *(str(each["step"]), "" if each["base"] is None else str(each["base"])),
            *(str(max((p["updates"] for p in pools), default=0)), escape(names)),
            *(f"{each['files']:,}", f"{each['bytes']:,}"),
        )
    Console(highlight=False).print(table)


@app.command()
def verify(path: Directory, step: Step = None, as_json: Json = False) -> None:
    """Read every byte of one step with what it stands on, or of all; exit 1 if one is damaged."""
    steps = checkpoints.list(path) if step is None else [step]
    results: list[dict[str, Any]] = []
    console = Console(highlight=False, stderr=True)
    for each in steps:
        with console.status(f"step {each}"):
            try:
                chain = checkpoints.open_chain(path, each)
                # Without an option every step is read, so that none is read for another one.
                size = chain.check() if step is not None else chain.check_own()
                results.append({"step": each, "bytes": size})
            except (TieredEmbedError, FileNotFoundError) as error:
                results.append({"step": each, "error": str(error)})
    if as_json:
        typer.echo(json.dumps(results, indent=2))
    else:
        for result in results:
            fate = result.get("error") or f"intact, {result['bytes']:,} bytes"
            typer.echo(f"step {result['step']}: {fate}")
    if not results:
        typer.echo(f"nothing is committed in '{path}'", err=True)
    if not results or any("error" in result for result in results):
        raise typer.Exit(1)


@app.command()
def diff(path: Directory, first: int, second: int, as_json: Json = False) -> None:
    """Rows that were added, removed or changed between two steps."""
    console = Console(highlight=False, stderr=True)
    with console.status("comparing"):
        pools = checkpoints.diff(path, first, second)
    if as_json:
        typer.echo(json.dumps([asdict(pool) for pool in pools], indent=2))
        return
    for pool in pools:
        typer.echo(
            f"{', '.join(pool.tables)}: {pool.added:,} rows added, {pool.removed:,} removed, "
            f"{pool.changed:,} changed, {pool.same:,} the same"
        )


@app.command()
def compact(path: Directory, step: Step = None, as_json: Json = False) -> None:
    """Make a delta whole, so that the steps it stands on may go."""
    with Console(highlight=False, stderr=True).status("writing"):
        done = checkpoints.compact(path, step)
    typer.echo(json.dumps({"step": done}) if as_json else f"step {done} is whole")


@app.command()
def prune(
    path: Directory,
    keep: Annotated[int, typer.Option(min=1, help="Newest steps that stay.")],
    as_json: Json = False,
) -> None:
    """Remove all but the newest steps, and those that they stand on."""
    removed = checkpoints.prune(path, keep=keep)
    if as_json:
        typer.echo(json.dumps({"removed": removed}))
    else:
        typer.echo(f"removed {', '.join(map(str, removed)) or 'nothing'}")


@app.command()
def export(
    path: Directory,
    out: Annotated[Path, typer.Argument(help="Directory for the safetensors files.")],
    bits: Annotated[int, typer.Option(help="8 or 4.")] = 8,
    step: Step = None,
    as_json: Json = False,
) -> None:
    """Write rows as int8 or int4 with a scale and bias each, and tell the error."""
    with Console(highlight=False, stderr=True).status("quantising"):
        tables = checkpoints.export(path, out, bits=bits, step=step)
    if as_json:
        typer.echo(json.dumps([asdict(t) | {"file": str(t.file)} for t in tables], indent=2))
        return
    for t in tables:
        typer.echo(
            f"{t.table}: {t.rows:,} rows, {t.bytes:,} bytes, error at most {t.max_error:.3g}, "
            f"RMS {t.rms_error:.3g} of {t.rms_weight:.3g}"
        )
