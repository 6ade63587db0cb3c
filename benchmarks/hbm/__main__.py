"""The HBM tier: what it costs on the CPU, and what it gives on a GPU.

``overhead``: on the CPU, three tiers against two with the same kernel and the same memory in all:
what moving rows between HBM and DDR adds to a step when a move is a copy.

``peers``: on a GPU, ten tables at 10, 20, 80 and 100 % in HBM against FBGEMM's ``MANAGED_CACHING``
with and without its prefetch pipeline, and against FBGEMM with every row in HBM. TorchRec's UVM
caching is that same ``MANAGED_CACHING`` behind a sharded module, and is not timed again.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the folder of `benchmarks`

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

import tiered_embed as te
from benchmarks.hbm.peers import CONTESTANTS, OPTIMIZERS, Step, copy_rates, measure, missing
from benchmarks.support.reports import (
    Target,
    console,
    print_origin,
    print_targets,
    report,
    spread,
    write_json,
)

__all__ = ["app"]

MOST_OVERHEAD = 0.10

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", help=__doc__)
Json = Annotated[Path | None, typer.Option(help="Write the report here.")]


@dataclass(frozen=True)
class Overhead:
    """Sizes of one comparison. Shares are of the rows of the table."""

    rows: int = 1_000_000
    dim: int = 128
    batch_size: int = 4096
    pooling: int = 20
    exponent: float = 1.05
    hbm_share: float = 0.2
    memory_share: float = 0.4
    warm_steps: int = 60
    rounds: int = 15
    steps: int = 6
    lookahead: int = 8
    depth: int = 2


def zipf_batches(p: Overhead, seed: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches without end: ids with the popularity of ``exponent``, popular ones anywhere."""
    draw = np.random.default_rng(seed)
    weights = np.arange(1, p.rows + 1, dtype=np.float64) ** -p.exponent
    edges = np.cumsum(weights) / weights.sum()
    place = np.random.default_rng(1).permutation(p.rows)
    offsets = torch.arange(0, p.batch_size * p.pooling, p.pooling)
    while True:
        ids = place[np.searchsorted(edges, draw.random(p.batch_size * p.pooling))]
        yield torch.from_numpy(ids), offsets


class Contestant:
    """A module that trains under its own prefetch loop, some steps at a time."""

    def __init__(self, p: Overhead, tiers: te.Tiers, kernel: str) -> None:
        self.module = te.TieredEmbeddingBag(
            p.rows,
            p.dim,
            tiers=tiers,
            optimizer=te.optim.RowWiseAdagrad(lr=0.02),
            lookahead=p.lookahead,
            depth=p.depth,
            device="cpu",
            kernel=kernel,
        )
        self.grad = torch.full((p.batch_size, p.dim), 1e-3)
        self.loop = iter(te.prefetch(zipf_batches(p), self.module, ids=lambda b: {self.module: b}))

    def run(self, steps: int) -> float:
        """Seconds per step."""
        start = time.perf_counter()
        for _ in range(steps):
            self.module(*next(self.loop)).backward(self.grad)
        return (time.perf_counter() - start) / steps

    def close(self) -> None:
        self.loop.close()  # type: ignore[attr-defined]
        self.module.close()


def compare(p: Overhead, kernel: str, directory: Path) -> dict[str, Any]:
    """Turn by turn, after both have warmed up; the ratio of the turns' medians."""
    record_bytes = 4 * p.dim + 4
    memory, hbm = (int(p.rows * s) * record_bytes for s in (p.memory_share, p.hbm_share))
    two = te.Tiers(hbm=memory, ssd=directory / "two")
    three = te.Tiers(hbm=hbm, ddr=memory - hbm, ssd=directory / "three")
    contestants = {"two tiers": Contestant(p, two, kernel), "three": Contestant(p, three, kernel)}
    try:
        for contestant in contestants.values():
            contestant.run(p.warm_steps)
        before = {name: c.module.stats() for name, c in contestants.items()}
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(p.rounds):
            order = list(contestants.items())
            for name, contestant in order if turn % 2 else order[::-1]:
                times[name].append(contestant.run(p.steps))
        counts = {
            name: {
                tier: {"lookups": c.lookups, "misses": c.misses, "evicted": c.evicted}
                for tier, c in contestant.module.stats().since(before[name]).tiers.items()
            }
            for name, contestant in contestants.items()
        }
    finally:
        for contestant in contestants.values():
            contestant.close()
    medians = {name: statistics.median(t) for name, t in times.items()}
    return {
        "kernel": kernel,
        "step_s": {name: spread(t) for name, t in times.items()},
        "counts": counts,
        "overhead": medians["three"] / medians["two tiers"] - 1.0,
    }


