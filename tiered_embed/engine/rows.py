"""Rows of an engine by id: reading, writing, bulk import. Nothing here trains.

Threading: as the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError
from ..store import encode_keys
from .features import check_ids
from .pool import Pool
from .wiring import Wiring

__all__ = ["Rows"]

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


class Rows:
    """Reads and writes the rows of one engine's tables; a table is named by its index."""

    def __init__(self, wiring: Wiring, pools: Sequence[Pool]) -> None:
        self._tables = wiring.tables
        self._pools = pools
        self._place = wiring.places
        self.version = 0  # grows with every write, so that callers know when a copy is old

    def table_index(self, name: str | None) -> int:
        """The index of the table called ``name``; with None, of the only table."""
        names = [table.name for table in self._tables]
        if name is None:
            if len(names) == 1:
                return 0
            raise ConfigError(f"there are several tables, {names}; pass table= to choose one")
        if not isinstance(name, str) or name not in names:
            raise ConfigError(f"there is no table {name!r}; the tables are {names}")
        return names.index(name)

    def dtype(self, table: int) -> torch.dtype:
        """Of the rows as :meth:`weights` gives them."""
        stored = self._pools[self._place[table][0]].layout.dtype
        dtype: torch.dtype = torch.float32 if stored == "int8" else getattr(torch, stored)
        return dtype

    def records(self, table: int, ids: I64) -> U8:
        checked = self._checked(table, ids)
        p, i = self._place[table]
        return self._pools[p].read(i, checked)

    def weights(self, table: int, ids: I64) -> U8:
        """Stored weights as bytes (n, D * item); int8 ones as float32."""
        layout = self._pools[self._place[table][0]].layout
        records = self.records(table, ids)
        if layout.dtype == "int8":
            return layout.values(records).view(np.uint8)
        return np.ascontiguousarray(records[:, : layout.row_bytes])

    def state(self, table: int, ids: I64) -> dict[str, F32]:
        layout = self._pools[self._place[table][0]].layout
        state = layout.state(self.records(table, ids))
        ends = np.cumsum(list(layout.state_layout.values()), dtype=np.int64)
        parts = np.split(state, ends[:-1], axis=1) if len(ends) else []
        return {
            name: np.ascontiguousarray(part)
            for name, part in zip(layout.state_layout, parts, strict=True)
        }

    def load(self, table: int, ids: I64, weights: F32, state: Mapping[str, F32] | None) -> None:
        self._checked(table, ids)
        if len(np.unique(ids)) != len(ids):
            repeated = len(ids) - len(np.unique(ids))
            raise ConfigError(
                f"{repeated} of {len(ids)} ids repeat an earlier one; pass every id once"
            )
        records = self._encoded(table, len(ids), weights, state)
        p, i = self._place[table]
        self.version += 1
        self._pools[p].write(i, ids, records)

    def import_sorted(
        self, table: int, chunks: Iterable[tuple[I64, F32, Mapping[str, F32] | None]]
    ) -> int:
        """Bulk import of rows in ascending id order into an empty store; returns their number."""
        p, i = self._place[table]
        pool = self._pools[p]
        pool.scheduler.quiesce()
        if pool.scheduler.ssd is None:
            raise ConfigError(
                "import_rows writes to the SSD tier, and there is none; pass te.Tiers(ssd=...)"
            )
        if pool.planner.num_resident:
            raise ConfigError(
                "import_rows needs a module that has not trained yet; use load_rows instead"
            )
        key = pool.layout.table_hashes[i].tobytes()

        def encoded() -> Iterable[tuple[U8, U8]]:
            for ids, weights, state in chunks:
                self._checked(table, ids)
                yield encode_keys(key, ids), self._encoded(table, len(ids), weights, state)

        self.version += 1
        return pool.scheduler.ssd.import_sorted(encoded())

    def _checked(self, table: int, ids: I64) -> I64:
        config = self._tables[table]
        remedy = "pass ids inside it, or raise num_embeddings"
        return check_ids(config.name, ids, config.num_embeddings, "raise", remedy)[0]

    def _encoded(
        self, table: int, num_rows: int, weights: F32, state: Mapping[str, F32] | None
    ) -> U8:
        pool = self._pools[self._place[table][0]]
        layout = pool.layout
        if weights.shape != (num_rows, layout.dim):
            raise ConfigError(
                f"weights have shape {weights.shape}; pass shape {(num_rows, layout.dim)}"
            )
        if layout.dtype == "int8":
            _check_ranges(weights)
        widths = {} if layout.dtype == "int8" else layout.state_layout
        if state is not None and set(state) != set(widths):
            raise ConfigError(
                f"state has the arrays {sorted(state)}; the optimizer keeps {sorted(widths)}"
            )
        parts = [np.zeros((num_rows, 0), np.float32)]
        for name, width in layout.state_layout.items():
            given = None if state is None else state.get(name)
            part = np.zeros((num_rows, width), np.float32) if given is None else given
            if part.shape != (num_rows, width) or part.dtype != np.float32:
                raise ConfigError(
                    f"state {name!r} is {part.dtype} {part.shape}; pass float32 {(num_rows, width)}"
                )
            parts.append(part)
        return layout.records(weights, np.concatenate(parts, axis=1))


def _check_ranges(weights: F32) -> None:
    """An int8 row goes from its least value to its largest in 255 equal steps, so both values and
    their difference must be finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(weights.max(axis=1) - weights.min(axis=1))
    if not finite.all():
        row = int(np.argmin(finite))
        raise ConfigError(
            f"the weights at position {row} range from {weights[row].min()} to "
            f"{weights[row].max()}, but int8 rows need finite weights whose range fits float32; "
            "correct them, or choose another dtype"
        )
