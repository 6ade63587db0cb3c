"""Training steps of many tables, side by side with FBGEMM's table-batched module on the CPU.

A step is a forward from ids to pooled rows and a backward with row-wise Adagrad. Three contestants
take turns on the same batches: the collection with a KeyedJaggedTensor, the collection with a
mapping whose outputs are joined by ``te.joined``, and FBGEMM with the same ids and offsets. All
rows are in memory. Outputs are compared before anything is timed. Needs the ``cpu`` extra. A
minute:

  python benchmarks/many_tables --tables 26 --bags 512 --threads 1
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the folder of `benchmarks`

import itertools
import json as js
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
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

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

DIMS = {1: [32], 3: [16, 32, 64], 8: [8, 16, 24, 32, 48, 64, 96, 128]}
TOTAL_ROWS = 2_000_000
LR, EPS = 0.02, 1e-8
BATCHES = 6
MOST_OUTPUT_BYTES = 1 << 30
MOST_IDS = 50_000_000


def make_batches(tables: int, bags: int, most_ids: int, rows: int) -> list[Any]:
    """(ids (N,), offsets (tables * bags + 1,)) with 1 to ``most_ids`` ids a bag."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(BATCHES):
        lengths = rng.integers(1, most_ids + 1, tables * bags)
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
        out.append((torch.from_numpy(rng.integers(0, rows, int(lengths.sum()))), offsets))
    return out


def as_mapping(names: list[str], bags: int, batch: Any) -> dict[str, Any]:
    """The batch as {name: (ids, offsets)}."""
    ids, offsets = batch
    out = {}
    for t, name in enumerate(names):
        starts = offsets[t * bags : (t + 1) * bags + 1]
        first, last = int(starts[0]), int(starts[-1])
        out[name] = ids[first:last], starts[:-1] - first
    return out