@app.command()
def overhead(
    directory: Annotated[Path, typer.Option("--dir", help="Where the stores go.")] = Path(
        "/var/tmp"
    ),
    hbm_share: Annotated[float, typer.Option(help="Of the rows, in HBM.")] = 0.2,
    memory_share: Annotated[float, typer.Option(help="Of the rows, in memory at all.")] = 0.4,
    kernels: Annotated[str, typer.Option(help="With commas.")] = "fbgemm,native",
    quick: Annotated[bool, typer.Option(help="Small and short: says whether it works.")] = False,
    json: Json = None,
) -> None:
    """Three tiers against two on the CPU."""
    torch.set_num_threads(2)
    small = {"rows": 20_000, "batch_size": 256, "warm_steps": 10, "rounds": 3, "steps": 3}
    p = Overhead(hbm_share=hbm_share, memory_share=memory_share, **small if quick else {})
    made = report("HBM tier on the CPU", asdict(p))
    print_origin(made)
    made["results"] = []
    table = Table(title=f"{hbm_share:.0%} of the rows in HBM, {memory_share:.0%} in memory")
    for column in ("kernel", "two tiers", "three", "overhead"):
        table.add_column(column, justify="left" if column == "kernel" else "right")
    for kernel in kernels.split(","):
        with tempfile.TemporaryDirectory(dir=directory) as folder:
            result = compare(p, kernel, Path(folder))
        made["results"].append(result)
        steps = [f"{1e3 * result['step_s'][n]['median']:.1f} ms" for n in ("two tiers", "three")]
        table.add_row(kernel, *steps, f"{result['overhead']:+.1%}")
    console.print(table)
    targets = [
        Target(
            f"{r['kernel']}: 1.10 of the two-tier step, over the three-tier step",
            1.0,
            (1.0 + MOST_OVERHEAD) / (1.0 + r["overhead"]),
        )
        for r in made["results"]
    ]
    made["targets"] = [t.as_dict() for t in targets]
    print_targets(targets, not quick)
    write_json(json, made)


def peer_targets(cells: list[dict[str, Any]]) -> list[Target]:
    def step(optimizer: str, share: float, start: str) -> float | None:
        found = [
            result["step_ms"]
            for cell in cells
            if (cell["optimizer"], cell["cache_share"]) == (optimizer, share)
            for name, result in cell["contestants"].items()
            if name.startswith(start) and "step_ms" in result
        ]
        return min(found, default=None)

    def over(theirs: float | None, ours: float | None) -> float | None:
        return theirs / ours if theirs and ours else None

    adam = over(step("adam", 0.8, "FBGEMM MANAGED"), step("adam", 0.8, "ours"))
    small = [
        over(step(optimizer, 1.0, "FBGEMM all"), step(optimizer, 0.2, "ours"))
        for optimizer in OPTIMIZERS
    ]
    kept = [ratio for ratio in small if ratio is not None]
    return [
        Target("Adam, 80 % in HBM: over FBGEMM MANAGED_CACHING's step", 3.0, adam),
        Target("20 % in HBM: of the all-HBM step, worst optimizer", 0.9, min(kept, default=None)),
    ]


@app.command()
def peers(
    optimizers: Annotated[str, typer.Option(help="With commas.")] = ",".join(OPTIMIZERS),
    shares: Annotated[str, typer.Option(help="Of the rows in HBM.")] = "0.1,0.2,0.8,1.0",
    device: Annotated[str, typer.Option(help="cuda, or cpu to see whether it works.")] = "cuda",
    quick: Annotated[bool, typer.Option(help="Small and short: says whether it works.")] = False,
    json: Json = None,
) -> None:
    """Against FBGEMM on a GPU."""
    lacking = missing(device)
    if lacking:
        for what in lacking:
            console.print(f"[red]missing:[/red] {what}")
        raise typer.Exit(2)
    small = {"rows": 5000, "ids": 20_000, "batch_size": 128, "warm_steps": 3, "steps": 3}
    made = report("HBM tier on a GPU", {"device": device, "quick": quick})
    made["gpu"] = torch.cuda.get_device_name() if device == "cuda" else None
    made["copy_bytes_per_s"] = copy_rates(device)
    print_origin(made)
    console.print(f"GPU: {made['gpu']}, copies: {made['copy_bytes_per_s']}")
    made["cells"] = []
    for optimizer in optimizers.split(","):
        for share in map(float, shares.split(",")):
            p = Step(optimizer, share, device=device, **small if quick else {})
            contestants: dict[str, Any] = {}
            for name in CONTESTANTS:
                try:
                    contestants[name] = measure(name, p)
                except Exception as error:  # one that cannot run here leaves the others
                    contestants[name] = {"failed": f"{type(error).__name__}: {error}"}
            made["cells"].append(
                {"optimizer": optimizer, "cache_share": share, "contestants": contestants}
            )
            _show_cell(optimizer, share, contestants)
            write_json(json, made)
    targets = peer_targets(made["cells"])
    made["targets"] = [t.as_dict() for t in targets]
    print_targets(targets, device == "cuda" and not quick)
    write_json(json, made)


def _show_cell(optimizer: str, share: float, contestants: dict[str, Any]) -> None:
    table = Table(title=f"{optimizer}, {share:.0%} in HBM", title_justify="left")
    for column in ("", "forward", "backward", "step", "hit rate"):
        table.add_column(column, justify="right" if column else "left")
    for name, result in contestants.items():
        if "failed" in result:
            table.add_row(name, result["failed"][:60], "", "", "")
            continue
        times = [f"{result[f'{part}_ms']:.2f} ms" for part in ("forward", "backward", "step")]
        hits = f"{result['hit_rate']:.1%}" if "hit_rate" in result else ""
        table.add_row(name, *times, hits)
    console.print(table)


if __name__ == "__main__":
    app()
