"""One cell of the grid: an optimizer, a dim, a pooling and a skew; checked, then timed.

The check trains a small table: our rows must have the bits of ``optimizer.update`` in ``te.optim``
with the row gradients of docs/design.md, and lie within a tolerance of every peer's. Timing
interleaves the contestants and a plain copy round by round, so that a busy machine meets all of
them alike.

Legend: ``N`` ids of a batch, ``U`` unique rows, ``B`` bags, ``D`` dim, ``S`` state floats.
"""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.kernels.contestants import (
    BARE,
    KERNELS,
    Batch,
    Contestant,
    Ours,
    OursKernels,
    TorchTable,
    fill,
    peers,
)
from benchmarks.kernels.optimizers import Entry
from benchmarks.support.machine import Neighbours
from tiered_embed.traces import IdStream

__all__ = ["Cell", "Copier", "Tables", "check", "measure"]

CHECK_ROWS, CHECK_BAGS, CHECK_STEPS = 20_000, 512, 3
RELATIVE, ABSOLUTE = 1e-4, 1e-6
CHUNK = 256
COLD_BYTES = 1 << 28  # what the batches touch before one comes again; beyond any L3 here
MAX_BATCHES = 256
MAX_STEPS = 64
MIN_ROUNDS, MOST_BUDGETS = 3, 2  # slow peers: fewer rounds rather than many times the budget
SKEWS = {"uniform": "uniform", "zipf": "zipf"}

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Cell:
    """What is measured. ``skew``: uniform, or zipf with exponent 1.05; ids scattered."""

    optimizer: str
    dim: int
    pooling: int
    skew: str
    rows: int
    bags: int = 4096

    @property
    def num_ids(self) -> int:
        return self.bags * self.pooling

    @property
    def label(self) -> str:
        return f"{self.optimizer} D={self.dim} pooling {self.pooling} {self.skew}"


@cache
def _batches(rows: int, bags: int, pooling: int, skew: str, count: int) -> list[Batch]:
    distribution: Any = SKEWS[skew]
    stream = IdStream(rows, bags, count, pooling=pooling, distribution=distribution, exponent=1.05)
    bounds = torch.arange(bags + 1) * pooling
    return [Batch(torch.from_numpy(drawn.ids), bounds) for drawn in stream]


# --- check ----------------------------------------------------------------------------------------


def _row_gradients(batch: Batch, grad: F32) -> tuple[npt.NDArray[np.int64], F32]:
    """Unique ids (U,) and their gradients (U, D), summed as docs/design.md says: chunks of 256."""
    ids, inverse, counts = np.unique(batch.ids.numpy(), return_inverse=True, return_counts=True)
    bag_of = np.repeat(np.arange(len(grad)), np.diff(batch.bounds.numpy()))
    occurrences = np.argsort(inverse, kind="stable")
    starts = np.cumsum(counts) - counts
    by_count = np.argsort(-counts, kind="stable")  # rows with a k-th occurrence are a prefix
    counts, starts = counts[by_count], starts[by_count]
    total = np.zeros((len(ids), grad.shape[1]), np.float32)
    chunk = total.copy()
    for k in range(counts[0]):
        n = int(np.searchsorted(-counts, -k))  # counts > k
        if k % CHUNK == 0 and k:
            total[:n] = chunk[:n] if k == CHUNK else total[:n] + chunk[:n]
            chunk[:n] = 0
        chunk[:n] += grad[bag_of[occurrences[starts[:n] + k]]]
    long = int(np.searchsorted(-counts, -CHUNK))
    total[:long] += chunk[:long]
    total[long:] = chunk[long:]
    out = np.empty_like(total)
    out[by_count] = total
    return ids, out


def _check_gradient(cell: Cell, step: int) -> torch.Tensor:
    """(B, D) of one sign per column: sums cannot cancel, so that no peer's rounding is magnified
    where an optimizer divides by the gradient's own size."""
    draw = torch.Generator().manual_seed(step)
    grad = torch.empty(CHECK_BAGS, cell.dim).uniform_(0.5, 1.5, generator=draw)
    grad[:, ::2].neg_()
    return grad


def check(entry: Entry, cell: Cell, threads: int) -> dict[str, float]:
    """Largest deviation from each peer after equal steps, as a share of the tolerance.

    Raises:
        AssertionError: a bit differs from the reference, or a peer lies beyond the tolerance.
    """
    rows, dim = min(cell.rows, CHECK_ROWS), cell.dim
    spec = entry.spec
    bare, other = (Ours(entry, rows, dim, threads) for _ in range(2))
    ours: list[Contestant] = [bare, OursKernels(other)]
    theirs = peers(entry, lambda: TorchTable(rows, dim), threads)
    theirs = [p for p in theirs if p.threads == threads]  # forms of one table
    fill([*ours, *theirs], rows, dim)
    weights = bare.rows().numpy().copy()
    state = np.zeros((rows, sum(entry.widths(dim))), np.float32)
    batches = _batches(rows, CHECK_BAGS, cell.pooling, cell.skew, CHECK_STEPS)
    for number, batch in enumerate(batches, 1):
        grad = _check_gradient(cell, number)
        for contestant in (*ours, *theirs):
            contestant.start([batch], grad)
            contestant.step()
        ids, gradients = _row_gradients(batch, grad.numpy())
        part_weights, part_state = weights[ids], state[ids]
        spec.update(part_weights, part_state, gradients, number)
        weights[ids], state[ids] = part_weights, part_state
    for contestant in ours:
        wrong = int((contestant.rows().numpy().view(np.int32) != weights.view(np.int32)).sum())
        assert wrong == 0, f"{cell.label}: {wrong} floats of '{contestant.name}' are not the bits"
    off = {}
    for peer in theirs:
        difference = np.abs(peer.rows().numpy() - weights)
        off[peer.name] = float((difference / (ABSOLUTE + RELATIVE * np.abs(weights))).max())
        assert off[peer.name] <= 1, (
            f"{cell.label}: rows of '{peer.name}' differ from ours by {difference.max():.3g}, "
            f"{off[peer.name]:.3g} times the tolerance"
        )
    bare.close()
    other.close()
    return off