def one_cell(
    tables: int, bags: int, most_ids: int, num_dims: int, threads: int, budget_s: float
) -> dict[str, Any]:
    """Median seconds of a step of each contestant."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    import tiered_embed as te

    torch.set_num_threads(threads)
    dims = [DIMS[num_dims][t % num_dims] for t in range(tables)]
    rows = max(1000, TOTAL_ROWS // tables)
    names = [f"t{t}" for t in range(tables)]
    batches = make_batches(tables, bags, most_ids, rows)
    keyed = [KeyedJaggedTensor(names, ids, offsets=o, stride=bags) for ids, o in batches]
    mappings = [as_mapping(names, bags, batch) for batch in batches]
    grad = torch.randn(bags, sum(dims), generator=torch.Generator().manual_seed(0)) * 1e-3

    start = time.perf_counter()
    ours = te.TieredEmbeddingBagCollection(
        [te.TableConfig(name, rows, dim) for name, dim in zip(names, dims, strict=True)],
        tiers=te.Tiers(ddr=rows * sum(dim * 4 + 4 for dim in dims)),
        optimizer=te.optim.RowWiseAdagrad(lr=LR, eps=EPS),
        num_threads=threads,
    )
    construct_s = time.perf_counter() - start
    theirs = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU) for dim in dims],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=LR,
        eps=EPS,
    )
    for name, weights in zip(names, theirs.split_embedding_weights(), strict=True):
        weights.data.copy_(ours.rows(range(rows), name))

    outputs: dict[str, Callable[[int], torch.Tensor]] = {
        "keyed": lambda i: ours(keyed[i]).values(),
        "mapping": lambda i: te.joined(ours(mappings[i])),
        "fbgemm": lambda i: theirs(*batches[i]),
    }
    found = {name: output(0).detach() for name, output in outputs.items()}
    for name in ("keyed", "mapping"):
        torch.testing.assert_close(found[name], found["fbgemm"], rtol=1e-5, atol=1e-6)
    del found

    times: dict[str, list[float]] = {name: [] for name in outputs}
    for output in outputs.values():  # warm up
        for i in range(BATCHES):
            output(i).backward(grad)
    stop = time.perf_counter() + budget_s
    turn = 0
    while time.perf_counter() < stop or turn < 7:
        for name, output in outputs.items():
            start = time.perf_counter()
            output(turn % BATCHES).backward(grad)
            times[name].append(time.perf_counter() - start)
        turn += 1
    ours.close()
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "tables": tables,
        "bags": bags,
        "most_ids": most_ids,
        "dims": num_dims,
        "threads": threads,
        "turns": turn,
        "construct_s": construct_s,
        "step_s": medians,
        "over_fbgemm": medians["fbgemm"] / medians["keyed"],
        "mapping_over_keyed": medians["mapping"] / medians["keyed"],
    }


def targets(cells: list[dict[str, Any]]) -> list[Target]:
    """What these cells were to reach."""
    ratios = [cell["over_fbgemm"] for cell in cells]
    slowest = max(cell["mapping_over_keyed"] for cell in cells)
    made = [
        Target("steps/s over FBGEMM's, median of the grid", 1.5, statistics.median(ratios)),
        Target("steps/s over FBGEMM's, worst cell", 1.1, min(ratios)),
        Target("steps/s of a mapping over a KeyedJaggedTensor's, worst", 1 / 1.15, 1 / slowest),
    ]
    large = [cell["construct_s"] for cell in cells if cell["tables"] >= 2000]
    if large:
        made.append(Target("constructors in 2 s, of 2,000 tables", 1.0, 2 / max(large)))
    return made


Grid = Annotated[list[int] | None, typer.Option(help="Only these; may be given several times.")]


@app.command(help=__doc__)
def main(
    tables: Grid = None,
    bags: Grid = None,
    most_ids: Grid = None,
    dims: Grid = None,
    threads: Grid = None,
    budget_s: Annotated[float, typer.Option(help="Timed seconds of each cell.")] = 5.0,
    wait: Annotated[str, typer.Option(help="OMP_WAIT_POLICY: passive or active.")] = "passive",
    json: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
    cell: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    if cell is not None:  # in a process of its own
        t, b, most, num_dims, n = map(int, cell.split(","))
        print(js.dumps(one_cell(t, b, most, num_dims, n, budget_s)))
        return
    made = report("many tables", {"omp_wait_policy": wait, "budget_s": budget_s})
    print_origin(made)
    columns = ("tables", "bags", "ids a bag", "dims", "threads", "keyed ms", "mapping ms")
    table = Table(*columns, "FBGEMM ms", "x FBGEMM", "mapping / keyed")
    cells: list[dict[str, Any]] = []
    grid = itertools.product(
        tables or [26, 200, 856, 2000],
        bags or [512, 4096],
        most_ids or [1, 7, 50],
        dims or [1, 3, 8],
        threads or [1, 2],
    )
    for t, b, most, num_dims, n in grid:
        output_bytes = t * b * statistics.mean(DIMS[num_dims]) * 4
        if output_bytes > MOST_OUTPUT_BYTES or t * b * (most + 1) / 2 > MOST_IDS:
            continue  # three contestants' outputs, gradients and batches would not fit in memory
        environment = {**os.environ, "OMP_NUM_THREADS": str(n), "OMP_WAIT_POLICY": wait}
        command = [sys.executable, __file__, "--cell", f"{t},{b},{most},{num_dims},{n}"]
        command += ["--budget-s", str(budget_s)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"a cell failed: {done.stderr[-2000:]}")
        found = js.loads(done.stdout.splitlines()[-1])
        cells.append(found)
        ms = [f"{found['step_s'][name] * 1e3:.2f}" for name in ("keyed", "mapping", "fbgemm")]
        ratios = [f"{found[name]:.2f}" for name in ("over_fbgemm", "mapping_over_keyed")]
        row = [*map(str, (t, b, f"1-{most}", num_dims, n)), *ms, *ratios]
        table.add_row(*row)
        console.print("  ".join(row))
        made["cells"] = cells
        made["targets"] = [target.as_dict() for target in targets(cells)]
        write_json(json, made)
    console.print(table)
    print_targets(targets(cells), not any((tables, bags, most_ids, dims, threads)))


if __name__ == "__main__":
    app()
