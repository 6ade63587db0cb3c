"""The evaluation that most models serve with: one feature, every row in its slot, in one native
call. What it cannot do goes the general way, in ``evaluation.py``.

Threading: as the engine.
"""

from __future__ import annotations

import torch

from ..kernels import HUGE_BYTES, CpuKernel
from ..spec import EngineOptions
from .evaluation import Evaluation
from .wiring import Wiring

__all__ = ["PlainEvaluation", "plain_evaluation"]


def plain_evaluation(
    wiring: Wiring, options: EngineOptions, evaluation: Evaluation
) -> PlainEvaluation | None:
    """For an engine whose options allow it; None: they do not."""
    table, layout = wiring.tables[0], wiring.layouts[0]
    simple = (
        len(wiring.features) == len(wiring.tables) == 1
        and wiring.pooled
        and table.num_embeddings is not None
        and table.padding_idx is None
        and layout.dtype != "int8"
        and options.max_norm is None
        and options.output_dtype in (None, torch.float32)
        and wiring.rows_dtype == torch.float32
        and isinstance(evaluation.pools[0].kernel, CpuKernel)
    )
    return PlainEvaluation(wiring, options, evaluation) if simple else None


class PlainEvaluation:
    """Args: as of the engine. REQUIRES: as :func:`plain_evaluation` checks."""

    def __init__(self, wiring: Wiring, options: EngineOptions, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self._pool = evaluation.pools[0]
        kernel = self._pool.kernel
        assert isinstance(kernel, CpuKernel)
        self._kernel = kernel
        self._planner = self._pool.planner.native
        self._num_rows = wiring.tables[0].num_embeddings or 0
        self._dim = wiring.layouts[0].dim
        self._device = options.compute_device

    def look_up(
        self, indices: torch.Tensor, offsets: torch.Tensor | None, include_last_offset: bool
    ) -> torch.Tensor | None:
        """Pooled rows (B, D) of ``nn.EmbeddingBag``'s arguments.

        None: they are not plain or not right, a row is not in its slot, or a loop reads ahead.
        """
        if self._evaluation.stream is not None or not _is_plain(indices):
            return None
        if offsets is None:
            if indices.dim() != 2:
                return None
            num_bags = indices.shape[0]
        elif indices.dim() == 1 and _is_plain(offsets) and offsets.dim() == 1:
            num_bags = len(offsets) - include_last_offset
        else:
            return None
        if num_bags < 1 or num_bags * self._dim * 4 >= HUGE_BYTES or not self._pool.is_at_rest():
            return None
        out = torch.empty((num_bags, self._dim), dtype=torch.float32, device=self._device)
        done = self._kernel.lookup_plain(
            self._planner,
            self._num_rows,
            indices.numpy().reshape(-1),
            None if offsets is None else offsets.numpy(),
            include_last_offset,
            self._pool.bag_layout,
            out.numpy(),
        )
        if not done:
            return None
        self._evaluation.counts.forwards += 1
        self._evaluation.counts.lookups += indices.numel()
        return out


def _is_plain(tensor: object) -> bool:
    """A contiguous int64 tensor on the CPU, of no subclass, whose memory holds its values."""
    return (
        type(tensor) is torch.Tensor
        and tensor.dtype is torch.int64
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and tensor.is_contiguous()
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
    )
