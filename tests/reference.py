"""An independent dense trainer: what training must give, by DESIGN sections 5 to 7, in NumPy.

It knows no tier, slot, window or thread: a dict of records, and the plain definitions of
``optim.py`` and ``init.py``. In float32 it is the bits that every run must reproduce; in float64 it
is the truth that both are held against.

Legend: ``N`` ids of a feature, ``B`` bags, ``D`` dim, ``S`` state floats.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tiered_embed import init as te_init
from tiered_embed.optim import Optimizer, row_gradient


@dataclass(frozen=True)
class Table:
    name: str
    dim: int
    num_embeddings: int | None = None
    mode: str = "sum"
    features: tuple[str, ...] = ()

    @property
    def feature_names(self) -> tuple[str, ...]:
        return self.features or (self.name,)


@dataclass(frozen=True)
class Bags:
    """ids (N,) int64; offsets (B + 1,) int64; weights (N,) float32 or None."""

    ids: np.ndarray
    offsets: np.ndarray
    weights: np.ndarray | None = None

    @property
    def num_bags(self) -> int:
        return len(self.offsets) - 1


Batch = Mapping[str, Bags]  # by feature
Arrays = Mapping[str, np.ndarray]  # by feature, (B, D)


@dataclass(frozen=True)
class Stream:
    """Batches of ids and the gradients that come back for them."""

    tables: tuple[Table, ...]
    batches: tuple[Batch, ...]
    gradients: tuple[Arrays, ...]

    def touched(self) -> dict[str, int]:
        """Distinct rows per table."""
        return {
            t.name: len(
                np.unique(np.concatenate([b[f].ids for b in self.batches for f in t.feature_names]))
            )
            for t in self.tables
        }


class DenseTrainer:
    """Trains ``tables`` with everything in one dict of records."""

    def __init__(
        self,
        tables: Sequence[Table],
        optimizer: Optimizer,
        *,
        init: te_init.Init,
        seed: int,
        dtype: type[np.floating] = np.float32,
    ) -> None:
        self.tables = tuple(tables)
        self.optimizer = optimizer
        self.init = init
        self.seed = seed
        self.dtype = np.dtype(dtype)
        self.steps = 0
        self._records: dict[str, dict[int, np.ndarray]] = {t.name: {} for t in tables}
        self._initial: dict[str, dict[int, np.ndarray]] = {t.name: {} for t in tables}

    def record(self, table: Table, row: int) -> np.ndarray:
        """(D + S,): weights then state, materialised or as it would start."""
        found = self._records[table.name].get(row)
        if found is not None:
            return found
        known = self._initial[table.name].get(row)
        if known is None:
            weights = te_init.reference(
                self.init, self.seed, table.name, np.array([row], np.int64), table.dim
            )
            known = np.zeros(table.dim + self.optimizer.state_floats(table.dim), self.dtype)
            known[: table.dim] = weights[0]
            self._initial[table.name][row] = known
        return known

    def records(self, table: Table, rows: np.ndarray) -> np.ndarray:
        """(n, D + S) of rows (n,)."""
        width = table.dim + self.optimizer.state_floats(table.dim)
        return np.array([self.record(table, r) for r in rows.tolist()], self.dtype).reshape(
            -1, width
        )

    def write(self, table: Table, rows: np.ndarray, records: np.ndarray) -> None:
        """Materialises rows."""
        mine = self._records[table.name]
        for row, record in zip(rows.tolist(), records, strict=True):
            mine[row] = record.astype(self.dtype)

    def forward(self, batch: Batch) -> dict[str, np.ndarray]:
        """Pooled rows: added from zero in order; weighted rows are multiplied first."""
        out = {}
        for table in self.tables:
            for feature in table.feature_names:
                bags = batch[feature]
                rows = self.records(table, bags.ids)[:, : table.dim]
                if bags.weights is not None:
                    rows = bags.weights.astype(self.dtype)[:, None] * rows
                pooled = np.zeros((bags.num_bags, table.dim), self.dtype)
                for b in range(bags.num_bags):
                    first, last = bags.offsets[b], bags.offsets[b + 1]
                    total = np.zeros(table.dim, self.dtype)
                    for row in rows[first:last]:
                        total = total + row
                    if table.mode == "mean" and last > first:
                        total = total / self.dtype.type(last - first)
                    pooled[b] = total
                out[feature] = pooled
        return out

    def backward(self, batch: Batch, gradients: Arrays) -> None:
        """One step of the optimizer: once per row, with its full gradient."""
        self.steps += 1
        for table in self.tables:
            ids = np.concatenate([batch[f].ids for f in table.feature_names])
            if len(ids) == 0:
                continue
            occurrences = np.concatenate(
                [
                    self._occurrence_gradients(table, batch[f], gradients[f])
                    for f in table.feature_names
                ]
            )
            unique, inverse = np.unique(ids, return_inverse=True)
            order = np.argsort(inverse, kind="stable")
            bounds = np.searchsorted(inverse[order], np.arange(len(unique) + 1))
            total = np.stack(
                [
                    row_gradient(occurrences[order[bounds[u] : bounds[u + 1]]])
                    for u in range(len(unique))
                ]
            )
            records = self.records(table, unique)
            weights, state = records[:, : table.dim].copy(), records[:, table.dim :].copy()
            self.optimizer.update(weights, state, total, self.steps)
            self.write(table, unique, np.concatenate([weights, state], axis=1))

    def _occurrence_gradients(self, table: Table, bags: Bags, gradient: np.ndarray) -> np.ndarray:
        """(N, D): what each occurrence adds to its row's gradient."""
        lengths = np.diff(bags.offsets)
        per_bag = gradient.astype(self.dtype)
        if table.mode == "mean":
            per_bag = per_bag / np.maximum(lengths, 1).astype(self.dtype)[:, None]
        per_id = np.repeat(per_bag, lengths, axis=0)
        if bags.weights is not None:
            per_id = bags.weights.astype(self.dtype)[:, None] * per_id
        return per_id

    def train(self, stream: Stream) -> None:
        for batch, gradients in zip(stream.batches, stream.gradients, strict=True):
            self.backward(batch, gradients)

    def rows(self, table: Table) -> np.ndarray:
        """Materialised row ids of a table, ascending as unsigned numbers."""
        ids = np.array(list(self._records[table.name]), np.int64)
        return ids[np.argsort(ids.view(np.uint64))]

    def digest(self) -> str:
        """SHA-256 over key ‖ weights ‖ state of every materialised row, in key order."""
        assert self.dtype == np.float32
        lines = []
        for table in self.tables:
            prefix = hashlib.sha256(table.name.encode()).digest()[:4]
            for row, record in self._records[table.name].items():
                key = prefix + (row % 2**64).to_bytes(8, "big")
                lines.append((key, record.astype("<f4").tobytes()))
        sha = hashlib.sha256()
        for key, record in sorted(lines):
            sha.update(key + record)
        return sha.hexdigest()
