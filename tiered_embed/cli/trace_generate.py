"""``tiered-embed trace generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import traces
from ..errors import ConfigError
from .options import AsJson, Seed, existing, refuse_given
from .trace_source import Codec, Out, write

__all__ = ["generate"]


def generate(
    context: typer.Context,
    out: Out,
    accesses: Annotated[int, typer.Option(min=1, help="Ids to write, rounded to whole batches.")],
    batch: Annotated[int, typer.Option(min=1, help="Samples in a batch.")] = 1024,
    tables: Annotated[int, typer.Option(min=1, help="Number of tables.")] = 1,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each table.")] = 1_000_000,
    exponent: Annotated[
        float, typer.Option(min=0, help="Exponent of the Zipf law of their popularity.")
    ] = 1.05,
    pooling: Annotated[
        float, typer.Option(min=1, help="Mean number of ids in a bag, geometrically distributed.")
    ] = 1.0,
    one_hit: Annotated[float, typer.Option(help="Share of the ids that occur only once.")] = 0.0,
    drift_samples: Annotated[
        int | None,
        typer.Option(min=1, help="Every so many samples, all rows age by one popularity rank."),
    ] = None,
    histogram: Annotated[
        Path | None,
        typer.Option(help="Fit one table to a *_locality.txt file of Meta, instead of a Zipf law."),
    ] = None,
    window: Annotated[
        int, typer.Option(min=1 << 16, help="Number of ids that have that histogram.")
    ] = 1 << 24,
    seed: Seed = 0,
    codec: Codec = "auto",
    as_json: AsJson = False,
) -> None:
    """Write a synthetic trace; equal options and seed give equal bytes on any machine."""
    if histogram is None:
        refuse_given(context, ["window"], "is the window of a --histogram, of which there is none")
    else:
        refuse_given(context, ("rows", "exponent"), "describes a Zipf law, and not a --histogram")
        if tables != 1 or one_hit or drift_samples is not None or pooling != 1.0:
            raise ConfigError(
                "--histogram fits one table without bags; leave --tables, --one-hit, "
                "--drift-samples and --pooling out"
            )
        fit = traces.calibrate(traces.read_locality(existing(histogram))[0], window)
        typer.echo(f"fit: every bucket is within {fit.error:.4f} of the histogram", err=True)
        write(fit.trace(accesses, batch, seed), out, codec, as_json)
        return
    bags = traces.Pooling.geometric(pooling, int(8 * pooling))
    laws = [
        traces.GeneratedTable(
            f"t{t}",
            traces.Zipf(rows, exponent),
            bags,
            one_hit=one_hit,
            drift_samples=drift_samples,
        )
        for t in range(tables)
    ]
    num_batches = max(1, round(accesses / (batch * tables * bags.mean)))
    stream = traces.GeneratedStream(tuple(laws), batch, num_batches, seed)
    write(stream.trace(), out, codec, as_json)
