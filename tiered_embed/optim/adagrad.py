"""Optimizers that divide by the root of summed squares of gradients: Adagrad, RMSProp."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .base import Floats, Optimizer, mean_square

__all__ = ["Adagrad", "RowWiseAdagrad", "RowWiseRMSProp"]


@dataclass(frozen=True)
class RowWiseAdagrad(Optimizer):
    """One accumulator per row: ``s += mean(g²)``, ``w -= (lr / (sqrt(s) + eps)) * g``.

    State ``sum`` (U, 1): 4 bytes per row. FBGEMM ``EXACT_ROWWISE_ADAGRAD``; Duchi et al. 2011 for
    Adagrad, Mudigere et al. 2022 (ZionEX) for the row-wise form.
    """

    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("eps", self.eps, low=0.0)

    def state_layout(self, dim: int) -> dict[str, int]:
        return {"sum": 1}

    def hyper(self, step: int) -> tuple[float, ...]:
        return (self.lr, self.eps)

    def formula(self, weights: Floats, state: Floats, grad: Floats, step: int) -> None:
        lr, eps = self._scalars(step, weights)
        state[:, 0] += mean_square(grad)
        multiplier = lr / (np.sqrt(state[:, 0]) + eps)
        weights -= multiplier[:, None] * grad


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """``s += g²``, ``w -= (lr * g) / (sqrt(s) + eps)``.

    State ``sum`` (U, D): 4·D bytes per row. FBGEMM ``EXACT_ADAGRAD``, ``torch.optim.Adagrad``;
    Duchi et al. 2011.
    """

    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("eps", self.eps, low=0.0)

    def state_layout(self, dim: int) -> dict[str, int]:
        return {"sum": dim}

    def hyper(self, step: int) -> tuple[float, ...]:
        return (self.lr, self.eps)

    def formula(self, weights: Floats, state: Floats, grad: Floats, step: int) -> None:
        lr, eps = self._scalars(step, weights)
        state += grad * grad
        weights -= (lr * grad) / (np.sqrt(state) + eps)


@dataclass(frozen=True)
class RowWiseRMSProp(Optimizer):
    """``s = alpha * s + (1 - alpha) * mean(g²)``, ``w -= (lr / (sqrt(s) + eps)) * g``.

    State ``mean_square`` (U, 1): 4 bytes per row. It does not decay while a row is not used.
    Tieleman & Hinton 2012 with the row-wise mean; ``torch.optim.RMSprop`` if ``D`` is 1.
    """

    alpha: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("alpha", self.alpha, low=0.0, high=1.0)
        self._check("eps", self.eps, low=0.0)

    def state_layout(self, dim: int) -> dict[str, int]:
        return {"mean_square": 1}

    def hyper(self, step: int) -> tuple[float, ...]:
        return (self.lr, self.eps, self.alpha, 1.0 - self.alpha)

    def formula(self, weights: Floats, state: Floats, grad: Floats, step: int) -> None:
        lr, eps, alpha, rest = self._scalars(step, weights)
        state[:, 0] = alpha * state[:, 0] + rest * mean_square(grad)
        multiplier = lr / (np.sqrt(state[:, 0]) + eps)
        weights -= multiplier[:, None] * grad
