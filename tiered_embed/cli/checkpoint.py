"""``tiered-embed checkpoint``: what a directory of checkpoints holds, and whether it is intact.

A thin face of ``tiered_embed.checkpoint``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .. import checkpoint as checkpoints
from ..errors import TieredEmbedError
from .console import Screen
from .options import AsJson

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, help="Inspect, verify, compare, compact, prune and export checkpoints."
)

Directory = Annotated[
    Path, typer.Argument(help="The directory that was given to te.checkpoint.save.")
]
Step = Annotated[int | None, typer.Option(help="A committed step; the latest by default.")]


@app.command()
def inspect(path: Directory, as_json: AsJson = False) -> None:
    """List the committed steps: the step that each is based on, its pools and its bytes."""
    steps = [_described(path, step) for step in _committed(path)]
    if as_json:
        typer.echo(json.dumps(steps, indent=2))
    else:
        _show(path, steps)
    if any("error" in step for step in steps):
        raise typer.Exit(1)


def _described(path: Path, step: int) -> dict[str, Any]:
    try:
        manifest = checkpoints.open_chain(path, step).manifest
    except TieredEmbedError as error:
        return {"step": step, "error": str(error)}
    return {
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


def _show(path: Path, steps: list[dict[str, Any]]) -> None:
    table = Table(title=str(path), title_justify="left")
    for column in ("step", "based on", "updates", "tables", "files", "bytes"):
        table.add_column(column, justify="left" if column == "tables" else "right")
    console = Screen()
    for each in steps:
        if "error" in each:
            continue
        pools = each["pools"]
        names = ", ".join(name for pool in pools for name in pool.get("tables", []))
        table.add_row(
            *(str(each["step"]), "" if each["base"] is None else str(each["base"])),
            *(str(max((p["updates"] for p in pools), default=0)), names),
            *(f"{each['files']:,}", f"{each['bytes']:,}"),
        )
    console.print(table)
    for each in steps:
        if "error" in each:
            typer.echo(f"step {each['step']}: {each['error']}")


def _committed(path: Path) -> list[int]:
    """The committed steps, of which there is at least one."""
    found = checkpoints.list(path)
    if found:
        return found
    if not path.exists():
        raise FileNotFoundError(f"there is no directory '{path}'")
    if not path.is_dir():
        raise FileNotFoundError(f"'{path}' is a file; pass the directory of the checkpoints")
    inside = checkpoints.list(path.absolute().parent)
    if path.absolute().name in {f"step-{step}" for step in inside}:
        raise FileNotFoundError(f"'{path}' is one step; pass the directory that it is in")
    raise FileNotFoundError(f"there is no committed step in '{path}'")


@app.command()
def verify(
    path: Directory,
    step: Annotated[
        int | None, typer.Option(help="Only this step, with those it is based on; all by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read every byte of the steps and check it; exit with code 1 if a step is damaged.

    A step is damaged too where one that it is based on is.
    """
    results: list[dict[str, Any]] = []
    steps = _committed(path)
    with Console(highlight=False, stderr=True).status("reading"):
        if step is None:
            found = list(checkpoints.verdicts(path))
        elif step not in steps:
            raise FileNotFoundError(f"step {step} is not committed in '{path}'; those are {steps}")
        else:
            found = [_verdict(path, step)]
    for verdict in found:
        told = {"bytes": verdict.bytes} if verdict.error is None else {"error": str(verdict.error)}
        results.append({"step": verdict.step, **told})
    if as_json:
        typer.echo(json.dumps(results, indent=2))
    else:
        for result in results:
            text = result.get("error") or f"intact, {result['bytes']:,} bytes"
            typer.echo(f"step {result['step']}: {text}")
    if any("error" in result for result in results):
        raise typer.Exit(1)


def _verdict(path: Path, step: int) -> checkpoints.Verdict:
    try:
        return checkpoints.Verdict(step, checkpoints.verify(path, step))
    except TieredEmbedError as error:
        return checkpoints.Verdict(step, 0, error)


@app.command()
def diff(
    path: Directory,
    first: Annotated[int, typer.Argument(help="The earlier step.")],
    second: Annotated[int, typer.Argument(help="The later step.")],
    as_json: AsJson = False,
) -> None:
    """Count the rows that were added, removed or changed between two steps."""
    _committed(path)
    console = Console(highlight=False, stderr=True)
    with console.status("comparing"):
        pools = checkpoints.diff(path, first, second)
    if as_json:
        typer.echo(json.dumps([asdict(pool) for pool in pools], indent=2))
        return
    for pool in pools:
        typer.echo(
            f"{', '.join(pool.tables)}: {pool.added:,} rows added, {pool.removed:,} removed, "
            f"{pool.changed:,} changed, {pool.same:,} unchanged"
        )


@app.command()
def compact(path: Directory, step: Step = None, as_json: AsJson = False) -> None:
    """Turn a delta into a full step, so that the steps it is based on can be removed."""
    _committed(path)
    with Console(highlight=False, stderr=True).status("writing"):
        done = checkpoints.compact(path, step)
    typer.echo(json.dumps({"step": done}) if as_json else f"step {done} is a full step now")


@app.command()
def prune(
    path: Directory,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest steps to keep.")],
    as_json: AsJson = False,
) -> None:
    """Remove all steps except the newest ones and those that they are based on."""
    _committed(path)
    removed = checkpoints.prune(path, keep=keep)
    if as_json:
        typer.echo(json.dumps({"removed": removed}))
    else:
        typer.echo(f"removed {', '.join(map(str, removed)) or 'nothing'}")


@app.command()
def export(
    path: Directory,
    out: Annotated[Path, typer.Argument(help="Directory to write the safetensors files to.")],
    bits: Annotated[int, typer.Option(help="Bits per weight: 8 or 4.")] = 8,
    step: Step = None,
    as_json: AsJson = False,
) -> None:
    """Write rows as int8 or int4, each with a scale and a bias, and print the error."""
    _committed(path)
    with Console(highlight=False, stderr=True).status("quantising"):
        tables = checkpoints.export(path, out, bits=bits, step=step)
    if as_json:
        typer.echo(json.dumps([asdict(t) | {"file": str(t.file)} for t in tables], indent=2))
        return
    for t in tables:
        typer.echo(
            f"{t.table}: {t.rows:,} rows, {t.bytes:,} bytes, largest error {t.max_error:.3g}, "
            f"RMS error {t.rms_error:.3g}, RMS weight {t.rms_weight:.3g}"
        )
