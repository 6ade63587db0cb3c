"""Lookups that train nothing: rows are read as copies, and residency stays as it is.

Threading: as the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..kernels import Bags
from ..residency import Segment
from ..spec import renormalised
from .pool import Pool

__all__ = ["evaluate"]


def evaluate(
    pool: Pool,
    segments: Sequence[Segment],
    bags: Bags,
    out: Any,
    max_norm: float | None,
    norm_type: float,
) -> None:
    """Writes a pool's pooled rows into its columns of ``out`` (B, columns), as training would.

    Nothing is staged, pinned or changed; ``max_norm`` scales the copies.
    """
    inverse, records = [], []
    start = 0
    for table, ids in segments:
        unique, where = np.unique(ids, return_inverse=True)
        records.append(pool.read(table, unique))
        inverse.append(where.reshape(-1).astype(np.int32) + np.int32(start))
        start += len(unique)
    weights = pool.layout.values(np.concatenate(records))
    if max_norm is not None:
        weights = renormalised(weights, max_norm, norm_type, pool.layout.dtype)
    pool.kernel.lookup_rows(weights, np.concatenate(inverse), bags, out)
