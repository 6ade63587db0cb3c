"""A miss-ratio curve: how many misses each cache size would have, and how far two curves differ.

Plain data; ``curves`` and ``sampling`` make it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["CurveError", "MissRatioCurve", "Within", "even_sizes"]

Within = Literal["access", "batch"]
"""What a lookup is; see ``curves``. Numbers that count different things are not compared."""

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CurveError:
    """How far a curve is from another: mean and largest absolute difference of the miss ratio, and
    the size in rows of the largest one."""

    mean: float
    most: float
    at_size: float


@dataclass(frozen=True)
class MissRatioCurve:
    """Misses by cache size in rows.

    method: how it was computed. sizes: (n,), rising; a cache smaller than the first one hits only
    repeats inside a batch. misses: (n,), falling. lookups, unique: ids, and unique rows summed over
    batches. stepped: between two sizes, the misses are those of the smaller one; otherwise they are
    interpolated. by_table: each table's part in the same, shared cache. bins: (last distance, uses)
    for the histogram of reuse distances; None where no distance was measured.
    """

    method: str
    sizes: F64 = field(repr=False)
    misses: F64 = field(repr=False)
    lookups: float
    unique: float
    cold: float
    stepped: bool = True
    by_table: Mapping[str, MissRatioCurve] = field(default_factory=dict, repr=False)
    bins: tuple[F64, F64] | None = field(default=None, repr=False)

    def misses_at(self, sizes: npt.ArrayLike) -> F64:
        """Misses (n,) of caches of ``sizes`` (n,) rows."""
        wanted = np.atleast_1d(np.asarray(sizes, np.float64))
        if not self.stepped:
            return np.asarray(np.interp(wanted, self.sizes, self.misses), np.float64)
        place = np.searchsorted(self.sizes, wanted, side="right") - 1
        return np.where(place < 0, self.unique, self.misses[np.maximum(place, 0)])

    def miss_ratio(self, sizes: npt.ArrayLike) -> F64:
        """Misses per access (n,): a repeat inside a batch is a hit."""
        return self.misses_at(sizes) / max(self.lookups, 1.0)

    def hit_rate(self, sizes: npt.ArrayLike) -> F64:
        """1 - ``miss_ratio``."""
        return 1.0 - self.miss_ratio(sizes)

    def unique_hit_rate(self, sizes: npt.ArrayLike) -> F64:
        """Hits per unique row of a batch (n,)."""
        return 1.0 - self.misses_at(sizes) / max(self.unique, 1.0)

    def error_to(self, exact: MissRatioCurve, sizes: npt.ArrayLike | None = None) -> CurveError:
        """How far it is from ``exact``, at ``sizes``; by default at 200 even sizes of that
        curve."""
        at = even_sizes(exact.sizes[-1]) if sizes is None else np.asarray(sizes, np.float64)
        apart = np.abs(self.miss_ratio(at) - exact.miss_ratio(at))
        worst = int(apart.argmax())
        return CurveError(float(apart.mean()), float(apart[worst]), float(at[worst]))

    def as_dict(self, sizes: npt.ArrayLike) -> dict[str, Any]:
        at = np.asarray(sizes, np.float64)
        return {
            "method": self.method,
            "lookups": self.lookups,
            "unique": self.unique,
            "cold": self.cold,
            "sizes": at.tolist(),
            "hit_rate": self.hit_rate(at).tolist(),
            "unique_hit_rate": self.unique_hit_rate(at).tolist(),
            "by_table": {name: c.as_dict(at) for name, c in self.by_table.items()},
        }


def even_sizes(most: float, points: int = 200) -> F64:
    """``points`` evenly spaced sizes up to ``most`` rows."""
    return np.asarray(np.maximum(1.0, np.linspace(most / points, most, points)), np.float64)
