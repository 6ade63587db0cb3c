"""The native CPU kernels, behind the two calls that a training step makes.

Bits do not depend on threads or on the instruction set; ``optim.py`` holds the definition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .. import _native
from ..optim import SGD, Adagrad, Adam, Optimizer, RowWiseAdagrad

__all__ = ["Bags", "CpuKernel"]

F32 = npt.NDArray[np.float32]

# As in native/kernels/kernels.h.
_KINDS: dict[type[Optimizer], int] = {SGD: 0, RowWiseAdagrad: 1, Adagrad: 2, Adam: 3}


@dataclass(frozen=True)
class Bags:
    """How a pool's occurrences make bags.

    offsets: (features * B + 1,) int64 into the occurrences, feature after feature, or None for one
    bag per occurrence. sample_weights: (N,) float32 or None. bags_per_feature: B.
    """

    offsets: npt.NDArray[np.int64] | None
    sample_weights: F32 | None
    bags_per_feature: int


class CpuKernel:
    """Kernels of one pool. ``layout`` says where each feature's columns lie in the output."""

    def __init__(
        self,
        records: _native.RecordArray,
        optimizer: Optimizer,
        layout: _native.BagLayout,
        num_threads: int,
    ) -> None:
        self._records = records
        self._optimizer = optimizer
        self._kind = _KINDS[type(optimizer)]
        self._layout = layout
        self._num_threads = num_threads

    def lookup(self, plan: _native.StepPlan, bags: Bags, out: F32) -> None:
        """Writes the pooled rows into this pool's columns of ``out`` (B, total columns)."""
        _native.lookup(
            self._records,
            plan,
            self._layout,
            bags.offsets,
            bags.sample_weights,
            bags.bags_per_feature,
            out,
            self._num_threads,
        )

    def lookup_rows(
        self, weights: F32, inverse: npt.NDArray[np.int32], bags: Bags, out: F32
    ) -> None:
        """As :meth:`lookup`, from ``weights`` (U, D) outside the tier; ``inverse`` (N,)."""
        _native.lookup_rows(
            weights,
            inverse,
            self._layout,
            bags.offsets,
            bags.sample_weights,
            bags.bags_per_feature,
            out,
            self._num_threads,
        )

    def update(self, plan: _native.StepPlan, bags: Bags, grad: F32, step: int) -> None:
        """One optimizer step per unique row; ``grad`` is shaped like ``out``. ``step`` from 1."""
        _native.update(
            self._records,
            plan,
            self._layout,
            bags.offsets,
            bags.sample_weights,
            bags.bags_per_feature,
            grad,
            self._kind,
            list(self._optimizer.hyper(step)),
            self._num_threads,
        )

    def sample_weight_gradient(self, plan: _native.StepPlan, bags: Bags, grad: F32) -> F32:
        """Gradient of every occurrence's weight, (N,)."""
        out = np.empty(len(plan.inverse), np.float32)
        _native.sample_weight_gradient(
            self._records,
            plan,
            self._layout,
            bags.offsets,
            bags.bags_per_feature,
            grad,
            out,
            self._num_threads,
        )
        return out
