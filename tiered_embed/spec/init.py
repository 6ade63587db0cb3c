"""Initial row values: a pure function of (seed, table name, row, column).

Native code computes them; :func:`reference` is the readable definition that it is compared to. The
generator is Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from .identity import table_hash

FLOAT32_MAX = float(np.finfo(np.float32).max)

__all__ = ["Constant", "Init", "Uniform", "philox4x32", "reference"]


def _is_finite(value: object) -> bool:
    """Whether ``value`` is a number that float32 can hold."""
    return (
        isinstance(value, (int, float, np.integer, np.floating))
        and not isinstance(value, bool)
        and bool(-FLOAT32_MAX <= value <= FLOAT32_MAX)
    )


@dataclass(frozen=True)
class Uniform:
    """``lo + (hi - lo) * u`` with ``u`` uniform in [0, 1), in float32.

    Raises:
        ConfigError: a bound is not finite, ``hi < lo``, or float32 cannot hold ``hi - lo``.
    """

    lo: float = -0.01
    hi: float = 0.01

    def __post_init__(self) -> None:
        if not (_is_finite(self.lo) and _is_finite(self.hi) and self.lo <= self.hi):
            raise ConfigError(
                f"Uniform({self.lo!r}, {self.hi!r}): pass finite bounds with lo <= hi"
            )
        if not _is_finite(float(np.float32(self.hi)) - float(np.float32(self.lo))):
            raise ConfigError(
                f"Uniform({self.lo!r}, {self.hi!r}): hi - lo is beyond float32; pass closer bounds"
            )


@dataclass(frozen=True)
class Constant:
    """Every element starts at ``value``.

    Raises:
        ConfigError: the value is not finite.
    """

    value: float = 0.0

    def __post_init__(self) -> None:
        if not _is_finite(self.value):
            raise ConfigError(f"Constant({self.value!r}): pass a finite number")

    @property
    def lo(self) -> float:
        return self.value

    @property
    def hi(self) -> float:
        return self.value


Init = Uniform | Constant


def philox4x32(
    counter: npt.NDArray[np.uint32], key: npt.NDArray[np.uint32]
) -> npt.NDArray[np.uint32]:
    """Philox4x32-10: ``counter`` (n, 4), ``key`` (2,) -> (n, 4) random words."""
    c = [counter[:, i].astype(np.uint64) for i in range(4)]
    k0, k1 = int(key[0]), int(key[1])
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0 = c[0] * np.uint64(0xD2511F53)
        p1 = c[2] * np.uint64(0xCD9E8D57)
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1),
            p0 & low,
        ]
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, axis=1).astype(np.uint32)


def reference(
    init: Init, seed: int, table: str, rows: npt.NDArray[np.int64], dim: int
) -> npt.NDArray[np.float32]:
    """Initial weights of ``rows`` (n,) as (n, dim) float32: the definition, in NumPy."""
    rows_u = rows.astype(np.int64).view(np.uint64)
    blocks = -(-dim // 4)
    counter = np.empty((len(rows), blocks, 4), np.uint32)
    counter[:, :, 0] = np.arange(blocks, dtype=np.uint32)
    counter[:, :, 1] = np.frombuffer(table_hash(table), "<u4")[0]
    counter[:, :, 2] = (rows_u & np.uint64(0xFFFFFFFF)).astype(np.uint32)[:, None]
    counter[:, :, 3] = (rows_u >> np.uint64(32)).astype(np.uint32)[:, None]
    key = np.array([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF], np.uint32)
    words = philox4x32(counter.reshape(-1, 4), key).reshape(len(rows), blocks * 4)[:, :dim]
    u = (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    lo = np.float32(init.lo)
    scale = np.float32(init.hi) - lo
    return (lo + scale * u).astype(np.float32)
