"""Files of a checkpoint truncated, swapped, deleted, replaced, added: each is found."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from bit_flips import finds
from checkpoint_files import Checkpoint, make_checkpoint
from report import Report

Draw = random.Random
Damage = Callable[[Checkpoint, list[Path], Draw], None]


def truncate(checkpoint: Checkpoint, files: list[Path], draw: Draw) -> None:
    file = draw.choice([f for f in files if f.stat().st_size])
    os.truncate(file, draw.randrange(file.stat().st_size))


def extend(checkpoint: Checkpoint, files: list[Path], draw: Draw) -> None:
    with open(draw.choice(files), "ab") as f:
        f.write(draw.choice([b"\0", b"\n", draw.randbytes(100)]))


def swap(checkpoint: Checkpoint, files: list[Path], draw: Draw) -> None:
    """Two files of different content change places."""
    while True:
        one, other = draw.sample(files, 2)
        if one.read_bytes() != other.read_bytes():
            break
    apart = checkpoint.step.with_name("apart")
    one.rename(apart)
    other.rename(one)
    apart.rename(other)


def delete(checkpoint: Checkpoint, files: list[Path], draw: Draw) -> None:
    draw.choice(files).unlink()


def delete_directory(checkpoint: Checkpoint, files: list[Path], draw: Draw) -> None:
    folders = sorted(p for p in checkpoint.step.rglob("*") if p.is_dir())
    shutil.rmtree(draw.choice(folders))


def add(checkpoint: Checkpoint, files: list[Path], draw: Draw) -> None:
    """An extra file beside the others: with a name like theirs, or one of its own."""
    beside = draw.choice(files)
    name = draw.choice(["999999.sst", "extra", "CURRENT.bak", ".hidden", "MANIFEST-999999"])
    file = beside.with_name(name)
    file.write_bytes(draw.choice([b"", beside.read_bytes()]))


def rename(checkpoint: Checkpoint, files: list[Path], draw: Draw) -> None:
    file = draw.choice(files)
    file.rename(file.with_name(file.name + "x"))


def link_elsewhere(checkpoint: Checkpoint, files: list[Path], draw: Draw) -> None:
    """The right bytes, but behind a symbolic link out of the checkpoint."""
    file = draw.choice(files)
    outside = checkpoint.path.parent / "outside"
    shutil.copyfile(file, outside)
    file.unlink()
    file.symlink_to(outside)


def make_directory(checkpoint: Checkpoint, files: list[Path], draw: Draw) -> None:
    file = draw.choice(files)
    file.unlink()
    file.mkdir()


def zero(checkpoint: Checkpoint, files: list[Path], draw: Draw) -> None:
    """A run of bytes becomes zeros, as after a lost write."""
    file = draw.choice([f for f in files if f.stat().st_size > 8])
    data = bytearray(file.read_bytes())
    first = draw.randrange(len(data) - 4)
    length = min(len(data) - first, draw.choice([4, 64, 4096]))
    if any(data[first : first + length]):
        data[first : first + length] = bytes(length)
    else:
        data[first] = 1
    file.write_bytes(data)


DAMAGES: list[Damage] = [
    truncate,
    extend,
    swap,
    delete,
    delete_directory,
    add,
    rename,
    link_elsewhere,
    make_directory,
    zero,
]


def run(count: int, seed: int, folder: Path) -> Report:
    report, draw = Report(), random.Random(seed)
    checkpoint = make_checkpoint(folder)
    pristine = folder / "pristine"
    shutil.copytree(checkpoint.path, pristine, symlinks=True)
    for number in range(count):
        damage = DAMAGES[number % len(DAMAGES)]
        damage(checkpoint, checkpoint.files(), draw)
        if not finds(checkpoint, None):
            report.fail(f"{damage.__name__} (case {number}, seed {seed}) was not found")
        report.count(damage.__name__)
        shutil.rmtree(checkpoint.path)
        shutil.copytree(pristine, checkpoint.path, symlinks=True)
        (folder / "outside").unlink(missing_ok=True)
    checkpoint.verify()
    return report
