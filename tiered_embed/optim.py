"""Fused optimizers: their specs, and the plain definition of what each does to a row.

A spec is a frozen dataclass. ``update`` is its readable reference in NumPy: in float32 it gives the
very bits of the native kernels (same operations, same order, no fused multiply-add), in float64 it
is the truth that both are held against. Legend: ``U`` unique rows, ``D`` dim, ``S`` state floats.

State lives beside the weights in one record and moves with them. ``step`` counts the backward
passes of the module, from 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ConfigError

__all__ = ["SGD", "Adagrad", "Adam", "Optimizer", "RowWiseAdagrad", "lane_sum", "row_gradient"]

Floats = npt.NDArray[Any]

LANES = 16
CHUNK = 256


def lane_sum(x: Floats) -> Floats:
    """Sum over columns in the fixed order: 16 lanes (column mod 16), then one binary tree.

    ``x`` (U, D) -> (U,), in x's own dtype.
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


def row_gradient(occurrences: Floats) -> Floats:
    """One row's gradient from its occurrences in batch order, (n, D) -> (D,).

    Summed in chunks of 256 occurrences, each from zero; chunk sums added in order.
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
    """A fused optimizer. Subclasses state formula, source and state layout."""

    lr: float

    def __post_init__(self) -> None:
        self._check("lr", self.lr, low=0.0)

    @abstractmethod
    def state_layout(self, dim: int) -> dict[str, int]:
        """Name of each state array -> floats per row, in record order."""

    @abstractmethod
    def hyper(self, step: int) -> tuple[float, ...]:
        """The scalars of step ``step``, as float64; kernels round each to float32 once."""

    @abstractmethod
    def update(self, weights: Floats, state: Floats, grad: Floats, step: int) -> None:
        """Apply one step in place: ``weights`` (U, D), ``state`` (U, S), ``grad`` (U, D)."""

    @property
    def kernel(self) -> str:
        """Name of the native functor."""
        return type(self).__name__

    def state_floats(self, dim: int) -> int:
        """``S``: float32 values of state per row."""
        return sum(self.state_layout(dim).values())

    def _check(self, name: str, value: float, low: float, high: float = math.inf) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{type(self).__name__}: {name} is {value!r}; it must be a number")
        if not (low <= value < high):
            bound = f"in [{low}, {high})" if high < math.inf else f"finite and at least {low}"
            raise ConfigError(f"{type(self).__name__}: {name} is {value}; it must be {bound}")

    def _scalars(self, step: int, like: Floats) -> list[Any]:
        return [like.dtype.type(x) for x in self.hyper(step)]


@dataclass(frozen=True)
class SGD(Optimizer):
    """``w -= lr * g``. No state: 0 bytes per row. FBGEMM ``EXACT_SGD``, ``torch.optim.SGD``."""

    def state_layout(self, dim: int) -> dict[str, int]:
        return {}

    def hyper(self, step: int) -> tuple[float, ...]:
        return (self.lr,)

    def update(self, weights: Floats, state: Floats, grad: Floats, step: int) -> None:
        (lr,) = self._scalars(step, weights)
        weights -= lr * grad


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

    def update(self, weights: Floats, state: Floats, grad: Floats, step: int) -> None:
        lr, eps = self._scalars(step, weights)
        state[:, 0] += lane_sum(grad * grad) / grad.dtype.type(grad.shape[1])
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

    def update(self, weights: Floats, state: Floats, grad: Floats, step: int) -> None:
        lr, eps = self._scalars(step, weights)
        state += grad * grad
        weights -= (lr * grad) / (np.sqrt(state) + eps)


@dataclass(frozen=True)
class Adam(Optimizer):
    """``m = b1·m + (1-b1)·g``, ``v = b2·v + (1-b2)·g²``, ``w -= lr · (m̂ / (sqrt(v̂) + eps))``.

    ``m̂ = m / (1 - b1^step)``, ``v̂ = v / (1 - b2^step)``; only rows of the batch move ("lazy", as
    FBGEMM ``ADAM`` and ``torch.optim.SparseAdam``). State ``exp_avg`` and ``exp_avg_sq`` (U, D)
    each: 8·D bytes per row. Kingma & Ba 2015.
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

    def update(self, weights: Floats, state: Floats, grad: Floats, step: int) -> None:
        lr, eps, b1, c1, b2, c2, bias1, bias2 = self._scalars(step, weights)
        dim = weights.shape[1]
        m, v = state[:, :dim], state[:, dim:]
        m[:] = b1 * m + c1 * grad
        v[:] = b2 * v + c2 * (grad * grad)
        weights -= lr * ((m / bias1) / (np.sqrt(v / bias2) + eps))
