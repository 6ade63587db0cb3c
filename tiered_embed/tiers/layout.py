"""What one record of a pool looks like, and which tables share it.

Immutable data and pure functions; safe from any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _native
from ..optim import Optimizer
from ..spec import ITEM_BYTES, TYPE_NUMBERS, Init, table_hash
from ..store import WHOLE, StoreLayout

__all__ = ["PoolLayout"]

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PoolLayout:
    """A pool: tables whose records have the same layout, weights (D) and then state (S) float32.

    optimizer: None when rows are read-only. dtype: of the weights, as in ``spec/row_formats.py``.
    padding: per table, the row that starts as zeros, or None; () where no table has one. lr_factor:
    of the optimizer's learning rate; a record does not depend on it.
    """

    tables: tuple[tuple[str, int | None], ...]  # (name, rows or None)
    dim: int
    optimizer: Optimizer | None
    init: Init
    seed: int
    dtype: str = "float32"
    padding: tuple[int | None, ...] = ()
    lr_factor: float = 1.0

    @property
    def trains(self) -> bool:
        """Whether rows are updated."""
        return self.optimizer is not None

    @cached_property
    def state_layout(self) -> Mapping[str, int]:
        """Name of each state array -> its floats per row, in the order of a record."""
        if self.dtype == "int8":
            return {"scale": 1, "bias": 1}
        return {} if self.optimizer is None else self.optimizer.state_layout(self.dim)

    @cached_property
    def state_floats(self) -> int:
        return sum(self.state_layout.values())

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of the weights of one row."""
        return self.dim * ITEM_BYTES[self.dtype]

    @cached_property
    def record_bytes(self) -> int:
        return self.row_bytes + 4 * self.state_floats

    @property
    def type_number(self) -> int:
        return TYPE_NUMBERS[self.dtype]

    @cached_property
    def table_hashes(self) -> U8:
        """(tables, 4): each table's 4-byte identity, as in the store's keys."""
        return np.frombuffer(b"".join(table_hash(n) for n, _ in self.tables), np.uint8).reshape(
            -1, 4
        )

    @cached_property
    def table_words(self) -> npt.NDArray[np.uint32]:
        """(tables,): the same bytes as little-endian numbers, for the counter of Philox."""
        return self.table_hashes.view("<u4").ravel().astype(np.uint32)

    @property
    def init_scale(self) -> float:
        with _native.StandardFloats():
            return float(np.float32(self.init.hi) - np.float32(self.init.lo))

    def initial_records(self, tables: npt.NDArray[np.uint16], rows: npt.NDArray[np.int64]) -> U8:
        """The records (n, record_bytes) of rows (n,) that were never stored, of ``tables`` (n,)."""
        values = np.empty((len(rows), self.dim), np.float32)
        _native.initial_weights(
            self.table_words[tables], rows, self.seed, self.init.lo, self.init_scale, values
        )
        for t, row in enumerate(self.padding):
            if row is not None:
                values[(tables == t) & (rows == row)] = 0.0
        return self.records(values, np.zeros((len(rows), self.state_floats), np.float32))

    def records(self, values: F32, state: F32) -> U8:
        """Records (n, record_bytes) of float32 ``values`` (n, D), rounded to nearest, and ``state``
        (n, S). The state of an int8 row (scale and bias) is computed from its values."""
        rows = np.empty((len(values), self.row_bytes), np.uint8)
        _native.encode_rows(np.ascontiguousarray(values), self.type_number, rows, state)
        return np.concatenate([rows, np.ascontiguousarray(state).view(np.uint8)], axis=1)

    def values(self, records: U8) -> F32:
        """The float32 weights (n, D) of ``records`` (n, record_bytes)."""
        rows = np.ascontiguousarray(records[:, : self.row_bytes])
        out = np.empty((len(records), self.dim), np.float32)
        _native.decode_rows(rows, self.type_number, self.state(records), out)
        return out

    def state(self, records: U8) -> F32:
        """The state (n, S) of ``records`` (n, record_bytes)."""
        # Always a copy: a single row counts as contiguous, but its floats may be misaligned.
        part = records[:, self.row_bytes :].copy()
        return part.view(np.float32).reshape(len(records), self.state_floats)

    def store_layout(self) -> StoreLayout:
        """What a store must agree with to hold these tables."""
        with _native.StandardFloats():
            init = [float(np.float32(self.init.lo)), float(np.float32(self.init.hi))]
        padding = self.padding or (None,) * len(self.tables)
        return StoreLayout(
            {
                "dim": self.dim,
                "dtype": self.dtype,
                "optimizer": None if self.optimizer is None else type(self.optimizer).__name__,
                "state": dict(self.state_layout),
            },
            self.record_bytes,
            {
                name: {
                    "rows": rows,
                    "padding": row,
                    "seed": self.seed,
                    "init": init,
                    "shard": WHOLE,
                }
                for (name, rows), row in zip(self.tables, padding, strict=True)
            },
        )

    def describe(self) -> dict[str, Any]:
        """The records and the tables that share them, as a checkpoint's manifest lists them."""
        layout = self.store_layout()
        return {
            "tables": sorted(layout.tables),
            **layout.record,
            "seed": self.seed,
            "init": next(iter(layout.tables.values()))["init"],
        }