# --- time -----------------------------------------------------------------------------------------


class Copier:
    """Copies between arrays far beyond the caches, one pair a thread; ``step`` is one copy.

    ``num_bytes`` counts what a step reads plus what it writes.
    """

    def __init__(self, threads: int, array_bytes: int = 1 << 26) -> None:
        self._source = [np.ones(array_bytes, np.uint8) for _ in range(threads)]
        self._target = [np.zeros(array_bytes, np.uint8) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads)
        self.num_bytes = 2 * threads * array_bytes

    def bytes_per_s(self, repeats: int = 3) -> float:
        """Median of some copies, after one untimed."""
        rates = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            list(self._pool.map(np.copyto, self._target, self._source))
            rates.append(self.num_bytes / (time.perf_counter() - start))
        return statistics.median(rates[1:])


class Tables:
    """The tables of one optimizer and dim, for all its cells."""

    def __init__(self, entry: Entry, shared: TorchTable, threads: int) -> None:
        rows, dim = shared.emb.weight.shape
        self.entry = entry
        self.bare = Ours(entry, rows, dim, threads)
        self.ours: list[Contestant] = [self.bare, OursKernels(self.bare)]
        self.peers = peers(entry, lambda: shared, threads)
        # One of each table: ours, FBGEMM's where there is one, torch's.
        fill([self.bare, self.peers[0], self.peers[-1]], rows, dim)

    def close(self) -> None:
        self.bare.close()


def moved_bytes(cell: Cell, unique: float, state_floats: int) -> float:
    """Bytes that a step must move, reads plus writes: every unique row is read by the forward, and
    read and written with its state by the update; outputs are written, their gradients read."""
    row, record = cell.dim * 4, (cell.dim + state_floats) * 4
    return unique * (row + 2 * record) + 2 * cell.bags * row


def measure(
    tables: Tables, cell: Cell, copier: Copier, rounds: int, budget_s: float
) -> dict[str, Any]:
    """Seconds a step of everybody, and what follows from them."""
    count = min(MAX_BATCHES, max(4, -(-COLD_BYTES // (cell.num_ids * cell.dim * 4))))
    batches = _batches(cell.rows, cell.bags, cell.pooling, cell.skew, count)
    unique = statistics.mean(len(np.unique(b.ids.numpy())) for b in batches[:4])
    grad = torch.randn(cell.bags, cell.dim, generator=torch.Generator().manual_seed(0)) * 0.01
    contestants = [*tables.ours, *tables.peers]
    share = budget_s / rounds / len(contestants)
    steps, turns_s = {}, 0.0
    for contestant in contestants:
        contestant.start(batches, grad)
        torch.set_num_threads(contestant.threads)
        contestant.step()
        span = _timed(contestant, 1)
        steps[contestant.name] = max(1, min(MAX_STEPS, int(share / span)))
        turns_s += max(span, share)
    rounds = max(MIN_ROUNDS, min(rounds, int(MOST_BUDGETS * budget_s / turns_s)))
    spans: dict[str, list[float]] = {c.name: [] for c in contestants}
    copied = []
    neighbours = Neighbours()
    for _ in range(rounds):
        copied.append(copier.bytes_per_s())
        for contestant in contestants:
            torch.set_num_threads(contestant.threads)
            if steps[contestant.name] > 1:
                contestant.step()  # its threads awake, the caches its own
            n = steps[contestant.name]
            spans[contestant.name].append(_timed(contestant, n) / n)
    floor = moved_bytes(cell, unique, sum(tables.entry.widths(cell.dim)))
    return _result(tables, cell, spans, copied, unique, floor, neighbours.cores())


def _timed(contestant: Contestant, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        contestant.step()
    return time.perf_counter() - start


def _result(
    tables: Tables,
    cell: Cell,
    spans: dict[str, list[float]],
    copied: list[float],
    unique: float,
    floor_bytes: float,
    neighbour_cores: float,
) -> dict[str, Any]:
    """Ratios are taken round by round: a round met one machine."""

    def ratio(form: str, names: list[str]) -> float:
        best = [min(turn) for turn in zip(*(spans[name] for name in names), strict=True)]
        return statistics.median(b / own for b, own in zip(best, spans[form], strict=True))

    def floor_share(form: str) -> float:
        pairs = zip(copied, spans[form], strict=True)
        return statistics.median(floor_bytes / rate / own for rate, own in pairs)

    names = [p.name for p in tables.peers]
    medians = {name: statistics.median(turns) for name, turns in spans.items()}
    return {
        **asdict(cell),
        "unique_rows": unique,
        "seconds": medians,
        "rounds_s": spans,
        "best_peer": min(names, key=lambda name: medians[name]),
        "ratio": {form: ratio(form, names) for form in (BARE, KERNELS)},
        "ratio_torch": ratio(BARE, [n for n in names if n.startswith("torch")]),
        "floor_bytes": floor_bytes,
        "copy_bytes_per_s": statistics.median(copied),
        "floor_share": {form: floor_share(form) for form in (BARE, KERNELS)},
        "neighbour_cores": neighbour_cores,
    }
