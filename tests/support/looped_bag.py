"""A bag with six slots over a store, the loop that trains it, and the digest that it must reach."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tiered_embed as te
from reference import Bags, DenseTrainer, Table

DIM = 4
SGD = te.optim.SGD(lr=0.5)
TABLE = Table("table", DIM)


def make_bag(folder: Path | None, *, rows: int = 6, **options: Any) -> te.TieredEmbeddingBag:
    tiers = te.Tiers(ddr=rows * 4 * DIM, ssd=folder, store="memory")
    options = {"lookahead": 2, "depth": 1, "num_threads": 1, **options}
    return te.TieredEmbeddingBag(None, DIM, tiers=tiers, optimizer=SGD, **options)


def ids_of(n: int) -> torch.Tensor:
    return torch.arange(4 * n, 4 * n + 4).reshape(2, 2)


def train_one(module: te.TieredEmbeddingBag, ids: torch.Tensor) -> None:
    module(ids).sum().backward()


def dense_digest(batches: list[torch.Tensor]) -> str:
    dense = DenseTrainer([TABLE], SGD, init=te.init.Uniform(), seed=0)
    for ids in batches:
        offsets = np.arange(ids.shape[0] + 1, dtype=np.int64) * ids.shape[1]
        grad = np.ones((ids.shape[0], DIM), np.float32)
        dense.backward({"table": Bags(ids.reshape(-1).numpy(), offsets)}, {"table": grad})
    return dense.digest()


# --- in a process of its own ----------------------------------------------------------------------

PREAMBLE = """
import faulthandler, gc, logging, os, signal, sys, threading
logging.getLogger("tiered_embed").setLevel(logging.ERROR)  # not the overflow notice
faulthandler.dump_traceback_later(100, exit=True)
import torch
import tiered_embed as te

def ids_of(n):
    return torch.arange(4 * n, 4 * n + 4).reshape(2, 2)

def train_one(n):
    module(ids_of(n)).sum().backward()

module = te.TieredEmbeddingBag(
    None, 4, tiers=te.Tiers(ddr=96, ssd=sys.argv[1], store="rocksdb_py"),
    optimizer=te.optim.SGD(lr=0.5), lookahead=3, depth=2)
pool = module.engine.pools[0]
loop = te.prefetch(range(100), module, ids=lambda n: {module: ids_of(n)})
"""


def run_script(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Run ``body`` after the preamble; its store lies in ``folder``."""
    script = PREAMBLE + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(te.__file__).parents[1],
    )
