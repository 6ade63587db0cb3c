"""The base of every fused optimizer, and the sums that all of them share.

Legend: ``U`` unique rows, ``D`` dim, ``S`` state floats.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

__all__ = ["DecayMode", "Floats", "Optimizer", "lane_sum", "mean_square", "row_gradient"]

Floats = npt.NDArray[Any]
DecayMode = Literal["l2", "decoupled"]

FLOAT32_MAX = float(np.finfo(np.float32).max)
LANES = 16
CHUNK = 256
NORM_FLOOR = 1e-6  # as in torch.nn.utils.clip_grad_norm_


def lane_sum(x: Floats) -> Floats:
    """The sum over columns in the fixed order: 16 lanes (column mod 16), then one binary tree.

    ``x`` (U, D) -> (U,), in the dtype of ``x``.
    """
    num_rows, dim = x.shape
    padded = np.zeros((num_rows, -(-dim // LANES) * LANES), x.dtype)
    padded[:, :dim] = x
    lanes = np.zeros((num_rows, LANES), x.dtype)
    for start in range(0, padded.shape[1], LANES):
        lanes = lanes + padded[:, start : start + LANES]
    width = LANES
    while width > 1:
        width //= 2
        lanes = lanes[:, :width] + lanes[:, width : 2 * width]
    return lanes[:, 0]


def mean_square(x: Floats) -> Floats:
    """The mean square of each row, (U, D) -> (U,)."""
    out: Floats = lane_sum(x * x) / x.dtype.type(x.shape[1])
    return out


def row_gradient(occurrences: Floats) -> Floats:
    """The gradient of one row from its occurrences in batch order, (n, D) -> (D,).

    Each chunk of 256 occurrences is summed from zero; the sums of the chunks are added in order.
    """
    total: Floats | None = None
    for start in range(0, len(occurrences), CHUNK):
        chunk = np.zeros(occurrences.shape[1], occurrences.dtype)
        for row in occurrences[start : start + CHUNK]:
            chunk = chunk + row
        total = chunk if total is None else total + chunk
    return np.zeros(occurrences.shape[1], occurrences.dtype) if total is None else total


@dataclass(frozen=True)
class Optimizer(ABC):
    """A fused optimizer. Subclasses name their formula, its source and their state.

    These act on a row's summed gradient ``g``, in this order: division by the number of the row's
    occurrences (``scale_grad_by_freq``), the factor of a gradient scaler, ``clip_value``,
    ``clip_row_norm``, ``clip_global_norm``, weight decay, and the formula.

    Args:
        lr: learning rate; ``te.lr_optimizer`` schedules it.
        weight_decay: ``wd``; ``"l2"`` adds ``wd * w`` to the gradient, ``"decoupled"`` (Loshchilov
            & Hutter 2019) multiplies ``w`` by ``1 - lr * wd`` first. Only rows of the batch decay.
        clip_value: elements are clipped to [-clip_value, clip_value].
        clip_row_norm: a row's gradient is scaled by ``min(1, clip_row_norm / (|g| + 1e-6))``.
        clip_global_norm: the same with the norm over all rows that this optimizer updates in a
            backward.

    Raises:
        ConfigError: a value is not a number, or out of bounds.
    """

    lr: float
    weight_decay: float = field(default=0.0, kw_only=True)
    weight_decay_mode: DecayMode = field(default="l2", kw_only=True)
    clip_value: float | None = field(default=None, kw_only=True)
    clip_row_norm: float | None = field(default=None, kw_only=True)
    clip_global_norm: float | None = field(default=None, kw_only=True)

    # The mode of weight decay that the formula itself contains.
    formula_decay: ClassVar[DecayMode | None] = None

    def __post_init__(self) -> None:
        self._check("lr", self.lr, low=0.0)
        self._check("weight_decay", self.weight_decay, low=0.0)
        if self.weight_decay_mode not in ("l2", "decoupled"):
            raise ConfigError(
                f"{type(self).__name__}: weight_decay_mode is {self.weight_decay_mode!r}; "
                "choose 'l2' or 'decoupled'"
            )
        if not abs(self.keep) <= FLOAT32_MAX:
            raise ConfigError(
                f"{type(self).__name__}: lr is {self.lr} and weight_decay {self.weight_decay}; "
                "their product is beyond float32, in which rows are updated"
            )
        for name in ("clip_value", "clip_row_norm", "clip_global_norm"):
            value = getattr(self, name)
            if value is not None:
                self._check(name, value, low=0.0)

    @abstractmethod
    def state_layout(self, dim: int) -> dict[str, int]:
        """The name of each state array and its floats per row, in record order."""

    @abstractmethod
    def hyper(self, step: int) -> tuple[float, ...]:
        """The scalars of step ``step``, as float64; kernels round each to float32 once."""

    @abstractmethod
    def formula(self, weights: Floats, state: Floats, grad: Floats, step: int) -> None:
        """The formula alone, in place: ``weights`` (U, D), ``state`` (U, S), ``grad`` (U, D)."""

    @property
    def kernel(self) -> str:
        """The name of the native functor."""
        return type(self).__name__

    def brief(self) -> str:
        """Like ``repr``, but only with the values that differ from the defaults."""
        changed = [f for f in fields(self) if getattr(self, f.name) != f.default]
        values = ", ".join(f"{f.name}={getattr(self, f.name)}" for f in changed)
        return f"{type(self).__name__}({values})"

    def state_floats(self, dim: int) -> int:
        """``S``: the number of float32 values of state per row."""
        return sum(self.state_layout(dim).values())

    @property
    def keep(self) -> float:
        """The factor of decoupled decay; 1 without it."""
        if self.weight_decay_mode == "decoupled" and self.formula_decay != "decoupled":
            return 1.0 - self.lr * self.weight_decay
        return 1.0

    @property
    def l2(self) -> float:
        """The factor of the weights in ``l2`` decay; 0 without it."""
        if self.weight_decay_mode == "l2" and self.formula_decay != "l2":
            return self.weight_decay
        return 0.0

    @property
    def in_formula(self) -> float:
        """The weight decay that the formula applies; 0 without it."""
        return self.weight_decay if self.weight_decay_mode == self.formula_decay else 0.0

    @property
    def clips(self) -> bool:
        """Whether any kind of clipping is asked for."""
        limits = self.clip_value, self.clip_row_norm, self.clip_global_norm
        return any(limit is not None for limit in limits)

    def global_factor(self, squares: float) -> float:
        """The factor of ``clip_global_norm`` if the squares of all gradients sum to ``squares``."""
        if self.clip_global_norm is None:
            return 1.0
        return min(1.0, self.clip_global_norm / (math.sqrt(squares) + NORM_FLOOR))

    def conditioned(
        self, grad: Floats, *, occurrences: npt.NDArray[np.int64] | None = None, scale: float = 1.0
    ) -> Floats:
        """``grad`` (U, D) after all steps up to ``clip_row_norm``, which is included.

        ``occurrences`` (U,) is the count of each row, for ``scale_grad_by_freq``; ``scale`` is the
        factor of a gradient scaler.
        """
        real = grad.dtype.type
        if occurrences is not None:
            grad = grad / occurrences.astype(grad.dtype)[:, None]
        if scale != 1.0:
            grad = grad * real(scale)
        if self.clip_value is not None:
            grad = np.clip(grad, real(-self.clip_value), real(self.clip_value))
        if self.clip_row_norm is not None:
            norm = np.sqrt(lane_sum(grad * grad))
            factor = real(self.clip_row_norm) / (norm + real(NORM_FLOOR))
            grad = np.minimum(factor, real(1))[:, None] * grad
        return grad

    def apply(self, weights: Floats, state: Floats, grad: Floats, step: int) -> None:
        """Applies weight decay and the formula in place, with a conditioned gradient."""
        real = weights.dtype.type
        if self.keep != 1.0:
            weights *= real(self.keep)
        if self.l2 != 0.0:
            grad = grad + real(self.l2) * weights
        self.formula(weights, state, grad, step)

    def update(self, weights: Floats, state: Floats, grad: Floats, step: int) -> None:
        """One step, in place, over all rows of a backward.

        ``weights`` (U, D), ``state`` (U, S), ``grad`` (U, D); ``step`` counts from 1.
        """
        grad = self.conditioned(grad)
        if self.clip_global_norm is not None:
            squares = 0.0
            for row in lane_sum(grad * grad).tolist():  # in float64, row after row
                squares += row
            grad = grad * grad.dtype.type(self.global_factor(squares))
        self.apply(weights, state, grad, step)

    def _check(self, name: str, value: float, low: float, high: float = math.inf) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{type(self).__name__}: {name} is {value!r}; it must be a number")
        if high == math.inf and FLOAT32_MAX < value < math.inf:
            raise ConfigError(
                f"{type(self).__name__}: {name} is {value}, beyond float32, in which rows are "
                f"updated; it must be at most {FLOAT32_MAX:.2e}"
            )
        if not (low <= value < high):
            bound = f"in [{low}, {high})" if high < math.inf else f"finite and at least {low}"
            raise ConfigError(f"{type(self).__name__}: {name} is {value}; it must be {bound}")

    def _scalars(self, step: int, like: Floats) -> list[Any]:
        return [like.dtype.type(x) for x in self.hyper(step)]
