"""Id streams: how near calibrated streams come to published histograms, sizes and speeds of files.

`python benchmarks/traces --json out.json`. Three parts: (1) memory of a long generated stream,
written and read again; (2) reuse histograms, published and counted in a generated window; (3) bytes
per id and ids per second of CPU for `.tet` files of real and generated traces, beside xz and
Parquet. Everything that is written is compared with what was read before it is timed.

Needs the extra `sim` and the traces in TIERED_EMBED_DATA.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the folder of `benchmarks`

import lzma
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.table import Table

from benchmarks.support.reports import (
    Target,
    console,
    print_origin,
    print_targets,
    report,
    write_json,
)
from tiered_embed import traces
from tiered_embed.traces import GeneratedStream, GeneratedTable, Pooling, Trace, Zipf

T = TypeVar("T")

ZIPF = (GeneratedTable("t", Zipf(10**8)),)
TEN_TABLES = tuple(
    GeneratedTable(f"t{t}", Zipf(10 ** (3 + t % 5), 1.0), Pooling.geometric(4, 40), one_hit=0.02)
    for t in range(10)
)


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """The result and the seconds of CPU."""
    start = time.process_time()
    return run(), time.process_time() - start


def peak_bytes() -> int:
    """The process's largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ids_of(trace: Trace) -> list[np.ndarray]:
    """Every table's ids."""
    parts = [[own for _, own in chunk.table_ids] for chunk in trace.chunks()]
    return [np.concatenate(own) for own in zip(*parts, strict=True)]


def count(trace: Trace) -> int:
    """Read all of a trace."""
    return sum(chunk.num_ids for chunk in trace.chunks())


