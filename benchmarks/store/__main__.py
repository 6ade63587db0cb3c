"""The SSD store by itself, with direct I/O: how fast it reads, how much it writes for an update.

``reads``: rows/s of random gets from a cold store, beside the disk's own random 4 KiB reads/s at
depth 64, measured just before and after. ``updates``: bytes that RocksDB writes (flushes and
compactions) for each byte updated, with our options and with RocksDB's defaults, in one run; after
every batch both wait until nothing is left to compact, so that the figure does not depend on how
fast the machine is. Every row that is read is compared with what was written.
In half a minute, to see that everything works:

  python benchmarks/store all --rows 200000 --updates 200000 --seconds 2
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the folder of `benchmarks`

import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.table import Table

from benchmarks.support.machine import Neighbours, disk_random_reads
from benchmarks.support.reports import (
    Target,
    console,
    print_origin,
    print_targets,
    report,
    spread,
    write_json,
)
from tiered_embed.spec import table_hash
from tiered_embed.store import open_store
from tiered_embed.store.base import Chunk, RowStore
from tiered_embed.store.keys import encode_keys

TUNINGS = ("rows", "rocksdb_default")
NAMES = {"rows": "tiered_embed", "rocksdb_default": "RocksDB's defaults"}
TABLE = table_hash("table")
CHUNK_ROWS = 100_000
READ_BACK_ROWS = 1000  # checked after each batch of updates
CHECK_BYTES = 16  # the head of a record: its row and its version
DRAIN_S = 120.0

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Parameters:
    """What is measured."""

    rows: int = 4_000_000
    record_bytes: int = 516
    seconds: float = 10.0
    rounds: int = 3
    get_rows: int = 20_000
    updates: int = 10_000_000
    update_rows: int = 10_000
    resident: float = 0.1
    seed: int = 0

    @property
    def full_size(self) -> bool:
        full = Parameters()
        return self.rows >= full.rows and self.updates >= full.updates


# --- rows whose content is known ------------------------------------------------------------------


class Records:
    """Incompressible records that begin with their row and version."""

    def __init__(self, record_bytes: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._noise = rng.integers(0, 256, (CHUNK_ROWS, record_bytes), np.uint8)
        self._rng = rng

    def make(self, rows: Rows, versions: Rows) -> npt.NDArray[np.uint8]:
        begin = int(self._rng.integers(0, len(self._noise) - len(rows) + 1))
        records = self._noise[begin : begin + len(rows)].copy()
        records[:, :CHECK_BYTES] = np.stack((rows, versions), 1).view(np.uint8)
        return records

    @staticmethod
    def check(
        records: npt.NDArray[np.uint8], found: npt.NDArray[np.bool_], rows: Rows, versions: Rows
    ) -> None:
        """Raises AssertionError where a row is missing or not what was last written."""
        assert found.all(), f"{np.count_nonzero(~found)} of {len(rows)} rows are missing"
        heads = np.ascontiguousarray(records[:, :CHECK_BYTES]).view(np.int64)
        wrong = (heads != np.stack((rows, versions), 1)).any(1)
        assert not wrong.any(), f"{np.count_nonzero(wrong)} of {len(rows)} rows are wrong"


def _sorted_chunks(records: Records, num_rows: int) -> Iterator[Chunk]:
    for begin in range(0, num_rows, CHUNK_ROWS):
        rows = np.arange(begin, min(begin + CHUNK_ROWS, num_rows))
        yield encode_keys(TABLE, rows), records.make(rows, np.zeros_like(rows))


@contextmanager
def _filled(p: Parameters, home: Path, tuning: str) -> Iterator[tuple[RowStore, Records]]:
    """A cold store with every row at version 0; its files are gone afterwards."""
    path = home / tuning
    records = Records(p.record_bytes, p.seed)
    options: dict[str, Any] = {"direct_io": True, "tuning": tuning}
    try:
        with open_store("rocksdb", path, p.record_bytes, {}, "create", **options) as store:
            store.import_sorted(_sorted_chunks(records, p.rows))
        with open_store("rocksdb", path, p.record_bytes, {}, "read_write", **options) as store:
            yield store, records
    finally:
        shutil.rmtree(path, ignore_errors=True)


# --- reads ----------------------------------------------------------------------------------------


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _read(p: Parameters, store: RowStore, versions: Rows, seconds: float) -> dict[str, Any]:
    """Gets of random rows in key order, as a step plan asks for them."""
    rng = np.random.default_rng([p.seed, time.monotonic_ns()])
    out = np.empty((p.get_rows, p.record_bytes), np.uint8)
    wall = cpu = 0.0
    num_rows = 0
    others = Neighbours()
    before = store.stats()
    while wall < seconds:
        rows = np.sort(rng.integers(0, p.rows, p.get_rows))
        keys = encode_keys(TABLE, rows)
        cpu_start, start = _cpu_s(), time.perf_counter()
        found = store.get(keys, out)
        wall += time.perf_counter() - start
        cpu += _cpu_s() - cpu_start
        num_rows += len(rows)
        Records.check(out, found, rows, versions[rows])
    blocks = store.stats()["block_cache_misses"] - before["block_cache_misses"]
    return {
        "rows_per_s": num_rows / wall,
        "cpu_us_per_row": cpu / num_rows * 1e6,
        "blocks_per_row": blocks / num_rows,
        "neighbour_cores": others.cores(),
    }


def _flat_file(p: Parameters, home: Path) -> Path:
    """As large as the store, for the disk's own rate."""
    path = home / "flat.bin"
    noise = np.random.default_rng(p.seed).integers(0, 256, 1 << 24, np.uint8).tobytes()
    with path.open("wb") as file:
        for _ in range(max(1, p.rows * p.record_bytes // len(noise))):
            file.write(noise)
    return path


def measure_reads(p: Parameters, home: Path) -> dict[str, Any]:
    """Rounds of: the disk, our gets, the disk; then the defaults' gets once."""
    flat = _flat_file(p, home)
    versions = np.zeros(p.rows, np.int64)
    rounds = []
    with _filled(p, home, "rows") as (store, _):
        disk = disk_random_reads(flat, p.seconds / 2)
        for _ in range(p.rounds):
            made = _read(p, store, versions, p.seconds)
            after = disk_random_reads(flat, p.seconds / 2)
            reads = (disk["reads_per_s"] + after["reads_per_s"]) / 2
            rounds.append(made | {"disk_reads_per_s": reads, "of_disk": made["rows_per_s"] / reads})
            disk = after
    with _filled(p, home, "rocksdb_default") as (store, _):
        default = _read(p, store, versions, p.seconds)
    flat.unlink()
    return {
        "disk_with": disk["with"],
        "rounds": rounds,
        "of_disk": spread([r["of_disk"] for r in rounds]),
        "rows_per_s": spread([r["rows_per_s"] for r in rounds]),
        "disk_reads_per_s": spread([r["disk_reads_per_s"] for r in rounds]),
        "cpu_us_per_row": spread([r["cpu_us_per_row"] for r in rounds]),
        "rocksdb_default": default,
    }


# --- updates --------------------------------------------------------------------------------------


def _drain(store: RowStore) -> None:
    """Wait until nothing is flushing or compacting, nor about to."""
    deadline = time.monotonic() + DRAIN_S
    quiet = 0
    while quiet < 3:
        stats = store.stats()
        busy = ("pending_flushes", "running_flushes", "running_compactions", "compaction_pending")
        quiet = 0 if any(stats[name] for name in busy) else quiet + 1
        if time.monotonic() > deadline:
            raise SystemExit(f"the store still compacts after {DRAIN_S:g} s: {stats}")
        if not quiet:
            time.sleep(0.001)


def _evicted(p: Parameters, rng: np.random.Generator, places: Rows) -> Rows:
    """What a full cache would write back: log-uniform, without the ranks that never leave it."""
    low, high = np.log(max(1.0, p.resident * p.rows)), np.log(p.rows)
    ranks = np.exp(rng.uniform(low, high, p.update_rows * 4 // 3)).astype(np.int64)
    rows = np.unique(places[np.minimum(ranks, p.rows - 1)])
    return np.sort(rng.choice(rows, min(p.update_rows, len(rows)), replace=False))


def _measure_updates(p: Parameters, home: Path, tuning: str) -> dict[str, Any]:
    rng = np.random.default_rng([p.seed, 1])
    places = np.random.default_rng([p.seed, 2]).permutation(p.rows)
    versions = np.zeros(p.rows, np.int64)
    out = np.empty((READ_BACK_ROWS, p.record_bytes), np.uint8)
    done = 0
    with _filled(p, home, tuning) as (store, records):
        before, start, cpu_start = store.stats(), time.perf_counter(), _cpu_s()
        space = 0
        while done < p.updates:
            rows = _evicted(p, rng, places)
            versions[rows] += 1
            store.put(encode_keys(TABLE, rows), records.make(rows, versions[rows]))
            done += len(rows)
            _drain(store)
            back = rng.integers(0, p.rows, READ_BACK_ROWS)
            Records.check(out, store.get(encode_keys(TABLE, back), out), back, versions[back])
            space = max(space, store.stats()["total_sst_bytes"])
        store.flush()
        _drain(store)
        seconds, cpu = time.perf_counter() - start, _cpu_s() - cpu_start
        after = store.stats()
        names = ("user_bytes_written", "flush_bytes_written", "compaction_bytes_written")
        user, flushed, compacted = (after[name] - before[name] for name in names)
        return {
            "updates": done,
            "user_bytes": user,
            "flush_bytes": flushed,
            "compaction_bytes": compacted,
            "write_amplification": (flushed + compacted) / user,
            "seconds": seconds,
            "cpu_s": cpu,
            "write_stall_s": (after["write_stall_micros"] - before["write_stall_micros"]) / 1e6,
            "space_amplification": after["live_sst_bytes"] / (p.rows * p.record_bytes),
            "peak_space_amplification": space / (p.rows * p.record_bytes),
            "reads_after": _read(p, store, versions, p.seconds / 2),
        }


def measure_updates(p: Parameters, home: Path) -> dict[str, Any]:
    """The same updates with either tuning."""
    made: dict[str, Any] = {}
    for tuning in TUNINGS:
        made[tuning] = _measure_updates(p, home, tuning)
        found = made[tuning]
        console.print(
            f"updates: {NAMES[tuning]}: {found['write_amplification']:.2f} bytes written per byte"
            f" updated, {found['seconds']:.0f} s"
        )
    ours, default = (made[tuning]["write_amplification"] for tuning in TUNINGS)
    made["of_default"] = ours / default
    return made


# --- the verdict ----------------------------------------------------------------------------------


def _show(made: dict[str, Any]) -> None:
    found: list[Target] = []
    if "reads" in made:
        r = made["reads"]
        table = Table(
            title=f"random gets, cold, direct I/O ({r['disk_with']})", title_justify="left"
        )
        for column in ("", "rows/s", "disk 4 KiB reads/s", "of disk", "CPU us/row", "blocks/row"):
            table.add_column(column, justify="right" if column else "left")
        for number, one in enumerate(r["rounds"], 1):
            table.add_row(
                f"{NAMES['rows']}, round {number}",
                f"{one['rows_per_s']:.0f}",
                f"{one['disk_reads_per_s']:.0f}",
                f"{one['of_disk']:.2f}",
                f"{one['cpu_us_per_row']:.1f}",
                f"{one['blocks_per_row']:.2f}",
            )
        d = r["rocksdb_default"]
        table.add_row(
            NAMES["rocksdb_default"],
            f"{d['rows_per_s']:.0f}",
            "",
            f"{d['rows_per_s'] / r['rounds'][-1]['disk_reads_per_s']:.2f}",
            f"{d['cpu_us_per_row']:.1f}",
            f"{d['blocks_per_row']:.2f}",
        )
        console.print(table)
        found.append(Target("store: rows/s over the disk's reads/s", 0.9, r["of_disk"]["median"]))
    if "updates" in made:
        u = made["updates"]
        table = Table(title=f"{u['rows']['updates']} updates", title_justify="left")
        for column in (
            *("", "bytes written / updated", "flush", "compaction", "s", "CPU s", "stalled s"),
            *("space", "at most", "reads after, rows/s"),
        ):
            table.add_column(column, justify="right" if column else "left")
        for tuning in TUNINGS:
            one = u[tuning]
            table.add_row(
                NAMES[tuning],
                f"{one['write_amplification']:.2f}",
                f"{one['flush_bytes'] / one['user_bytes']:.2f}",
                f"{one['compaction_bytes'] / one['user_bytes']:.2f}",
                f"{one['seconds']:.0f}",
                f"{one['cpu_s']:.0f}",
                f"{one['write_stall_s']:.1f}",
                f"{one['space_amplification']:.2f}",
                f"{one['peak_space_amplification']:.2f}",
                f"{one['reads_after']['rows_per_s']:.0f}",
            )
        console.print(table)
        saved = 1 - u["of_default"]
        found.append(
            Target("store: bytes written, below RocksDB's defaults", 30.0, saved * 100, "%")
        )
    made["targets"] = [target.as_dict() for target in found]
    print_targets(found, made["full_size"])


app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode="markdown"
)

NumRows = Annotated[int, typer.Option(help="Rows of the table.")]
RecordBytes = Annotated[int, typer.Option(help="Bytes of a record: weights and optimizer state.")]
Directory = Annotated[
    Path, typer.Option("--dir", help="Where the files go; on the disk to be measured.")
]
Json = Annotated[Path | None, typer.Option("--json", help="Write the report here.")]
Seconds = Annotated[float, typer.Option(help="Of gets in a round; the disk gets half of it.")]
Updates = Annotated[int, typer.Option(help="Rows updated, with either tuning.")]
Seed = Annotated[int, typer.Option(help="Of rows, records and ids.")]
_TMP = Path(tempfile.gettempdir())
_FULL = Parameters()


def _run(p: Parameters, parts: tuple[str, ...], directory: Path, json: Path | None) -> None:
    made = report("store", asdict(p))
    print_origin(made)
    made["full_size"] = p.full_size
    directory.mkdir(parents=True, exist_ok=True)
    needed = p.rows * p.record_bytes * 4
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise SystemExit(f"'{directory}' has {free} bytes free; this needs {needed}: pass --dir")
    with tempfile.TemporaryDirectory(prefix="tiered_embed-benchmark-", dir=directory) as home:
        if "reads" in parts:
            made["reads"] = measure_reads(p, Path(home))
        if "updates" in parts:
            made["updates"] = measure_updates(p, Path(home))
    _show(made)
    write_json(json, made)


@app.command()
def reads(
    rows: NumRows = _FULL.rows,
    record_bytes: RecordBytes = _FULL.record_bytes,
    seconds: Seconds = _FULL.seconds,
    directory: Directory = _TMP,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Random gets beside the disk's own rate."""
    p = Parameters(rows=rows, record_bytes=record_bytes, seconds=seconds, seed=seed)
    _run(p, ("reads",), directory, json)


@app.command()
def updates(
    rows: NumRows = _FULL.rows,
    record_bytes: RecordBytes = _FULL.record_bytes,
    seconds: Seconds = _FULL.seconds,
    updates: Updates = _FULL.updates,
    directory: Directory = _TMP,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Write amplification, ours and RocksDB's defaults."""
    p = Parameters(
        rows=rows, record_bytes=record_bytes, seconds=seconds, updates=updates, seed=seed
    )
    _run(p, ("updates",), directory, json)


@app.command("all")
def both(
    rows: NumRows = _FULL.rows,
    record_bytes: RecordBytes = _FULL.record_bytes,
    seconds: Seconds = _FULL.seconds,
    updates: Updates = _FULL.updates,
    directory: Directory = _TMP,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Both."""
    p = Parameters(
        rows=rows, record_bytes=record_bytes, seconds=seconds, updates=updates, seed=seed
    )
    _run(p, ("reads", "updates"), directory, json)


if __name__ == "__main__":
    app()
