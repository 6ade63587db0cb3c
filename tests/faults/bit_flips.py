"""Random bit flips over every file of a checkpoint: each is found.

Every file gets its share whatever its size, and half of the flips are spread over the bytes. Now
and then ``load`` has to find it instead of ``verify``.
"""

import random
from pathlib import Path

import tiered_embed as te
from checkpoint_files import Checkpoint, make_checkpoint, sort_of
from report import Report
from small_run import Model

LOAD_ONE_IN = 25


def flip(file: Path, bit: int) -> None:
    with open(file, "r+b") as f:
        f.seek(bit // 8)
        byte = f.read(1)[0]
        f.seek(bit // 8)
        f.write(bytes([byte ^ (1 << bit % 8)]))


def finds(checkpoint: Checkpoint, model: Model | None) -> str:
    """Which error told of the damage; empty where none did."""
    try:
        if model is None:
            checkpoint.verify()
        else:
            te.checkpoint.load(model, checkpoint.path)
    except te.StoreError as error:
        return type(error).__name__
    except FileNotFoundError:
        return "FileNotFoundError"
    return ""


def run(count: int, seed: int, folder: Path) -> Report:
    report, draw = Report(), random.Random(seed)
    checkpoint = make_checkpoint(folder)
    expected = checkpoint.verify()
    model = Model(folder / "reader")
    files = [f for f in checkpoint.files() if f.stat().st_size]
    sizes = [f.stat().st_size for f in files]
    for number in range(count):
        if number % 2:
            file = files[number // 2 % len(files)]
        else:
            (file,) = draw.choices(files, sizes)
        bit = draw.randrange(8 * file.stat().st_size)
        flip(file, bit)
        found = finds(checkpoint, model if number % LOAD_ONE_IN == 0 else None)
        flip(file, bit)
        report.count(f"in {sort_of(checkpoint, file)}")
        if not found:
            name = file.relative_to(checkpoint.step)
            report.fail(f"bit {bit} of {name} was flipped and not found")
    if checkpoint.verify() != expected:
        report.fail("the checkpoint with all bits flipped back counts other records")
    te.checkpoint.load(model, checkpoint.path)
    model.close()
    report.note("files", len(files))
    return report
