"""What the benchmarks share: where a result came from, how it is judged, and how it is written.

Also memory limits for child processes and the disk's own random-read rate. Benchmarks themselves
are the other files of this folder. Rates are per second, sizes in bytes, times in seconds.
"""

import contextlib
import importlib.metadata
import json
import mmap
import os
import platform
import random
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import tiered_embed

__all__ = [
    "MemoryLimit",
    "Neighbours",
    "Target",
    "console",
    "copy_bandwidth",
    "disk_random_reads",
    "drop_page_cache",
    "print_origin",
    "print_targets",
    "process_io",
    "process_memory",
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
READ_BYTES = 4096


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


# --- what the machine can do ----------------------------------------------------------------------


def copy_bandwidth(num_threads: int, num_bytes: int = 1 << 28, repeats: int = 5) -> float:
    """Bytes per second that ``num_threads`` copy at once, each between arrays of its own."""
    source = [np.ones(num_bytes, np.uint8) for _ in range(num_threads)]
    target = [np.zeros(num_bytes, np.uint8) for _ in range(num_threads)]
    rates = []
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(np.copyto, target, source))
            rates.append(num_threads * num_bytes / (time.perf_counter() - start))
    return statistics.median(rates)


def disk_random_reads(path: Path, runtime_s: float, depth: int = 64) -> dict[str, Any]:
    """Random 4 KiB reads/s of the disk under ``path``, an existing large file, past the page cache.

    Uses fio where it is installed, else ``depth`` Python threads, which see less.
    """
    if shutil.which("fio"):
        fio = [
            *("fio", "--name=randread", f"--filename={path}", "--readonly", "--rw=randread"),
            *("--bs=4k", f"--iodepth={depth}", "--ioengine=libaio", "--direct=1", "--time_based"),
            *(f"--runtime={runtime_s:g}", "--output-format=json"),
        ]
        done = subprocess.run(fio, capture_output=True, text=True, check=False)
        with contextlib.suppress(ValueError, KeyError, IndexError):
            read = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]
            if read["iops"] > 0:
                return {"reads_per_s": read["iops"], "with": f"fio libaio depth {depth}"}
    rate = _threaded_random_reads(path, runtime_s, depth)
    return {"reads_per_s": rate, "with": f"no fio: {depth} Python threads with O_DIRECT"}


def _threaded_random_reads(path: Path, runtime_s: float, num_threads: int) -> float:
    num_pages = path.stat().st_size // READ_BYTES
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:  # a file system without it
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    stop = threading.Event()

    def read(seed: int) -> int:
        pages, count = random.Random(seed), 0
        with mmap.mmap(-1, READ_BYTES) as buffer:  # aligned, as O_DIRECT asks
            while not stop.is_set():
                os.preadv(file, [buffer], pages.randrange(num_pages) * READ_BYTES)
                count += 1
        return count

    try:
        with ThreadPoolExecutor(num_threads) as pool:
            start = time.perf_counter()
            counts = [pool.submit(read, seed) for seed in range(num_threads)]
            time.sleep(runtime_s)
            stop.set()
            return sum(c.result() for c in counts) / (time.perf_counter() - start)
    finally:
        os.close(file)


# --- memory ---------------------------------------------------------------------------------------


def drop_page_cache(directory: Path) -> str:
    """Evict ``directory``'s files from the page cache, as far as allowed; returns how.

    Cached pages belong to the group that first read or wrote them: without this, a limited process
    would find its data in memory that nobody charges to it.
    """
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return "drop_caches"
    except OSError:
        for path in directory.rglob("*"):
            if path.is_file():
                file = os.open(path, os.O_RDONLY)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(file)
        return "posix_fadvise"


