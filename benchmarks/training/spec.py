"""What every contestant of ``training beyond-memory`` is given: sizes, ids, gradient, first rows.

Legend: ``N`` ids of a batch, ``B`` bags, ``D`` dim.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Ids", "Spec", "hottest_ids", "initial_rows"]

CHUNK_ROWS = 1 << 16
CHECKED_ROWS = 2048

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Spec:
    """What a contestant is given. ``ids_path``: (batches, N) int64, read again when it ends."""

    contestant: str
    phase: str  # "build" or "train"
    directory: str
    ids_path: str
    rows: int
    dim: int
    batch_size: int
    pooling: int
    threads: int
    seed: int
    ddr_bytes: int
    limit_bytes: int
    lookahead: int
    depth: int | str
    policy: str
    store: str
    direct_io: bool
    warm_s: float
    ours_warm_s: float
    budget_s: float
    max_batches: int

    @property
    def ids_per_batch(self) -> int:
        return self.batch_size * self.pooling

    def batches(self) -> Iterator[Ids]:
        """The id batches in order, for ever; copied out of a file, so that they take no memory."""
        drawn = np.load(self.ids_path, mmap_mode="r")
        for i in itertools.count():
            yield np.array(drawn[i % len(drawn)])

    def gradient(self) -> torch.Tensor:
        """(B, D), the same for every batch."""
        draw = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.batch_size, self.dim, generator=draw) * 0.01

    def offsets(self) -> torch.Tensor:
        return torch.arange(self.batch_size) * self.pooling

    def checked_ids(self) -> Ids:
        """Rows of the first batch that contestants are compared on."""
        return np.unique(next(self.batches()))[:CHECKED_ROWS]


def initial_rows(spec: Spec) -> Iterator[tuple[Ids, npt.NDArray[np.float32]]]:
    """All rows in chunks of ascending ids: (n,), (n, D). The same for every contestant."""
    for start in range(0, spec.rows, CHUNK_ROWS):
        count = min(CHUNK_ROWS, spec.rows - start)
        draw = np.random.Generator(np.random.SFC64([spec.seed, start]))
        weights = draw.random((count, spec.dim), dtype=np.float32)
        weights -= 0.5
        weights *= 0.02
        yield np.arange(start, start + count, dtype=np.int64), weights


def hottest_ids(spec: Spec, count: int) -> Ids:
    """The ``count`` most popular ids, most popular first."""
    from tiered_embed.traces.hashing import scatter

    ranks = np.arange(min(count, spec.rows), dtype=np.int64)
    return scatter(ranks, spec.rows, spec.seed)
