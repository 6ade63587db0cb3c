"""How popular a table's rows are, and how many ids a bag has: laws as plain numbers.

Every law becomes *steps*: classes of equally popular rows. A generator draws a class with an alias
table, and then a row in that class. That takes two multiplications, and gives the same bits on any
IEEE machine (``elementary``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from . import elementary
from .chunk import I64

__all__ = ["Pooling", "Popularity", "Steps", "Zipf", "alias_table"]

F64 = npt.NDArray[np.float64]

_MAX_ROWS = 1 << 52  # rows pass through float64
_EXACT_RANKS = 1024
_BINS_PER_DOUBLING = 32


@dataclass(frozen=True)
class Steps:
    """Classes of equally popular rows: class k has ``rows[k]`` rows, which together get
    ``shares[k]`` of the accesses. Shares are scaled to sum to 1.

    Raises:
        ConfigError: no class, a class without rows, a share that is negative or not finite.
    """

    rows: tuple[int, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.rows or len(self.rows) != len(self.shares):
            raise ConfigError(
                f"steps need one share per class, got {len(self.rows)} classes of rows and"
                f" {len(self.shares)} shares"
            )
        if min(self.rows) < 1 or sum(self.rows) > _MAX_ROWS:
            raise ConfigError(
                f"steps need at least 1 row per class and at most 2**52 in all, got {self.rows}"
            )
        if not (min(self.shares) >= 0.0 and 0.0 < sum(self.shares) < float("inf")):
            raise ConfigError(
                f"shares must be finite, not negative, and not all 0, got {self.shares}"
            )

    @property
    def num_rows(self) -> int:
        return sum(self.rows)

    def steps(self) -> tuple[I64, F64]:
        """Return rows (K,) and shares (K,) of the classes, most popular rows first."""
        return np.array(self.rows, np.int64), np.array(self.shares, np.float64)


@dataclass(frozen=True)
class Zipf:
    """Rank k (from 1) of ``num_rows`` rows has popularity k**-exponent.

    The first 1024 ranks are exact. After them, each doubling of the rank has 32 steps with their
    exact mass, so that a row's popularity is off by at most ``exponent`` * 1.1 percent.

    Raises:
        ConfigError: num_rows outside [1, 2**52], or an exponent outside [0, 8].
    """

    num_rows: int
    exponent: float = 1.05

    def __post_init__(self) -> None:
        if not 1 <= self.num_rows <= _MAX_ROWS:
            raise ConfigError(f"num_rows must be in [1, 2**52], got {self.num_rows!r}")
        if not 0.0 <= self.exponent <= 8.0:
            raise ConfigError(f"exponent must be in [0, 8], got {self.exponent!r}")

    def steps(self) -> tuple[I64, F64]:
        """Return rows (K,) and shares (K,) of the classes, most popular rows first."""
        exact = min(self.num_rows, _EXACT_RANKS)
        borders = list(range(exact + 1))
        while borders[-1] < self.num_rows:
            step = max(1, borders[-1] // _BINS_PER_DOUBLING)
            borders.append(min(self.num_rows, borders[-1] + step))
        ends = np.array(borders, np.int64)
        ranks = np.arange(1, exact + 1, dtype=np.float64)
        masses = elementary.exp(-self.exponent * elementary.log(ranks))
        # After them, the integral between half ranks is the sum over a class to 1e-7.
        log_ends = elementary.log(ends[exact:].astype(np.float64) + 0.5)
        flat = 1.0 - self.exponent
        areas = elementary.expm1_over_x(flat * log_ends) * log_ends
        return np.diff(ends), np.concatenate([masses, np.diff(areas)])


Popularity = Zipf | Steps


@dataclass(frozen=True)
class Pooling:
    """How many ids a bag has: ``weights[n]`` is the probability of ``n``, scaled to sum to 1.

    Raises:
        ConfigError: no weights, a negative one, or none above 0.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        weights = self.weights
        if not weights or not (min(weights) >= 0.0 and 0.0 < sum(weights) < float("inf")):
            raise ConfigError(
                f"pooling weights must be finite, not negative, and not all 0, got {weights!r}"
            )

    @classmethod
    def fixed(cls, num_ids: int) -> Pooling:
        """Every bag has ``num_ids``."""
        if num_ids < 1:
            raise ConfigError(f"a fixed pooling must be at least 1, got {num_ids!r}")
        return cls((0.0,) * num_ids + (1.0,))

    @classmethod
    def uniform(cls, least: int, most: int) -> Pooling:
        """Any number from ``least`` to ``most``, with equal probability."""
        if not 0 <= least <= most or most < 1:
            raise ConfigError(f"pooling needs 0 <= least <= most, most >= 1, got {least}, {most}")
        return cls((0.0,) * least + (1.0,) * (most - least + 1))

    @classmethod
    def geometric(cls, mean: float, most: int) -> Pooling:
        """1 to ``most`` ids, each further one with equal probability; ``mean`` without the
        limit."""
        if not (1.0 <= mean < float("inf")) or most < 1:
            raise ConfigError(f"pooling needs mean >= 1 and most >= 1, got {mean!r}, {most!r}")
        more = 1.0 - 1.0 / mean
        weights, weight = [0.0], 1.0
        for _ in range(most):
            weights.append(weight)
            weight *= more
        return cls(tuple(weights))

    @property
    def most(self) -> int:
        """The largest bag."""
        return len(self.weights) - 1

    @property
    def mean(self) -> float:
        """Ids per bag, expected."""
        return sum(n * w for n, w in enumerate(self.weights)) / sum(self.weights)

    @property
    def constant(self) -> int | None:
        """The size of all bags where it is the same, else None."""
        used = [n for n, weight in enumerate(self.weights) if weight > 0.0]
        return used[0] if len(used) == 1 else None

    def lengths(self, uniforms: F64) -> I64:
        """Return bag sizes (S,) for uniforms (S,) in [0, 1)."""
        heights = np.cumsum(np.array(self.weights, np.float64))
        found = np.searchsorted(heights, uniforms * heights[-1], side="right")
        return np.asarray(np.minimum(found, self.most), np.int64)


def alias_table(shares: F64) -> tuple[F64, I64]:
    """Return (keep (K,), other (K,)): cell i is i with probability keep[i], else other[i].

    Source: Vose, "A linear algorithm for generating random numbers with a given distribution", IEEE
    TSE 17(9), 1991.
    """
    total = 0.0
    for share in shares.tolist():  # in a fixed order, which NumPy's sum does not promise
        total += share
    scaled = (shares * len(shares) / total).tolist()
    keep, other = [1.0] * len(scaled), list(range(len(scaled)))
    small = [i for i, each in enumerate(scaled) if each < 1.0]
    large = [i for i, each in enumerate(scaled) if each >= 1.0]
    while small and large:
        low, high = small.pop(), large[-1]
        keep[low], other[low] = scaled[low], high
        scaled[high] -= 1.0 - scaled[low]
        if scaled[high] < 1.0:
            small.append(large.pop())
    return np.array(keep, np.float64), np.array(other, np.int64)
