"""What ``policies.py`` compares: id streams, our policies, libCacheSim's, and Belady's bounds.

A hit rate is per access: 1 - misses / lookups. Ours plan batch after batch, as training does; the
bound of that is Belady's rule applied between batches. libCacheSim's policies see one access after
the other, and Belady's rule there evicts at each.
"""

import heapq
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tiered_embed import traces
from tiered_embed.residency import BASE_POLICIES, Planner, PoolSlots

__all__ = [
    "DEPTHS",
    "PEERS",
    "WINDOWS",
    "Stream",
    "belady_of_accesses",
    "belady_of_batches",
    "check",
    "our_variants",
    "ours",
    "peer",
    "read_streams",
]

WINDOWS = (16, 64, 256)  # batches known ahead
DEPTHS = (0, 2)  # batches whose rows stay pinned, beside the current one
# Without its LFUDA, which never ends on the check-ins (0.3.5).
PEERS = (
    *("LRU", "Clock", "LFU", "GDSF", "Hyperbolic", "TwoQ", "ARC", "LIRS", "LeCaR"),
    *("Cacheus", "Sieve", "WTinyLFU", "S3FIFO"),
)

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stream:
    """Batches of one trace. `rows` numbers the rows of all tables, batch after batch."""

    name: str
    batches: list[list[tuple[int, Ids]]]
    rows: list[Ids]
    num_rows: int
    num_tables: int

    @property
    def num_accesses(self) -> int:
        return sum(map(len, self.rows))

    def slots(self, percent: int) -> int:
        return self.num_rows * percent // 100


def _stream(name: str, columns: list[Ids], size: int) -> Stream:
    """`size` ids of each column make a batch."""
    starts = range(0, len(columns[0]), size)
    batches = [[(t, c[i : i + size]) for t, c in enumerate(columns)] for i in starts]
    dense, num_rows = [], 0
    for column in columns:
        known, row = np.unique(column, return_inverse=True)
        dense.append(row + num_rows)
        num_rows += len(known)
    rows = [np.concatenate([c[i : i + size] for c in dense]) for i in starts]
    return Stream(name, batches, rows, num_rows, len(columns))


def read_streams(root: Path, batch_size: int, check_ins: int) -> list[Stream]:
    """Scarab in batches of `batch_size` ids; the four tables of the check-ins share their slots."""
    streams = [_stream("scarab", [traces.read_raw(root / "scarab_recs.i64be.xz")], batch_size)]
    for city in ("nyc", "saopaulo"):
        read = traces.read_checkins(root / f"lbsn_checkins_{city}.tsv.xz")
        streams.append(_stream(f"check-ins {city}", list(read.tables().values()), check_ins))
    return streams


# --- ours -----------------------------------------------------------------------------------------


def our_variants() -> list[tuple[str, int]]:
    """(policy, window)"""
    bases = [(policy, 0) for policy in BASE_POLICIES]
    return bases + [(f"lookahead:{base}", w) for w in WINDOWS for base in BASE_POLICIES]


def ours(stream: Stream, policy: str, slots: int, window: int, depth: int) -> float | None:
    """The hit rate, or None where the pinned rows do not fit the slots."""
    planner = Planner(
        [(str(t), None) for t in range(stream.num_tables)],
        PoolSlots((-1,) * stream.num_tables, 0, slots, 2**20),
        policy=policy,
        backed=True,
        tier="DDR",
    )
    for t in range(len(stream.batches) + window):
        if t < len(stream.batches):
            planner.push(stream.batches[t])
        if t >= window:
            planner.release(planner.plan(depth).number, updated=True)
    counts = planner.counts(8)
    if sum(c.overflow for c in counts):
        return None
    return 1 - sum(c.misses for c in counts) / sum(c.lookups for c in counts)


def belady_of_batches(stream: Stream, slots: int, depth: int) -> float | None:
    """The best for whoever evicts between batches and holds the last `depth` + 1."""
    batches = [np.unique(rows) for rows in stream.rows]
    next_use = np.full(stream.num_rows, len(batches))
    uses = []
    for t in reversed(range(len(batches))):
        uses.append(next_use[batches[t]])
        next_use[batches[t]] = t
    resident = np.zeros(stream.num_rows, bool)
    misses = 0
    for t, batch in enumerate(batches):
        misses += int((~resident[batch]).sum())
        resident[batch] = True
        next_use[batch] = uses[len(batches) - 1 - t]
        surplus = int(resident.sum()) - slots
        if surplus <= 0:
            continue
        can_go = resident.copy()
        for held in batches[max(0, t - depth) : t + 1]:
            can_go[held] = False
        candidates = np.flatnonzero(can_go)
        if len(candidates) < surplus:
            return None
        order = np.argpartition(-next_use[candidates], surplus - 1)
        resident[candidates[order[:surplus]]] = False
    return 1 - misses / stream.num_accesses


# --- one access after the other -------------------------------------------------------------------


def peer(stream: Stream, policy: str, slots: int) -> float | None:
    """libCacheSim's policy of that name, with its defaults; every row has size 1.

    None where it keeps nothing at all: the window of WTinyLFU is empty below 100 slots.
    """
    import libcachesim

    cache = getattr(libcachesim, policy)(slots, hashpower=20)
    request = libcachesim.Request()
    request.obj_size = 1
    get, hits = cache.get, 0
    for row in np.concatenate(stream.rows).tolist():
        request.obj_id = row
        hits += get(request)
    return hits / stream.num_accesses if hits else None


def belady_of_accesses(stream: Stream, slots: int) -> float:
    """The best for whoever must keep what was just accessed."""
    rows = np.concatenate(stream.rows)
    order = np.argsort(rows, kind="stable")
    next_use = np.full(len(rows), len(rows))
    same = rows[order[:-1]] == rows[order[1:]]
    next_use[order[:-1][same]] = order[1:][same]
    resident: dict[int, int] = {}
    farthest: list[tuple[int, int]] = []
    hits = 0
    for row, use in zip(rows.tolist(), next_use.tolist(), strict=True):
        if row in resident:
            hits += 1
        elif len(resident) >= slots:
            while True:  # entries of earlier uses are stale
                then, victim = heapq.heappop(farthest)
                if resident.get(victim) == -then:
                    del resident[victim]
                    break
        resident[row] = use
        heapq.heappush(farthest, (-use, row))
    return hits / len(rows)


def check(stream: Stream) -> None:
    """Both sides count alike: LRU, one access a batch, gives libCacheSim's rate exactly."""
    rows = np.concatenate(stream.rows)[:50_000]
    one = [np.array([row]) for row in rows.tolist()]
    batches = [[(0, ids)] for ids in one]
    alone = Stream(stream.name, batches, one, stream.num_rows, 1)
    for percent in (1, 10):
        slots = alone.slots(percent)
        pairs = [(ours(alone, "lru", slots, 0, 0), peer(alone, "LRU", slots))]
        if slots < 1000:  # the rest would take minutes
            pairs.append((belady_of_batches(alone, slots, 0), belady_of_accesses(alone, slots)))
        for one, other in pairs:
            assert one is not None
            assert other is not None
            assert round(one * len(rows)) == round(other * len(rows)), (stream.name, slots)
