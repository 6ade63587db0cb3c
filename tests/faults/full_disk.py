"""A file system that is really full: a small tmpfs of our own, where we may mount one.

Training and saving go on until the disk refuses. Then the last acknowledged checkpoint is there;
with room again, the run goes on from it with the same bits.
"""

import os
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import tiered_embed as te
from forked import run_forked
from report import Report
from small_run import Model, Shape, Truth, extra_of, resume, start, state_bits, train_one, truth

DISK_BYTES = 3 << 20
ROOM_BYTES = 256 << 10  # that a filler takes and gives back
NUM_STEPS = 40
SHAPE = Shape(ddr=3000, lookahead=0, depth=0)


def mounted(path: Path) -> bool:
    path.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.getuid() != 0:
        return False
    command = [mount, "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)]
    return subprocess.run(command, capture_output=True).returncode == 0


def fill(disk: Path, leave_bytes: int) -> None:
    """All but ``leave_bytes`` of the disk goes to one file."""
    free = os.statvfs(disk)
    size = free.f_bavail * free.f_bsize - leave_bytes
    with open(disk / "filler", "wb") as f:
        f.write(bytes(max(0, size)))


def until_full(disk: Path, leave_bytes: int) -> Any:
    """Trains and saves until an error comes; returns it and what was acknowledged."""
    model = Model(disk / "work", SHAPE)
    start(model)
    acknowledged, refused = 0, ""
    try:
        for number in range(1, NUM_STEPS + 1):
            if number == 3:
                fill(disk, leave_bytes)
            train_one(model, number)
            te.checkpoint.save(model, disk / "saved", step=number, extra=extra_of(model)).wait()
            acknowledged = number
            model.emb.flush()
    except te.StoreError as error:
        refused = f"{type(error).__name__}: {error}"
    try:
        model.close()
    except te.StoreError as error:
        refused = refused or f"on close: {error}"
    return {"acknowledged": acknowledged, "refused": refused}


def go_on(disk: Path) -> Any:
    """With room again: resumes, and trains a few steps more."""
    model = Model(disk / "work", SHAPE)
    step = resume(model, disk / "saved")
    states = [state_bits(model)]
    losses = [train_one(model, step + 1)]
    te.checkpoint.save(model, disk / "saved", step=step + 1, extra=extra_of(model)).wait()
    te.checkpoint.verify(disk / "saved")
    model.close()
    return {"step": step, "state": states[0], "loss": losses[0]}


def run(count: int, seed: int, folder: Path) -> Report:
    report = Report()
    ended = run_forked(partial(truth, folder / "truth", NUM_STEPS + 1))
    if ended.result is None:
        report.fail(f"the uninterrupted run: {ended}")
        return report
    expected = Truth(**ended.result)
    for number in range(count):
        disk = folder / f"disk{number}"
        if not mounted(disk):
            report.skipped = "needs root and leave to mount a tmpfs"
            return report
        try:
            # From full at once to room for some more checkpoints.
            _one_disk(disk, ROOM_BYTES * number // max(1, count - 1), expected, report)
        finally:
            subprocess.run(["umount", str(disk)], check=False)
    return report


def _one_disk(disk: Path, leave_bytes: int, expected: Truth, report: Report) -> None:
    where = f"a disk with {leave_bytes} bytes left"
    first = run_forked(partial(until_full, disk, leave_bytes))
    if first.result is None:
        report.fail(f"{where}: {first}")
        return
    if not first.result["refused"]:
        report.fail(f"{where} was never full: the test tests nothing")
        return
    (disk / "filler").unlink()
    second = run_forked(partial(go_on, disk))
    if second.result is None:
        report.fail(f"{where}: refused with {first.result['refused']}; then {second}")
        return
    step = second.result["step"]
    if step < first.result["acknowledged"]:
        report.fail(f"{where}: step {first.result['acknowledged']} was acknowledged, not {step}")
    if second.result["state"] != expected.states[step]:
        report.fail(f"{where}: the state of step {step} differs")
    if second.result["loss"] != expected.losses[step + 1]:
        report.fail(f"{where}: the loss of step {step + 1} differs")
    report.count("disks full")
