"""``tiered-embed bench``: a thin face of ``tiered_embed.bench``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from ..spec import Tiers
from ..traces import Distribution, Trace, find_format, read_raw
from .console import Screen
from .options import (
    DEFAULTS,
    PICTURES,
    AsJson,
    AutoDepth,
    Ddr,
    Device,
    DirectIo,
    Hbm,
    Kernel,
    Lookahead,
    Policy,
    Seed,
    Threads,
    check_writable,
    existing,
    hbm_device,
    refuse_given,
)
from .progress import LateBar
from .trace_source import (
    ColumnNames,
    FormatName,
    HeaderNames,
    LayoutName,
    Missing,
    open_source,
)

__all__ = ["bench"]


def bench(
    context: typer.Context,
    rows: Annotated[int, typer.Option(min=1, help="Rows of all tables together.")] = 1_000_000,
    tables: Annotated[int, typer.Option(min=1, help="Number of tables.")] = 1,
    dim: Annotated[int, typer.Option(min=1, help="Columns of a row.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Bags per table in a batch.")] = 2048,
    pooling: Annotated[int, typer.Option(min=1, help="Ids in a bag.")] = 8,
    distribution: Annotated[
        str, typer.Option(help=f"How popular rows are: {', '.join(get_args(Distribution))}.")
    ] = "zipf",
    exponent: Annotated[float, typer.Option(min=0, help="Exponent of the zipf law.")] = 1.05,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Replay this trace instead of drawing ids. Raw ids are split into batches by "
            "--batch-size and --pooling; other formats know their tables and bags."
        ),
    ] = None,
    format: FormatName = "auto",
    columns: ColumnNames = None,
    header: HeaderNames = None,
    missing: Missing = None,
    layout: LayoutName = None,
    model: Annotated[
        str, typer.Option(help="embedding: the embeddings alone; dlrm: with the MLPs of a DLRM.")
    ] = "embedding",
    hbm: Hbm = None,
    ddr: Ddr = "64MiB",
    ssd: Annotated[
        Path | None, typer.Option(help="Directory of the SSD tier; a temporary one by default.")
    ] = None,
    direct_io: DirectIo = False,
    policy: Policy = DEFAULTS["policy"],
    lookahead: Lookahead = DEFAULTS["lookahead"],
    depth: AutoDepth = str(DEFAULTS["depth"]),
    threads: Threads = DEFAULTS["num_threads"],
    device: Device = DEFAULTS["device"],
    kernel: Kernel = DEFAULTS["kernel"],
    warm_steps: Annotated[int, typer.Option(min=1, help="Steps before timing starts.")] = 50,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed.")] = 200,
    compare: Annotated[
        bool,
        typer.Option(help="Simulate the same run and show where counts differ; not with auto."),
    ] = True,
    seed: Seed = DEFAULTS["seed"],
    picture: Annotated[
        Path | None, typer.Option(help="Draw the time of every step, by phase (PNG).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train on a stream of ids and show where the time of a step went."""
    try:
        from .. import bench as benchmark  # needs the extra `demo`
    except ImportError as error:
        raise typer.BadParameter(f"{error}; pip install 'tiered_embed[demo]'") from error

    if depth != "auto" and not depth.isdecimal():
        raise typer.BadParameter(f"depth is {depth!r}; pass a number or auto")
    check_writable(picture, PICTURES)
    device = hbm_device(hbm, device)
    ids: Any = None
    if trace is not None:
        ids = _trace(existing(trace), format, batch_size, columns, header, missing, layout)
        drawn = ("rows", "tables", "distribution", "exponent")
        refuse_given(context, drawn, "describes ids that are drawn, and --trace replays some")
        if isinstance(ids, Trace):
            refuse_given(context, ["pooling"], f"is for raw ids, and the bags of {trace} are known")
    else:
        described = ("format", "columns", "header", "missing", "layout")
        refuse_given(context, described, "describes a trace, and there is no --trace")
        if distribution != "zipf":
            refuse_given(context, ["exponent"], f"is of the zipf law, and not of {distribution}")
    with tempfile.TemporaryDirectory(prefix="tiered-embed-bench-") as scratch:
        engine = benchmark.engine_options(
            Tiers(hbm=hbm, ddr=ddr, ssd=ssd or Path(scratch), direct_io=direct_io),
            policy=policy,
            lookahead=lookahead,
            depth=int(depth) if depth.isdecimal() else depth,
            num_threads=threads,
            device=device,
            kernel=kernel,
            seed=seed,
        )
        options = benchmark.BenchOptions(
            engine,
            rows=rows,
            tables=tables,
            dim=dim,
            batch_size=batch_size,
            pooling=pooling,
            distribution=cast(Any, distribution),
            exponent=exponent,
            trace=ids,
            model=cast(Any, model),
            warm_steps=warm_steps,
            steps=steps,
            compare=compare and depth != "auto",  # which depends on time
        )
        with LateBar(model, warm_steps + steps) as bar:
            result = benchmark.run(options, lambda done, left: bar.update(done, done + left))
    if picture is not None:
        benchmark.report.draw(result, picture)
    if as_json:
        typer.echo(json.dumps(benchmark.report.as_dict(result), indent=2))
    else:
        benchmark.report.show(Screen(), result)
    if result.differences:
        raise typer.Exit(1)


def _trace(
    path: Path,
    format: str,
    batch_size: int,
    columns: str | None,
    header: str | None,
    missing: int | None,
    layout: str | None,
) -> Any:
    """The trace's ids, where they are raw; otherwise the trace."""
    found = find_format(path) if format == "auto" else format
    if found == "raw":
        if columns or header or missing is not None:
            raise typer.BadParameter(
                f"{path} is read as raw integers, which --columns, --header and --missing do not"
                " concern; leave them out"
            )
        return read_raw(path, cast(Any, layout))
    return open_source(path, format, batch_size, columns, missing, layout, header=header)