def process_memory() -> dict[str, int]:
    """This process's peak resident bytes, and what of it is anonymous now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())

    def size(field: str) -> int:
        return int(status[field].split()[0]) * 1024

    return {"peak_rss_bytes": size("VmHWM"), "anonymous_rss_bytes": size("RssAnon")}


def process_io() -> dict[str, int]:
    """Bytes that this process made the disk read and write so far; empty where nobody may ask."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return {}
    counts = dict(line.split(": ", 1) for line in lines)
    return {name: int(counts[name]) for name in ("read_bytes", "write_bytes")}


class Neighbours:
    """How much CPU other processes take meanwhile, in cores; below 0.1 a machine is calm."""

    def __init__(self) -> None:
        self._start = self._read()

    @staticmethod
    def _read() -> tuple[float, float]:
        """Seconds since some start: on the clock, and of CPU used by others."""
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
        user, nice, system, _idle, _wait, irq, softirq, steal = (float(x) for x in fields)
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        mine = os.times()
        return time.monotonic(), busy - mine.user - mine.system

    def cores(self) -> float:
        """Since construction; interrupts and time stolen by the host count as others."""
        clock, busy = self._read()
        return (busy - self._start[1]) / max(1e-9, clock - self._start[0])


class MemoryLimit:
    """A fresh memory cgroup (v1 or v2) for one child process, page cache included.

    ``kind`` is "cgroup v1", "cgroup v2", or None where this user can make neither.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.kind: str | None = None
        self._path: Path | None = None
        name = f"tiered_embed-benchmark-{os.getpid()}-{time.monotonic_ns()}"
        for kind, parent in _cgroup_parents():
            path = parent / name
            try:
                path.mkdir()
            except OSError:
                continue
            try:
                if kind == "cgroup v1":
                    (path / "memory.limit_in_bytes").write_text(str(limit_bytes))
                    with contextlib.suppress(OSError):  # exists where swap is accounted
                        (path / "memory.memsw.limit_in_bytes").write_text(str(limit_bytes))
                else:
                    (path / "memory.max").write_text(str(limit_bytes))
                    with contextlib.suppress(OSError):
                        (path / "memory.swap.max").write_text("0")
            except OSError:
                path.rmdir()
                continue
            self.kind, self._path = kind, path
            return

    def command(self, argv: Sequence[str]) -> list[str]:
        """``argv``, entering the group before the program starts."""
        if self._path is None:
            return list(argv)
        enter = 'echo $$ > "$0" && exec "$@"'
        return ["/bin/sh", "-c", enter, str(self._path / "cgroup.procs"), *argv]

    def peak_bytes(self) -> int | None:
        """Most memory that the group held, page cache included."""
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            if self._path is not None and (self._path / name).exists():
                return int((self._path / name).read_text())
        return None

    def close(self) -> None:
        """Remove the group; its processes have ended."""
        if self._path is None:
            return
        with contextlib.suppress(OSError):  # v1: hand the cached pages back first
            (self._path / "memory.force_empty").write_text("0")
        for _ in range(50):
            try:
                self._path.rmdir()
            except OSError:
                time.sleep(0.1)
            else:
                break
        self._path = None

    def __enter__(self) -> "MemoryLimit":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _cgroup_parents() -> Iterator[tuple[str, Path]]:
    """Places where a memory group may be made: (kind, directory)."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        own = {
            line.split(":")[1]: line.split(":")[2].lstrip("/")
            for line in Path("/proc/self/cgroup").read_text().splitlines()
        }
    except OSError:
        return
    for _, place, kind, options, *_ in mounts:
        if kind == "cgroup" and "memory" in options.split(","):
            yield "cgroup v1", Path(place)
            yield "cgroup v1", Path(place) / own.get("memory", "")
    for _, place, kind, *_ in mounts:
        if kind != "cgroup2":
            continue
        mine = Path(place) / own.get("", "")
        for parent in (mine, mine.parent, Path(place)):
            with contextlib.suppress(OSError):  # already on, or not ours to turn on
                (parent / "cgroup.subtree_control").write_text("+memory")
            yield "cgroup v2", parent
