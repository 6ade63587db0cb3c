"""Writes ``v0.1/``: directories and checkpoints as version 0.1 left them, and their digests.

The files are kept byte for byte: a newer version must open them. The script was run once, with
version 0.1 installed, and is kept to show what the directories hold:

    python tests/golden/make_v0_1.py

RocksDB's text logs (``db/LOG*``) are left out, since they name the machine.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import tiered_embed as te

FOLDER = Path(__file__).resolve().parent / "v0.1"
BACKENDS = ("rocksdb", "rocksdb_py", "memory")
ROWS = {"user": 90, "item": 70, "tag": None}
DIMS = {"user": 4, "item": 4, "tag": 8}


def single(ssd: Path, store: str = "auto", **options: Any) -> te.TieredEmbedding:
    """One module with one table, most of which lies on the SSD."""
    options = {"optimizer": te.optim.Adam(lr=0.1), "seed": 7, **options}
    tiers = te.Tiers(ddr=600, ssd=ssd, store=store)  # type: ignore[arg-type]
    return te.TieredEmbedding(80, 4, name="single", padding_idx=3, tiers=tiers, **options)


def collection(ssd: Path, *names: str) -> te.TieredEmbeddingBagCollection:
    """Three tables, of two dims: two pools."""
    tables = [te.TableConfig(name, ROWS[name], DIMS[name], [name], "sum") for name in names or ROWS]
    return te.TieredEmbeddingBagCollection(
        tables,
        tiers=te.Tiers(ddr=1500, ssd=ssd),
        optimizer=te.optim.RowWiseAdagrad(lr=0.05),
        seed=11,
    )


def train_single(module: te.TieredEmbedding, begin: int, end: int) -> None:
    for step in range(begin, end):
        (module((torch.arange(12) * 7 + step) % 80) ** 2).sum().backward()


def train_collection(module: te.TieredEmbeddingBagCollection, begin: int, end: int) -> None:
    offsets = torch.arange(0, 12, 3)
    for step in range(begin, end):
        ids = {
            name: (torch.arange(12) * 5 + 3 * step) % (ROWS[name] or 2**40)
            for name in module.embedding_names
        }
        out = module({name: (part, offsets) for name, part in ids.items()})
        torch.cat([(part**2).flatten() for part in out.values()]).sum().backward()


def extra(step: int) -> dict[str, Any]:
    return {"dense": torch.arange(6.0).reshape(2, 3) * step, "epoch": step, "cursor": (step, "x")}


def write_single(root: Path, store: str) -> dict[str, Any]:
    """A working directory that was closed, and its checkpoint."""
    with single(root / "ssd", store) as module:
        train_single(module, 0, 6)
        te.checkpoint.save(module, root / "checkpoints", step=6)
        train_single(module, 6, 9)
        return {"steps": module.stats().steps, "digest": module.digest()}


def write_collection(root: Path) -> dict[str, Any]:
    """A working directory of two pools; a whole step and a delta on it, each with ``extra``."""
    found: dict[str, Any] = {}
    with collection(root / "ssd") as module:
        train_collection(module, 0, 5)
        te.checkpoint.save(module, root / "checkpoints", step=5, extra=extra(5))
        found["5"] = module.digest()
        train_collection(module, 5, 8)
        te.checkpoint.save_delta(module, root / "checkpoints", step=8, extra=extra(8))
        found["8"] = module.digest()
        train_collection(module, 8, 9)
        return {**found, "steps": module.stats().steps, "digest": module.digest()}


def write_killed(root: Path) -> None:
    """Ends the process amid training, after rows have been evicted into the store."""
    module = single(root / "ssd")
    train_single(module, 0, 3)
    module.flush()
    train_single(module, 3, 6)
    module.rows([0])  # waits until every write has arrived
    os._exit(9)


def main() -> None:
    assert te.__version__ == "0.1.0.dev0", f"version {te.__version__} writes other directories"
    scratch = Path(tempfile.mkdtemp()) / "v0.1"
    expected: dict[str, Any] = {store: write_single(scratch / store, store) for store in BACKENDS}
    expected["collection"] = write_collection(scratch / "collection")
    command = [sys.executable, __file__, "killed", str(scratch / "killed")]
    assert subprocess.run(command, check=False).returncode == 9
    for log in scratch.rglob("LOG*"):
        log.unlink()
    FOLDER.mkdir(exist_ok=True)
    for entry in scratch.iterdir():
        shutil.copytree(entry, FOLDER / entry.name)
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["killed"]:
        write_killed(Path(sys.argv[2]))
    main()
