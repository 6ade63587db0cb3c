"""The simulator's speed and memory, beside libCacheSim's Python binding, and its accuracy.

`python benchmarks/simulate --json out.json`. Results are checked before anything is timed: LRU
of one size by the planner, by our fast replay, by the exact curve and by libCacheSim must miss
alike. Then: accesses per second of one size, turn by turn; the exact curve of all sizes, as a
multiple of one size; the estimates' errors; a stream that no memory would hold. Whatever is charged
with memory has a process of its own.

Rates count everything between ids and counts: ours number rows by hash as they pass. libCacheSim is
given both of its ways: one Python call per access (`cache.get`), and its own reader over a file
(`process_trace`), which is written beforehand. Needs the extra `sim` and the traces in
TIERED_EMBED_DATA.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the folder of `benchmarks`

import json as jsonlib
import subprocess
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from benchmarks.support.machine import Neighbours, process_memory
from benchmarks.support.reports import (
    Target,
    console,
    print_origin,
    print_targets,
    report,
    spread,
    write_json,
)
from tiered_embed import simulate, traces
from tiered_embed.simulate.curve import MissRatioCurve
from tiered_embed.simulate.peers import PeerTrace
from tiered_embed.traces import GeneratedStream, GeneratedTable, Trace, WorkingSet, Zipf

FASTER = 5.0  # than libCacheSim's binding
CURVE_MULTIPLE = 15.0  # of the time of one size
CURVE_BYTES = 2e9
SHARDS_ERROR = 0.01
SHARDS_BYTES = 100e6
RATE = 0.01


# --- streams --------------------------------------------------------------------------------------


def generated(num_accesses: int, rows: int, batch: int = 4096) -> Trace:
    """A drifting Zipf law with a working set and rows that are used once."""
    table = GeneratedTable(
        "generated",
        Zipf(rows, 0.9),
        one_hit=0.02,
        working_set=WorkingSet(0.2, 20_000, 2000),
        drift_samples=5000,
    )
    return GeneratedStream((table,), batch, max(1, num_accesses // batch), seed=1).trace()


def kept(trace: Trace) -> Trace:
    """The same accesses in memory, so that generating them is not timed."""
    return Trace.from_ids(np.concatenate([batch[0] for batch in trace]), batch=1)


# --- one size -------------------------------------------------------------------------------------


def check(trace: Trace, slots: int) -> int:
    """Four ways to LRU's misses; returns them."""
    planned = simulate.replay(trace, slots, "lru", 0, 0).total
    misses = {
        "planner": planned.misses,
        "fast": simulate.lru(trace, slots)[trace.tables[0].name].misses,
        "curve": int(simulate.lru_curve(trace).misses_at(slots)[0]),
        "libCacheSim": simulate.peer(trace, slots, "LRU").misses,
    }
    assert len(set(misses.values())) == 1, misses
    return planned.misses


def timed(call: Callable[[], Any], repeats: int) -> tuple[list[float], Any]:
    seconds, out = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        out = call()
        seconds.append(time.perf_counter() - start)
    return seconds, out


def by_get(ids: list[int], slots: int) -> Callable[[], int]:
    """One Python call per access: how the binding is used on ids that are in memory."""
    import libcachesim

    def run() -> int:
        cache = libcachesim.LRU(slots, hashpower=20)
        request = libcachesim.Request()
        request.obj_size = 1
        get, hits = cache.get, 0
        for row in ids:
            request.obj_id = row
            hits += get(request)
        return len(ids) - hits

    return run


def single_size(name: str, trace: Trace, slots: int, repeats: int) -> dict[str, Any]:
    """Accesses per second of each contestant, turn by turn."""
    ids = np.concatenate([chunk.table_ids[0][1] for chunk in trace.chunks()])
    numbers = np.unique(ids, return_inverse=True)[1].tolist()  # ours get the ids themselves
    table = trace.tables[0].name
    batches = trace.rebatch(1024)
    with PeerTrace.of(trace) as written:
        contestants: dict[str, Callable[[], int]] = {
            "simulate.lru": lambda: simulate.lru(trace, slots)[table].misses,
            "simulate.replay, batches of 1": lambda: (
                simulate.replay(trace, slots, "lru", 0, 0).total.misses
            ),
            "simulate.replay, batches of 1024": lambda: (
                simulate.replay(batches, slots, "lru", 0, 0).total.misses
            ),
            "simulate.classic lru": lambda: simulate.classic(trace, slots, "lru").misses,
            "simulate.classic s3fifo": lambda: simulate.classic(trace, slots, "s3fifo").misses,
            "libCacheSim cache.get": by_get(numbers, slots),
            "libCacheSim process_trace": lambda: written.counts("LRU", slots).misses,
            "libCacheSim process_trace S3FIFO": lambda: written.counts("S3FIFO", slots).misses,
        }
        seconds: dict[str, list[float]] = {what: [] for what in contestants}
        misses: dict[str, int] = {}
        for _ in range(repeats):
            for what, call in contestants.items():
                took, misses[what] = timed(call, 1)
                seconds[what] += took
    lru = {misses[what] for what in misses if "3" not in what.lower() and "1024" not in what}
    assert len(lru) == 1, misses
    return {
        "trace": name,
        "accesses": len(ids),
        "slots": slots,
        "accesses_per_s": {
            what: spread([len(ids) / s for s in took]) for what, took in seconds.items()
        },
        "misses": misses,
    }


