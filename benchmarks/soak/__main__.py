"""Steady state: no growth in memory, no drift in rows/s, no queue without a bound.

Trains an embedding over DDR and RocksDB for a while, every row stored beforehand, and samples now
and then the process's memory, the rate, the write buffer and RocksDB's debt. Of what follows a
warm-up, in which DDR and the store's memtables fill, it asks

- of anonymous memory (the page cache is not the process's): that the most of the last third exceeds
  the most of the second by less than 2 % and 16 MiB;
- of the rate: that the medians of the first and the last third differ by less than half of the
  samples around them do. Merges take turns with calm times, so that is some tens of percent;
- of the write buffer: that it stays within its bound; of merges: that their debt in the last third
  is not twice that of the second.

`--minutes 20` is the real one; CI runs one minute, which sees a part of one merge and may drift by
half. Exits with 1 when something is not met.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the folder of `benchmarks`

import itertools
import tempfile
import time
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

import tiered_embed as te
from benchmarks.support.machine import process_memory
from benchmarks.support.reports import Target, console, print_origin, report, write_json
from tiered_embed.engine.scheduler import WRITE_BUFFER_BYTES
from tiered_embed.traces import IdStream

__all__ = ["main"]

CHUNK_ROWS = 1 << 16
SLACK_BYTES = 16 << 20
WARM_SHARE = 0.25
MOST_GROWTH = 0.02
MOST_DRIFT = 0.10
SHORT_MINUTES, SHORT_DRIFT = 5.0, 0.50


def every_row(rows: int, dim: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    for start in range(0, rows, CHUNK_ROWS):
        count = min(CHUNK_ROWS, rows - start)
        yield np.arange(start, start + count), torch.full((count, dim), 0.01)


def sample(emb: te.TieredEmbeddingBag, ids: int, seconds: float) -> dict[str, float]:
    """What is watched, now."""
    stats = emb.stats()
    pool = emb.engine.pools[0]
    assert pool.store is not None
    store = pool.store.stats()
    return {
        "ids_per_s": ids / seconds,
        "memory_bytes": process_memory()["anonymous_rss_bytes"],
        "write_buffer_bytes": stats.tiers["SSD"].overhead_bytes,
        "compaction_debt_bytes": store.get("pending_compaction_bytes", 0),
        "store_bytes": store.get("total_sst_bytes", 0),
        "store_memory_bytes": sum(
            store.get(name, 0)
            for name in ("memtable_bytes", "index_and_filter_bytes", "block_cache_bytes")
        ),
        "overhead_bytes": stats.tiers["DDR"].overhead_bytes,
        "written_back": stats.tiers["DDR"].written_back,
        "staged": stats.tiers["DDR"].staged,
    }


def judge(
    samples: list[dict[str, float]], most_buffer_bytes: float, most_drift: float
) -> list[Target]:
    """The promises, as targets; values are turned so that more is better."""
    settled = samples[int(WARM_SHARE * len(samples)) :]
    third = max(1, len(settled) // 3)

    def thirds(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values = np.array([s[name] for s in settled], np.float64)
        return values[:third], values[third:-third], values[-third:]

    _, middle, end = thirds("memory_bytes")
    growth = end.max() - middle.max()
    allowed = MOST_GROWTH * middle.max() + SLACK_BYTES

    start, _, end = thirds("ids_per_s")
    drift = abs(np.median(end) / np.median(start) - 1.0)
    spread = max(np.subtract(*np.percentile(part, [75, 25])) for part in (start, end))
    noise = max(most_drift, spread / np.median(start))

    _, middle, end = thirds("compaction_debt_bytes")
    second, final = middle.mean(), end.mean()
    buffered = max(s["write_buffer_bytes"] for s in samples)
    return [
        Target("memory growth allowed / seen", 1.0, float(min(99.0, allowed / max(growth, 1.0)))),
        Target("drift of rows/s allowed / seen", 1.0, float(noise / max(drift, 1e-2))),
        Target("write buffer bound / most seen", 1.0, most_buffer_bytes / max(1.0, buffered)),
        Target(
            "compaction debt allowed / seen",
            1.0,
            float((2.0 * second + (256 << 20)) / max(1.0, final)),
        ),
    ]


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long.")] = 20.0,
    every_s: Annotated[
        float | None, typer.Option(min=0.1, help="Between samples; 120 of them by default.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1)] = 1_000_000,
    dim: Annotated[int, typer.Option(min=1)] = 64,
    batch_size: Annotated[int, typer.Option(min=1)] = 2048,
    pooling: Annotated[int, typer.Option(min=1)] = 20,
    ddr: Annotated[str, typer.Option(help="DDR budget.")] = "32MiB",
    depth: Annotated[str, typer.Option(help="Batches staged ahead, or auto.")] = "auto",
    directory: Annotated[Path | None, typer.Option(help="Where the SSD tier goes.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
) -> None:
    interval_s = every_s or minutes * 60 / 120
    made = report(
        "soak",
        {
            "minutes": minutes,
            "rows": rows,
            "dim": dim,
            "batch_size": batch_size,
            "pooling": pooling,
            "ddr": ddr,
            "depth": depth,
            "interval_s": interval_s,
        },
    )
    print_origin(made)
    samples: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(dir=directory, prefix="tiered-embed-soak-") as scratch:
        emb = te.TieredEmbeddingBag(
            rows,
            dim,
            tiers=te.Tiers(ddr=ddr, ssd=scratch),
            optimizer=te.optim.RowWiseAdagrad(lr=0.02),
            depth=int(depth) if depth.isdecimal() else depth,
        )
        emb.import_rows(every_row(rows, dim))
        stream = IdStream(rows, batch_size, 1 << 40, pooling, "log_uniform")
        offsets = torch.arange(batch_size) * pooling
        loader = (torch.from_numpy(stream.batch(i).ids) for i in itertools.count())
        grad = torch.full((batch_size, dim), 0.01)
        start = last = time.perf_counter()
        ids = 0
        with emb:
            for batch in te.prefetch(loader, emb, ids=lambda batch: {emb: (batch, offsets)}):
                emb(batch, offsets).backward(grad)
                ids += len(batch)
                now = time.perf_counter()
                if now - last >= interval_s:
                    samples.append({"at_s": now - start, **sample(emb, ids, now - last)})
                    last, ids = time.perf_counter(), 0
                if now - start > 60 * minutes:
                    break
            phases = {name: vars(t) for name, t in emb.stats().phases.items()}
            record_bytes = emb.engine.pools[0].layout.record_bytes
    # Beside the bound, the victims of one plan.
    most_buffer_bytes = WRITE_BUFFER_BYTES + batch_size * pooling * record_bytes
    most_drift = SHORT_DRIFT if minutes < SHORT_MINUTES else MOST_DRIFT
    targets = judge(samples, most_buffer_bytes, most_drift)
    made |= {"samples": samples, "phases": phases, "targets": [t.as_dict() for t in targets]}
    show(samples, targets)
    write_json(json, made)
    if not all(t.met for t in targets):
        sys.exit(1)


def show(samples: list[dict[str, float]], targets: list[Target]) -> None:
    table = Table(title="samples", title_justify="left")
    units: dict[str, tuple[str, float]] = {
        "at_s": ("s", 1),
        "ids_per_s": ("k ids/s", 1e3),
        "memory_bytes": ("memory MB", 1e6),
        "store_memory_bytes": ("of it RocksDB MB", 1e6),
        "write_buffer_bytes": ("write buffer MB", 1e6),
        "compaction_debt_bytes": ("debt MB", 1e6),
        "store_bytes": ("store MB", 1e6),
    }
    for name, _ in units.values():
        table.add_column(name, justify="right")
    for s in samples[:: max(1, len(samples) // 20)]:
        row: list[Any] = [f"{s[name] / unit:,.1f}" for name, (_, unit) in units.items()]
        table.add_row(*row)
    console.print(table)
    for t in targets:
        verdict = "[green]met[/green]" if t.met else "[red]missed[/red]"
        console.print(f"{t.what}: {t.measured:.2f} {verdict}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    app.command(help=__doc__)(main)
    app()
