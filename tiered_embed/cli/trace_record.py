"""``tiered-embed trace record``."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from .. import traces
from ..errors import ConfigError
from .bench import bench
from .trace_source import AsJson, Codec, Out, tell
from .train import train

__all__ = ["record"]

_own = typer.Typer()
_own.command()(train)
_own.command()(bench)


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
    tell(out, recorder.num_batches, recorder.num_accesses, as_json)


def _run(program: Sequence[str]) -> None:
    if program[0] in ("train", "bench"):
        _own(list(program), standalone_mode=False)
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
