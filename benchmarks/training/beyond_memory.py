"""``training beyond-memory``: a table larger than memory, against what one would write by hand.

Runs the contestants one after another, each as a process in a fresh memory group that also counts
its page cache, and measures the disk between them. Their data are built without a limit, then
dropped from the page cache, so that nobody starts with cached pages that another group pays for.
"""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.support.machine import disk_random_reads, drop_page_cache
from benchmarks.support.memory_limit import MemoryLimit
from benchmarks.support.reports import Target, console
from benchmarks.training.spec import Spec
from tiered_embed.traces import IdStream

__all__ = ["BeyondMemory", "run", "show"]

FULL_ROWS = 16_000_000
FULL_DDR_BYTES = 1_600_000_000
FULL_LIMIT_BYTES = 3 << 30
PROCESS_BYTES = 1 << 30  # a limit leaves a small run this much beside its DDR tier
TOLERANCE = 1e-5
HANG_S = 900.0
NAMES = {
    "ours": "tiered_embed",
    "mmap": "memory-mapped tensor",
    "mmap_random": "memory-mapped, MADV_RANDOM",
    "rocksdb_py": "rocksdb-py multi_get + write",
}


@dataclass(frozen=True)
class BeyondMemory:
    """Parameters; sizes that are None follow the number of rows."""

    rows: int = FULL_ROWS
    dim: int = 128
    batch_size: int = 4096
    pooling: int = 20
    threads: int = 2
    ddr_bytes: int | None = None
    limit_bytes: int | None = None
    lookahead: int = 32
    depth: int | str = 2
    policy: str = "lookahead"
    store: str = "auto"
    direct_io: bool = False
    warm_s: float = 30.0
    ours_warm_s: float = 150.0
    budget_s: float = 40.0
    max_batches: int = 400
    distinct_batches: int = 500
    disk_s: float = 10.0
    contestants: tuple[str, ...] = tuple(NAMES)
    seed: int = 0

    @property
    def ddr(self) -> int:
        return self.ddr_bytes or FULL_DDR_BYTES * self.rows // FULL_ROWS

    @property
    def limit(self) -> int:
        scaled = FULL_LIMIT_BYTES * self.rows // FULL_ROWS
        return self.limit_bytes or max(scaled, self.ddr + PROCESS_BYTES)

    @property
    def record_bytes(self) -> int:
        return (self.dim + 1) * 4

    @property
    def full_size(self) -> bool:
        return (
            self.rows == FULL_ROWS
            and self.dim == 128
            and self.batch_size * self.pooling == 4096 * 20
            and self.ddr == FULL_DDR_BYTES
            and self.limit == max(FULL_LIMIT_BYTES, self.ddr + PROCESS_BYTES)
        )

    def spec(self, contestant: str, phase: str, home: Path) -> Spec:
        taken = {f.name for f in dataclasses.fields(Spec)}
        mine = {name: value for name, value in asdict(self).items() if name in taken}
        return Spec(
            **mine
            | {
                "contestant": contestant,
                "phase": phase,
                "directory": str(home / contestant),
                "ids_path": str(home / "ids.npy"),
                "ddr_bytes": self.ddr,
                "limit_bytes": self.limit,
            }
        )


