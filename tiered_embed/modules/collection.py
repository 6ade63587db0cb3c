"""Pooled lookups of many tables and features in one module, like TorchRec's
``EmbeddingBagCollection``.

Threading: as all tiered modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import Unpack

from ..engine import CheckedBatch, Feature, JaggedLayout, Presented, feature_of, join
from ..errors import ConfigError
from ..spec import EngineKeywords, EngineOptions, TableConfig
from .eager import eager
from .inverse import check_inverse_indices, inverse_indices
from .keyed import (
    Even,
    Keyed,
    TieredCollection,
    is_even,
    is_keyed_jagged,
    without_tensordict,
)

__all__ = ["TieredEmbeddingBagCollection"]

MOST_LAYOUTS = 16  # of KeyedJaggedTensors with different keys, that a module remembers


class TieredEmbeddingBagCollection(TieredCollection):
    """Pooled embeddings of several features; tables may be shared and differ in dim.

    Tables with the same dim and options share the slots of a tier.

    The keys of a KeyedJaggedTensor may have batch sizes of their own. Its ``inverse_indices`` then
    say, as in TorchRec, which bag of a key each sample takes.

    Args:
        tables: one ``te.TableConfig`` each. A table serves all its ``feature_names``. A feature may
            read several tables; its outputs are then called ``feature@table``.
        is_weighted: True requires weights, False ignores them, None uses them where they are given.
        missing_features: what a batch without one of the features does: ``"raise"`` a ConfigError,
            or ``"empty"``: all its bags are empty.
        options: the fields of ``te.EngineOptions``; ``tiers`` and ``optimizer`` are required.

    Raises:
        ConfigError: arguments that cannot work, two tables with the same name, or a store with
            another record layout.
        StoreError: a store directory that is unwritable or open elsewhere.
    """

    _mapping = "{feature: (ids, offsets)}"

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        is_weighted: bool | None = None,
        missing_features: str = "raise",
        **options: Unpack[EngineKeywords],
    ) -> None:
        super().__init__(tables, options, pooled=True, missing_features=missing_features)
        self._is_weighted = is_weighted
        self._layouts: dict[tuple[str, ...], JaggedLayout] = {}  # by keys
        order = range(len(self.engine.wiring.features))
        self._in_order = JaggedLayout(self.engine.wiring, order, len(order))

    def _check_tables(self, tables: Sequence[TableConfig], options: EngineOptions) -> None:
        if options.scale_grad_by_freq and any(table.mode == "max" for table in tables):
            raise ConfigError(
                "scale_grad_by_freq has no meaning with mode='max'; choose mode='sum' or 'mean' "
                "for every table, or leave it out"
            )

    def embedding_bag_configs(self) -> list[TableConfig]:
        """The tables."""
        return list(self.engine.tables)

    def is_weighted(self) -> bool | None:
        """The argument of the class."""
        return self._is_weighted

    # --- all features in one native call ----------------------------------------------------------

    def present(self, value: Any) -> Presented:
        if isinstance(value, Mapping) or not is_keyed_jagged(value) or not is_even(value):
            return super().present(value)
        keys = tuple(value.keys())
        layout = self._layouts.get(keys)
        if layout is None:
            presented = super().present(value)  # these keys are new: checks them
            layout = self._layout(keys)
            if layout is None:
                return presented
        tensors = value.values(), value.offsets(), value.weights_or_none()
        return Presented(tensors, Even(keys, layout, value))

    def _layout(self, keys: tuple[str, ...]) -> JaggedLayout | None:
        """Which of ``keys`` each feature reads; None where one is missing."""
        index = {key: k for k, key in enumerate(keys)}
        read = [index.get(name) for name, _ in self.engine.wiring.features]
        known = [k for k in read if k is not None]
        if len(known) < len(read):
            return None
        if len(self._layouts) == MOST_LAYOUTS:
            self._layouts.pop(next(iter(self._layouts)))
        layout = self._layouts[keys] = JaggedLayout(self.engine.wiring, known, len(keys))
        return layout

    def check(self, presented: Presented) -> CheckedBatch:
        batch = self._check_together(presented)
        return super().check(presented) if batch is None else batch

    def _check_together(self, presented: Presented) -> CheckedBatch | None:
        form, tensors = presented.form, presented.tensors
        weights = tensors[2::3]
        if self._is_weighted or (
            self._is_weighted is None and any(weight is not None for weight in weights)
        ):
            return None
        if isinstance(form, Even):
            ids, bounds, _ = tensors
            assert ids is not None
            assert bounds is not None
            return form.layout.check(ids, bounds)
        if form is not None:
            return None
        joined = join(tensors[0::3], tensors[1::3])
        return None if joined is None else self._in_order.check(*joined)

    # --- feature by feature -----------------------------------------------------------------------

    def _feature(self, name: str, given: Sequence[Any], *, include_last_offset: bool) -> Feature:
        ids, offsets, weights = given
        weights = self._sample_weights(name, weights)
        where = f"feature {name!r}"
        return feature_of(where, ids, offsets, weights, include_last_offset=include_last_offset)

    def _jagged(self, value: Any, keyed: Keyed) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        read = [name for name, _ in self.engine.wiring.features if name in keyed.index]
        sizes = {name: keyed.strides[keyed.index[name]] for name in read}
        inverse = inverse_indices(value)
        if inverse is not None:
            check_inverse_indices(*inverse, sizes)
        elif len(set(sizes.values())) > 1:
            raise ConfigError(
                f"the keys of the KeyedJaggedTensor have batch sizes {sizes}, and there are no "
                "inverse_indices that say which bags belong to a sample; pass them, or bags of the "
                "same number of samples for every key"
            )
        return value.offsets(), value.weights_or_none()

    def _sample_weights(self, feature: str, given: Any) -> Any:
        if self._is_weighted and given is None:
            raise ConfigError(
                f"feature {feature!r} has no weights, but is_weighted=True requires them; pass "
                "weights, or make the collection with is_weighted=None"
            )
        return None if self._is_weighted is False else given

    @eager
    def forward(self, features: Any) -> Any:
        """Pooled rows of every feature.

        Args:
            features: a KeyedJaggedTensor, or {feature: (ids (N,), offsets (B,)[, weights (N,)])} or
                {feature: ids (B, n)}. A TensorDict serves as either.

        Returns:
            A KeyedTensor for a KeyedJaggedTensor, else {name: (B, D)}, views of one tensor that
            ``te.joined`` returns; in the tables' order, with the names of ``embedding_names``.

        Raises:
            ConfigError, IdRangeError: bad arguments; nothing has changed.
        """
        features = without_tensordict(features)
        presented = self.present(features)
        out, _ = self._forward(presented)
        if isinstance(presented.form, Keyed):
            out = self._of_samples(out, features, presented.form)
        names, widths = self.embedding_names, list(self.engine.wiring.widths)
        if isinstance(features, Mapping):
            return dict(zip(names, torch.split(out, widths, dim=1), strict=True))
        from torchrec.sparse.jagged_tensor import KeyedTensor  # the caller has TorchRec

        return KeyedTensor(keys=names, length_per_key=widths, values=out)

    def _of_samples(self, out: torch.Tensor, value: Any, keyed: Keyed) -> torch.Tensor:
        """(B, columns): of each feature the bag that ``inverse_indices`` name for the sample."""
        inverse = inverse_indices(value)
        if inverse is None:
            return out
        names, index = inverse
        position = {name: i for i, name in enumerate(names)}
        wiring = self.engine.wiring
        index = index.to(out.device)
        parts = [
            part.index_select(0, index[position[name]])
            if name in keyed.index
            else out.new_zeros(index.shape[1], part.shape[1])
            for part, (name, _) in zip(
                torch.split(out, list(wiring.widths), dim=1), wiring.features, strict=True
            )
        ]
        return torch.cat(parts, dim=1)
