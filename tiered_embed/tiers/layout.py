"""What one record of a pool looks like, and which tables share it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _native
from ..config import table_hash
from ..init import Init
from ..optim import Optimizer

__all__ = ["PoolLayout"]


@dataclass(frozen=True)
class PoolLayout:
    """A pool: tables whose records have one layout, weights (D) float32 then state (S) float32."""

    tables: tuple[tuple[str, int | None], ...]  # (name, rows or None)
    dim: int
    optimizer: Optimizer
    init: Init
    seed: int

    @cached_property
    def state_floats(self) -> int:
        return self.optimizer.state_floats(self.dim)

    @cached_property
    def record_bytes(self) -> int:
        return 4 * (self.dim + self.state_floats)

    @cached_property
    def table_hashes(self) -> npt.NDArray[np.uint8]:
        """(tables, 4): each table's identity, as in the store's keys."""
        return np.frombuffer(b"".join(table_hash(n) for n, _ in self.tables), np.uint8).reshape(
            -1, 4
        )

    @cached_property
    def table_words(self) -> npt.NDArray[np.uint32]:
        """(tables,): the same as little-endian numbers, as Philox counts them."""
        return self.table_hashes.view("<u4").ravel().astype(np.uint32)

    @property
    def init_scale(self) -> float:
        return float(np.float32(self.init.hi) - np.float32(self.init.lo))

    def initial_records(
        self, tables: npt.NDArray[np.uint16], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.uint8]:
        """Records of rows that were never stored, (n, record_bytes)."""
        weights = np.empty((len(rows), self.dim), np.float32)
        _native.initial_weights(
            self.table_words[tables], rows, self.seed, self.init.lo, self.init_scale, weights
        )
        state = np.zeros((len(rows), self.state_floats), np.float32)
        return np.concatenate([weights, state], axis=1).view(np.uint8)

    def describe(self) -> dict[str, Any]:
        """What a store must agree with to be opened again."""
        return {
            "tables": sorted(name for name, _ in self.tables),
            "dim": self.dim,
            "dtype": "float32",
            "optimizer": self.optimizer.kernel,
            "state": self.optimizer.state_layout(self.dim),
            "seed": self.seed,
            "init": [float(np.float32(self.init.lo)), float(np.float32(self.init.hi))],
        }
