"""Turns what a caller passed into a checked batch: once, for the window and for the forward.

Legend: ``N`` ids of a feature, ``B`` bags.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError
from ..kernels import Bags
from ..residency import Segments
from ..spec import EngineOptions, TableConfig
from .features import Feature, check_ids, drop_ids, plain
from .wiring import Wiring

__all__ = ["CheckedBatch", "Presented", "check"]

I64 = npt.NDArray[np.int64]


class Presented:
    """The tensors that a caller passed, so that a forward with the same ones is known again.

    Args:
        tensors: ids, offsets and weights of every feature in turn, None where there are none.
        form: what else decides their meaning, such as the keys of a KeyedJaggedTensor.
    """

    __slots__ = ("_held", "form", "tensors")

    def __init__(self, tensors: tuple[torch.Tensor | None, ...], form: object = None) -> None:
        self.tensors = tensors
        self.form = form
        self._held: list[tuple[torch.Tensor, torch.Tensor]] = []

    def hold(self, *, ids_are_views: bool) -> None:
        """Remembers what the tensors hold now.

        ``ids_are_views``: the checked batch reads the callers' ids in place, so that its plan tells
        whether they have changed; their contents need no second copy.
        """
        self._held = [
            (tensor, tensor.detach().clone())
            for i, tensor in enumerate(self.tensors)
            if tensor is not None and not (ids_are_views and i % 3 == 0)
        ]

    def is_same(self, other: Presented) -> bool:
        """Whether ``other`` has the very same tensor objects."""
        return (
            len(self.tensors) == len(other.tensors)
            and all(a is b for a, b in zip(self.tensors, other.tensors, strict=True))
            and self.form == other.form
        )

    def unchanged(self) -> bool:
        """Whether the tensors still hold what :meth:`hold` saw."""
        return all(not now.requires_grad and torch.equal(now, then) for now, then in self._held)


class CheckedBatch:
    """A batch whose ids lie inside their tables and whose offsets make bags.

    Args:
        features: as checked, in output order; or who takes them out of a jagged batch, which has no
            weights, when they are asked for.
        segments: per pool, (table in the pool, ids) of its features.
        num_bags: of each feature; 0 where each id has a row of its own.
        outside: the indices of features that had ids outside their table.
        offsets: per pool, where its bags begin in its occurrences, and the end; None: to be made of
            the features.
        jagged_ids: of all features (N,), in a jagged batch.

    presented: what the caller passed; None: not remembered.
    """

    __slots__ = (
        "_bags",
        "_features",
        "_jagged_ids",
        "_offsets",
        "_weights",
        "num_bags",
        "outside",
        "presented",
        "segments",
    )

    def __init__(
        self,
        features: Sequence[Feature] | Callable[[], Sequence[Feature]],
        segments: list[Segments],
        num_bags: int,
        outside: Sequence[int] = (),
        *,
        offsets: Sequence[I64 | None] | None = None,
        jagged_ids: I64 | None = None,
    ) -> None:
        self._features = features
        self.outside = outside
        self.segments = segments
        self.num_bags = num_bags
        self.presented: Presented | None = None
        self._offsets = offsets
        self._jagged_ids = jagged_ids
        self._bags: list[Bags] | None = None
        self._weights: torch.Tensor | None = None

    @property
    def features(self) -> Sequence[Feature]:
        """As checked, in output order."""
        if callable(self._features):
            self._features = self._features()
        return self._features

    @property
    def sample_weights(self) -> torch.Tensor | None:
        """Weights of all occurrences, feature after feature, for autograd; None: there are none."""
        if self._weights is None and self._jagged_ids is None:
            self._weights = _all_weights(self.features)
        return self._weights

    def remember(self, presented: Presented) -> None:
        """Keeps ``presented``, so that the stream knows this batch again."""
        presented.hold(ids_are_views=self._reads(presented.tensors[::3]))
        self.presented = presented

    def _reads(self, sources: Sequence[torch.Tensor | None]) -> bool:
        """Whether the ids are those of ``sources`` in place, not copies."""
        if self._jagged_ids is not None:
            return len(sources) == 1 and _is_view(self._jagged_ids, sources[0])
        if len(sources) == 1:  # features of a KeyedJaggedTensor are parts of one
            sources = [*sources] * len(self.features)
        return all(
            _is_view(feature.ids, source)
            for feature, source in zip(self.features, sources, strict=True)
        )

    def bags(self, wiring: Wiring, layouts: Sequence[Any]) -> list[Bags]:
        """Per pool, how its occurrences make bags; ``layouts`` are the pools' native ones."""
        if self._bags is None:
            offsets = self._offsets
            if offsets is None and wiring.pooled:
                starts = [feature.offsets for feature in self.features]
                offsets = [
                    _join_offsets([starts[f] for f in mine]) for mine in wiring.pool_features
                ]
            self._bags = _make_bags(self, wiring, layouts, offsets)
        return self._bags


