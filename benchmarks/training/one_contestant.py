"""Runs one phase of one contestant of ``training beyond-memory`` in this process.

``python one_contestant.py SPEC.json RESULT.json``: a program of its own, so that
``beyond_memory.py`` can put it into a memory group.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the folder of `benchmarks`

import json
import time
from typing import Any

import numpy as np
import torch

from benchmarks.support.machine import Neighbours, process_io, process_memory
from benchmarks.support.reports import spread
from benchmarks.training.contestants import CONTESTANTS, Trainer
from benchmarks.training.spec import Spec


def _difference(after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """What a window of time added to running counts."""
    out: dict[str, Any] = {}
    for name, value in after.items():
        if isinstance(value, dict):
            out[name] = _difference(value, before.get(name, {}))
        else:
            out[name] = value - before.get(name, 0)
    return out


def train(spec: Spec) -> dict[str, Any]:
    """Check batch, warm-up, timed batches."""
    torch.set_num_threads(spec.threads)
    trainer: Trainer = CONTESTANTS[spec.contestant](spec)
    start = time.perf_counter()
    if spec.contestant != "ours":
        warmed = trainer.warm_up(spec)
    trainer.train()
    checked = trainer.rows(spec.checked_ids())
    np.save(Path(spec.directory).parent / f"checked-{spec.contestant}.npy", checked)
    if spec.contestant == "ours":
        warmed = trainer.warm_up(spec)
    warmed["seconds"] = time.perf_counter() - start

    neighbours = Neighbours()
    before, io_before = trainer.counters(), process_io()
    spans: list[float] = []
    start = last = time.perf_counter()
    while len(spans) < spec.max_batches and last - start < spec.budget_s:
        trainer.train()
        now = time.perf_counter()
        spans.append(now - last)
        last = now
    elapsed = last - start
    after, io_after = trainer.counters(), process_io()
    result: dict[str, Any] = {
        "warm_up": warmed,
        "timed_batches": len(spans),
        "timed_s": elapsed,
        "rows_per_s": len(spans) * spec.ids_per_batch / elapsed,
        "batch_s": spread(spans) | {"p95": float(np.quantile(spans, 0.95))},
        "neighbour_cores": neighbours.cores(),
        "io": _difference(io_after, io_before),
        "memory": process_memory(),
    }
    if after:
        result["stats"] = after
        result["timed_stats"] = _difference(after, before)
    start = time.perf_counter()
    trainer.close()
    result["close_s"] = time.perf_counter() - start
    return result


def main(spec_path: str, result_path: str) -> None:
    spec = Spec(**json.loads(Path(spec_path).read_text()))
    start = time.perf_counter()
    if spec.phase == "build":
        CONTESTANTS[spec.contestant].build(spec)
        result: dict[str, Any] = {"build_s": time.perf_counter() - start}
    else:
        result = train(spec)
    Path(result_path).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
