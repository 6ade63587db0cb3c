"""``nn.EmbeddingBag`` over tiers."""

from __future__ import annotations

from typing import Any

import torch

from ..config import Mode, TableConfig, Tiers
from ..init import Init, Uniform
from ..optim import Optimizer
from .base import TieredModule
from .inputs import feature_batch
from .options import RuntimeOptions
from .runtime import Batch

__all__ = ["TieredEmbeddingBag"]


class TieredEmbeddingBag(TieredModule):
    """Pooled embeddings whose rows live across DDR and SSD and train in ``backward``.

    Args:
        num_embeddings: rows, or None when any int64 is a row id.
        embedding_dim: columns, ``D``.
        mode: ``"sum"`` or ``"mean"``.
        tiers: sizes and places, ``te.Tiers``.
        optimizer: one of ``te.optim``; applied once per row and backward, with the full gradient.
        name: the table's identity, in the store and in initial values.
        seed: of initial values.
        init: ``te.init.Uniform`` or ``te.init.Constant``.
        dtype: ``torch.float32``.
        policy: ``"lookahead"`` or ``"lru"``: which row leaves a full tier.
        lookahead: future batches that ``te.prefetch`` shows to the policy.
        depth: batches that ``te.prefetch`` stages ahead.
        num_threads: for kernels and copies; all that the process may use by default.
        bounds_check: ``"raise"``, or ``"clamp"`` ids into the table.
        include_last_offset: as in ``nn.EmbeddingBag``.

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
        tiers: Tiers,
        optimizer: Optimizer,
        name: str = "table",
        seed: int = 0,
        init: Init = Uniform(-0.01, 0.01),  # noqa: B008
        dtype: torch.dtype = torch.float32,
        policy: str = "lookahead",
        lookahead: int = 32,
        depth: int = 2,
        num_threads: int | None = None,
        bounds_check: str = "raise",
        include_last_offset: bool = False,
    ) -> None:
        options = RuntimeOptions(
            tiers,
            optimizer,
            init,
            seed,
            dtype,
            policy,
            lookahead,
            depth,
            num_threads,
            bounds_check,
        )
        table = TableConfig(name, num_embeddings, embedding_dim, mode=mode)
        super().__init__([table], [(name, 0)], options)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.mode = mode
        self.include_last_offset = include_last_offset

    def prepare(self, value: Any) -> Batch:
        args = value if isinstance(value, tuple) else (value,)
        indices, offsets, weights = (*args, None, None)[:3]
        return self._batch(indices, offsets, weights)

    def _batch(self, indices: object, offsets: object, weights: object) -> Batch:
        where = f"table {self._runtime.tables[0].name!r}"
        return self._runtime.batch(
            [
                feature_batch(
                    where,
                    indices,
                    offsets,
                    weights,
                    include_last_offset=self.include_last_offset,
                )
            ]
        )

    def forward(
        self,
        indices: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Pooled rows (B, D) float32.

        Args:
            indices: (N,) with offsets or (B, n) without; int64 or int32.
            offsets: (B,) starts of the bags, or (B + 1,) with ``include_last_offset``.
            per_sample_weights: like indices, float32; ``mode="sum"`` only.

        Raises:
            ConfigError, IdRangeError: bad arguments; nothing has changed.
            CapacityError: no room and no SSD tier.
        """
        batch = self._batch(indices, offsets, per_sample_weights)
        return self._runtime.forward(batch, training=self.training)
