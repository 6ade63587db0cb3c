"""Seeded logs in Criteo's format whose labels can be learned.

Categories follow a Zipf law with the cardinalities of Criteo's Kaggle set; integers follow a skewed
law, with missing values. Labels are drawn from a logistic model with a fixed slope for the
logarithm of each integer and a fixed effect for each (table, category), so that both the dense part
and the embeddings of a model have something to learn. Bit-identical on every machine (see
``generate``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from . import elementary
from .criteo import (
    MISSING_ID,
    MISSING_INTEGER,
    NUM_CATEGORIES,
    NUM_INTEGERS,
    CriteoLines,
    format_lines,
)
from .files import StrPath
from .generate import sample_ranks, uniforms
from .hashing import scatter, splitmix64

__all__ = ["KAGGLE_CARDINALITIES", "CriteoGenerator"]

# Distinct values of the 26 categories in Criteo's Kaggle training set, as listed in the reference
# DLRM's run scripts (https://github.com/facebookresearch/dlrm).
KAGGLE_CARDINALITIES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
_BLOCK_LINES = 1024
_EXPONENT = 1.1
_MISSING_RATE = 0.12
_LOG_SPAN = 8.0  # integers reach e**8
_SLOPE = 0.35
_EFFECT = 0.9
_BIAS = -1.3  # about a quarter of the labels are 1, as in the log


@dataclass(frozen=True)
class CriteoGenerator:
    """``num_lines`` generated lines; block ``i`` of 1024 is a pure function of ``seed`` and ``i``.

    Raises:
        ConfigError: on construction, if an option cannot work.
    """

    num_lines: int
    seed: int = 0
    cardinalities: tuple[int, ...] = KAGGLE_CARDINALITIES

    def __post_init__(self) -> None:
        if self.num_lines < 0:
            raise ConfigError(f"num_lines must not be negative, got {self.num_lines!r}")
        if not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"seed must be in [0, 2**64), got {self.seed!r}")
        widths = self.cardinalities
        if len(widths) != NUM_CATEGORIES or min(widths) < 1 or max(widths) > 1 << 32:
            raise ConfigError(
                f"cardinalities must be {NUM_CATEGORIES} numbers in [1, 2**32], got {widths!r}"
            )

    def __len__(self) -> int:
        return self.num_lines

    def blocks(self) -> Iterator[CriteoLines]:
        """Yield the lines as arrays, up to 1024 at a time."""
        for index, start in enumerate(range(0, self.num_lines, _BLOCK_LINES)):
            yield self._block(index, min(_BLOCK_LINES, self.num_lines - start))

    def write(self, path: StrPath) -> None:
        """Write the log as plain text; an existing file is replaced."""
        with Path(path).open("wb") as file:
            for block in self.blocks():
                file.write(format_lines(block))

    def _block(self, index: int, num_lines: int) -> CriteoLines:
        # The last block draws as many numbers as a full one, so that a longer log only adds lines.
        bits = np.random.PCG64([self.seed, index])
        shape = (_BLOCK_LINES, NUM_INTEGERS)
        log_value = uniforms(bits, _BLOCK_LINES * NUM_INTEGERS).reshape(shape)
        log_value = log_value * log_value * _LOG_SPAN
        integers = elementary.exp(log_value).astype(np.int64) - 1
        missing = uniforms(bits, _BLOCK_LINES * NUM_INTEGERS).reshape(shape) < _MISSING_RATE
        integers[missing] = MISSING_INTEGER
        slopes = _SLOPE * _signed(np.arange(NUM_INTEGERS))
        centred = np.where(missing, 0.0, log_value - _LOG_SPAN / 3.0)

        # Sums run column by column: a fixed order on every machine.
        logit = np.full(_BLOCK_LINES, _BIAS)
        for column in range(NUM_INTEGERS):
            logit += slopes[column] * centred[:, column]
        categories = np.empty((_BLOCK_LINES, NUM_CATEGORIES), dtype=np.int64)
        for table, num_rows in enumerate(self.cardinalities):
            ranks = sample_ranks(bits, _BLOCK_LINES, num_rows, "zipf", _EXPONENT)
            logit += _EFFECT * _signed(ranks * NUM_CATEGORIES + table + (1 << 40))
            # Every third table has missing values: its rank 0.
            values = scatter(ranks, 1 << 32, table)
            categories[:, table] = np.where((ranks == 0) & (table % 3 == 2), MISSING_ID, values)
        chance = 1.0 / (1.0 + elementary.exp(-logit))
        labels = (uniforms(bits, _BLOCK_LINES) < chance).astype(np.int64)
        return CriteoLines(labels[:num_lines], integers[:num_lines], categories[:num_lines])


def _signed(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return a fixed pseudo-random float64 in [-1, 1) for each key."""
    return (splitmix64(keys) >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