def long_stream(folder: Path, num_accesses: int) -> dict[str, Any]:
    """Peak memory of a stream of a tenth of the accesses, then of all, and their rates."""
    law = GeneratedTable("t", Zipf(10**9, 1.05), one_hit=0.05, drift_samples=1000)
    out: dict[str, Any] = {"accesses": num_accesses}
    for what, num in (("tenth", num_accesses // 10), ("whole", num_accesses)):
        stream = GeneratedStream((law,), 1024, num // 1024).trace()
        _, generating_s = timed(lambda stream=stream: count(stream))
        path = folder / "long.tet"
        traces.write_tet(stream, path)
        read, reading_s = timed(lambda path=path: count(traces.read_tet(path)))
        assert read == stream.num_accesses
        out[what] = {
            "peak_bytes": peak_bytes(),
            "file_bytes": path.stat().st_size,
            "generated_per_s": read / generating_s,
            "read_per_s": read / reading_s,
        }
    console.print(
        f"{num_accesses:,} accesses, 1024 a batch: generated at"
        f" {out['whole']['generated_per_s'] / 1e6:.0f} M/s, {out['whole']['file_bytes']:,} bytes,"
        f" read at {out['whole']['read_per_s'] / 1e6:.0f} M/s; peak memory"
        f" {out['whole']['peak_bytes'] >> 20} MiB, {out['tenth']['peak_bytes'] >> 20} MiB for a"
        " tenth of them"
    )
    return out


def histograms(root: Path, window: int) -> list[dict[str, Any]]:
    """Per published histogram: the fit, and what a generated window has."""
    out = []
    for year in (2021, 2022):
        published = traces.read_locality(root / f"dlrm_{year}_locality.txt")[0]
        fit, fitting_s = timed(lambda published=published: traces.calibrate(published, window))
        (ids,) = ids_of(fit.trace(batch=4096))
        uses = np.unique(ids, return_counts=True)[1]
        measured = traces.ReuseHistogram.of_counts(uses)
        table = Table(title=f"{published.name}, window of {window:,}", title_justify="left")
        for column in ("uses", "rows", "generated", "accesses", "generated"):
            table.add_column(column, justify="right")
        columns = (published.rows, measured.rows, published.accesses, measured.accesses)
        for label, *shares in zip(published.labels(), *columns, strict=True):
            table.add_row(label, *(f"{share:.4f}" for share in shares))
        console.print(table)
        worst = measured.error(published)
        console.print(
            f"largest difference {worst:.4f} (the fit's own: {fit.error:.4f}), uses a row"
            f" {measured.mean_uses:.2f} for {published.mean_uses:.2f}, fitted in {fitting_s:.3f} s"
        )
        out.append({"name": published.name, "fit_error": fit.error, "error": worst})
    return out


def files(root: Path, folder: Path) -> list[dict[str, Any]]:
    """Sizes and rates per trace."""
    sources = {
        "Scarab": traces.open_trace(root / "scarab_recs.i64be.xz"),
        "OLTP": traces.open_trace(root / "arc_oltp.u32le.xz"),
        "Criteo, 26 tables": traces.open_trace(root / "criteo_kaggle_10k.tsv.xz"),
        "check-ins NYC, 4 tables": traces.open_trace(root / "lbsn_checkins_nyc.tsv.xz"),
        "Zipf over 1e8 rows": GeneratedStream(
            (GeneratedTable("t", Zipf(10**8)),), 1024, 5000
        ).trace(),
        "ten generated tables": GeneratedStream(TEN_TABLES, 1024, 100).trace(),
    }
    path = folder / "a.tet"
    table = Table()
    for column in ("trace", "ids", "tet", "xz of int64", "Parquet", "source", "write", "read"):
        table.add_column(column, justify="left" if column == "trace" else "right")
    out = []
    for name, source in sources.items():
        ids, source_s = timed(lambda source=source: ids_of(source))
        _, writing_s = timed(lambda source=source: traces.write_tet(source, path))
        back, reading_s = timed(lambda: ids_of(traces.read_tet(path)))
        assert all(np.array_equal(a, b) for a, b in zip(ids, back, strict=True))
        num = sum(len(own) for own in ids)
        xz = sum(len(lzma.compress(own.tobytes())) for own in ids)
        for t, own in enumerate(ids):
            pq.write_table(pa.table({"ids": own}), folder / f"{t}.parquet", compression="zstd")
        parquet = sum((folder / f"{t}.parquet").stat().st_size for t in range(len(ids)))
        row = {
            "trace": name,
            "ids": num,
            "tet_bytes": path.stat().st_size,
            "xz_bytes": xz,
            "parquet_bytes": parquet,
            "source_per_s": num / source_s,
            "write_per_s": num / max(1e-9, writing_s),
            "read_per_s": num / reading_s,
        }
        out.append(row)
        sizes = (f"{size / num:.2f} B" for size in (row["tet_bytes"], xz, parquet))
        rates = (
            f"{row[key] / 1e6:.0f} M/s" for key in ("source_per_s", "write_per_s", "read_per_s")
        )
        table.add_row(name, f"{num:,}", *sizes, *rates)
    console.print(table)
    console.print("source: reading or generating it; write: that and writing; per second of CPU")
    return out


def main(
    accesses: Annotated[int, typer.Option(min=10_240, help="Of the long stream.")] = 100_000_000,
    window: Annotated[int, typer.Option(min=1 << 16, help="Of the histograms.")] = 1 << 24,
    json: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
) -> None:
    root = traces.data_root()
    if root is None:
        console.print(f"[red]set {traces.DATA_VARIABLE} to the folder of the traces[/red]")
        sys.exit(1)
    made = report("traces", {"accesses": accesses, "window": window})
    print_origin(made)
    with tempfile.TemporaryDirectory(prefix="tiered-embed-traces-") as scratch:
        made["long_stream"] = long_stream(Path(scratch), accesses)
        made["histograms"] = histograms(root, window)
        made["files"] = files(root, Path(scratch))
    grown = made["long_stream"]["whole"]["peak_bytes"] - made["long_stream"]["tenth"]["peak_bytes"]
    worst = max(each["error"] for each in made["histograms"])
    found = [
        Target("every bucket of both histograms within .02: room left", 0.0, 0.02 - worst, ""),
        Target("ten times the accesses in 16 MiB more: room left", 0.0, 16 - grown / 2**20, "MiB"),
    ]
    made["targets"] = [target.as_dict() for target in found]
    write_json(json, made)
    print_targets(found, accesses == 100_000_000 and window == 1 << 24)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    app.command(help=__doc__)(main)
    app()
