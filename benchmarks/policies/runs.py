"""What is compared: id streams, our policies, libCacheSim's, and Belady's bounds.

A hit rate is per access: 1 - misses / lookups. Ours plan batch after batch, as training does; the
bound of that is Belady's rule applied between batches. libCacheSim's policies see one access after
the other, and Belady's rule there evicts at each.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from benchmarks.support.reports import console
from tiered_embed import simulate, traces
from tiered_embed.errors import CapacityError
from tiered_embed.residency.planner import BASE_POLICIES
from tiered_embed.simulate.numbering import all_accesses
from tiered_embed.simulate.peers import PEERS, PeerTrace, least_slots
from tiered_embed.traces import Trace

__all__ = [
    "DEPTHS",
    "WINDOWS",
    "Stream",
    "belady_of_accesses",
    "belady_of_batches",
    "check",
    "our_variants",
    "ours",
    "peers",
    "read_streams",
]

WINDOWS = (16, 64, 256)  # batches known ahead
DEPTHS = (0, 2)  # batches whose rows stay pinned, beside the current one


@dataclass(frozen=True)
class Stream:
    """A trace by name; all its tables share their slots."""

    name: str
    trace: Trace
    num_accesses: int
    num_rows: int
    ids_per_batch: int

    def slots(self, percent: int) -> int:
        return self.num_rows * percent // 100


def _stream(name: str, trace: Trace) -> Stream:
    found, numbering = all_accesses(trace)
    first = int(found.offsets[1])
    return Stream(name, trace, len(found.rows), numbering.num_rows, first)


def read_streams(root: Path, batch_size: int, check_ins: int) -> list[Stream]:
    """Scarab in batches of `batch_size` ids; the four tables of the check-ins share their slots."""
    ids = traces.read_raw(root / "scarab_recs.i64be.xz")
    streams = [_stream("scarab", Trace.from_ids(ids, batch=batch_size))]
    for city in ("nyc", "saopaulo"):
        read = traces.read_checkins(root / f"lbsn_checkins_{city}.tsv.xz")
        columns = Trace.from_columns(read.tables(), batch=check_ins)
        streams.append(_stream(f"check-ins {city}", columns))
    return streams


# --- ours -----------------------------------------------------------------------------------------


def our_variants() -> list[tuple[str, int]]:
    """(policy, window)"""
    bases = [(policy, 0) for policy in BASE_POLICIES]
    return bases + [(f"lookahead:{base}", w) for w in WINDOWS for base in BASE_POLICIES]


def ours(stream: Stream, policy: str, slots: int, window: int, depth: int) -> float | None:
    """The hit rate, or None where the pinned rows do not fit the slots."""
    # A base policy makes nothing of a window, but its depth needs one.
    counts = simulate.replay(stream.trace, slots, policy, max(window, depth), depth).total
    return None if counts.overflow else counts.hit_rate


def belady_of_batches(stream: Stream, slots: int, depth: int) -> float | None:
    """The best for whoever evicts between batches and holds the last `depth` + 1."""
    try:
        return simulate.belady_batches(stream.trace, slots, depth).hit_rate
    except CapacityError:
        return None


# --- one access after the other -------------------------------------------------------------------


def peers(stream: Stream, slots: list[int]) -> dict[str, list[float | None]]:
    """By policy, libCacheSim's hit rates; None where it has too few slots to work."""
    with PeerTrace.of(stream.trace) as written:
        return {
            policy: [
                written.counts(policy, s).hit_rate if s >= least_slots(policy) else None
                for s in slots
            ]
            for policy in track(PEERS, f"{stream.name}: libCacheSim", console=console)
        }


def belady_of_accesses(stream: Stream, slots: int) -> float:
    """The best for whoever must keep what was just accessed."""
    return simulate.belady(stream.trace, slots).hit_rate


def check(stream: Stream) -> None:
    """Both sides count alike: LRU, one access a batch, gives libCacheSim's counts exactly."""
    found, _ = all_accesses(stream.trace)
    alone = Trace.from_ids(found.rows[:50_000], batch=1)
    num_rows = len(np.unique(found.rows[:50_000]))
    for percent in (1, 10):
        slots = num_rows * percent // 100
        planned = simulate.replay(alone, slots, "lru", 0, 0).total
        assert planned.misses == simulate.peer(alone, slots, "LRU").misses, (stream.name, slots)
        batched = simulate.belady_batches(alone, slots)
        assert batched.misses == simulate.belady(alone, slots).misses, (stream.name, slots)
