"""The native torture of the store (``native/tests/faults``): builds it, runs it, reads its counts.

``power``: power losses with everything unsynced dropped, or a random part of it kept. ``errors``:
every kind of fault at every file operation, reads too.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from report import Report

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/torture"
STUCK_S = 900
PROGRAM = BUILD / "native/tests/torture_store"


def missing() -> str:
    """Why the program cannot be built here; empty where it can."""
    if _cmake() is None:
        return "no cmake"
    if not any(Path(p, "rocksdb/db.h").exists() for p in ("/usr/include", "/usr/local/include")):
        return "no librocksdb-dev"
    return ""


def _cmake() -> str | None:
    beside = Path(sys.executable).with_name("cmake")
    return str(beside) if beside.exists() else shutil.which("cmake")


def build() -> Path:
    """The program, built where it is absent or older than its sources."""
    BUILD.mkdir(parents=True, exist_ok=True)
    cmake = _cmake()
    assert cmake is not None
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure = [cmake, "-S", str(ROOT), "-B", str(BUILD), "-DTE_PYTHON=OFF", "-DTE_TESTS=ON"]
        configure += ["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O1"]
        jobs = str(os.cpu_count() or 1)
        make = [cmake, "--build", str(BUILD), "--target", "torture_store", "--parallel", jobs]
        for command in (configure, make):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return PROGRAM


def _run(what: str, done: str, *options: str) -> Report:
    report = Report()
    reason = missing()
    if reason:
        report.skipped = reason
        return report
    command = [str(build()), what, *options]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=STUCK_S)
    except subprocess.TimeoutExpired:
        report.fail(f"{' '.join(command[1:])} is stuck after {STUCK_S} s")
        return report
    if ended.returncode not in (0, 1) or not ended.stdout:
        report.fail(f"torture_store {what} ended with {ended.returncode}: {ended.stderr[-2000:]}")
        return report
    counts = json.loads(ended.stdout)
    report.messages = counts.pop("messages")
    report.failures = counts.pop("failures", 0)
    report.done = counts.pop(done, 0)
    for name, number in counts.items():
        report.note(name, number)
    return report


def run_power(count: int, seed: int, folder: Path) -> Report:
    return _run("power", "power losses", "--count", str(count), "--seed", str(seed))


def run_errors(count: int, seed: int, folder: Path) -> Report:
    """``count``: every how many file operations a fault comes, 1 for all."""
    return _run("errors", "faults", "--stride", str(count), "--seed", str(seed))
