"""``tiered-embed trace generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import traces
from ..errors import ConfigError
from .trace_source import AsJson, Codec, Out, write

__all__ = ["generate"]


def generate(
    out: Out,
    accesses: Annotated[int, typer.Option(min=1, help="About as many ids, whole batches.")],
    batch: Annotated[int, typer.Option(min=1, help="Samples to a batch.")] = 1024,
    tables: Annotated[int, typer.Option(min=1)] = 1,
    rows: Annotated[int, typer.Option(min=1, help="Of each table's Zipf law.")] = 1_000_000,
    exponent: Annotated[float, typer.Option(min=0, help="Of that law.")] = 1.05,
    pooling: Annotated[float, typer.Option(min=1, help="Mean ids of a bag, geometric.")] = 1.0,
    one_hit: Annotated[float, typer.Option(help="Share of ids that occur once.")] = 0.0,
    drift_samples: Annotated[
        int | None, typer.Option(min=1, help="Samples in which all rows age by one rank.")
    ] = None,
    histogram: Annotated[
        Path | None, typer.Option(help="Fit one table to Meta's *_locality.txt instead of a law.")
    ] = None,
    window: Annotated[int, typer.Option(min=1 << 16, help="Ids that have it.")] = 1 << 24,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    codec: Codec = "auto",
    as_json: AsJson = False,
) -> None:
    """Write a seeded synthetic trace: the same bytes for the same options, on any machine."""
    if histogram is not None:
        if tables != 1 or one_hit or drift_samples is not None or pooling != 1.0:
            raise ConfigError("a histogram is fitted to one table: leave the law's options out")
        if not histogram.is_file():
            raise typer.BadParameter(f"no file {histogram}")
        fit = traces.calibrate(traces.read_locality(histogram)[0], window)
        typer.echo(f"fit: at most {fit.error:.4f} off in a bucket", err=True)
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
