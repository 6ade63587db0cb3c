"""Seeded id streams with a chosen popularity law.

Batch ``i`` is a pure function of the options and ``i``, so that a stream can start anywhere. Every
machine generates the same ids: NumPy guarantees PCG64's raw bits for ever (NEP 19), and all
arithmetic on them is our own (``elementary``). Shapes: ``B`` bags, ``L`` ids in a bag.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from . import elementary
from .hashing import scatter

__all__ = ["Distribution", "IdBatch", "IdStream", "sample_ranks", "uniforms"]

Distribution = Literal["zipf", "log_uniform", "uniform"]
_MAX_ROWS = 1 << 52  # ranks pass through float64
_MAX_EXPONENT = 8.0


@dataclass(frozen=True)
class IdBatch:
    """``B`` bags of ids, as ``nn.EmbeddingBag`` takes them.

    ids: int64 (B * L,). offsets: int64 (B,), where each bag starts.
    """

    ids: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]


@dataclass(frozen=True)
class IdStream:
    """An iterable of ``num_batches`` seeded batches over one table.

    Popularity of rank k (from 1): ``zipf`` k**-exponent; ``log_uniform`` ln((k + 1) / k);
    ``uniform``: equal. ``scatter_rows`` spreads the ranks over the table by a fixed permutation, as
    hashing would; without it, row id = rank - 1, most popular first.

    Raises:
        ConfigError: on construction, if an option cannot work.
    """

    num_rows: int
    batch_size: int
    num_batches: int
    pooling: int = 1
    distribution: Distribution = "zipf"
    exponent: float = 1.05
    scatter_rows: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_rows", 1, _MAX_ROWS),
            ("batch_size", 1, 1 << 40),
            ("num_batches", 0, 1 << 62),
            ("pooling", 1, 1 << 40),
            ("seed", 0, (1 << 64) - 1),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"{name} must be an integer in [{low}, {high}], got {value!r}")
        if self.distribution not in get_args(Distribution):
            raise ConfigError(
                f"distribution must be one of {', '.join(get_args(Distribution))},"
                f" got {self.distribution!r}"
            )
        if not 0.0 <= self.exponent <= _MAX_EXPONENT:
            raise ConfigError(f"exponent must be in [0, {_MAX_EXPONENT:g}], got {self.exponent!r}")

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[IdBatch]:
        return (self.batch(index) for index in range(self.num_batches))

    def batch(self, index: int) -> IdBatch:
        """Return batch ``index``; negative or past the end raises IndexError."""
        if not 0 <= index < self.num_batches:
            raise IndexError(f"batch {index} is outside [0, {self.num_batches})")
        ids = sample_ranks(
            np.random.PCG64([self.seed, index]),
            self.batch_size * self.pooling,
            self.num_rows,
            self.distribution,
            self.exponent,
        )
        if self.scatter_rows:
            ids = scatter(ids, self.num_rows, self.seed)
        return IdBatch(ids, np.arange(self.batch_size, dtype=np.int64) * self.pooling)


def uniforms(bits: np.random.PCG64, size: int) -> npt.NDArray[np.float64]:
    """Return ``size`` float64 in [0, 1), multiples of 2**-53."""
    raw = np.asarray(bits.random_raw(size), dtype=np.uint64)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample_ranks(
    bits: np.random.PCG64, size: int, num_rows: int, distribution: Distribution, exponent: float
) -> npt.NDArray[np.int64]:
    """Draw ``size`` popularity ranks, int64 in [0, num_rows), 0 the most popular."""
    if distribution == "uniform":
        ranks = (uniforms(bits, size) * num_rows).astype(np.int64)
    elif distribution == "log_uniform":
        span = elementary.log(np.array([num_rows + 1.0]))
        ranks = elementary.exp(uniforms(bits, size) * span).astype(np.int64) - 1
    else:
        ranks = _zipf(bits, size, num_rows, exponent)
    return np.clip(ranks, 0, num_rows - 1)


def _zipf(
    bits: np.random.PCG64, size: int, num_rows: int, exponent: float
) -> npt.NDArray[np.int64]:
    """Zipf by rejection-inversion: exact, without a table of num_rows entries.

    Source: Hörmann & Derflinger, "Rejection-inversion to generate variates from monotone discrete
    distributions", ACM TOMACS 6(3), 1996. H is the integral of x**-s, 0 at x = 1.
    """
    flat = 1.0 - exponent

    def density(x: elementary.Float64s) -> elementary.Float64s:
        return elementary.exp(-exponent * elementary.log(x))

    def integral(x: elementary.Float64s) -> elementary.Float64s:
        log_x = elementary.log(x)
        return elementary.expm1_over_x(flat * log_x) * log_x

    def inverse(y: elementary.Float64s) -> elementary.Float64s:
        # Without the floor, rounding at the far end could leave the domain of log1p.
        t = np.maximum(y * flat, -1.0 + 2.0**-52)
        return elementary.exp(elementary.log1p_over_x(t) * y)

    one_half, two, last = np.array([1.5]), np.array([2.0]), np.array([num_rows + 0.5])
    low, high = integral(one_half) - 1.0, integral(last)
    squeeze = 2.0 - inverse(integral(two + 0.5) - density(two))
    out = np.empty(size, dtype=np.int64)
    todo = np.arange(size)
    while todo.size:
        u = high + uniforms(bits, todo.size) * (low - high)
        x = inverse(u)
        k = np.clip(np.floor(x + 0.5), 1.0, float(num_rows))
        accepted = (k - x <= squeeze) | (u >= integral(k + 0.5) - density(k))
        out[todo[accepted]] = k[accepted].astype(np.int64) - 1
        todo = todo[~accepted]
    return out