@contextmanager
def _home(parent: Path) -> Iterator[Path]:
    """A directory for the large files, removed whatever happens, SIGTERM included."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    parent.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, stop)
    home = Path(tempfile.mkdtemp(prefix="tiered_embed-benchmark-", dir=parent))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


def _child(spec: Spec, home: Path, limit: MemoryLimit | None) -> dict[str, Any]:
    """One phase of one contestant in a process; what went wrong is in "error"."""
    spec_path, result_path = home / "spec.json", home / "result.json"
    spec_path.write_text(json.dumps(asdict(spec)))
    result_path.unlink(missing_ok=True)
    program = str(Path(__file__).parent / "one_contestant.py")
    argv = [sys.executable, program, str(spec_path), str(result_path)]
    process = subprocess.Popen(argv if limit is None else limit.command(argv))
    try:
        code = process.wait(spec.warm_s + spec.ours_warm_s + spec.budget_s + HANG_S)
    except subprocess.TimeoutExpired:
        return {"error": f"{spec.phase} did not end in time"}
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if code != 0 or not result_path.exists():
        killed = " (killed, most likely for memory)" if code == -signal.SIGKILL else ""
        return {"error": f"{spec.phase} ended with code {code}{killed}"}
    return json.loads(result_path.read_text())


def run(p: BeyondMemory, parent: Path) -> dict[str, Any]:
    """Build, limit, train and compare; returns everything measured."""
    started = time.perf_counter()
    # One data set at a time, but a store may hold rows twice while it compacts.
    needed = p.rows * p.record_bytes * 5 // 2 + p.distinct_batches * p.batch_size * p.pooling * 8
    parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise SystemExit(f"'{parent}' has {free} bytes free; this run needs {needed}: pass --dir")
    result: dict[str, Any] = {
        "parameters": asdict(p) | {"ddr_bytes": p.ddr, "limit_bytes": p.limit},
        "disk": [],
        "contestants": {},
    }
    with _home(parent) as home:
        console.print(f"beyond memory: drawing {p.distinct_batches} batches of ids")
        _draw_ids(p, home / "ids.npy")
        # The disk is measured on the mapped file, so just before and just after ours.
        for name in ("mmap_random", "ours", "mmap", "rocksdb_py"):
            if name in p.contestants:
                result["contestants"][name] = _compete(p, name, home, result["disk"])
        result["checked"] = _compare(home)
    result["seconds"] = time.perf_counter() - started
    result["targets"] = [t.as_dict() for t in targets(result)]
    return result


def _draw_ids(p: BeyondMemory, path: Path) -> None:
    """(batches, N) int64, log-uniform ranks scattered over the table by a fixed permutation."""
    stream = IdStream(
        p.rows,
        p.batch_size,
        p.distinct_batches,
        pooling=p.pooling,
        distribution="log_uniform",
        scatter_rows=True,
        seed=p.seed,
    )
    shape = (p.distinct_batches, p.batch_size * p.pooling)
    out = np.lib.format.open_memmap(path, "w+", np.int64, shape)
    for i, batch in enumerate(stream):
        out[i] = batch.ids
    out.flush()


def _compete(p: BeyondMemory, name: str, home: Path, disk: list[dict[str, Any]]) -> dict[str, Any]:
    """Build one contestant's data, train on them under the limit, remove them."""
    directory = home / name
    directory.mkdir()
    console.print(f"beyond memory: {NAMES[name]}: building {p.rows} rows")
    try:
        result = _child(p.spec(name, "build", home), home, None)
        if "error" in result:
            return result
        dropped = drop_page_cache(home)
        if name.startswith("mmap"):
            disk.append(disk_random_reads(directory / "weights.bin", min(p.disk_s, p.budget_s)))
            reads = disk[-1]["reads_per_s"]
            console.print(f"  disk: {reads:.0f} random 4 KiB reads/s ({disk[-1]['with']})")
        console.print(f"beyond memory: {NAMES[name]}: training")
        with MemoryLimit(p.limit) as limit:
            result |= _child(p.spec(name, "train", home), home, limit)
            result |= {
                "limit": limit.kind or "none: this user may not make a memory cgroup",
                "group_peak_bytes": limit.peak_bytes(),
                "page_cache_dropped_by": dropped,
                "data_bytes": sum(f.stat().st_size for f in directory.rglob("*") if f.is_file()),
            }
        what = result.get("error") or f"{result['rows_per_s'] / 1e6:.4f} M rows/s"
        console.print(f"  {what}")
        return result
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _compare(home: Path) -> dict[str, float]:
    """Largest difference of each peer's rows from ours after the first batch.

    Raises:
        AssertionError: one is beyond the tolerance; the timings then mean nothing.
    """
    rows = {name: home / f"checked-{name}.npy" for name in NAMES}
    found = {name: np.load(path) for name, path in rows.items() if path.exists()}
    if "ours" not in found:
        return {}
    ours = found.pop("ours")
    off = {name: float(np.abs(theirs - ours).max()) for name, theirs in found.items()}
    wrong = {name: value for name, value in off.items() if not value <= TOLERANCE}
    assert not wrong, f"trained rows differ by more than {TOLERANCE}: {wrong}"
    return off


# --- the verdict ----------------------------------------------------------------------------------


def _rate(result: dict[str, Any], name: str) -> float | None:
    rate: float | None = result["contestants"].get(name, {}).get("rows_per_s")
    return rate


def _disk_reads(result: dict[str, Any]) -> float | None:
    rates = [d["reads_per_s"] for d in result["disk"]]
    return sum(rates) / len(rates) if rates else None


