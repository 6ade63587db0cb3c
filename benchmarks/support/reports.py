"""Reports: where a result came from, how it is judged, and how it is written.

Rates are per second, sizes in bytes, times in seconds.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import tiered_embed

__all__ = [
    "Target",
    "console",
    "print_origin",
    "print_targets",
    "report",
    "spread",
    "write_json",
]

console = Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = 140  # a log has room for whole tables

_PACKAGES = (
    *("tiered-embed", "torch", "numpy", "fbgemm-gpu-cpu", "fbgemm-gpu", "rocksdb-py"),
    *("libcachesim", "numba"),
)


# --- where a result came from ---------------------------------------------------------------------


def hardware() -> dict[str, Any]:
    """The machine, and how busy it is."""
    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = models[0] if models else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "load_average": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Python and the packages that matter; those that are not installed are left out."""
    found = {"python": platform.python_version(), "tiered_embed": tiered_embed.__version__}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def commit() -> str:
    """The commit of this checkout, ``+changes`` when the tree differs from it."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def report(benchmark: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """A new report: where and how; the benchmark adds its results."""
    return {
        "benchmark": benchmark,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "parameters": parameters,
    }


def print_origin(made: dict[str, Any]) -> None:
    """Print what :func:`report` found."""
    machine = made["hardware"]
    console.print(
        f"[bold]{made['benchmark']}[/bold] on {machine['cpu']}, {machine['cores']} cores,"
        f" {machine['memory_bytes'] / 2**30:.0f} GiB, Linux {machine['kernel']},"
        f" load {machine['load_average']:.2f}"
    )
    console.print(", ".join(f"{name} {version}" for name, version in made["versions"].items()))
    console.print(f"commit {made['commit']}")
    if machine["load_average"] > 0.5:
        console.print("[yellow]the machine is busy: timings will be off[/yellow]")


def write_json(path: Path | None, made: dict[str, Any]) -> None:
    """Write a report, when there is somewhere to write it to."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made, indent=2) + "\n")
    console.print(f"written: {path}")


# --- how a result is judged -----------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A figure that the project wants to reach."""

    what: str
    wanted: float
    measured: float | None
    unit: str = "x"

    @property
    def met(self) -> bool:
        return self.measured is not None and self.measured >= self.wanted

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def print_targets(targets: Sequence[Target], full_size: bool) -> None:
    """Print which targets were met; at a reduced size they say little."""
    title = "targets" if full_size else "targets (parameters differ from those they are set for)"
    table = Table(title=title, title_justify="left")
    for column in ("target", "wanted", "measured", ""):
        table.add_column(column, justify="left" if column == "target" else "right")
    for target in targets:
        measured = "-" if target.measured is None else f"{target.measured:.2f} {target.unit}"
        verdict = "[green]met[/green]" if target.met else "[red]missed[/red]"
        if target.measured is None:
            verdict = "not measured"
        table.add_row(target.what, f"{target.wanted:g} {target.unit}", measured, verdict)
    console.print(table)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, extremes and count of repeated measurements."""
    if not values:
        return {"median": float("nan"), "min": float("nan"), "max": float("nan"), "count": 0}
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "count": len(values),
    }
