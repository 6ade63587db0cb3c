"""The options that several commands share: their names, bounds, defaults and help, once.

What a module takes is documented by ``EngineOptions``; help texts and defaults are read from there.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from ..residency import POLICIES
from ..spec import EngineOptions, option_help

__all__ = [
    "DEFAULTS",
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
    "existing",
]

DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(EngineOptions)}
"""What a module takes where nothing is given."""

Hbm = Annotated[str | None, typer.Option(help="HBM budget, such as 1GiB; no HBM tier by default.")]
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
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def existing(path: Path) -> Path:
    """The path of a file to read; a usage error where there is none."""
    if not path.exists() or path.is_dir():
        raise typer.BadParameter(f"there is no file {path}")
    return path
