"""Feeds a planner a whole stream as a training run does, and moves no bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .. import _native
from .planner import FAILURES, Planner

__all__ = ["BatchedIds", "Replay"]

_MANY_STEPS = 1 << 62

# (table index in its pool, offsets (B + 1,) int64, ids (N,) int64): batch b is ids[o[b]:o[b + 1]]
BatchedIds = tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]


class Replay:
    """Feeds a planner a whole stream as a training run does, natively; no row moves.

    Batch t is planned when ``lookahead`` batches after it are known or the stream has ended, and
    is released before the next plan. REQUIRES: nobody else feeds the planner.

    ``updated``: every batch changes its rows.
    """

    COLUMNS = ("lookups", "unique", "misses", "evicted", "written_back", "overflow", "cold")

    def __init__(
        self,
        planner: Planner,
        *,
        lookahead: int,
        depth: int,
        per_step: bool = False,
        updated: bool = True,
    ) -> None:
        self._planner = planner
        self._native = _native.Replay(
            planner._native,
            num_tables=planner.num_tables,
            lookahead=min(lookahead, _MANY_STEPS),
            depth=min(depth, _MANY_STEPS),
            updated=updated,
            per_step=per_step,
        )

    def push(self, tables: Sequence[BatchedIds]) -> None:
        """Appends batches: of each, every table's ids in the order given.

        Raises:
            CapacityError: a batch found no room. No call may follow.
            TieredEmbedError: a call after an error, or one that failed otherwise.
        """
        try:
            self._native.push(list(tables))
        except (_native.NoCapacity, _native.TooManyHeld) as error:
            raise self._planner._capacity_error(error) from None
        except FAILURES as error:
            raise self._planner._failed(error) from error

    def finish(self, num_steps: int | None = None) -> None:
        """No batch follows: plans what is left with the window that it has, up to ``num_steps`` in
        all. Raises as push."""
        try:
            self._native.finish(_MANY_STEPS if num_steps is None else num_steps)
        except (_native.NoCapacity, _native.TooManyHeld) as error:
            raise self._planner._capacity_error(error) from None
        except FAILURES as error:
            raise self._planner._failed(error) from error

    def take_steps(self) -> npt.NDArray[np.int64]:
        """(steps since the last call, tables, COLUMNS); asked for by ``per_step``."""
        steps = self._native.take_steps()
        return steps.reshape(-1, self._planner.num_tables, len(self.COLUMNS))

    @property
    def num_steps(self) -> int:
        return self._native.num_steps

    @property
    def cold(self) -> list[int]:
        """Per table, misses of rows that had never been resident."""
        return self._native.cold
