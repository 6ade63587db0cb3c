"""A checked batch as the pools take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..kernels import Bags
from ..residency import Segment
from .inputs import FeatureBatch

__all__ = ["Batch", "PoolBatch", "all_weights", "join_offsets"]

I64 = npt.NDArray[np.int64]


class PoolBatch(NamedTuple):
    """One pool's part of a batch."""

    segments: list[Segment]
    bags: Bags


class Batch(NamedTuple):
    """A checked batch: per pool its ids and bags; weights of all occurrences, for autograd.

    kept: of a lone feature without bags, which ids as given have a row in the output, or None.
    """

    pools: list[PoolBatch]
    rows: int  # of the output
    sample_weights: torch.Tensor | None
    kept: npt.NDArray[np.bool_] | None


def join_offsets(offsets: Sequence[I64 | None]) -> I64 | None:
    """Offsets of several features as one array over their joined ids; None stays None."""
    if len(offsets) == 1:
        return offsets[0]
    parts = []
    start = 0
    for part in offsets:
        assert part is not None  # only one feature can go unpooled
        parts.append(part[:-1] + start)
        start += int(part[-1])
    return np.concatenate([*parts, [start]])


def all_weights(given: Sequence[FeatureBatch]) -> torch.Tensor | None:
    """Weights of all occurrences, feature after feature; ones where a feature has none."""
    weighted = [f.sample_weights for f in given if f.sample_weights is not None]
    if not weighted:
        return None
    device = weighted[0].device
    return torch.cat(
        [
            torch.ones(len(feature.ids), device=device)
            if feature.sample_weights is None
            else feature.sample_weights.to(device)
            for feature in given
        ]
    )
