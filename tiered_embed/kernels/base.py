"""What a training step asks of a kernel, whoever computes it.

Legend: ``N`` occurrences, ``U`` unique rows, ``B`` bags of a feature, ``D`` dim. *Values* are
float32 arrays in the form that the kernel takes: NumPy ones on the CPU, tensors on a device.
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
    def values(self, tensor: torch.Tensor) -> Values:
        """``tensor`` as the other methods take it: a view where it lies there, else a copy."""

    def to_host(self, values: Values) -> F32:
        """What another method has returned, as an array."""

    def lookup(
        self, plan: StepPlan, bags: Bags, out: Values, step: int, optimizer: Optimizer | None
    ) -> None:
        """Writes the pooled rows into this pool's columns of ``out`` (B, total columns).

        ``step``, ``optimizer``: the update that is likely to follow, None if rows are read-only.
        """

    def lookup_rows(
        self, weights: F32, inverse: npt.NDArray[np.int32], bags: Bags, out: Values
    ) -> None:
        """As :meth:`lookup`, from ``weights`` (U, D) outside the tier; ``inverse`` (N,)."""

    def update(
        self,
        plan: StepPlan,
        bags: Bags,
        grad: Values,
        optimizer: Optimizer,
        options: UpdateOptions,
    ) -> None:
        """One optimizer step per unique row; ``grad`` is shaped like ``out``."""

    # The same in parts, for who must see every gradient before a row changes.

    def row_gradients(self, plan: StepPlan, bags: Bags, grad: Values) -> Values:
        """Each unique row's summed gradient, (U, D)."""

    def condition(
        self, plan: StepPlan, rows: Values, optimizer: Optimizer, options: UpdateOptions
    ) -> float:
        """``Optimizer.conditioned`` on ``rows`` (U, D), in place; returns their squares' sum."""

    def apply(
        self, plan: StepPlan, rows: Values, optimizer: Optimizer, step: int, factor: float
    ) -> None:
        """``Optimizer.apply`` with ``factor`` times conditioned ``rows`` (U, D), overwritten."""

    def sample_weight_gradient(self, plan: StepPlan, bags: Bags, grad: Values) -> torch.Tensor:
        """Gradient of every occurrence's weight, (N,)."""

    def renormalise(self, plan: StepPlan, max_norm: float, norm_type: float) -> None:
        """Scales the plan's rows whose norm exceeds ``max_norm`` down to it."""

    def largest_magnitude(self, values: Values) -> float:
        """Of ``values`` (2-D); infinity when one is infinite or NaN."""
