"""What a checkpoint costs: how long training stops, how long until it is committed, how much disk.

A table of ``--rows`` rows lies on SSD; a whole step is saved first. Then training changes rows
until their records make ``--delta`` bytes, a step is saved in the background, and training goes on.
The stop is the longer of the time in ``save`` and of the longest step until the commit; what all
these steps took beyond the median of those before is told, too. The disk's overhead is what the new
step alone keeps, shared neither with the step before nor with the working store. At last the step
is restored into other tiers.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the folder of `benchmarks`

import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch
import typer

import tiered_embed as te
from benchmarks.support.reports import (
    Target,
    console,
    print_origin,
    print_targets,
    report,
    write_json,
)
from tiered_embed.spec.sizes import parse_bytes
from tiered_embed.traces import IdStream

__all__ = ["main"]

DIM = 128
MOST_STOP_S, MOST_OVERHEAD = 2.0, 0.05
CHUNK_ROWS = 1 << 16
FULL_ROWS = 20_000_000


def every_row(rows: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    for start in range(0, rows, CHUNK_ROWS):
        count = min(CHUNK_ROWS, rows - start)
        yield np.arange(start, start + count), torch.full((count, DIM), 0.01)


def own_bytes(folder: Path) -> int:
    """Of files that no other directory shares."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in paths if path.stat().st_nlink == 1)


def own_of_step(folder: Path, before: Path, store: Path) -> int:
    """Bytes that only this step keeps: in no earlier step, and no longer in the working store."""
    shared = {
        path.stat().st_ino for root in (before, store) for path in root.rglob("*") if path.is_file()
    }
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum(status.st_size for status in files if status.st_ino not in shared)


class Trainer:
    """Steps, timed one by one."""

    def __init__(self, emb: te.TieredEmbeddingBag, rows: int, batch_size: int, pooling: int):
        self.emb = emb
        self.offsets = torch.arange(batch_size) * pooling
        self.stream = IdStream(rows, batch_size, 1 << 40, pooling, "log_uniform")
        self.grad = torch.full((batch_size, DIM), 0.01)
        self.seconds: list[float] = []
        self.changed: set[int] = set()

    def steps(self) -> Iterator[int]:
        loader = (torch.from_numpy(self.stream.batch(i).ids) for i in range(1 << 30))
        ids = te.prefetch(loader, self.emb, ids=lambda batch: {self.emb: (batch, self.offsets)})
        last = time.perf_counter()
        for i, batch in enumerate(ids):
            self.emb(batch, self.offsets).backward(self.grad)
            now = time.perf_counter()
            self.seconds.append(now - last)
            yield i
            last = time.perf_counter()


def main(
    rows: Annotated[int, typer.Option(min=1000)] = FULL_ROWS,
    delta: Annotated[str, typer.Option(help="Changed records, in bytes.")] = "500MB",
    ddr: Annotated[str, typer.Option(help="DDR budget.")] = "1GB",
    batch_size: Annotated[int, typer.Option(min=1)] = 4096,
    pooling: Annotated[int, typer.Option(min=1)] = 20,
    directory: Annotated[Path | None, typer.Option(help="Where it all goes (25 GB).")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
) -> None:
    torch.set_num_threads(2)
    record_bytes = 4 * (DIM + 1)
    wanted_rows = parse_bytes(delta) // record_bytes
    parameters = {"rows": rows, "delta": delta, "ddr": ddr, "record_bytes": record_bytes}
    made: dict[str, Any] = report("checkpoint", parameters)
    print_origin(made)
    with tempfile.TemporaryDirectory(dir=directory, prefix="tiered-embed-checkpoint-") as scratch:
        root = Path(scratch)
        made["result"] = measure(root, rows, wanted_rows, ddr, batch_size, pooling)
    r = made["result"]
    targets = [
        Target("seconds allowed / training stopped", 1.0, MOST_STOP_S / max(r["stop_s"], 1e-3)),
        Target(
            "disk allowed / taken by the step alone",
            1.0,
            MOST_OVERHEAD * r["table_bytes"] / max(r["own_bytes"], 1),
        ),
    ]
    made["targets"] = [t.as_dict() for t in targets]
    for name, value in r.items():
        console.print(f"{name}: {value:,.3f}" if isinstance(value, float) else f"{name}: {value:,}")
    print_targets(targets, rows >= FULL_ROWS)
    write_json(json, made)


def measure(
    root: Path, rows: int, wanted_rows: int, ddr: str, batch_size: int, pooling: int
) -> dict[str, Any]:
    optimizer = te.optim.RowWiseAdagrad(lr=0.02)
    path, ssd = root / "checkpoints", root / "ssd"
    out: dict[str, Any] = {}
    emb = te.TieredEmbeddingBag(rows, DIM, tiers=te.Tiers(ddr=ddr, ssd=ssd), optimizer=optimizer)
    with emb:
        emb.import_rows(every_row(rows))
        start = time.perf_counter()
        te.checkpoint.save(emb, path, step=0)
        out["whole_save_s"] = time.perf_counter() - start
        trainer = Trainer(emb, rows, batch_size, pooling)
        saved: te.checkpoint.Saved | None = None
        cut_at = committed_s = 0.0
        cut_step = 0
        for i in trainer.steps():
            if saved is None:
                trainer.changed.update(trainer.stream.batch(i).ids.tolist())
                if len(trainer.changed) < wanted_rows:
                    continue
                cut_at = time.perf_counter()
                saved = te.checkpoint.save(emb, path, step=1, background=True)
                out["save_call_s"] = time.perf_counter() - cut_at
                cut_step = i + 1
            elif saved.done:
                committed_s = time.perf_counter() - cut_at
                break
        assert saved is not None
        saved.wait()
        store = emb.engine.pools[0].store
        assert store is not None
        out["own_bytes"] = own_of_step(path / "step-1", path / "step-0", store.path)
        out["unshared_bytes"] = own_bytes(path / "step-1")
    # A span's first steps wait for a pipeline that was just emptied; that is part of the stop.
    usual = statistics.median(trainer.seconds[cut_step // 2 : cut_step])
    during = trainer.seconds[cut_step:]
    lost = sum(max(0.0, s - usual) for s in during)
    out |= {
        "delta_bytes": len(trainer.changed) * 4 * (DIM + 1),
        "table_bytes": rows * 4 * (DIM + 1),
        "steps_before": cut_step,
        "steps_until_commit": len(during),
        "usual_step_s": usual,
        "longest_step_s": max(during, default=0.0),
        "slower_steps_s": lost,
        "stop_s": max(out["save_call_s"], *during, 0.0),
        "commit_s": committed_s,
    }
    with te.TieredEmbeddingBag(
        rows, DIM, tiers=te.Tiers(ddr="200MB", ssd=root / "other"), optimizer=optimizer
    ) as emb:
        start = time.perf_counter()
        te.checkpoint.load(emb, path, 1)
        out["load_s"] = time.perf_counter() - start
        assert emb.stats().steps == cut_step
    return out


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    app.command(help=__doc__)(main)
    app()
