"""The rows of lookups without pooling: one for every id that was given.

An engine's output has rows only of the ids that it looked up. Ids outside the table get zeros here,
and the padding row is read apart, because it never trains.

Threading: as all tiered modules.
"""

from __future__ import annotations

import numpy as np
import torch

from ..engine import CheckedBatch, Engine, feature_rows

__all__ = ["UnpooledRows"]


class UnpooledRows:
    """Takes the outputs of one engine apart."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Per table, (version of the rows, padding row): it never trains, so a copy is kept until
        # rows are written.
        self._padding: dict[int, tuple[int, torch.Tensor]] = {}

    def __call__(self, out: torch.Tensor, batch: CheckedBatch) -> list[torch.Tensor]:
        """Per feature, the rows (N, D) of the ids as they were given."""
        wiring = self._engine.wiring
        return [
            self._whole(rows, batch, f) for f, rows in enumerate(feature_rows(wiring, batch, out))
        ]

    def _whole(self, rows: torch.Tensor, batch: CheckedBatch, f: int) -> torch.Tensor:
        feature = batch.features[f]
        if feature.kept is None:
            return rows
        kept = torch.from_numpy(feature.kept).to(rows.device)
        whole = torch.zeros(len(kept), rows.shape[1], dtype=rows.dtype, device=rows.device)
        if feature.padded is not None:
            padded = torch.from_numpy(feature.padded).to(rows.device)
            whole[padded] = self._padding_row(self._engine.wiring.features[f][1]).to(rows)
        return whole.index_put((kept,), rows)

    def _padding_row(self, table: int) -> torch.Tensor:
        """(D,), of the rows' dtype, or float32 where they are int8."""
        rows = self._engine.rows
        known = self._padding.get(table)
        if known is None or known[0] != rows.version:
            known = self._padding[table] = rows.version, self._read_padding_row(table)
        return known[1]

    def _read_padding_row(self, table: int) -> torch.Tensor:
        rows = self._engine.rows
        padding = self._engine.tables[table].padding_idx
        weights = rows.weights(table, np.array([padding], np.int64))
        return torch.from_numpy(weights.reshape(-1)).view(rows.dtype(table))
