"""The generators' inner loop, compiled by numba.

An id is a pure function of the table's numbers, the sample and the position in the bag, computed by
SplitMix64 from a counter. So any part of a stream can be generated alone, in chunks of any size.
All arithmetic is on integers or single, correctly rounded float64 operations, which give the same
bits on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from .chunk import I64

__all__ = ["Numbers", "fill", "sample_uniforms"]

F = TypeVar("F", bound=Callable[..., Any])
_compiled = cast(Callable[[F], F], numba.njit(nogil=True, error_model="numpy"))

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_SCATTER = np.uint64(0x632BE5AB)
_POOLING = np.uint64(0x706F6F6C)
_WORKING = np.uint64(0x776F726B)


class Numbers(NamedTuple):
    """One table's law, as the loop takes it.

    seed: u64. most: ids in the largest bag. one_hit, working: shares of the accesses. set_rows,
    set_samples: size of the working set, and how long its members stay. drift_samples: 0 for no
    drift. num_popular: rows of the law. keep, other: the alias table of its classes. first, rows:
    first rank and number of rows of each class. bits, shift, factor0, factor1: as in
    ``hashing.scatter``; bits is 0 where rows stay in order of rank.
    """

    seed: np.uint64
    most: int
    one_hit: float
    working: float
    set_rows: int
    set_samples: int
    drift_samples: int
    num_popular: int
    keep: npt.NDArray[np.float64]
    other: I64
    first: I64
    rows: I64
    bits: int
    shift: int
    factor0: np.uint64
    factor1: np.uint64


@_compiled
def _mixed(z: Any) -> Any:
    z = z + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


@_compiled
def _uniform(state: Any, draw: int) -> Any:
    return (_mixed(state + _GOLDEN * np.uint64(draw)) >> np.uint64(11)) * 2.0**-53


@_compiled
def _rank(state: Any, numbers: Any) -> Any:
    """A popularity rank, from draws 2 and 3 of ``state``."""
    cells = len(numbers.keep)
    place = _uniform(state, 2) * cells
    cell = min(np.int64(place), cells - 1)
    if place - cell >= numbers.keep[cell]:
        cell = numbers.other[cell]
    rows = numbers.rows[cell]
    inside = min(np.int64(_uniform(state, 3) * rows), rows - 1)
    return numbers.first[cell] + inside


@_compiled
def _row(rank: int, sample: int, numbers: Any) -> Any:
    """The row id that has ``rank`` when ``sample`` is drawn."""
    identity = rank
    if numbers.drift_samples > 0:
        identity = (rank - sample // numbers.drift_samples) % numbers.num_popular
    if numbers.bits == 0:
        return identity
    mask = (np.uint64(1) << np.uint64(numbers.bits)) - np.uint64(1)
    shift = np.uint64(numbers.shift)
    walked = np.uint64(identity)
    while True:
        walked = (walked * numbers.factor0 + _SCATTER) & mask
        walked ^= walked >> shift
        walked = (walked * numbers.factor1 + _SCATTER) & mask
        walked ^= walked >> shift
        if walked < np.uint64(numbers.num_popular):
            return np.int64(walked)


@_compiled
def fill(numbers: Any, first_sample: int, starts: I64, out: I64) -> None:
    """Write the ids of the bags ``starts`` (S + 1,) of samples ``first_sample`` on to ``out``."""
    for s in range(len(starts) - 1):
        sample = first_sample + s
        for j in range(starts[s + 1] - starts[s]):
            key = sample * numbers.most + j
            state = _mixed(numbers.seed ^ _mixed(np.uint64(key)))
            kind = _uniform(state, 1)
            if kind < numbers.one_hit:
                out[starts[s] + j] = numbers.num_popular + key
                continue
            time = sample
            if kind < numbers.one_hit + numbers.working:
                # A member stays for set_samples samples; replacements are spread evenly over them.
                member = min(np.int64(_uniform(state, 4) * numbers.set_rows), numbers.set_rows - 1)
                ahead = np.int64(np.float64(member) / numbers.set_rows * numbers.set_samples)
                life = (sample + ahead) // numbers.set_samples
                time = max(0, life * numbers.set_samples - ahead)
                born = np.uint64(life * numbers.set_rows + member)
                state = _mixed((numbers.seed + _WORKING) ^ _mixed(born))
            out[starts[s] + j] = _row(_rank(state, numbers), time, numbers)


@_compiled
def sample_uniforms(seed: Any, first_sample: int, out: npt.NDArray[np.float64]) -> None:
    """Write one float64 in [0, 1) per sample to ``out`` (S,), for the sizes of its bags."""
    for s in range(len(out)):
        state = _mixed((seed + _POOLING) ^ _mixed(np.uint64(first_sample + s)))
        out[s] = _uniform(state, 1)
