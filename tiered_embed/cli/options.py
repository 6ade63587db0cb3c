"""The options that several commands share: their names, bounds, defaults and help, once.

What a module takes is documented by ``EngineOptions``; help texts and defaults are read from there.
"""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..residency import POLICIES
from ..spec import EngineOptions, option_help

__all__ = [
    "DEFAULTS",
    "PICTURES",
    "AsJson",
    "AutoDepth",
    "Ddr",
    "Depth",
    "Device",
    "DirectIo",
    "Hbm",
    "Kernel",
    "Lookahead",
    "Policy",
    "Seed",
    "Ssd",
    "Threads",
    "check_writable",
    "existing",
    "hbm_device",
    "refuse_given",
]

DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(EngineOptions)}
"""What a module takes where nothing is given."""

Hbm = Annotated[
    str | None,
    typer.Option(
        help="HBM budget, such as 1GiB; in host memory where torch finds no GPU. None by default."
    ),
]
Ddr = Annotated[str, typer.Option(help="DDR budget, such as 512MiB.")]
Ssd = Annotated[Path | None, typer.Option(help="Directory of the SSD tier; none by default.")]
DirectIo = Annotated[bool, typer.Option(help="Bypass the page cache where the store can.")]
Policy = Annotated[str, typer.Option(help=f"Which row leaves a full tier: {', '.join(POLICIES)}.")]
Lookahead = Annotated[int, typer.Option(min=0, help=option_help("lookahead"))]
Depth = Annotated[int, typer.Option(min=0, help="How many batches are staged ahead.")]
AutoDepth = Annotated[str, typer.Option(help=option_help("depth"))]
Threads = Annotated[int | None, typer.Option(min=1, help=option_help("num_threads"))]
Device = Annotated[str | None, typer.Option(help=option_help("device"))]
Kernel = Annotated[str, typer.Option(help=option_help("kernel"))]
Seed = Annotated[int, typer.Option(min=0, help="Equal seeds give equal results.")]
PICTURES = (".png", ".svg", ".pdf")

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def refuse_given(context: typer.Context, names: Iterable[str], because: str) -> None:
    """A usage error if one of these options was given: the command would not use it."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"--{name.replace('_', '-')} {because}; leave it out")


def existing(path: Path) -> Path:
    """The path of a file to read, and to read again; a usage error where there is none.

    Standard input (``-``) and pipes can be read only once: they are copied into a temporary file,
    which is removed when the command ends.
    """
    if str(path) == "-":
        if sys.stdin.isatty():
            raise typer.BadParameter("- stands for standard input, and nothing is piped into it")
        return _copied(sys.stdin.buffer, "standard input")
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a directory; pass a file")
    if not path.exists():
        raise typer.BadParameter(f"there is no file {path}")
    if not path.is_file():
        with path.open("rb") as pipe:
            return _copied(pipe, path.name)
    return path


def _copied(source: Any, name: str) -> Path:
    folder = tempfile.mkdtemp(prefix="tiered-embed-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / name
    with path.open("wb") as file:
        shutil.copyfileobj(source, file)
    return path


def check_writable(path: Path | None, kinds: Sequence[str] = ()) -> None:
    """A usage error now, if a file to write at the end has no folder, or none of these suffixes."""
    if path is None:
        return
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a directory; pass the name of a file")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent} to write {path.name} into")
    if kinds and path.suffix.lower() not in kinds:
        raise typer.BadParameter(f"{path} must end in {' or '.join(kinds)}, which says its format")


def hbm_device(hbm: str | None, device: str | None) -> str | None:
    """The device of the HBM tier: host memory, with a line that says so, where there is no GPU."""
    if hbm is None or device is not None or torch.cuda.is_available():
        return device
    typer.echo(
        "torch finds no GPU: the HBM tier is in host memory, as --device cpu has it", err=True
    )
    return "cpu"
