"""The command line: one file per command, each a thin face of a library call.

``options`` holds what several commands share. Nothing is computed here.
"""

from __future__ import annotations

import sys

import typer

from ..errors import TieredEmbedError
from . import checkpoint
from .bench import bench
from .simulate import simulate
from .trace import trace
from .train import train

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Embedding tables larger than memory, for PyTorch.",
)


@app.callback()
def _root() -> None:
    """Embedding tables larger than memory, for PyTorch."""


app.command()(train)
app.command()(bench)
app.add_typer(checkpoint.app, name="checkpoint")
app.command()(simulate)
app.add_typer(trace, name="trace")


def main() -> None:
    """The entry point. Errors of this package print their message and exit with code 2."""
    try:
        app()
    except (TieredEmbedError, FileNotFoundError) as error:
        typer.echo(f"tiered-embed: {error}", err=True)
        sys.exit(2)
