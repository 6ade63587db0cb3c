"""What update="step" costs beside update="backward": a whole step of a bag in memory.

    python benchmarks/updates [--rows 1000000] [--dim 128] [--bags 4096] [--pooling 20]

Both ways train the same ids and must give the same digest before anything is timed. Steps of the
two alternate, so that a busy machine slows both.
"""

import argparse
import json
import os
import statistics
import time
from typing import Any

import torch

import tiered_embed as te


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--bags", type=int, default=4096)
    parser.add_argument("--pooling", type=int, default=20)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for spec in (te.optim.RowWiseAdagrad(lr=0.02), te.optim.Adam(lr=0.001)):
        print(json.dumps({"optimizer": type(spec).__name__, **compare(spec, args)}))


def compare(spec: Any, args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds a step, medians, and their ratio."""
    tiers = te.Tiers(ddr=args.rows * (4 * args.dim + 4 * spec.state_floats(args.dim)))
    modules = {
        update: te.TieredEmbeddingBag(
            args.rows, args.dim, tiers=tiers, optimizer=spec, update=update
        )
        for update in ("backward", "step")
    }
    rows = te.row_optimizer(modules["step"])
    grad = torch.randn(args.bags, args.dim)
    times: dict[str, list[float]] = {update: [] for update in modules}
    for step in range(args.steps):
        ids = torch.randint(0, args.rows, (args.bags, args.pooling))
        for update, module in modules.items():
            start = time.perf_counter()
            module(ids).backward(grad)
            if update == "step":
                rows.step()
                rows.zero_grad()
            times[update].append(1000 * (time.perf_counter() - start))
        if step == 3:
            assert modules["step"].digest() == modules["backward"].digest()
    medians = {update: round(statistics.median(t[5:]), 2) for update, t in times.items()}
    for module in modules.values():
        module.close()
    return {**medians, "ratio": round(medians["step"] / medians["backward"], 2)}


if __name__ == "__main__":
    main()
