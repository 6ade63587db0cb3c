"""Batches of many features that lie one after another in one tensor: checked, and dealt to the
pools, in one native call.

What that call does not understand (an id outside its table, a padding row, weights) is checked
feature by feature instead, which says what is wrong.

Threading: pure functions of what they are given; any thread.

Legend: ``N`` ids of all features, ``K`` keys, ``B`` bags of each.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from .. import _native
from ..residency import Segments
from .checking import CheckedBatch
from .features import INTEGERS, Feature, plain
from .wiring import Wiring

__all__ = ["JaggedLayout", "even_bounds", "join"]

I64 = npt.NDArray[np.int64]


class JaggedLayout:
    """Which key each feature of a wiring reads.

    Args:
        keys: per feature, the index of its key.
        num_keys: K.
    """

    def __init__(self, wiring: Wiring, keys: Sequence[int], num_keys: int) -> None:
        self._wiring = wiring
        self._num_keys = num_keys
        rows = [
            -1 if table.num_embeddings is None else table.num_embeddings for table in wiring.tables
        ]
        self._native = _native.JaggedLayout(
            num_keys,
            [
                [
                    (
                        keys[f],
                        wiring.feature_places[f],
                        rows[wiring.features[f][1]],
                        wiring.feature_tables[f].padding_idx,
                    )
                    for f in mine
                ]
                for mine in wiring.pool_features
            ],
        )

    def check(self, ids: torch.Tensor, bounds: torch.Tensor) -> CheckedBatch | None:
        """The batch of ``ids`` (N,) and ``bounds`` (K * B + 1,), or None where it has to be checked
        feature by feature. int64 ids on the CPU are not copied."""
        if ids.dtype not in INTEGERS or bounds.dtype not in INTEGERS:
            return None
        if ids.dim() != 1 or bounds.dim() != 1:
            return None
        ids, bounds = plain(ids), plain(bounds)
        array = ids.to("cpu", torch.int64).contiguous().numpy()
        found = self._native.split(array, bounds.to("cpu", torch.int64).contiguous().numpy())
        if found is None:
            return None
        segments, offsets = found
        num_bags = (len(bounds) - 1) // self._num_keys
        features = partial(_features, self._wiring, segments, offsets, num_bags)
        return CheckedBatch(features, segments, num_bags, offsets=offsets, jagged_ids=array)


def _features(
    wiring: Wiring, segments: Sequence[Segments], offsets: Sequence[I64], num_bags: int
) -> list[Feature]:
    found: dict[int, Feature] = {}
    for mine, part, bounds in zip(wiring.pool_features, segments, offsets, strict=True):
        for i, (f, (_, ids)) in enumerate(zip(mine, part.parts(), strict=True)):
            starts = bounds[i * num_bags : (i + 1) * num_bags + 1]
            found[f] = Feature(ids, starts - starts[0], None)
    return [found[f] for f in range(len(found))]


def even_bounds(num_bags: int, num_ids: int) -> torch.Tensor:
    """Where bags of ``num_ids`` ids each begin, and the end, (B + 1,); nobody may write into it."""
    return torch.from_numpy(_even_bounds(num_bags, num_ids))


@functools.lru_cache(maxsize=16)  # of arrays: a tensor may be of the mode that it was made in
def _even_bounds(num_bags: int, num_ids: int) -> I64:
    return np.arange(num_bags + 1, dtype=np.int64) * num_ids


def join(
    ids: Sequence[torch.Tensor | None], offsets: Sequence[torch.Tensor | None]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The ids (N,) and bounds (K * B + 1,) of features that are given one by one; None where they
    are not alike. Each has ids (n,) with offsets (B,), or all have ids (B, n) without."""
    parts = _alike(ids)
    if parts is None:
        return None
    if parts[0].dim() == 2 and all(bounds is None for bounds in offsets):
        bags = {t.shape[0] for t in parts}
        if len(bags) != 1:
            return None
        lengths = np.repeat([t.shape[1] for t in parts], bags.pop())
        bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return torch.cat([t.reshape(-1) for t in parts]), torch.from_numpy(bounds)
    starts = _alike(offsets)
    if parts[0].dim() != 1 or starts is None or starts[0].dim() != 1:
        return None
    if len({t.numel() for t in starts}) != 1:
        return None
    all_starts = torch.stack(starts).numpy().astype(np.int64)
    if all_starts[:, :1].any():
        return None  # a first offset that is not 0
    ends = np.cumsum([t.numel() for t in parts])
    all_starts[1:] += ends[:-1, None]
    bounds = np.append(all_starts.reshape(-1), ends[-1])
    return torch.cat(parts), torch.from_numpy(bounds)


def _alike(tensors: Sequence[torch.Tensor | None]) -> list[torch.Tensor] | None:
    """The tensors, if all are dense integers on the CPU with one dtype and number of dimensions."""
    found = [t for t in tensors if type(t) is torch.Tensor]
    kinds = {(t.dtype, t.layout, t.device.type, t.dim()) for t in found}
    if len(found) != len(tensors) or len(kinds) != 1:
        return None
    dtype, layout, device, _ = kinds.pop()
    return found if dtype in INTEGERS and layout is torch.strided and device == "cpu" else None
