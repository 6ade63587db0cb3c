"""The calls that a training step makes to a kernel, whichever kernel computes them.

Legend: ``N`` occurrences, ``U`` unique rows, ``B`` bags of a feature, ``D`` dim. *Values* are
float32 arrays in the form that the kernel takes: NumPy arrays on the CPU, tensors on a device.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from .._native import StepPlan
from ..optim import Optimizer
from .cpu import Bags, UpdateOptions

__all__ = ["Kernel"]

F32 = npt.NDArray[np.float32]
Values = Any


class Kernel(Protocol):
    """Lookup and update over the slots of one pool."""

    def values(self, tensor: torch.Tensor) -> Values:
        """``tensor`` as the other methods take it: a view if it is there already, else a copy."""

    def to_host(self, values: Values) -> F32:
        """Values that another method returned, as an array."""

    def lookup(
        self, plan: StepPlan, bags: Bags, out: Values, step: int, optimizer: Optimizer | None
    ) -> None:
        """Writes the pooled rows into this pool's columns of ``out`` (B, total columns).

        ``step`` and ``optimizer`` are those of the update that is likely to follow; ``optimizer``
        is None when rows are read-only.
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
    ) -> None:
        """One optimizer step per unique row; ``grad`` is shaped like ``out``."""

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
