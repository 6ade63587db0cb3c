"""Rows of many tables and features in one module, like TorchRec's ``EmbeddingCollection``.

Threading: as all tiered modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from typing_extensions import Unpack

from ..engine import Feature, row_per_id
from ..errors import ConfigError
from ..spec import EngineKeywords, EngineOptions, TableConfig
from .eager import eager
from .keyed import Keyed, TieredCollection, without_tensordict
from .unpooled import UnpooledRows

__all__ = ["TieredEmbeddingCollection"]


class TieredEmbeddingCollection(TieredCollection):
    """One row per id, of several features; tables may be shared and have the same dim.

    Tables with the same options share the slots of a tier. The id ``padding_idx`` and ids outside
    a table are treated as by :class:`~tiered_embed.TieredEmbedding`.

    Args:
        tables: one ``te.TableConfig`` each, without a ``mode``. A table serves all its
            ``feature_names``. A feature may read several tables; its outputs are then called
            ``feature@table``.
        need_indices: the JaggedTensors that a forward returns have the ids as their weights.
        missing_features: what a batch without one of the features does: ``"raise"`` a ConfigError,
            or ``"empty"``: the feature has no ids.
        options: the fields of ``te.EngineOptions``; ``tiers`` and ``optimizer`` are required.

    Raises:
        ConfigError: arguments that cannot work, two tables with the same name, tables that differ
            in dim, or a store with another record layout.
        StoreError: a store directory that is unwritable or open elsewhere.
    """

    dense_tables = "embeddings"

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        need_indices: bool = False,
        missing_features: str = "raise",
        **options: Unpack[EngineKeywords],
    ) -> None:
        super().__init__(tables, options, pooled=False, missing_features=missing_features)
        self._need_indices = need_indices
        self._unpooled = UnpooledRows(self.engine)

    def _check_tables(self, tables: Sequence[TableConfig], options: EngineOptions) -> None:
        first = tables[0]
        for table in tables:
            if table.embedding_dim != first.embedding_dim:
                raise ConfigError(
                    f"table {first.name!r} has embedding_dim {first.embedding_dim}, but table "
                    f"{table.name!r} has {table.embedding_dim}; make a collection for each dim"
                )
            if table.mode != "sum":
                raise ConfigError(
                    f"table {table.name!r} has mode={table.mode!r}, but this collection does not "
                    "pool; leave mode out, or make a te.TieredEmbeddingBagCollection"
                )

    def embedding_configs(self) -> list[TableConfig]:
        """The tables."""
        return list(self.engine.tables)

    def embedding_dim(self) -> int:
        """The columns of every table, ``D``."""
        return self.engine.tables[0].embedding_dim

    def embedding_names_by_table(self) -> list[list[str]]:
        """``embedding_names``, divided by table."""
        names = iter(self.embedding_names)
        return [list(islice(names, len(table.feature_names))) for table in self.engine.tables]

    def need_indices(self) -> bool:
        """The argument of the class."""
        return self._need_indices

    def _feature(self, name: str, given: Sequence[Any], *, include_last_offset: bool) -> Feature:
        return row_per_id(f"feature {name!r}", given[0])

    def _jagged(self, value: Any, keyed: Keyed) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        lengths = value.lengths()
        if len(lengths) and int(lengths.min()) < 0:
            raise ConfigError(
                f"the KeyedJaggedTensor has wrong lengths: a length is {int(lengths.min())}; "
                "lengths must not be negative"
            )
        return None, None

    @eager
    def forward(self, features: Any) -> Any:
        """The rows of every feature.

        Args:
            features: a KeyedJaggedTensor, whose weights are not used, or {feature: ids (...)}. In a
                mapping, (ids, offsets[, weights]) serves too, of which only the ids are used. A
                TensorDict serves as either.

        Returns:
            {name: JaggedTensor} for a KeyedJaggedTensor, with values (N, D) and the feature's
            lengths; else {name: rows (..., D)}, (0, D) where the feature is missing. In the
            tables' order, with the names of ``embedding_names``.

        Raises:
            ConfigError, IdRangeError: bad arguments; nothing has changed.
        """
        features = without_tensordict(features)
        presented = self.present(features)
        out, batch = self._forward(presented)
        rows = self._unpooled(out, batch)
        if isinstance(features, Mapping):
            given: Any = presented.tensors[::3]
            return {
                name: part if ids is None else part.view(*ids.shape, part.shape[1])
                for name, ids, part in zip(self.embedding_names, given, rows, strict=True)
            }
        return self._jagged_rows(features, presented.form, rows)

    def _jagged_rows(self, value: Any, keyed: Any, rows: Sequence[torch.Tensor]) -> dict[str, Any]:
        from torchrec.sparse.jagged_tensor import JaggedTensor  # the caller has TorchRec

        assert isinstance(keyed, Keyed)
        ids, lengths = value.values(), value.lengths()
        out = {}
        features = self.engine.wiring.features
        for name, (feature, _), part in zip(self.embedding_names, features, rows, strict=True):
            if feature in keyed.index:
                mine, bags = ids[keyed.ids(feature)], lengths[keyed.bags(feature)]
            else:
                mine, bags = ids[:0], lengths.new_zeros(keyed.stride)
            weights = mine if self._need_indices else None
            out[name] = JaggedTensor(values=part, lengths=bags, weights=weights)
        return out
