"""Pooled lookups of many tables and features in one module, like TorchRec's
``EmbeddingBagCollection``.

Threading: as all tiered modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import Unpack

from ..engine import Feature, feature_of
from ..errors import ConfigError
from ..spec import EngineKeywords, EngineOptions, TableConfig
from .eager import eager
from .keyed import TieredCollection

__all__ = ["TieredEmbeddingBagCollection"]


class TieredEmbeddingBagCollection(TieredCollection):
    """Pooled embeddings of several features; tables may be shared and differ in dim.

    Tables with the same dim and options share the slots of a tier.

    Args:
        tables: one ``te.TableConfig`` each. A table serves all its ``feature_names``. A feature may
            read several tables; its outputs are then called ``feature@table``.
        is_weighted: True requires weights, False ignores them, None uses them where they are given.
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
        **options: Unpack[EngineKeywords],
    ) -> None:
        super().__init__(tables, options, pooled=True)
        self._is_weighted = is_weighted

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

    def _feature(self, name: str, given: Sequence[Any], *, include_last_offset: bool) -> Feature:
        ids, offsets, weights = given
        weights = self._sample_weights(name, weights)
        where = f"feature {name!r}"
        return feature_of(where, ids, offsets, weights, include_last_offset=include_last_offset)

    def _jagged(self, value: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        inverse = getattr(value, "inverse_indices_or_none", lambda: None)()
        if inverse is not None or getattr(value, "variable_stride_per_key", lambda: False)():
            raise ConfigError(
                "the KeyedJaggedTensor has a batch size per key (stride_per_key, "
                "inverse_indices); pass one with the same number of bags for every key"
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
                {feature: ids (B, n)}.

        Returns:
            A KeyedTensor for a KeyedJaggedTensor, else {name: (B, D)}; in the tables' order, with
            the names of ``embedding_names``.

        Raises:
            ConfigError, IdRangeError: bad arguments; nothing has changed.
        """
        out, _ = self._forward(self.present(features))
        names, widths = self.embedding_names, list(self.engine.wiring.widths)
        if isinstance(features, Mapping):
            return dict(zip(names, torch.split(out, widths, dim=1), strict=True))
        from torchrec.sparse.jagged_tensor import KeyedTensor  # the caller has TorchRec

        return KeyedTensor(keys=names, length_per_key=widths, values=out)
