"""``nn.Embedding`` over tiers."""

from __future__ import annotations

from typing import Any

import torch

from ..engine import Batch, FeatureBatch, feature_batch
from ..optim import Optimizer
from ..spec import EngineOptions, Init, TableConfig, Tiers, Uniform
from .base import TieredModule, filled, pretrained_shape
from .eager import eager

__all__ = ["TieredEmbedding"]


class TieredEmbedding(TieredModule):
    """One row per id, any shape of ids; arguments as in :class:`TieredEmbeddingBag`.

    ``padding_idx`` ids get the row that ``load_rows`` gave them, zeros before that, and do not
    train it. Ids that ``bounds_check="ignore"`` leaves out get zeros.
    """

    def __init__(
        self,
        num_embeddings: int | None,
        embedding_dim: int,
        *,
        tiers: Tiers,
        optimizer: Optimizer | None,
        name: str = "table",
        seed: int = 0,
        init: Init = Uniform(-0.01, 0.01),  # noqa: B008
        dtype: torch.dtype = torch.float32,
        output_dtype: torch.dtype | None = None,
        rounding: str = "nearest",
        policy: str = "lookahead",
        lookahead: int = 32,
        depth: int | str = 2,
        num_threads: int | None = None,
        bounds_check: str = "raise",
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        on_nonfinite: str = "raise",
        device: torch.device | str | None = None,
        kernel: str = "auto",
    ) -> None:
        options = EngineOptions(
            tiers,
            optimizer,
            init,
            seed,
            dtype,
            output_dtype,
            rounding,
            policy,
            lookahead,
            depth,
            num_threads,
            bounds_check,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            on_nonfinite,
            device,
            kernel,
        )
        table = TableConfig(name, num_embeddings, embedding_dim, padding_idx=padding_idx)
        super().__init__([table], [(name, 0)], options, pooled=False)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = table.padding_idx
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.scale_grad_by_freq = scale_grad_by_freq
        self._padding_row: tuple[int, torch.Tensor] | None = None  # (version of the rows, row)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: torch.Tensor,
        freeze: bool = True,
        *,
        tiers: Tiers,
        optimizer: Optimizer | None = None,
        **options: Any,
    ) -> TieredEmbedding:
        """As :meth:`TieredEmbeddingBag.from_pretrained`."""
        options.setdefault("dtype", embeddings.dtype)
        num_embeddings, dim = pretrained_shape(embeddings, freeze, optimizer)
        module = cls(
            num_embeddings, dim, tiers=tiers, optimizer=None if freeze else optimizer, **options
        )
        return filled(module, embeddings)

    def prepare(self, value: Any) -> Batch:
        where = f"table {self.engine.tables[0].name!r}"
        dense = isinstance(value, torch.Tensor) and value.layout is torch.strided
        flat = value.reshape(1, -1) if dense else value
        checked = feature_batch(where, flat, None, None)
        return self.engine.batch([FeatureBatch(checked.ids, None, None)])

    @eager
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Rows of ``input`` (...), int64 or int32 -> (..., D) of the output dtype. Raises as the
        bag.
        """
        batch = self.prepare(input)
        out = self._forward(batch)
        if batch.kept is not None:
            kept = torch.from_numpy(batch.kept).to(out.device)
            whole = torch.zeros(len(kept), self.embedding_dim, dtype=out.dtype, device=out.device)
            if self.padding_idx is not None:
                padded = ~kept
                if self.engine.options.bounds_check == "ignore":
                    padded = (input.reshape(-1) == self.padding_idx).to(out.device)
                whole[padded] = self._padding().to(out)
            out = whole.index_put((kept,), out)
        return out.view(*input.shape, self.embedding_dim)

    def _padding(self) -> torch.Tensor:
        """The padding row, (D,); only ``load_rows`` and the like change it."""
        version = self.engine.rows.version
        if self._padding_row is None or self._padding_row[0] != version:
            self._padding_row = (version, self.rows([self.padding_idx])[0])
        return self._padding_row[1]
