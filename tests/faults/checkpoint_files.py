"""A small checkpoint to be damaged: made once, with files of every kind in it."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

import tiered_embed as te
from small_run import SHAPES, Model, extra_of, start, train_one

STEP = 6


@dataclass(frozen=True)
class Checkpoint:
    """``path``: what ``te.checkpoint.verify`` takes; ``step``: its only step's directory."""

    path: Path
    step: Path

    def files(self) -> list[Path]:
        return sorted(p for p in self.step.rglob("*") if p.is_file() and not p.is_symlink())

    def verify(self) -> int:
        return te.checkpoint.verify(self.path)


def make_checkpoint(folder: Path) -> Checkpoint:
    """Trains a little and saves; all files are own copies, so that damage stays there."""
    model = Model(folder / "work", SHAPES[0])
    start(model)
    for number in range(1, STEP + 1):
        train_one(model, number)
        model.emb.flush()  # several SST files
    te.checkpoint.save(model, folder / "linked", step=STEP, extra=extra_of(model)).wait()
    model.close()
    shutil.copytree(folder / "linked", folder / "saved", symlinks=True)
    return Checkpoint(folder / "saved", folder / "saved" / f"step-{STEP}")


def sort_of(checkpoint: Checkpoint, file: Path) -> str:
    """What a table calls a file."""
    name = file.name
    if name.endswith(".sst"):
        return "SST"
    for start_ in ("MANIFEST", "OPTIONS", "CURRENT", "IDENTITY", "LOG"):
        if name.startswith(start_):
            return start_
    return name


def load_manifest(checkpoint: Checkpoint) -> dict[str, object]:
    return json.loads((checkpoint.step / "manifest.json").read_text())  # type: ignore[no-any-return]


def quiet_torch() -> None:
    torch.set_num_threads(1)
