"""What the machine can do, what this process takes of it, and what others do meanwhile."""

import contextlib
import json
import mmap
import os
import random
import shutil
import statistics
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "Neighbours",
    "copy_bandwidth",
    "disk_random_reads",
    "drop_page_cache",
    "process_io",
    "process_memory",
]

READ_BYTES = 4096


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


# --- what this process takes, and what others do --------------------------------------------------


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
