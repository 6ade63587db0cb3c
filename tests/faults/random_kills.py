"""kill -9 at random moments of a training run with checkpoints, then resume: the same bits.

A run is killed again and again until it reaches its end. Every life logs the state that it resumed
with and each loss; all are compared with a run that was left alone. Tiers, policy and depth change
from life to life.
"""

import random
import shutil
from functools import partial
from pathlib import Path

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
    numbers,
    read_log,
    resume,
    start,
    state_bits,
    train_one,
    truth,
)

NUM_STEPS, SAVE_EVERY, KEEP = 60, 3, 2
FIRST_DELAY_S = 0.25


def live(folder: Path, shape: Shape) -> bool:
    """Goes on from the last checkpoint to the end, unless killed before."""
    saved, work, log = folder / "saved", folder / "work", Log(folder / "log")
    if not (saved.exists() and te.checkpoint.list(saved)):
        shutil.rmtree(work, ignore_errors=True)  # what it holds was never committed
    model = Model(work, shape)
    try:
        step = resume(model, saved)
    except FileNotFoundError:
        start(model)
        step = 0
    log.write("state", step, state_bits(model))
    pending = None
    for number in numbers(model, step + 1, NUM_STEPS):
        log.write("loss", number, train_one(model, number))
        if pending is not None:
            pending[1].wait()
            log.write("saved", pending[0])
            pending = None
        if number % SAVE_EVERY == 0:
            background = number % (2 * SAVE_EVERY) == 0
            handle = te.checkpoint.save(
                model, saved, step=number, extra=extra_of(model), background=background
            )
            if background:
                pending = number, handle
            else:
                handle.wait()
                log.write("saved", number)
                te.checkpoint.prune(saved, keep=KEEP)
    if pending is not None:
        pending[1].wait()
    log.write("state", NUM_STEPS, state_bits(model))
    model.close()
    return True


def run(count: int, seed: int, folder: Path) -> Report:
    report = Report()
    draw = random.Random(seed)
    ended = run_forked(partial(truth, folder / "truth", NUM_STEPS))
    if ended.result is None:
        report.fail(f"the uninterrupted run: {ended}")
        return report
    expected = Truth(**ended.result)
    for number in range(count):  # runs; each has several kills
        if report.done >= count or report.failures:
            break
        _one_run(folder / f"run{number}", expected, draw, count, report)
        shutil.rmtree(folder / f"run{number}", ignore_errors=True)
    return report


def _one_run(
    folder: Path, expected: Truth, draw: random.Random, count: int, report: Report
) -> None:
    folder.mkdir()
    delay_s, seen, acknowledged = FIRST_DELAY_S, 0, 0
    while True:
        last = report.done >= count
        shape = draw.choice(SHAPES)
        kill_after_s = None if last else draw.uniform(0, delay_s)
        ended = run_forked(partial(live, folder, shape), kill_after_s=kill_after_s)
        lines = read_log(folder / "log")
        resumed = [int(words[1]) for words in lines[seen:] if words[0] == "state"]
        if resumed and resumed[0] < acknowledged:
            report.fail(f"step {acknowledged} was acknowledged, step {resumed[0]} came back")
        saved = check_log(lines[seen:], expected, report.fail)
        if saved <= acknowledged:
            delay_s *= 1.2  # a slow machine: the next life gets further
        acknowledged, seen = max(acknowledged, saved), len(lines)
        if not ended.killed:
            break
        report.count("while resuming" if not resumed else "while training")
        if report.failures:
            return
    if ended.result is not True:
        report.fail(str(ended))
    report.note("runs to the end")
