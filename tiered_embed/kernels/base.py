"""The calls that a training step makes to a kernel, and what they take, whichever kernel computes.

Threading: one call at a time.

Legend: ``N`` occurrences, ``U`` unique rows, ``F`` features, ``B`` bags of each, ``D`` dim.
*Values* are float32 arrays in the form that the kernel takes: NumPy arrays on the CPU, tensors on a
device.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from .. import _native
from .._native import StepPlan
from ..optim import Optimizer

__all__ = ["HUGE_BYTES", "POOLINGS", "Bags", "Kernel", "LookedUp", "UpdateOptions"]

# An array of this size is fresh memory whenever it is made: each small page of it costs a fault.
HUGE_BYTES = 8 << 20

F32 = npt.NDArray[np.float32]
Values = Any

# As in native/kernels/kernels.h.
POOLINGS = {"sum": 0, "mean": 1, "max": 2}


class Bags:
    """How a pool's occurrences form bags.

    Args:
        layout: each feature's pooling, and where its columns lie in the output.
        offsets: (F * B + 1,) int64 into the occurrences, feature after feature; None for one bag
            per occurrence.
        sample_weights: (N,) float32 or None.
        bags_per_feature: B.
        winners: (F * B, D) int32, which the lookup of a maximum fills and its update reads; or
            None.
    """

    __slots__ = ("native", "offsets", "sample_weights")

    def __init__(
        self,
        layout: _native.BagLayout,
        offsets: npt.NDArray[np.int64] | None,
        sample_weights: F32 | None,
        bags_per_feature: int,
        winners: npt.NDArray[np.int32] | None = None,
    ) -> None:
        self.offsets = offsets
        self.sample_weights = sample_weights
        self.native = _native.BatchBags(layout, offsets, sample_weights, winners, bags_per_feature)


class LookedUp:
    """What a lookup leaves for the update of the same batch.

    The caller keeps it and passes it on; only the kernel that made it looks inside. One update at
    most uses it. It may hold device memory, so drop it when no update will come.
    """

    __slots__ = ()


class UpdateOptions(NamedTuple):
    """What one update does apart from the optimizer's formula.

    step: counts from 1. scale: the factor of a gradient scaler. by_frequency: each row's gradient
    is divided by the number of its occurrences.
    """

    step: int
    scale: float = 1.0
    by_frequency: bool = False


class Kernel(Protocol):
    """Lookup and update over the slots of one pool."""

    def values(self, tensor: torch.Tensor) -> Values:
        """``tensor`` as the other methods take it: a view if it is there already, else a copy."""

    def to_host(self, values: Values) -> F32:
        """Values that another method returned, as an array."""

    def lookup(
        self, plan: StepPlan, bags: Bags, out: Values, step: int, optimizer: Optimizer | None
    ) -> LookedUp | None:
        """Writes the pooled rows into this pool's columns of ``out`` (B, total columns).

        ``step`` and ``optimizer`` are those of the update that is likely to follow; ``optimizer``
        is None when rows are read-only.

        Returns:
            What :meth:`update` takes; None from a kernel that keeps nothing.
        """

    def lookup_rows(
        self, weights: F32, inverse: npt.NDArray[np.int32], bags: Bags, out: Values
    ) -> None:
        """Like :meth:`lookup`, but from ``weights`` (U, D) outside the tier; ``inverse`` (N,)."""

    def update(
        self,
        plan: StepPlan,
        bags: Bags,
        grad: Values,
        optimizer: Optimizer,
        options: UpdateOptions,
        looked_up: LookedUp | None,
    ) -> None:
        """One optimizer step per unique row; ``grad`` is shaped like ``out``.

        ``looked_up``: what :meth:`lookup` returned for this batch; None where no lookup was made.
        """

    # The same in parts, for callers that need every gradient before any row changes.

    def row_gradients(self, plan: StepPlan, bags: Bags, grad: Values) -> Values:
        """The summed gradient of each unique row, (U, D)."""

    def condition(
        self, plan: StepPlan, rows: Values, optimizer: Optimizer, options: UpdateOptions
    ) -> float:
        """``Optimizer.conditioned`` on ``rows`` (U, D), in place; returns the sum of squares."""

    def apply(
        self, plan: StepPlan, rows: Values, optimizer: Optimizer, step: int, factor: float
    ) -> None:
        """``Optimizer.apply`` with ``factor`` times the conditioned ``rows`` (U, D).

        ``rows`` is overwritten.
        """

    def sample_weight_gradient(self, plan: StepPlan, bags: Bags, grad: Values) -> torch.Tensor:
        """The gradient of each occurrence's sample weight, (N,)."""

    def renormalise(self, plan: StepPlan, max_norm: float, norm_type: float) -> None:
        """Scales the plan's rows down to ``max_norm`` where their norm exceeds it."""

    def largest_magnitude(self, values: Values) -> float:
        """The largest magnitude in ``values`` (2-D); infinity if one is infinite or NaN."""
