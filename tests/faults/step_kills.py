"""A kill at each step of the commit protocol: before every change of a file that a save makes.

Children take turns: each resumes from what the one before left behind, which is the check, trains a
step and is killed in its save, one file operation further than the last. What was acknowledged must
come back; a save that was killed is either there, whole, or not.
"""

import random
import re
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import shim
import tiered_embed as te
from forked import run_forked
from report import Report
from small_run import (
    SHAPES,
    Log,
    Model,
    Shape,
    Truth,
    check_log,
    extra_of,
    read_log,
    resume,
    start,
    state_bits,
    train_one,
    truth,
)

NUM_STEPS = 40  # of a run; then another begins
MOST_OPERATIONS = 2000


def save_once(
    folder: Path, shape: Shape, fault: shim.Fault, background: bool, log_operations: bool
) -> int:
    """Resumes, trains a step, saves it with ``fault``; returns the number of file operations."""
    saved, work, log = folder / "saved", folder / "work", Log(folder / "log")
    if not (saved.exists() and te.checkpoint.list(saved)):
        shutil.rmtree(work, ignore_errors=True)
    model = Model(work, shape)
    try:
        step = resume(model, saved)
    except FileNotFoundError:
        start(model)
        step = 0
    log.write("state", step, state_bits(model))
    if step == NUM_STEPS:
        log.write("end", step)
        return 0
    log.write("loss", step + 1, train_one(model, step + 1))
    operations = folder / "operations" if log_operations else None
    shim.arm(folder, fault, operations)
    handle = te.checkpoint.save(
        model, saved, step=step + 1, extra=extra_of(model), background=background
    )
    handle.wait()
    te.checkpoint.prune(saved, keep=2)
    count = shim.disarm()
    log.write("saved", step + 1)
    model.close()
    return count


class Chain:
    """Lives of one run after another."""

    def __init__(self, folder: Path, expected: Truth, seed: int, report: Report) -> None:
        self._folder = folder
        self._expected = expected
        self._draw = random.Random(seed)
        self._report = report
        self._runs = 0
        self._new_run()

    def _new_run(self) -> None:
        self._run = self._folder / f"run{self._runs}"
        self._run.mkdir()
        self._runs += 1
        self._seen = self._acknowledged = 0

    def kill_at(self, number: int, background: bool) -> bool:
        """Returns False where the save had fewer operations."""
        report, fault = self._report, shim.Fault("kill_before", number)
        shape = self._draw.choice(SHAPES)
        ended = run_forked(partial(save_once, self._run, shape, fault, background, True))
        lines = read_log(self._run / "log")[self._seen :]
        self._seen += len(lines)
        where = f"after a kill at file operation {number} of a save"
        resumed = [int(words[1]) for words in lines if words[0] == "state"]
        if resumed and resumed[0] < self._acknowledged:
            report.fail(f"step {self._acknowledged} was acknowledged, {resumed[0]} came back")
        saved = check_log(lines, self._expected, lambda m: report.fail(f"{where}: {m}"))
        self._acknowledged = max(self._acknowledged, saved)
        if ended.killed:
            report.count(last_operation(self._run / "operations"))
            (self._run / "operations").unlink(missing_ok=True)
            return True
        if ended.result is None:
            report.fail(f"{where}: {ended}")
        if any(words[0] == "end" for words in lines):
            self.finish()
            self._new_run()
            return self.kill_at(number, background)  # nothing was saved this time
        return ended.result is None or ended.result >= number

    def finish(self) -> None:
        shutil.rmtree(self._run)


def last_operation(log: Path) -> str:
    """The kind of the operation that the kill came before, as a table may count it."""
    if not log.exists():
        return "nothing"
    _, operation, path = log.read_text().splitlines()[-1].split(" ", 2)
    name = Path(path).name
    name = "an SST file" if name.endswith(".sst") else re.sub(r"\d+", "N", name)
    return f"{operation} {name}"


def run(count: int, seed: int, folder: Path) -> Report:
    """``count``: rounds; each kills once at every step."""
    report = Report()
    ended = run_forked(partial(truth, folder / "truth", NUM_STEPS))
    if ended.result is None:
        report.fail(f"the uninterrupted run: {ended}")
        return report
    chain = Chain(folder, Truth(**ended.result), seed, report)
    for repeat in range(count):
        for number in range(1, MOST_OPERATIONS):
            if report.failures or not chain.kill_at(number, background=repeat % 2 == 1):
                break
    kinds: Counter[str] = Counter(report.details)
    report.details = Counter(dict(kinds.most_common(12)))
    report.note("different steps", len(kinds))
    report.note("rounds", count)
    return report
