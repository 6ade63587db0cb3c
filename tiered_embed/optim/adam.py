"""Optimizers with two moments: Adam, AdamW, LAMB and their partial row-wise forms.

Only rows of the batch change ("lazy", as in FBGEMM and ``torch.optim.SparseAdam``). The moments of
other rows stay as they are, and ``step`` in the bias corrections counts the module's backwards, not
the row's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from .base import DecayMode, Floats, Optimizer, lane_sum, mean_square

__all__ = ["LAMB", "Adam", "AdamW", "PartialRowWiseAdam", "PartialRowWiseLAMB"]


@dataclass(frozen=True)
class Adam(Optimizer):
    """``m = b1·m + (1-b1)·g``, ``v = b2·v + (1-b2)·g²``, ``w -= lr · (m̂ / (sqrt(v̂) + eps))``.

    ``m̂ = m / (1 - b1^step)``, ``v̂ = v / (1 - b2^step)``. State ``exp_avg`` and ``exp_avg_sq``
    (U, D) each: 8·D bytes per row. FBGEMM ``ADAM``; Kingma & Ba 2015.
    ``torch.optim.SparseAdam`` differs: it adds ``eps`` before the bias correction.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("beta1", self.beta1, low=0.0, high=1.0)
        self._check("beta2", self.beta2, low=0.0, high=1.0)
        self._check("eps", self.eps, low=0.0)

    def state_layout(self, dim: int) -> dict[str, int]:
        return {"exp_avg": dim, "exp_avg_sq": dim}

    def hyper(self, step: int) -> tuple[float, ...]:
        return (
            self.lr,
            self.eps,
            self.beta1,
            1.0 - self.beta1,
            self.beta2,
            1.0 - self.beta2,
            1.0 - self.beta1**step,
            1.0 - self.beta2**step,
        )

    def formula(self, weights: Floats, state: Floats, grad: Floats, step: int) -> None:
        lr, *_ = self._scalars(step, weights)
        weights -= lr * self.direction(state, grad, step)

    def direction(self, state: Floats, grad: Floats, step: int) -> Floats:
        """Updates the moments in place; returns ``m̂ / (sqrt(v̂) + eps)`` (U, D)."""
        _, eps, b1, c1, b2, c2, bias1, bias2 = self._scalars(step, grad)[:8]
        dim = grad.shape[1]
        m, v = state[:, :dim], state[:, dim:]
        m[:] = b1 * m + c1 * grad
        v[:] = b2 * v + c2 * (grad * grad)
        out: Floats = (m / bias1) / (np.sqrt(v / bias2) + eps)
        return out


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay, 0.01 by default. ``torch.optim.AdamW``; Loshchilov &
    Hutter 2019. State as Adam's: 8·D bytes per row.
    """

    weight_decay: float = field(default=0.01, kw_only=True)
    weight_decay_mode: DecayMode = field(default="decoupled", kw_only=True)

    @property
    def kernel(self) -> str:
        return "Adam"


def _row_direction(spec: Adam, state: Floats, grad: Floats, step: int) -> Floats:
    """Like ``Adam.direction``, with one second moment per row: that of the mean square."""
    _, eps, b1, c1, b2, c2, bias1, bias2 = spec._scalars(step, grad)[:8]
    dim = grad.shape[1]
    m, v = state[:, :dim], state[:, dim]
    v[:] = b2 * v + c2 * mean_square(grad)
    m[:] = b1 * m + c1 * grad
    out: Floats = (m / bias1) / (np.sqrt(v / bias2) + eps)[:, None]
    return out


@dataclass(frozen=True)
class PartialRowWiseAdam(Adam):
    """Adam with one second moment per row: ``v = b2·v + (1-b2)·mean(g²)``.

    State ``exp_avg`` (U, D) and ``exp_avg_sq`` (U, 1): 4·D + 4 bytes per row. FBGEMM
    ``PARTIAL_ROWWISE_ADAM``.
    """

    def state_layout(self, dim: int) -> dict[str, int]:
        return {"exp_avg": dim, "exp_avg_sq": 1}

    def direction(self, state: Floats, grad: Floats, step: int) -> Floats:
        return _row_direction(self, state, grad, step)


@dataclass(frozen=True)
class LAMB(Adam):
    """``r = m̂ / (sqrt(v̂) + eps) + wd·w``, ``w -= lr · (|w| / |r|) · r``; the ratio is 1 where a
    norm is zero.

    Norms are those of one row. ``wd`` is decoupled weight decay, which is part of the formula.
    State ``exp_avg`` and ``exp_avg_sq`` (U, D) each: 8·D bytes per row. FBGEMM ``LAMB``; You et
    al. 2020.
    """

    weight_decay_mode: DecayMode = field(default="decoupled", kw_only=True)

    formula_decay: ClassVar[DecayMode | None] = "decoupled"

    def hyper(self, step: int) -> tuple[float, ...]:
        return (*super().hyper(step), self.in_formula)

    def formula(self, weights: Floats, state: Floats, grad: Floats, step: int) -> None:
        scalars = self._scalars(step, weights)
        lr, decay = scalars[0], scalars[8]
        r = self.direction(state, grad, step) + decay * weights
        ratio: Any = _trust(np.sqrt(lane_sum(weights * weights)), np.sqrt(lane_sum(r * r)))
        weights -= (lr * ratio)[:, None] * r


@dataclass(frozen=True)
class PartialRowWiseLAMB(LAMB):
    """LAMB with one second moment per row: ``v = b2·v + (1-b2)·mean(g²)``.

    State ``exp_avg`` (U, D) and ``exp_avg_sq`` (U, 1): 4·D + 4 bytes per row. FBGEMM
    ``PARTIAL_ROWWISE_LAMB``.
    """

    def state_layout(self, dim: int) -> dict[str, int]:
        return {"exp_avg": dim, "exp_avg_sq": 1}

    def direction(self, state: Floats, grad: Floats, step: int) -> Floats:
        return _row_direction(self, state, grad, step)


def _trust(weight_norm: Floats, norm: Floats) -> Floats:
    usable = (weight_norm > 0) & (norm > 0)
    return np.where(usable, weight_norm / np.where(usable, norm, 1), 1).astype(norm.dtype)
