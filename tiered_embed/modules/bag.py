"""``nn.EmbeddingBag`` over tiers."""

from __future__ import annotations

from typing import Any

import torch

from ..engine import Batch, feature_batch
from ..errors import ConfigError
from ..optim import Optimizer
from ..spec import EngineOptions, Init, Mode, TableConfig, Tiers, Uniform
from .base import TieredModule, filled, pretrained_shape
from .eager import eager

__all__ = ["TieredEmbeddingBag"]


class TieredEmbeddingBag(TieredModule):
    """Pooled embeddings whose rows live across DDR and SSD and train in ``backward``.

    Args:
        num_embeddings: rows, or None when any int64 is a row id.
        embedding_dim: columns, ``D``.
        mode: ``"sum"``, ``"mean"`` or ``"max"``.
        tiers: sizes and places, ``te.Tiers``.
        optimizer: one of ``te.optim``, applied once per row and backward with the full gradient;
            None for rows that are only read.
        name: the table's identity, in the store and in initial values.
        seed: of initial values and of stochastic rounding.
        init: ``te.init.Uniform`` or ``te.init.Constant``.
        dtype: of the rows: ``torch.float32``, ``float16``, ``bfloat16``, or ``int8`` with a scale
            and a bias per row, which is read-only. Optimizer state is float32 always.
        output_dtype: of what forward returns; the rows' by default, float32 for int8.
        rounding: of updated float16 and bfloat16 rows: ``"nearest"``, or ``"stochastic"``, which
            depends on seed, table, row and step alone.
        policy: which row leaves a full tier: one of ``residency.POLICIES``.
        lookahead: future batches that ``te.prefetch`` shows to the policy. Each takes 4 bytes per
            id and 8 to 12 per unique row; a row that is not resident takes 38 more, once.
        depth: batches that ``te.prefetch`` stages ahead; ``"auto"`` finds the smallest that hides
            I/O.
        num_threads: for kernels and copies; all that the process may use by default.
        bounds_check: what an id outside the table does: ``"raise"``, ``"clamp"`` to the nearest
            row, or ``"ignore"``: it takes no part.
        include_last_offset, padding_idx, scale_grad_by_freq: as in ``nn.EmbeddingBag``.
        max_norm, norm_type: as in ``nn.EmbeddingBag``: a forward in training scales the rows that
            it uses; one in evaluation scales copies.
        on_nonfinite: what an infinite or NaN row gradient does, before any row has changed:
            ``"raise"``, ``"skip"`` the update, or ``"allow"`` it.
        device: where an HBM tier lies, and the outputs: a CUDA device by default. ``"cpu"`` runs
            the same three tiers in host memory.
        kernel: what looks up and updates: ``"native"`` on the CPU, ``"fbgemm"`` in an HBM tier on
            either device. ``"auto"``: FBGEMM's with an HBM tier, native ones without. Each has its
            own rounding: trained bytes are equal under one kernel, whatever the tiers.

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
        include_last_offset: bool = False,
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
        table = TableConfig(name, num_embeddings, embedding_dim, mode=mode, padding_idx=padding_idx)
        if scale_grad_by_freq and mode == "max":
            raise ConfigError("scale_grad_by_freq has no meaning with mode='max'")
        super().__init__([table], [(name, 0)], options)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.mode = mode
        self.include_last_offset = include_last_offset
        self.padding_idx = table.padding_idx
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.scale_grad_by_freq = scale_grad_by_freq

    @classmethod
    def from_pretrained(
        cls,
        embeddings: torch.Tensor,
        freeze: bool = True,
        mode: Mode = "sum",
        *,
        tiers: Tiers,
        optimizer: Optimizer | None = None,
        **options: Any,
    ) -> TieredEmbeddingBag:
        """A module that starts with ``embeddings`` (num_embeddings, D).

        Args:
            freeze: rows are only read, and ``optimizer`` is not used.
            options: other arguments of the class; ``dtype`` is that of ``embeddings`` by default.

        Raises:
            ConfigError: embeddings that are not 2-D, or no optimizer for rows that train.
        """
        options.setdefault("dtype", embeddings.dtype)
        num_embeddings, dim = pretrained_shape(embeddings, freeze, optimizer)
        module = cls(
            num_embeddings,
            dim,
            mode,
            tiers=tiers,
            optimizer=None if freeze else optimizer,
            **options,
        )
        return filled(module, embeddings)

    def prepare(self, value: Any) -> Batch:
        args = value if isinstance(value, tuple) else (value,)
        indices, offsets, weights = (*args, None, None, None)[:3]
        return self._batch(indices, offsets, weights)

    def _batch(self, indices: object, offsets: object, weights: object) -> Batch:
        where = f"table {self.engine.tables[0].name!r}"
        return self.engine.batch(
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

    @eager
    def forward(
        self,
        input: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Pooled rows (B, D) of the output dtype.

        Args:
            input: (N,) with offsets or (B, n) without; int64 or int32.
            offsets: (B,) starts of the bags, or (B + 1,) with ``include_last_offset``.
            per_sample_weights: like input, floats; ``mode="sum"`` only.

        Raises:
            ConfigError, IdRangeError: bad arguments; nothing has changed.
            CapacityError: no room and no SSD tier.
        """
        return self._forward(self._batch(input, offsets, per_sample_weights))
