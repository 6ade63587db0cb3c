"""Train a DLRM on Criteo through HBM, DDR and SSD, with a tenth of the memory; compare the bytes.

``python -m tiered_embed.examples.demo --out demo_out``. HBM and DDR together hold at most a tenth
of the bytes that training touches; the rest is on the SSD tier. No GPU is needed: the HBM tier is
in host memory here, and its rows move as they would to a device. The demo then trains again with
all rows in memory. The two digests must be equal.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column, Table

import tiered_embed as te

from ..store import default_backend
from ..traces import CriteoBatch, CriteoGenerator, CriteoOptions, CriteoReader, data_root
from . import dlrm

__all__ = ["app", "main"]

EMBEDDING_DIM = 16
RECORD_BYTES = EMBEDDING_DIM * 4 + 4  # float32 weights and row-wise Adagrad's one float32
SAMPLE_PATTERN = "criteo_kaggle*.tsv*"
GENERATED_LINES = 10_000
# Small, because Criteo models overfit from the second epoch on, and a first update moves a row by
# this much.
EMBEDDING_LR = 1e-4
DENSE_LR = 1e-3

console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Settings:
    """What both trainings share."""

    epochs: int
    lookahead: int
    depth: int
    policy: str
    seed: int


@dataclass
class Trace:
    """Hit rate and stall of each step, for the picture."""

    hit_rates: list[float] = field(default_factory=list)
    stalls_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """One training: its scores, final counts, digest and duration."""

    scores: dlrm.Scores
    stats: dict[str, Any]
    digest: str
    train_s: float
    trace: Trace


class Meter:
    """Turns the running totals of ``stats()`` into values per step."""

    def __init__(self, embeddings: te.TieredEmbeddingBagCollection) -> None:
        self.embeddings = embeddings
        self.trace = Trace()
        self._unique = 0
        self._misses = 0
        self._stall_s = 0.0

    def step(self) -> dict[str, Any]:
        """Record one step; return the totals of each tier."""
        tiers: dict[str, Any] = self.embeddings.stats().as_dict()["tiers"]
        top = _top(tiers)
        unique = top["unique"] - self._unique
        misses = top["misses"] - self._misses
        # Plans run ahead of training, so that the last steps may add no counts.
        if unique > 0:
            self.trace.hit_rates.append(1.0 - misses / unique)
        elif self.trace.hit_rates:
            self.trace.hit_rates.append(self.trace.hit_rates[-1])
        else:
            self.trace.hit_rates.append(0.0)
        self.trace.stalls_ms.append((top["stall_s"] - self._stall_s) * 1e3)
        self._unique, self._misses = top["unique"], top["misses"]
        self._stall_s = top["stall_s"]
        return tiers


def find_log(out: Path, seed: int) -> Path:
    """Return the Criteo sample of the data root, or a generated log in ``out``."""
    root = data_root()
    found = sorted(root.glob(SAMPLE_PATTERN)) if root is not None else []
    if found:
        console.print(f"data: the Criteo log {found[0].name}")
        return found[0]
    path = out / "generated_criteo.tsv"
    CriteoGenerator(GENERATED_LINES, seed).write(path)
    console.print(
        f"data: found no Criteo log; generated {GENERATED_LINES} lines of the same format in {path}"
        f" (to use a real log, set TIERED_EMBED_DATA to its folder)"
    )
    return path


def count_touched_rows(batches: CriteoReader) -> int:
    """Return the number of distinct (table, id) pairs in a stream."""
    seen: list[set[int]] = [set() for _ in dlrm.FEATURE_NAMES]
    for batch in batches:
        for rows, ids in zip(seen, batch.ids, strict=True):
            rows.update(ids.tolist())
    return sum(map(len, seen))


def count_steps(train_log: CriteoReader, heldout_log: CriteoReader) -> int:
    """Return the number of training batches.

    Raises:
        ConfigError: too few lines to train and to score: no batch, or only one label held out.
    """
    num_steps = sum(1 for _ in train_log)
    labels = {label for batch in heldout_log for label in batch.labels.tolist()}
    if num_steps == 0 or len(labels) < 2:
        names = ", ".join(str(path) for path in train_log.paths)
        raise te.ConfigError(
            f"{names}: the log has too few lines: {num_steps} batches to train on, and"
            f" {len(labels)} of the 2 labels among the held-out lines (every"
            f" {heldout_log.options.heldout_every}th), which scores need; pass a longer log"
        )
    return num_steps


def run(
    title: str,
    tiers: te.Tiers,
    settings: Settings,
    train_log: CriteoReader,
    heldout_log: CriteoReader,
    num_steps: int,
) -> Result:
    """Train and score once. The trained bytes depend only on ``settings`` and the logs."""
    with te.TieredEmbeddingBagCollection(
        tables=dlrm.criteo_tables(EMBEDDING_DIM),
        tiers=tiers,
        optimizer=te.optim.RowWiseAdagrad(lr=EMBEDDING_LR, eps=1e-8),
        seed=settings.seed,
        policy=settings.policy,
        lookahead=settings.lookahead,
        depth=settings.depth,
        device="cpu",
        kernel="native",
    ) as embeddings:
        model = dlrm.DLRM(embeddings, EMBEDDING_DIM, seed=settings.seed)
        optimizer = torch.optim.Adam(model.dense_parameters(), lr=DENSE_LR)

        def epochs() -> Iterator[CriteoBatch]:
            # One stream, so that the window reaches past the end of an epoch.
            for _ in range(settings.epochs):
                yield from train_log

        meter = Meter(embeddings)
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[live]}", table_column=Column(no_wrap=True)),
            console=console,
        )
        with progress:
            task = progress.add_task(title, total=num_steps, live="")
            start_s = time.perf_counter()
            smooth_loss = 0.0

            def on_step(step: int, loss: float) -> None:
                nonlocal smooth_loss
                smooth_loss = loss if step == 1 else 0.98 * smooth_loss + 0.02 * loss
                tiers = meter.step()
                top = _top(tiers)
                rate = top["lookups"] / (time.perf_counter() - start_s)
                hits = " ".join(f"{name} {_hit_rate(tier):.0%}" for name, tier in tiers.items())
                live = (
                    f"loss {smooth_loss:.3f} {rate / 1e3:.0f}k rows/s"
                    f" {hits} stall {top['stall_s']:.1f}s"
                )
                progress.update(task, completed=step, live=live)

            batches = te.prefetch(
                epochs(), model, ids=lambda batch: {model.embeddings: dlrm.lookups(batch)}
            )
            dlrm.train(model, batches, optimizer, on_step)
            train_s = time.perf_counter() - start_s
        stats = embeddings.stats().as_dict()
        scores = dlrm.evaluate(model, heldout_log)
        return Result(scores, stats, embeddings.digest(), train_s, meter.trace)


def _top(tiers: dict[str, Any]) -> dict[str, Any]:
    """The topmost tier."""
    first: dict[str, Any] = next(iter(tiers.values()))
    return first


def _hit_rate(tier: dict[str, Any]) -> float:
    return float(tier["hits"] / tier["unique"]) if tier["unique"] else 0.0


def summary(tiered: Result, in_memory: Result) -> Table:
    """Return a table that compares the two trainings."""
    table = Table(title="summary", title_justify="left")
    table.add_column("")
    table.add_column(" + ".join(tiered.stats["tiers"]), justify="right")
    table.add_column("all in DDR", justify="right")
    both = (tiered, in_memory)
    table.add_row("held-out AUC", *(f"{r.scores.auc:.4f}" for r in both))
    table.add_row("held-out log loss", *(f"{r.scores.log_loss:.4f}" for r in both))
    lookups = (_top(r.stats["tiers"])["lookups"] / r.train_s for r in both)
    table.add_row("rows/s", *(f"{value:,.0f}" for value in lookups))
    for name in tiered.stats["tiers"]:
        tiers = [r.stats["tiers"].get(name) for r in both]
        for key, label in (
            ("hits", "hits"),
            ("misses", "misses"),
            ("staged", "rows staged"),
            ("written_back", "rows written back"),
            ("overflow", "overflow rows"),
        ):
            cells = (f"{tier[key]:,}" if tier and key in tier else "-" for tier in tiers)
            table.add_row(f"{name} {label}", *cells)
    tops = [_top(r.stats["tiers"]) for r in both]
    table.add_row("topmost tier's hit rate", *(f"{_hit_rate(tier):.1%}" for tier in tops))
    table.add_row("stall", *(f"{tier['stall_s']:.2f} s" for tier in tops))
    return table


def draw(trace: Trace, title: str, path: Path) -> None:
    """Draw hit rate and stall of each step, with a running mean."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    top, bottom = figure.subplots(2, 1, sharex=True)
    hits = 100.0 * np.asarray(trace.hit_rates)
    for axes, values, color in ((top, hits, "#1f77b4"), (bottom, trace.stalls_ms, "#d62728")):
        series = np.asarray(values, dtype=np.float64)
        steps = np.arange(1, len(series) + 1)
        width = max(1, min(25, len(series)))
        mean = np.convolve(series, np.ones(width) / width, mode="valid")
        axes.plot(steps, series, color=color, alpha=0.3, linewidth=0.7, label="step")
        axes.plot(steps[width - 1 :], mean, color=color, label=f"mean of {width} steps")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    top.set_ylim(0, 100)
    top.set_ylabel("hits in the topmost tier, %")
    bottom.set_ylim(bottom=0)
    bottom.set_ylabel("stall, ms")
    bottom.set_xlabel("step")
    figure.savefig(path, dpi=140)


