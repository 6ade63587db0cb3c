"""An independent dense trainer: what training must give, by docs/design.md, "Exact arithmetic".

It knows no tier, slot, window or thread: a dict of records, and the plain definitions of
``optim/``, ``spec/row_formats.py`` and ``spec/init.py``. In float32 it gives the bits that every
run must reproduce; in float64 it is the truth that both are held against.

Legend: ``N`` ids of a feature, ``B`` bags, ``D`` dim, ``S`` state floats.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tiered_embed import init as te_init
from tiered_embed.optim.base import Optimizer, lane_sum, row_gradient
from tiered_embed.spec.row_formats import encode, round_nearest, round_stochastic


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


@dataclass(frozen=True)
class RowGradients:
    """What one backward gives a table: rows (U,) in the order of their first use, their summed
    gradients (U, D), and how often each was used."""

    rows: np.ndarray
    sums: np.ndarray
    occurrences: np.ndarray


class DenseTrainer:
    """Trains ``tables`` with everything in one dict of records.

    Args:
        storage: of the rows, as in ``row_formats.py``; a record holds what they read as.
        by_frequency: ``scale_grad_by_freq``.
        dtype: that it computes in; float64 rounds nothing.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        optimizer: Optimizer,
        *,
        init: te_init.Init,
        seed: int,
        storage: str = "float32",
        rounding: str = "nearest",
        by_frequency: bool = False,
        dtype: type[np.floating] = np.float32,
    ) -> None:
        self.tables = tuple(tables)
        self.optimizer = optimizer
        self.init = init
        self.seed = seed
        self.storage = storage
        self.rounding = rounding
        self.by_frequency = by_frequency
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
            if self._rounds:
                weights = round_nearest(weights, self.storage)
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
                    if table.mode == "max":
                        if last > first:
                            winners = rows[first:last].argmax(axis=0)
                            pooled[b] = rows[first + winners, np.arange(table.dim)]
                        continue
                    total = np.zeros(table.dim, self.dtype)
                    for row in rows[first:last]:
                        total = total + row
                    if table.mode == "mean" and last > first:
                        total = total / self.dtype.type(last - first)
                    pooled[b] = total
                out[feature] = pooled
        return out

    def backward(self, batch: Batch, gradients: Arrays) -> None:
        """One step of the optimizer: once per row, with its full gradient. The rows are as they
        were at the batch's forward."""
        self._step(self._row_gradients(batch, gradients))

    def accumulated(self, batches: Sequence[Batch], gradients: Sequence[Arrays]) -> None:
        """One step with what the backwards of ``batches`` sum to, added in their order."""
        several = [self._row_gradients(b, g) for b, g in zip(batches, gradients, strict=True)]
        joined = {}
        for table in self.tables:
            parts = [found[table.name] for found in several if table.name in found]
            if parts:
                rows = np.concatenate([p.rows for p in parts])
                joined[table.name] = _grouped(rows, np.concatenate([p.sums for p in parts]))
        self._step(joined)

    def _row_gradients(self, batch: Batch, gradients: Arrays) -> dict[str, RowGradients]:
        """By table, of those with ids."""
        out = {}
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
            found = _grouped(ids, occurrences)
            if self.by_frequency:
                divisor = found.occurrences.astype(self.dtype)[:, None]
                found = RowGradients(found.rows, found.sums / divisor, found.occurrences)
            out[table.name] = found
        return out

    def _step(self, found: Mapping[str, RowGradients]) -> None:
        self.steps += 1
        sums = {name: self.optimizer.conditioned(g.sums) for name, g in found.items()}
        factor = self.dtype.type(self.optimizer.global_factor(self._squares(sums)))
        for table in self.tables:
            if table.name not in found:
                continue
            rows = found[table.name].rows
            records = self.records(table, rows)
            weights, state = records[:, : table.dim].copy(), records[:, table.dim :].copy()
            self.optimizer.apply(weights, state, sums[table.name] * factor, self.steps)
            if self._rounds:
                weights = self._rounded(table, rows, weights)
            self.write(table, rows, np.concatenate([weights, state], axis=1))

    def _squares(self, sums: Arrays) -> float:
        """Of all gradients: each row's in their own type, rows one by one in float64, tables of
        one dim before those of the next."""
        total = 0.0
        for dim in dict.fromkeys(t.dim for t in self.tables):
            of_dim = 0.0
            for table in self.tables:
                if table.dim == dim and table.name in sums:
                    g = sums[table.name]
                    for x in lane_sum(g * g).astype(np.float64).tolist():
                        of_dim += x
            total += of_dim
        return total

    @property
    def _rounds(self) -> bool:
        return self.storage != "float32" and self.dtype == np.float32

    def _rounded(self, table: Table, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        if self.rounding == "nearest":
            return round_nearest(weights, self.storage)
        return round_stochastic(
            weights, self.storage, seed=self.seed, step=self.steps, table=table.name, rows=rows
        )

    def _occurrence_gradients(self, table: Table, bags: Bags, gradient: np.ndarray) -> np.ndarray:
        """(N, D): what each occurrence adds to its row's gradient."""
        lengths = np.diff(bags.offsets)
        per_bag = gradient.astype(self.dtype)
        if table.mode == "max":
            return self._winners_gradients(table, bags, per_bag)
        if table.mode == "mean":
            per_bag = per_bag / np.maximum(lengths, 1).astype(self.dtype)[:, None]
        per_id = np.repeat(per_bag, lengths, axis=0)
        if bags.weights is not None:
            per_id = bags.weights.astype(self.dtype)[:, None] * per_id
        return per_id

    def _winners_gradients(self, table: Table, bags: Bags, per_bag: np.ndarray) -> np.ndarray:
        """Every column's gradient goes to the first of its bag that has the maximum."""
        rows = self.records(table, bags.ids)[:, : table.dim]
        out = np.zeros_like(rows)
        for b in range(bags.num_bags):
            first, last = bags.offsets[b], bags.offsets[b + 1]
            if last > first:
                winners = rows[first:last].argmax(axis=0)  # the first of equals
                out[first + winners, np.arange(table.dim)] = per_bag[b]
        return out

    def train(self, stream: Stream) -> None:
        for batch, gradients in zip(stream.batches, stream.gradients, strict=True):
            self.backward(batch, gradients)

    def rows(self, table: Table) -> np.ndarray:
        """Materialised row ids of a table, ascending as unsigned numbers."""
        ids = np.array(list(self._records[table.name]), np.int64)
        return ids[np.argsort(ids.view(np.uint64))]

    def digest(self) -> str:
        """SHA-256 over key ‖ weights ‖ state of every materialised row, in key order."""
        return digest_of([self])

    def lines(self) -> list[tuple[bytes, bytes]]:
        """(key, weights ‖ state) of every materialised row."""
        assert self.dtype == np.float32
        lines = []
        for table in self.tables:
            prefix = hashlib.sha256(table.name.encode()).digest()[:4]
            for row, record in self._records[table.name].items():
                key = prefix + (row % 2**64).to_bytes(8, "big")
                lines.append((key, self._bytes(table, record)))
        return lines

    def _bytes(self, table: Table, record: np.ndarray) -> bytes:
        weights, state = record[: table.dim], record[table.dim :]
        return encode(weights[None], self.storage)[0].tobytes() + state.astype("<f4").tobytes()


def digest_of(trainers: Sequence[DenseTrainer]) -> str:
    """Of trainers whose tables are together in one module."""
    sha = hashlib.sha256()
    for key, record in sorted(line for trainer in trainers for line in trainer.lines()):
        sha.update(key + record)
    return sha.hexdigest()


def _grouped(ids: np.ndarray, gradients: np.ndarray) -> RowGradients:
    """Occurrences (N,) and their gradients (N, D), summed by row."""
    unique, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    by_row = np.argsort(inverse, kind="stable")
    bounds = np.searchsorted(inverse[by_row], np.arange(len(unique) + 1))
    sums = [row_gradient(gradients[by_row[bounds[u] : bounds[u + 1]]]) for u in range(len(unique))]
    order = np.argsort(first)
    return RowGradients(unique[order], np.stack(sums)[order], np.diff(bounds)[order])
