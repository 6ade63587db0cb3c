"""``nn.Embedding`` over tiers. Threading: as all tiered modules."""

from __future__ import annotations

from typing import Any

import torch
from typing_extensions import Unpack

from ..engine import Feature, Presented, row_per_id
from ..spec import EngineKeywords, TableConfig, options_from_keywords
from .arguments import arguments
from .base import TieredModule, filled, pretrained_shape
from .eager import eager
from .unpooled import UnpooledRows

__all__ = ["TieredEmbedding"]


class TieredEmbedding(TieredModule):
    """One row per id, for ids of any shape.

    The id ``padding_idx`` gets the row that ``load_rows`` wrote for it, or zeros, and never trains
    it. Ids outside the table get zeros with ``bounds_check="ignore"``.

    Args:
        num_embeddings: rows, or None when any int64 is a row id.
        embedding_dim: columns, ``D``.
        name: the table's identity, in the store and in initial values.
        padding_idx: as in ``nn.Embedding``.
        options: the fields of ``te.EngineOptions``; ``tiers`` and ``optimizer`` are required.

    Raises:
        ConfigError: arguments that cannot work, or a store with another record layout.
        StoreError: a store directory that is unwritable or open elsewhere.
    """

    def __init__(
        self,
        num_embeddings: int | None,
        embedding_dim: int,
        *,
        name: str = "table",
        padding_idx: int | None = None,
        **options: Unpack[EngineKeywords],
    ) -> None:
        checked = options_from_keywords(type(self).__name__, options)
        table = TableConfig(name, num_embeddings, embedding_dim, padding_idx=padding_idx)
        super().__init__([table], [(name, 0)], checked, pooled=False)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = table.padding_idx
        self.max_norm = checked.max_norm
        self.norm_type = checked.norm_type
        self.scale_grad_by_freq = checked.scale_grad_by_freq
        self._unpooled = UnpooledRows(self.engine)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: torch.Tensor,
        freeze: bool = True,
        **options: Any,
    ) -> TieredEmbedding:
        """As :meth:`TieredEmbeddingBag.from_pretrained`."""
        num_embeddings, dim = pretrained_shape(embeddings, freeze, options)
        return filled(cls(num_embeddings, dim, **options), embeddings)

    def present(self, value: Any) -> Presented:
        (ids,) = arguments(self._where, value, ["indices"])
        return Presented((ids, None, None))

    def features(self, presented: Presented) -> list[Feature]:
        return [row_per_id(self._where, presented.tensors[0])]

    @property
    def _where(self) -> str:
        return f"table {self.engine.tables[0].name!r}"

    @eager
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Rows of ``input`` (...), int64 or int32, as (..., D) of the output dtype.

        Raises as :meth:`TieredEmbeddingBag.forward`.
        """
        out, batch = self._forward(Presented((input, None, None)))
        (rows,) = self._unpooled(out, batch)
        return rows.view(*input.shape, self.embedding_dim)
