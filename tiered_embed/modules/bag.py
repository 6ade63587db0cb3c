"""``nn.EmbeddingBag`` over tiers. Threading: as all tiered modules."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from typing_extensions import Unpack

from ..engine import CheckedBatch, Feature, JaggedLayout, Presented, even_bounds, feature_of
from ..errors import ConfigError
from ..spec import EngineKeywords, Mode, TableConfig, options_from_keywords
from .arguments import BAG_ARGUMENTS, arguments
from .base import TieredModule, filled, pretrained_shape
from .eager import eager

__all__ = ["TieredEmbeddingBag"]


class TieredEmbeddingBag(TieredModule):
    """Pooled embeddings whose rows live across tiers and train in ``backward``.

    Args:
        num_embeddings: rows, or None when any int64 is a row id.
        embedding_dim: columns, ``D``.
        mode: ``"sum"``, ``"mean"`` or ``"max"``.
        name: the table's identity, in the store and in initial values.
        include_last_offset, padding_idx: as in ``nn.EmbeddingBag``.
        options: the fields of ``te.EngineOptions``; ``tiers`` and ``optimizer`` are required.

    Raises:
        ConfigError: arguments that cannot work, or a store with another record layout.
        StoreError: a store directory that is unwritable or open elsewhere.
    """

    def __init__(
        self,
        num_embeddings: int | None,
        embedding_dim: int,
        mode: Mode = "sum",
        *,
        name: str = "table",
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        **options: Unpack[EngineKeywords],
    ) -> None:
        checked = options_from_keywords(type(self).__name__, options)
        table = TableConfig(name, num_embeddings, embedding_dim, mode=mode, padding_idx=padding_idx)
        if checked.scale_grad_by_freq and mode == "max":
            raise ConfigError(
                "scale_grad_by_freq has no meaning with mode='max'; choose mode='sum' or 'mean', "
                "or leave it out"
            )
        super().__init__([table], [(name, 0)], checked)
        self._layout = JaggedLayout(self.engine.wiring, [0], 1)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.mode = mode
        self.include_last_offset = include_last_offset
        self.padding_idx = table.padding_idx
        self.max_norm = checked.max_norm
        self.norm_type = checked.norm_type
        self.scale_grad_by_freq = checked.scale_grad_by_freq

    @classmethod
    def from_pretrained(
        cls,
        embeddings: torch.Tensor,
        freeze: bool = True,
        mode: Mode = "sum",
        **options: Any,
    ) -> TieredEmbeddingBag:
        """A module that starts with ``embeddings`` (num_embeddings, D).

        Args:
            freeze: rows are only read, and ``optimizer`` is not used.
            options: other arguments of the class. ``dtype`` is that of ``embeddings`` by default;
                ``optimizer`` is required unless the rows are frozen.

        Raises:
            ConfigError: embeddings that are not 2-D, or no optimizer for rows that train.
        """
        num_embeddings, dim = pretrained_shape(embeddings, freeze, options)
        return filled(cls(num_embeddings, dim, mode, **options), embeddings)

    def present(self, value: Any) -> Presented:
        return Presented(arguments(self._where, value, BAG_ARGUMENTS))

    def features(self, presented: Presented) -> list[Feature]:
        last = self.include_last_offset
        return [feature_of(self._where, *presented.tensors, include_last_offset=last)]

    def check(self, presented: Presented) -> CheckedBatch:
        return self._checked_at_once(*presented.tensors) or super().check(presented)

    def _checked_at_once(
        self, ids: object, offsets: object, sample_weights: object
    ) -> CheckedBatch | None:
        """The batch, where it is one that a single native call can check."""
        bounds = offsets if self.include_last_offset else None
        if sample_weights is not None or not _is_dense(ids):
            return None
        if offsets is None and ids.dim() == 2:
            ids, bounds = ids.reshape(-1), even_bounds(*ids.shape)
        return self._layout.check(ids, bounds) if _is_dense(bounds) else None

    @property
    def _where(self) -> str:
        return f"table {self.engine.tables[0].name!r}"

    @eager
    def forward(
        self,
        input: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Pooled rows (B, D) of the output dtype.

        Args:
            input: (N,) with offsets, or (B, n) without; int64 or int32.
            offsets: (B,) starts of the bags, or (B + 1,) with ``include_last_offset``.
            per_sample_weights: floats, shaped like input; only with ``mode="sum"``.

        Raises:
            ConfigError, IdRangeError: bad arguments; nothing has changed.
            CapacityError: the rows do not fit, and there is no SSD tier.
        """
        if per_sample_weights is None:
            out = self._evaluate_plainly(input, offsets, self.include_last_offset)
            if out is not None:
                return out
        return self._forward(Presented((input, offsets, per_sample_weights)))[0]


def _is_dense(tensor: object) -> TypeGuard[torch.Tensor]:
    return (
        type(tensor) is torch.Tensor
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_nested
    )