app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for the picture and the store.")] = Path(
        "demo_out"
    ),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training lines.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a batch.")] = 32,
    hbm_percent: Annotated[
        float,
        typer.Option(min=0.0, max=5.0, help="HBM budget, in % of the bytes touched; 0 for no HBM."),
    ] = 4.0,
    ddr_percent: Annotated[
        float, typer.Option(min=0.1, max=10.0, help="DDR budget, in % of the bytes touched.")
    ] = 6.0,
    policy: Annotated[str, typer.Option(help="Which row leaves a full tier.")] = "lookahead",
    lookahead: Annotated[
        int, typer.Option(min=1, help="How many future batches the policy knows.")
    ] = 32,
    depth: Annotated[int, typer.Option(min=0, help="How many batches are staged ahead.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and of generated data.")] = 0,
) -> None:
    """Train with a tenth of the memory, then with all of it, and compare the trained bytes."""
    # The embeddings depend on the gradients of the dense part. One torch thread fixes the order of
    # its sums on any machine, and leaves the other cores to staging.
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    settings = Settings(epochs, lookahead, depth, policy, seed)
    path = find_log(out, seed)
    train_log = CriteoReader(path, CriteoOptions(batch_size=batch_size, part="train"))
    heldout_log = CriteoReader(path, CriteoOptions(batch_size=512, part="heldout"))
    num_steps = epochs * count_steps(train_log, heldout_log)

    num_rows = count_touched_rows(train_log)
    touched_bytes = num_rows * RECORD_BYTES
    hbm_bytes, ddr_bytes = (int(touched_bytes * p / 100.0) for p in (hbm_percent, ddr_percent))
    console.print(f"store: {default_backend()}")
    console.print(
        f"rows: training touches {num_rows:,} rows of {RECORD_BYTES} B ="
        f" {touched_bytes / 1e6:.2f} MB; HBM holds {hbm_bytes / 1e6:.3f} MB and DDR"
        f" {ddr_bytes / 1e6:.3f} MB, {(hbm_bytes + ddr_bytes) / touched_bytes:.1%} of them"
    )
    with tempfile.TemporaryDirectory(prefix="store-", dir=out) as store:
        folder = str(Path(store) / "embeddings")
        tiers = te.Tiers(hbm=hbm_bytes or None, ddr=ddr_bytes, ssd=folder)
        tiered = run("in tiers  ", tiers, settings, train_log, heldout_log, num_steps)
    # More than enough: this run must not need a tier below DDR.
    all_ddr = te.Tiers(ddr=max(8 * touched_bytes, 256 << 20))
    in_memory = run("all in DDR", all_ddr, settings, train_log, heldout_log, num_steps)

    console.print(summary(tiered, in_memory))
    picture = out / "hits_and_stalls.png"
    names = " + ".join(tiered.stats["tiers"])
    title = f"DLRM on {path.name}: {names}, HBM {hbm_percent:g} %, DDR {ddr_percent:g} %, {policy}"
    draw(tiered.trace, title, picture)
    console.print(f"picture: {picture}")
    console.print(f"digest, in tiers:   {tiered.digest}")
    console.print(f"digest, all in DDR: {in_memory.digest}")
    equal = tiered.digest == in_memory.digest
    console.print("digests equal" if equal else "digests DIFFER")
    if not equal:
        sys.exit(1)


if __name__ == "__main__":
    app()
