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
from .options import AsJson
from .trace_source import Codec, Out, report_written
from .train import train

__all__ = ["record"]

_own = typer.Typer()
_own.command()(train)
_own.command()(bench)


def record(
    out: Out,
    program: Annotated[
        list[str],
        typer.Argument(help="A Python script, or train or bench, followed by its arguments."),
    ],
    codec: Codec = "auto",
    evaluation: Annotated[
        bool, typer.Option(help="Also record forwards without gradients.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a program and record what its model looks up.

    The model is the first module with embeddings whose forward runs: nn.Embedding, nn.EmbeddingBag,
    TorchRec's collections, or tiered modules. Each of its forwards is a batch. In a program of your
    own, tiered_embed.traces.record(model, path) records any model.
    """
    # The program's own output must not mix with the JSON.
    aside = redirect_stdout(sys.stderr) if as_json else nullcontext()
    recording = traces.record_first(out, codec=cast(Any, codec), evaluation=evaluation)
    with recording as recorders, aside:
        _run(program)
    if not recorders:
        raise ConfigError(
            f"{' '.join(program)}: nothing was recorded, as no module with embeddings was called"
        )
    (recorder,) = recorders
    report_written(out, recorder.num_batches, recorder.num_accesses, as_json)


def _run(program: Sequence[str]) -> None:
    if program[0] in ("train", "bench"):
        _own(list(program), standalone_mode=False)
        return
    script = Path(program[0])
    if not script.is_file():
        raise typer.BadParameter(
            f"there is no script {script}; pass a Python script, train or bench"
        )
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
