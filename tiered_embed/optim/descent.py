"""Optimizers that follow the gradient itself: SGD, momentum, LARS, FTRL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import ConfigError
from .base import DecayMode, Floats, Optimizer, lane_sum

__all__ = ["FTRL", "LARSSGD", "SGD", "MomentumSGD"]


@dataclass(frozen=True)
class SGD(Optimizer):
    """``w -= lr * g``. No state: 0 bytes per row. FBGEMM ``EXACT_SGD``, ``torch.optim.SGD``."""

    def state_layout(self, dim: int) -> dict[str, int]:
        return {}

    def hyper(self, step: int) -> tuple[float, ...]:
        return (self.lr,)

    def formula(self, weights: Floats, state: Floats, grad: Floats, step: int) -> None:
        (lr,) = self._scalars(step, weights)
        weights -= lr * grad


@dataclass(frozen=True)
class MomentumSGD(Optimizer):
    """``m = momentum * m + g``, ``w -= lr * m``.

    State ``momentum`` (U, D): 4·D bytes per row. It does not decay while a row is not used.
    ``torch.optim.SGD(momentum=...)``; Polyak 1964.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("momentum", self.momentum, low=0.0, high=1.0)

    def state_layout(self, dim: int) -> dict[str, int]:
        return {"momentum": dim}

    def hyper(self, step: int) -> tuple[float, ...]:
        return (self.lr, self.momentum)

    def formula(self, weights: Floats, state: Floats, grad: Floats, step: int) -> None:
        lr, momentum = self._scalars(step, weights)
        state[:] = momentum * state + grad
        weights -= lr * state


@dataclass(frozen=True)
class LARSSGD(Optimizer):
    """``rate = lr * eta * |w| / (|g| + wd * |w|)``, ``m = momentum * m + rate * (g + wd * w)``,
    ``w -= m``; ``rate = lr`` where a norm is zero.

    Norms are those of one row. ``wd`` is ``l2`` weight decay, which is part of the formula. State
    ``momentum`` (U, D): 4·D bytes per row. FBGEMM ``LARS_SGD``; You, Gitman & Ginsburg 2017.
    """

    eta: float = 0.001
    momentum: float = 0.9

    formula_decay: ClassVar[DecayMode | None] = "l2"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("eta", self.eta, low=0.0)
        self._check("momentum", self.momentum, low=0.0, high=1.0)
        self._check("lr * eta", self.lr * self.eta, low=0.0)

    def state_layout(self, dim: int) -> dict[str, int]:
        return {"momentum": dim}

    def hyper(self, step: int) -> tuple[float, ...]:
        return (self.lr * self.eta, self.momentum, self.in_formula, self.lr)

    def formula(self, weights: Floats, state: Floats, grad: Floats, step: int) -> None:
        scaled, momentum, decay, lr = self._scalars(step, weights)
        weight_norm = np.sqrt(lane_sum(weights * weights))
        norm = np.sqrt(lane_sum(grad * grad)) + decay * weight_norm
        usable = (weight_norm > 0) & (norm > 0)
        rate = np.where(usable, scaled * weight_norm / np.where(usable, norm, 1), lr)
        state[:] = momentum * state + rate[:, None].astype(weights.dtype) * (grad + decay * weights)
        weights -= state


@dataclass(frozen=True)
class FTRL(Optimizer):
    """FTRL-Proximal: ``n' = n + g²``, ``z += g - (sqrt(n') - sqrt(n)) / lr * w``,
    ``w = 0 if |z| <= l1 else -(z - sign(z) * l1) / ((beta + sqrt(n')) / lr + l2)``.

    State ``z`` and ``n`` (U, D) each: 8·D bytes per row. McMahan et al. 2013, "Ad click
    prediction", algorithm 1. A weight is 0 if all its gradients were zero, or so small that
    their squares are zero in float32. A row's first update shrinks its initial weights; the larger
    ``beta`` is compared to the gradient, the more. So use it with ``te.init.Constant(0.0)``.
    """

    beta: float = 0.0
    l1: float = 0.0
    l2_penalty: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "l1", "l2_penalty"):
            self._check(name, getattr(self, name), low=0.0)
        if np.float32(self.lr) == 0.0:
            raise ConfigError(
                f"FTRL: lr is {self.lr}, which is 0 in float32, and the formula divides by it; "
                "pass a value above 0"
            )

    def state_layout(self, dim: int) -> dict[str, int]:
        return {"z": dim, "n": dim}

    def hyper(self, step: int) -> tuple[float, ...]:
        return (self.lr, self.beta, self.l1, self.l2_penalty)

    def formula(self, weights: Floats, state: Floats, grad: Floats, step: int) -> None:
        lr, beta, l1, l2 = self._scalars(step, weights)
        dim = weights.shape[1]
        z, squares = state[:, :dim], state[:, dim:]
        after = squares + grad * grad
        root = np.sqrt(after)
        sigma = (root - np.sqrt(squares)) / lr
        z += grad - sigma * weights
        squares[:] = after
        shrunk = z - np.where(z < 0, -l1, l1).astype(weights.dtype)
        divisor = (beta + root) / lr + l2
        inside = (np.abs(z) <= l1) | (divisor == 0)
        divisor = np.where(inside, 1, divisor).astype(weights.dtype)
        weights[:] = np.where(inside, 0, -shrunk / divisor)