# --- all sizes ------------------------------------------------------------------------------------


def reset_peak() -> int:
    """Forgets this process's peak; returns what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return process_memory()["peak_rss_bytes"]


def curves(num_accesses: int, rows: int, repeats: int) -> dict[str, Any]:
    """The exact curve and its estimates over one stream, whose ids are generated as they pass."""
    streamed = generated(num_accesses, rows)
    slots = rows // 20
    small = Trace.from_ids(np.arange(5000) % 700, batch=1)
    simulate.lru_curve(small)  # compiles
    simulate.lru(small, 100)
    in_memory = kept(streamed)
    single, fast = timed(lambda: simulate.lru(in_memory, slots), repeats)
    before = reset_peak()
    exact_s, exact = timed(lambda: simulate.lru_curve(in_memory), repeats)
    exact_bytes = process_memory()["peak_rss_bytes"] - before
    assert exact.misses_at(slots)[0] == fast["table"].misses
    log_sizes = np.geomspace(100, exact.sizes[-1], 200)
    estimates = {}
    for what, method in ESTIMATES.items():
        curve = method(streamed)
        error = curve.error_to(exact)
        estimates[what] = {
            "mean_error": error.mean,
            "most_error": error.most,
            "mean_error_log_sizes": curve.error_to(exact, log_sizes).mean,
        }
    return {
        "accesses": int(exact.lookups),
        "rows": int(exact.cold),
        "single_size_s": spread(single),
        "exact_s": spread(exact_s),
        "multiple": min(exact_s) / min(single),
        "exact_bytes": exact_bytes,
        "estimates": estimates,
    }


ESTIMATES: dict[str, Callable[[Trace], MissRatioCurve]] = {
    f"SHARDS {RATE:g}": lambda trace: simulate.shards(trace, RATE),
    "SHARDS 8192 rows": lambda trace: simulate.shards(trace, 1.0, max_rows=8192),
    "AET": simulate.aet,
    "Che": simulate.che,
}


def estimate(place: int, num_accesses: int, rows: int) -> dict[str, Any]:
    """Seconds, and bytes on top of a process that has read one chunk and compiled its loops."""
    method = list(ESTIMATES.values())[place]
    small = generated(100_000, 1000)
    method(small)
    trace = generated(num_accesses, rows)
    generating, _ = timed(lambda: sum(c.num_ids for c in trace.chunks()), 1)
    before = reset_peak()
    seconds, _ = timed(lambda: method(trace), 1)
    grown = process_memory()["peak_rss_bytes"] - before
    return {"seconds": seconds[0], "generating_s": generating[0], "bytes": grown}


# --- a long stream --------------------------------------------------------------------------------


def long_stream(num_accesses: int, rows: int) -> dict[str, Any]:
    """Replays that hold no more than a chunk of the stream: planner and fast LRU."""
    out = {}
    trace = generated(num_accesses, rows)
    next(trace.chunks())  # compiles
    simulate.lru(Trace.from_ids(np.arange(100)), 200)
    simulate.shards(Trace.from_ids(np.arange(100)))
    for what, call in (
        ("planner, lru", lambda: simulate.replay(trace, rows // 20, "lru", 0, 0).total.misses),
        ("simulate.lru", lambda: simulate.lru(trace, rows // 20)["generated"].misses),
        (
            "SHARDS",
            lambda: round(simulate.shards(trace, RATE, batched=True).misses_at(rows // 20)[0]),
        ),
    ):
        before = reset_peak()
        seconds, misses = timed(call, 1)
        peak = process_memory()["peak_rss_bytes"]
        out[what] = {
            "seconds": seconds[0],
            "accesses_per_s": num_accesses / seconds[0],
            "misses": int(misses),
            "grown_bytes": peak - before,
            "peak_rss_bytes": peak,
        }
    assert out["planner, lru"]["misses"] == out["simulate.lru"]["misses"]
    return {"accesses": num_accesses, "ids_bytes": 8 * num_accesses, "runs": out}


# --- all of it ------------------------------------------------------------------------------------


def in_a_process(part: str, *args: int) -> dict[str, Any]:
    """One part by itself: its peak of memory is its own."""
    command = [sys.executable, __file__, "--part", part, *(f"--argument={a}" for a in args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        console.print(done.stderr)
        sys.exit(done.returncode)
    return dict(jsonlib.loads(done.stdout.splitlines()[-1]))


def show(made: dict[str, Any]) -> None:
    for one in made["single_size"]:
        title = f"{one['trace']}: {one['accesses']:,} accesses, {one['slots']:,} slots"
        table = Table(title=title, title_justify="left")
        for column in ("one size", "M accesses/s", "min", "max"):
            table.add_column(column, justify="left" if column == "one size" else "right")
        for what, rate in one["accesses_per_s"].items():
            table.add_row(what, *(f"{rate[k] / 1e6:.2f}" for k in ("median", "min", "max")))
        console.print(table)
    found = made["curves"]
    console.print(
        f"exact curve of {found['accesses']:,} accesses, {found['rows']:,} rows: "
        f"{found['exact_s']['median']:.2f} s, {found['multiple']:.2f} x one size, "
        f"{found['exact_bytes'] / 1e6:.0f} MB"
    )
    table = Table(title="estimates, ids generated meanwhile", title_justify="left")
    for column in ("method", "s", "MB", "mean error", "most", "mean over log sizes"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for what, one in found["estimates"].items():
        table.add_row(
            *(what, f"{one['seconds']:.2f}", f"{one['bytes'] / 1e6:.0f}"),
            *(f"{one[k]:.4f}" for k in ("mean_error", "most_error", "mean_error_log_sizes")),
        )
    console.print(table)
    stream = made["long_stream"]
    table = Table(title=f"{stream['accesses']:,} generated accesses", title_justify="left")
    for column in ("run", "s", "M accesses/s", "MB on top", "peak MB"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for what, run in stream["runs"].items():
        table.add_row(
            *(what, f"{run['seconds']:.1f}", f"{run['accesses_per_s'] / 1e6:.2f}"),
            *(f"{run[k] / 1e6:.0f}" for k in ("grown_bytes", "peak_rss_bytes")),
        )
    console.print(table)


def targets(made: dict[str, Any]) -> list[Target]:
    out = []
    for one in made["single_size"]:
        rates = {what: rate["median"] for what, rate in one["accesses_per_s"].items()}
        for way in ("cache.get", "process_trace"):
            ratio = rates["simulate.lru"] / rates[f"libCacheSim {way}"]
            out.append(Target(f"LRU replay / libCacheSim {way}, {one['trace']}", FASTER, ratio))
    found = made["curves"]
    shards = found["estimates"][f"SHARDS {RATE:g}"]
    out += [
        Target("exact curve, 15 single sizes / time", 1.0, CURVE_MULTIPLE / found["multiple"]),
        Target("exact curve, 2 GB / memory", 1.0, CURVE_BYTES / found["exact_bytes"]),
        Target("SHARDS .01, .01 / mean error", 1.0, SHARDS_ERROR / shards["mean_error"]),
        Target("SHARDS .01, 100 MB / memory", 1.0, SHARDS_BYTES / max(1, shards["bytes"])),
    ]
    return out


def main(
    accesses: Annotated[int, typer.Option(min=10_000, help="Of the curves' stream.")] = 10_000_000,
    rows: Annotated[int, typer.Option(min=1000, help="Of its table.")] = 1_000_000,
    long: Annotated[int, typer.Option(min=10_000, help="Accesses of the long one.")] = 100_000_000,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    json: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
    part: Annotated[str | None, typer.Option(hidden=True)] = None,
    argument: Annotated[list[int] | None, typer.Option(hidden=True)] = None,
) -> None:
    if part is not None:
        parts = {"curves": curves, "estimate": estimate, "long_stream": long_stream}
        print(jsonlib.dumps(parts[part](*(argument or []))))
        return
    root = traces.data_root()
    if root is None:
        console.print(f"[red]set {traces.DATA_VARIABLE} to the folder of the traces[/red]")
        sys.exit(1)
    made = report("simulate", {"accesses": accesses, "rows": rows, "long": long})
    print_origin(made)
    neighbours = Neighbours()
    scarab = Trace.from_ids(traces.read_raw(root / "scarab_recs.i64be.xz"), batch=1)
    short = kept(generated(accesses, rows))
    try:
        for trace, slots in ((scarab, 2583), (scarab, 25836)):
            check(trace, slots)
        made["single_size"] = [
            single_size("Scarab", scarab, 25836, repeats),
            single_size("generated", short, rows // 20, min(repeats, 3)),
        ]
    except AssertionError as error:
        console.print(f"[red]the contestants count differently: {error}[/red]")
        sys.exit(1)
    made["curves"] = in_a_process("curves", accesses, rows, repeats)
    for place, one in enumerate(made["curves"]["estimates"].values()):
        one.update(in_a_process("estimate", place, accesses, rows))
    made["long_stream"] = in_a_process("long_stream", long, rows)
    made["neighbours_cores"] = neighbours.cores()
    show(made)
    found = targets(made)
    made["targets"] = [t.as_dict() for t in found]
    write_json(json, made)
    full = accesses == 10_000_000 and long == 100_000_000
    print_targets(found, full)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    app.command(help=__doc__)(main)
    app()
