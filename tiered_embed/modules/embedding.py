"""``nn.Embedding`` over tiers."""

from __future__ import annotations

from typing import Any

import torch

from ..config import TableConfig, Tiers
from ..init import Init, Uniform
from ..optim import Optimizer
from .base import TieredModule
from .inputs import FeatureBatch, feature_batch
from .options import RuntimeOptions
from .runtime import Batch

__all__ = ["TieredEmbedding"]


class TieredEmbedding(TieredModule):
    """One row per id, any shape of ids; arguments as in :class:`TieredEmbeddingBag`."""

    def __init__(
        self,
        num_embeddings: int | None,
        embedding_dim: int,
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
        table = TableConfig(name, num_embeddings, embedding_dim)
        super().__init__([table], [(name, 0)], options, pooled=False)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim

    def prepare(self, value: Any) -> Batch:
        where = f"table {self._runtime.tables[0].name!r}"
        flat = value.reshape(1, -1) if isinstance(value, torch.Tensor) else value
        checked = feature_batch(where, flat, None, None)
        return self._runtime.batch([FeatureBatch(checked.ids, None, None)])

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Rows of ``input`` (...), int64 or int32 -> (..., D) float32. Raises as the bag."""
        out = self._runtime.forward(self.prepare(input), training=self.training)
        return out.view(*input.shape, self.embedding_dim)
