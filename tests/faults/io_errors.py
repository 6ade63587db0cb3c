"""An error, a full disk or a short write at every k-th file operation over five workloads.

Each call either works or raises a StoreError; whatever was acknowledged before comes back bit for
bit once the fault is over; nothing wrong is read. The reads themselves fail in
``native/tests/faults``.
"""

import errno
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import shim
import tiered_embed as te
from forked import Ended, run_forked
from report import Report
from small_run import (
    Model,
    Shape,
    Truth,
    extra_of,
    numbers,
    restore,
    resume,
    start,
    state_bits,
    train_one,
    truth,
)

TINY = Shape(ddr=3000, lookahead=1, depth=1)
BASE_STEP = 2
NUM_STEPS = 8
MOST_OPERATIONS = 5000

FAULTS = {
    "error": shim.Fault("fail", 0, errno.EIO),
    "errors from there on": shim.Fault("fail", 0, errno.EIO, sticky=True),
    "disk full from there on": shim.Fault("fail", 0, errno.ENOSPC, sticky=True),
    "short write": shim.Fault("short", 0, errno.EIO),
}


@dataclass
class Scene:
    """A run at step 2, saved; what was acknowledged last, and the state to find there."""

    folder: Path
    model: Model
    acknowledged: int = BASE_STEP
    at: int = BASE_STEP

    @property
    def saved(self) -> Path:
        return self.folder / "saved"


def save(scene: Scene, *, background: bool) -> None:
    handle = te.checkpoint.save(
        scene.model,
        scene.saved,
        step=scene.at,
        extra=extra_of(scene.model),
        background=background,
    )
    handle.wait()
    scene.acknowledged = scene.at


def train_and_save(scene: Scene) -> None:
    for number in numbers(scene.model, scene.at + 1, scene.at + 2):
        train_one(scene.model, number)
        scene.at = number
    save(scene, background=False)


def save_in_background(scene: Scene) -> None:
    train_one(scene.model, scene.at + 1)
    scene.at += 1
    save(scene, background=True)
    te.checkpoint.prune(scene.saved, keep=1)


def train_and_flush(scene: Scene) -> None:
    for number in range(scene.at + 1, NUM_STEPS):
        train_one(scene.model, number)
        scene.at = number
        scene.model.emb.flush()


def load_again(scene: Scene) -> None:
    restore(scene.model, te.checkpoint.load(scene.model, scene.saved)["extra"])
    scene.at = scene.acknowledged
    train_one(scene.model, scene.at + 1)
    scene.at += 1
    scene.model.emb.flush()


def open_import_and_close(scene: Scene) -> None:
    folder = scene.folder / "other"
    with te.TieredEmbeddingBag(
        None, 4, tiers=te.Tiers(ddr=400, ssd=folder), optimizer=te.optim.SGD(lr=0.1)
    ) as other:
        other.import_rows([(torch.arange(50), torch.ones(50, 4))])
        other(torch.arange(40).reshape(1, 40)).sum().backward()


WORKLOADS: dict[str, Callable[[Scene], None]] = {
    "train and save": train_and_save,
    "save in the background, prune": save_in_background,
    "train and flush": train_and_flush,
    "load again": load_again,
    "open, import, close": open_import_and_close,
}


def try_once(folder: Path, work: Callable[[Scene], None], fault: shim.Fault | None) -> Any:
    """Runs ``work`` under ``fault``; returns what there was, for ``judge``."""
    model = Model(folder / "work", TINY)
    start(model)
    for number in (1, 2):
        train_one(model, number)
    scene = Scene(folder, model)
    save(scene, background=False)

    refused = ""
    shim.arm(folder, fault)
    try:
        work(scene)
    except te.StoreError as error:
        refused = f"{type(error).__name__}: {error}"
    count = shim.disarm()
    after = ""  # what a module tells that goes on once the fault is over
    if not refused:
        after = state_bits(model)
    try:
        model.close()
    except te.StoreError as error:
        refused = refused or f"on close: {error}"

    again = Model(folder / "work", TINY)
    came_back = resume(again, scene.saved)
    out = {
        "count": count,
        "refused": refused,
        "at": scene.at,
        "after": after,
        "acknowledged": scene.acknowledged,
        "came back": came_back,
        "state": state_bits(again),
        "loss": train_one(again, came_back + 1),
    }
    again.close()
    te.checkpoint.verify(scene.saved)
    return out


def judge(ended: Ended, fault: shim.Fault | None, expected: Truth) -> str:
    """What is wrong with how it ended, or nothing."""
    found = ended.result
    if found is None:
        return str(ended)
    step = found["came back"]
    if step < found["acknowledged"]:
        return f"step {found['acknowledged']} was acknowledged, {step} came back"
    if found["state"] != expected.states[step]:
        return f"the state of step {step} that came back differs"
    if found["loss"] != expected.losses[step + 1]:
        return f"the loss behind step {step} that came back differs"
    if found["after"] and found["after"] != expected.states[found["at"]]:
        return f"no error was raised, but the state after step {found['at']} differs"
    if found["refused"] and fault is None:
        return f"without a fault: {found['refused']}"
    return ""


def run(count: int, seed: int, folder: Path) -> Report:
    """``count``: how many faults at most, spread evenly; 0: at every operation."""
    report = Report()
    draw = random.Random(seed)
    ended = run_forked(partial(truth, folder / "truth", NUM_STEPS + 1))
    if ended.result is None:
        report.fail(f"the uninterrupted run: {ended}")
        return report
    expected = Truth(**ended.result)

    def attempt(name: str, fault: shim.Fault | None) -> Ended:
        scene = folder / "scene"
        scene.mkdir()
        ended = run_forked(partial(try_once, scene, WORKLOADS[name], fault))
        shutil.rmtree(scene)
        wrong = judge(ended, fault, expected)
        if wrong:
            report.fail(f"{name}, {fault}: {wrong}")
        return ended

    cases = []
    for name in WORKLOADS:
        plain = attempt(name, None)
        if plain.result is None:
            return report
        report.note("file operations", plain.result["count"])
        cases += [
            (name, shim.Fault(f.mode, at, f.errno, f.sticky))
            for f in FAULTS.values()
            for at in range(1, plain.result["count"] + 1)
        ]
    if count:
        cases = draw.sample(cases, min(count, len(cases)))
    for name, fault in cases:
        ended = attempt(name, fault)
        report.count("refused" if ended.result and ended.result["refused"] else "survived")
    return report
