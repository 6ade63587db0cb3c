"""How one tensor holds what all pools look up, so that autograd sees one output.

Pooled: (bags, columns of all features); every pool writes into columns of its own. Unpooled: one
row per id, pool after pool and feature after feature, laid out flat because dims may differ.

Pure functions; any thread.

Legend: ``N`` ids of a feature, ``B`` bags, ``D`` dim.
"""

from __future__ import annotations

import torch

from .. import _native
from ..kernels import HUGE_BYTES
from .checking import CheckedBatch
from .wiring import Wiring

__all__ = ["empty_output", "feature_rows", "in_huge_pages", "pool_parts"]


def empty_output(wiring: Wiring, batch: CheckedBatch, device: torch.device) -> torch.Tensor:
    """Memory for the batch's output: (B, columns) float32 or, unpooled, flat."""
    shape: tuple[int, ...] = (batch.num_bags, wiring.num_columns)
    if not wiring.pooled:
        shape = (sum(_pool_sizes(wiring, batch)),)
    return in_huge_pages(torch.empty(shape, dtype=torch.float32, device=device))


def in_huge_pages(fresh: torch.Tensor) -> torch.Tensor:
    """``fresh`` itself: float32 and contiguous, and nothing has been written into it. Where it is
    large, and on the CPU, its memory will come in huge pages."""
    if fresh.is_cpu and fresh.nbytes >= HUGE_BYTES:
        _native.advise_huge_pages(fresh.view(-1).numpy())
    return fresh


def pool_parts(wiring: Wiring, batch: CheckedBatch, out: torch.Tensor) -> list[torch.Tensor]:
    """What each pool writes into, or gets its gradient from: a view of ``out`` with its rows."""
    if wiring.pooled:
        return [out] * len(wiring.layouts)
    parts = torch.split(out, _pool_sizes(wiring, batch))
    return [part.view(-1, layout.dim) for part, layout in zip(parts, wiring.layouts, strict=True)]


def feature_rows(wiring: Wiring, batch: CheckedBatch, out: torch.Tensor) -> list[torch.Tensor]:
    """The rows (N, D) of each feature in an unpooled output, as views that autograd follows."""
    order = [f for mine in wiring.pool_features for f in mine]
    sizes = [len(batch.features[f].ids) * wiring.widths[f] for f in order]
    rows = [out] * len(order)
    for f, part in zip(order, torch.split(out, sizes), strict=True):
        rows[f] = part.view(-1, wiring.widths[f])
    return rows


def _pool_sizes(wiring: Wiring, batch: CheckedBatch) -> list[int]:
    """Elements of each pool in an unpooled output."""
    return [
        sum(len(batch.features[f].ids) for f in mine) * layout.dim
        for mine, layout in zip(wiring.pool_features, wiring.layouts, strict=True)
    ]