def targets(result: dict[str, Any]) -> list[Target]:
    def ratio(peer: str) -> float | None:
        ours, theirs = _rate(result, "ours"), _rate(result, peer)
        return ours / theirs if ours and theirs else None

    return [
        Target("beyond memory: rows/s over the memory-mapped tensor", 30.0, ratio("mmap")),
        Target("beyond memory: rows/s over rocksdb-py", 5.0, ratio("rocksdb_py")),
    ]


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    p = result["parameters"]
    limits = {c["limit"] for c in result["contestants"].values() if "limit" in c}
    title = (
        f"beyond memory: {p['rows']} rows x {p['dim']}, batch {p['batch_size']} x {p['pooling']}"
        f" log-uniform ids, {p['limit_bytes'] / 2**30:.2f} GiB limit ({', '.join(limits)}),"
        f" {p['ddr_bytes'] / 1e9:.3g} GB DDR, lookahead {p['lookahead']}, depth {p['depth']}"
    )
    table = Table(title=title, title_justify="left")
    for column in (
        "",
        "M rows/s",
        "ms a batch",
        "p95",
        "batches",
        "warm-up s",
        "RSS peak",
        "others' CPU",
        "ours /",
    ):
        table.add_column(column, justify="right" if column else "left")
    ours = _rate(result, "ours")
    for name in NAMES:
        c = result["contestants"].get(name)
        if c is None:
            continue
        if "error" in c:
            table.add_row(NAMES[name], c["error"])
            continue
        table.add_row(
            NAMES[name],
            f"{c['rows_per_s'] / 1e6:.4f}",
            f"{c['batch_s']['median'] * 1e3:.1f}",
            f"{c['batch_s']['p95'] * 1e3:.1f}",
            str(c["timed_batches"]),
            f"{c['warm_up']['seconds']:.0f}",
            f"{c['memory']['peak_rss_bytes'] / 1e9:.2f} GB",
            f"{c['neighbour_cores']:.2f}",
            f"{ours / c['rows_per_s']:.1f}" if ours else "-",
        )
    console.print(table)
    if p["rows"] * p["dim"] * 4 < p["limit_bytes"]:
        console.print("[yellow]the table fits into the limit: these ratios mean little[/yellow]")
    _show_ours(result)


def _show_ours(result: dict[str, Any]) -> None:
    c = result["contestants"].get("ours", {})
    disk = _disk_reads(result)
    if disk:
        console.print(f"disk: {disk:.0f} random 4 KiB reads/s ({result['disk'][0]['with']})")
    if "timed_stats" not in c:
        return
    timed, ddr = c["timed_stats"]["tiers"]["DDR"], c["stats"]["tiers"]["DDR"]
    staged = timed["staged"] / c["timed_s"]
    of_disk = f" ({staged / disk:.0%} of what the disk reads)" if disk else ""
    budget = ddr["budget_bytes"]
    memory, warm = c["memory"], c["warm_up"]
    console.print(
        f"tiered_embed: warm-up: {warm['how']} ({warm['batches']} batches,"
        f" {warm['resident_rows']} of {warm['slots']} slots);"
        f" {timed['misses'] / timed['lookups']:.1%} of ids and"
        f" {timed['misses'] / timed['unique']:.1%} of unique rows missed;"
        f" staged {staged:.0f} rows/s{of_disk}, wrote back"
        f" {timed['written_back'] / c['timed_s']:.0f} rows/s;"
        f" stalled {timed['stall_s']:.1f} of {c['timed_s']:.1f} s"
    )
    if c["io"] and timed["staged"]:
        read, written = (c["io"][name] / timed["staged"] for name in ("read_bytes", "write_bytes"))
        console.print(
            f"tiered_embed: disk bytes for each row staged: {read:.0f} read, {written:.0f} written"
            f" (a record has {result['parameters']['dim'] * 4 + 4})"
        )
    console.print(
        f"tiered_embed: memory: budget {budget / 1e9:.3f} GB,"
        f" overhead {ddr['overhead_bytes'] / 1e6:.0f} MB ({ddr['overhead_bytes'] / budget:.1%}),"
        f" process {memory['anonymous_rss_bytes'] / 1e9:.3f} GB anonymous,"
        f" {memory['peak_rss_bytes'] / 1e9:.3f} GB resident at most"
    )
