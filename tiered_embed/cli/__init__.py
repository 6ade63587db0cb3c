"""The command line: one file per command, each a thin face of a library call.

``options`` holds what several commands share. Nothing is computed here. Exit codes: 0 where all
went well, 1 where what was asked about is damaged or differs, 2 where the command could not do its
work.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

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
    """Embedding tables larger than memory, for PyTorch.

    Exit codes: 0 where all went well, 1 where something is damaged or differs, 2 otherwise.
    """


app.command()(train)
app.command()(bench)
app.add_typer(checkpoint.app, name="checkpoint")
app.command()(simulate)
app.add_typer(trace, name="trace")


def main() -> None:
    """The entry point. Errors of this package and of the system print their message: code 2."""
    try:
        app()
    except (TieredEmbedError, OSError) as error:
        typer.echo(f"tiered-embed: {_for_the_shell(str(error), sys.argv[1:])}", err=True)
        sys.exit(2)


def _for_the_shell(message: str, words: Sequence[str]) -> str:
    """A message of the library with the command's options in place of keyword arguments."""
    command: Any = typer.main.get_command(app)
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    for param in command.params:
        option = max(param.opts, key=len)
        if not option.startswith("--"):
            continue
        for name in {param.name, option[2:].replace("-", "_"), _KEYWORDS.get(param.name)}:
            if name is None:
                continue
            word = rf"(?<![\w'\"/.=-]){name}"  # and no part of a path, or of what a user wrote
            message = re.sub(rf"{word}='([^']*)'", rf"{option} \1", message)
            message = re.sub(rf"{word}= ?", f"{option} ", message)
            if "_" in name:
                message = re.sub(rf"{word}(?![\w'\"/.=-])", option, message)
    return message


_KEYWORDS = {"threads": "num_threads", "as_json": None}
"""What the library calls an option, where that is another name."""
