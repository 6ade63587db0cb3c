"""Fits a generated table to a reuse histogram.

The uses of a row in a window follow a Poisson law when the row is drawn with a fixed probability.
The histogram is modelled as a mixture of such rows at many rates, and of rows used exactly once.
Non-negative least squares finds the mixture with the nearest buckets, which becomes the classes of
a ``Steps`` law and its share of one-hit rows. Every window of the stream has the same histogram.

Legend: ``J`` rates, ``K`` buckets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from .chunk import I64, check_batch
from .popularity import Steps
from .reuse import ReuseHistogram
from .stream import GeneratedStream, GeneratedTable
from .trace import Trace

__all__ = ["Calibration", "calibrate"]

F64 = npt.NDArray[np.float64]

_LEAST_RATE = 0.25
_RATES_PER_DOUBLING = 6
_FEW_ROWS = 8
_TAIL_DOUBLINGS = 3  # rates above the last edge


@dataclass(frozen=True)
class Calibration:
    """A fitted table and how well it fits.

    table: one id per sample. Store it to get the same stream on another machine, as the fit's last
    digits may differ there. window: number of accesses that have the histogram. expected: the
    histogram of a window on average. error: the largest difference between a share in ``expected``
    and in ``histogram``, over rows, accesses and all buckets.
    """

    table: GeneratedTable
    window: int
    histogram: ReuseHistogram
    expected: ReuseHistogram
    error: float

    def trace(self, num_accesses: int | None = None, batch: int = 1024, seed: int = 0) -> Trace:
        """Return about ``num_accesses`` of the stream in whole batches; by default one window."""
        wanted = self.window if num_accesses is None else num_accesses
        num_batches = -(-wanted // check_batch(batch))
        return GeneratedStream((self.table,), batch, num_batches, seed).trace()


def calibrate(histogram: ReuseHistogram, window: int = 1 << 24, name: str = "table") -> Calibration:
    """Return a table whose ids have ``histogram`` in every ``window`` accesses.

    Args:
        window: at least 2**16 accesses. If it is much smaller than the published one, the last
            buckets hold few rows; ``error`` grows once one holds less than a row.

    Raises:
        ConfigError: a window that is too small.
    """
    if window < 1 << 16:
        raise ConfigError(f"window must be at least {1 << 16} accesses, got {window!r}")
    edges = histogram.edges
    rates = _rates(edges)
    rows, accesses = _columns(rates, edges)
    # The last column stands for rows that are used exactly once.
    once = np.zeros((1, len(edges)))
    once[0, 0] = 1.0
    rows, accesses = np.concatenate([rows, once]), np.concatenate([accesses, once])
    target = np.concatenate([_scaled(histogram.rows), _scaled(histogram.accesses)])
    system = np.concatenate([rows, accesses / histogram.mean_uses], axis=1).T
    mixture = _nonnegative_least_squares(system, target)
    distinct = window / histogram.mean_uses
    counts, uses = _whole_rows(mixture[:-1] * distinct, rates, edges)
    shares = uses / window
    one_hit = float(mixture[-1]) * distinct / window
    total = float(shares.sum()) + one_hit
    shares, one_hit = np.round(shares / total, 9), round(one_hit / total, 9)
    order = np.argsort(-shares / counts)
    law = Steps(tuple(counts[order].tolist()), tuple(shares[order].tolist()))
    table = GeneratedTable(name, law, one_hit=one_hit)
    expected = _expected(table, law, window, edges)
    return Calibration(table, window, histogram, expected, histogram.error(expected))


def _scaled(shares: tuple[float, ...]) -> F64:
    array = np.array(shares)
    return np.asarray(array / array.sum(), np.float64)


def _rates(edges: tuple[int, ...]) -> F64:
    doublings = np.log2(edges[-1] / _LEAST_RATE) + _TAIL_DOUBLINGS
    steps = np.arange(0, int(doublings * _RATES_PER_DOUBLING) + 1)
    return np.asarray(_LEAST_RATE * 2.0 ** (steps / _RATES_PER_DOUBLING), np.float64)


def _columns(rates: F64, edges: tuple[int, ...]) -> tuple[F64, F64]:
    """For each rate (J, K): the probability that a row is in a bucket, and its uses there."""
    most = int(rates.max() + 12.0 * np.sqrt(rates.max()) + 40.0)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])
    rows = np.zeros((len(rates), len(edges)))
    accesses = np.zeros_like(rows)
    for j, rate in enumerate(rates.tolist()):
        spread = 12.0 * rate**0.5 + 20.0
        uses = np.arange(max(1, int(rate - spread)), min(most, int(rate + spread)) + 1)
        chances = np.exp(uses * np.log(rate) - rate - log_factorials[uses])
        bucket = np.searchsorted(np.array(edges), uses, side="left") - 1
        rows[j] = np.bincount(bucket, weights=chances, minlength=len(edges))
        accesses[j] = np.bincount(bucket, weights=chances * uses, minlength=len(edges))
    return rows, accesses


def _whole_rows(numbers: F64, rates: F64, edges: tuple[int, ...]) -> tuple[I64, F64]:
    """Turns ``numbers`` (J,) of rows at each rate into classes of whole rows: rows and uses (C,).

    In each bucket, the classes of few rows become one class, with as many rows as stay in that
    bucket. Uses that do not fill one row go to the bucket below.
    """
    bucket = np.searchsorted(np.array(edges), rates, side="left") - 1
    counts: list[int] = []
    uses: list[float] = []
    carried = 0.0
    for b in reversed(range(len(edges))):
        mine = bucket == b
        many = mine & (numbers >= _FEW_ROWS)
        counts += np.rint(numbers[many]).astype(np.int64).tolist()
        uses += (numbers[many] * rates[many]).tolist()
        few = mine & ~many
        left = carried + float((numbers[few] * rates[few]).sum())
        low = edges[b] + 2.0 * edges[b] ** 0.5
        if left < max(1.0, low):
            carried = left
            continue
        carried = 0.0
        wanted = int(np.rint(numbers[few].sum()))
        least = 1
        if b + 1 < len(edges):
            least = int(np.ceil(left / max(1.0, edges[b + 1] - 2.0 * edges[b + 1] ** 0.5)))
        counts.append(max(1, min(max(wanted, least), int(left / max(1.0, low)))))
        uses.append(left)
    return np.array(counts, np.int64), np.array(uses, np.float64)


def _expected(
    table: GeneratedTable, law: Steps, window: int, edges: tuple[int, ...]
) -> ReuseHistogram:
    shares, counts = np.array(law.shares), np.array(law.rows, np.float64)
    used = shares > 0.0
    shares, counts = shares[used] * (1.0 - table.one_hit) / shares.sum(), counts[used]
    rows, accesses = _columns(shares * window / counts, edges)
    in_rows, in_accesses = counts @ rows, counts @ accesses
    in_rows[0] += table.one_hit * window
    in_accesses[0] += table.one_hit * window
    return ReuseHistogram(
        tuple((in_rows / in_rows.sum()).tolist()),
        tuple((in_accesses / in_accesses.sum()).tolist()),
        float(in_accesses.sum() / in_rows.sum()),
        edges,
    )


def _nonnegative_least_squares(system: F64, target: F64) -> F64:
    """Return the x >= 0 that minimises |system @ x - target|.

    Source: Lawson & Hanson, "Solving Least Squares Problems", 1974, chapter 23.
    """
    num = system.shape[1]
    x = np.zeros(num)
    passive = np.zeros(num, np.bool_)
    for _ in range(3 * num):
        gradient = system.T @ (target - system @ x)
        gradient[passive] = -np.inf
        best = int(gradient.argmax())
        if passive.all() or gradient[best] <= 1e-10:
            break
        passive[best] = True
        while True:
            trial = np.zeros(num)
            trial[passive] = np.linalg.lstsq(system[:, passive], target, rcond=None)[0]
            negative = passive & (trial <= 0.0)
            if not negative.any():
                break
            steps = x[negative] / (x[negative] - trial[negative])
            x = x + steps.min() * (trial - x)
            passive &= x > 1e-15
            x[~passive] = 0.0
            if not passive.any():
                break
        x = trial if passive.any() else x
    return x