def _is_view(ids: I64, source: torch.Tensor | None) -> bool:
    """Whether ``ids`` lies in the memory of ``source``."""
    if source is None or not source.is_cpu or source.dtype != torch.int64:
        return False
    first = source.data_ptr()
    at: int = ids.__array_interface__["data"][0]
    return len(ids) == 0 or first <= at < first + source.numel() * 8


def check(wiring: Wiring, options: EngineOptions, given: Sequence[Feature]) -> CheckedBatch:
    """One :class:`Feature` per feature, checked against its table.

    Raises:
        ConfigError: features with different numbers of bags, or weights on a mean table.
        IdRangeError: an id outside its table.
    """
    num_bags = given[0].num_bags if wiring.pooled else 0
    for feature in given[1:] if wiring.pooled else ():
        if feature.num_bags != num_bags:
            sizes = {n: f.num_bags for (n, _), f in zip(wiring.features, given, strict=True)}
            raise ConfigError(f"every feature needs the same number of bags; they have {sizes}")
    checked = [
        _checked(table, feature, options, wiring.pooled)
        for table, feature in zip(wiring.feature_tables, given, strict=True)
    ]
    places = wiring.feature_places
    segments = [
        Segments([(places[f], checked[f].ids) for f in mine]) for mine in wiring.pool_features
    ]
    outside = [f for f, feature in enumerate(checked) if feature.outside is not None]
    return CheckedBatch(checked, segments, num_bags, outside)


def _checked(table: TableConfig, feature: Feature, options: EngineOptions, pooled: bool) -> Feature:
    if feature.sample_weights is not None and pooled and table.mode != "sum":
        raise ConfigError(
            f"table {table.name!r}: per_sample_weights need mode='sum', not {table.mode!r}"
        )
    ids, outside = check_ids(
        table.name,
        feature.ids,
        table.num_embeddings,
        options.bounds_check,
        num_threads=options.threads,
    )
    if outside is not None:
        feature = feature._replace(ids=ids, outside=outside)
    if table.padding_idx is None and (outside is None or not outside.ignored):
        return feature
    return drop_ids(feature, table.num_embeddings, table.padding_idx)


def _make_bags(
    batch: CheckedBatch,
    wiring: Wiring,
    layouts: Sequence[Any],
    offsets: Sequence[I64 | None] | None,
) -> list[Bags]:
    if not wiring.pooled:
        return [
            Bags(layout, None, None, segments.num_ids)
            for layout, segments in zip(layouts, batch.segments, strict=True)
        ]
    assert offsets is not None
    weights = batch.sample_weights
    flat = starts = None
    if weights is not None:
        # A copy: the backward reads it too, and the caller may reuse the tensor.
        flat = plain(weights.detach()).clone().cpu().numpy()
        starts = np.cumsum([0] + [len(feature.ids) for feature in batch.features])
    out = []
    for p, mine in enumerate(wiring.pool_features):
        part = winners = None
        if flat is not None and starts is not None:
            part = np.concatenate([flat[starts[f] : starts[f + 1]] for f in mine])
        if wiring.has_maximum[p]:
            num_bags = len(mine) * batch.num_bags
            winners = np.empty((num_bags, wiring.layouts[p].dim), np.int32)
        out.append(Bags(layouts[p], offsets[p], part, batch.num_bags, winners))
    return out


def _join_offsets(offsets: Sequence[I64 | None]) -> I64 | None:
    """Offsets of several features with bags as one array over their joined ids."""
    if len(offsets) == 1:
        return offsets[0]
    parts = []
    start = 0
    for part in offsets:
        assert part is not None
        parts.append(part[:-1] + start)
        start += int(part[-1])
    return np.concatenate([*parts, [start]])


def _all_weights(given: Sequence[Feature]) -> torch.Tensor | None:
    """Weights of all occurrences, feature after feature; ones where a feature has none."""
    weighted = [f.sample_weights for f in given if f.sample_weights is not None]
    if not weighted:
        return None
    device = weighted[0].device
    return torch.cat(
        [
            torch.ones(len(feature.ids), dtype=torch.float32, device=device)
            if feature.sample_weights is None
            else feature.sample_weights.to(device)
            for feature in given
        ]
    )
