"""``tiered-embed bench``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ..residency import POLICIES
from ..spec import KERNELS, Tiers

__all__ = ["bench"]


def bench(
    rows: Annotated[int, typer.Option(min=1, help="Rows of all tables together.")] = 1_000_000,
    tables: Annotated[int, typer.Option(min=1)] = 1,
    dim: Annotated[int, typer.Option(min=1)] = 64,
    batch_size: Annotated[int, typer.Option(min=1)] = 2048,
    pooling: Annotated[int, typer.Option(min=1, help="Ids in a bag.")] = 8,
    distribution: Annotated[str, typer.Option(help="zipf, log_uniform, uniform")] = "zipf",
    exponent: Annotated[float, typer.Option(min=0, help="Of zipf.")] = 1.05,
    trace: Annotated[
        Path | None, typer.Option(help="Replay a trace: raw ids in batches of their own, or any.")
    ] = None,
    model: Annotated[str, typer.Option(help="embedding, or dlrm with its MLPs")] = "embedding",
    hbm: Annotated[str | None, typer.Option(help="HBM budget; no HBM tier by default.")] = None,
    ddr: Annotated[str, typer.Option(help="DDR budget, such as 512MiB.")] = "64MiB",
    ssd: Annotated[
        Path | None, typer.Option(help="Directory of the SSD tier; a temporary one by default.")
    ] = None,
    direct_io: Annotated[bool, typer.Option(help="Past the page cache.")] = False,
    policy: Annotated[str, typer.Option(help=", ".join(POLICIES))] = "lookahead",
    lookahead: Annotated[int, typer.Option(min=0, help="Known future batches.")] = 32,
    depth: Annotated[str, typer.Option(help="Batches staged ahead, or auto.")] = "2",
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    device: Annotated[
        str | None, typer.Option(help="Of the HBM tier: cuda by default, or cpu.")
    ] = None,
    kernel: Annotated[str, typer.Option(help=", ".join(KERNELS))] = "auto",
    warm_steps: Annotated[int, typer.Option(min=1, help="Not timed.")] = 50,
    steps: Annotated[int, typer.Option(min=1, help="Timed.")] = 200,
    compare: Annotated[
        bool, typer.Option(help="Simulate the same run and show what differs.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    picture: Annotated[Path | None, typer.Option(help="Draw every step, stacked (PNG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train on a stream of ids and tell where each step's time went."""
    try:
        from .. import bench as benchmark  # needs the extra `demo`
    except ImportError as error:
        raise typer.BadParameter(f"{error}; pip install 'tiered_embed[demo]'") from error
    from ..traces import find_format, open_trace, read_raw

    if trace is not None and not trace.exists():
        raise typer.BadParameter(f"no file {trace}")
    if depth != "auto" and not depth.isdecimal():
        raise typer.BadParameter(f"depth is {depth!r}; pass a number or auto")
    ids: Any = None
    if trace is not None:
        # Bare ids make bags of `pooling`; other formats know their bags and tables.
        whole = find_format(trace) == "raw"
        ids = read_raw(trace) if whole else open_trace(trace, batch=batch_size)
    with tempfile.TemporaryDirectory(prefix="tiered-embed-bench-") as scratch:
        options = benchmark.BenchOptions(
            Tiers(hbm=hbm, ddr=ddr, ssd=ssd or Path(scratch), direct_io=direct_io),
            rows=rows,
            tables=tables,
            dim=dim,
            batch_size=batch_size,
            pooling=pooling,
            distribution=cast(Any, distribution),
            exponent=exponent,
            trace=ids,
            model=cast(Any, model),
            policy=policy,
            lookahead=lookahead,
            depth=int(depth) if depth.isdecimal() else depth,
            num_threads=threads,
            device=device,
            kernel=kernel,
            warm_steps=warm_steps,
            steps=steps,
            compare=compare and depth != "auto",  # which no simulation can tell
            seed=seed,
        )
        console = Console(highlight=False, stderr=as_json)
        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console
        ) as bar:
            task = bar.add_task(model)
            result = benchmark.run(
                options, lambda done, left: bar.update(task, completed=done, total=done + left)
            )
    if picture is not None:
        benchmark.report.draw(result, picture)
    if as_json:
        typer.echo(json.dumps(benchmark.report.as_dict(result), indent=2))
    else:
        benchmark.report.show(console, result)
