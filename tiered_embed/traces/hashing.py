"""Stable integer hashes: the same value on every machine and in every release."""

import numpy as np
import numpy.typing as npt

__all__ = ["scatter", "scatter_factors", "splitmix64"]


def splitmix64(values: npt.NDArray[np.int64] | npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return SplitMix64's output for the states ``values``: uint64, same shape, bijective.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014;
    constants as in https://prng.di.unimi.it/splitmix64.c.
    """
    z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def scatter(values: npt.NDArray[np.int64], num_rows: int, seed: int) -> npt.NDArray[np.int64]:
    """Permute ``[0, num_rows)`` by a fixed, seeded bijection without a table.

    Odd multiplications and xor-shifts are bijections of ``[0, 2**bits)``. A result outside the
    range is permuted again until it is inside; that takes fewer than two steps on average.
    """
    bits = max(1, (num_rows - 1).bit_length())
    mask, shift = np.uint64((1 << bits) - 1), np.uint64((bits + 1) // 2)
    factors = scatter_factors(seed)
    out = values.astype(np.uint64)
    todo = np.arange(out.size)
    flat = out.reshape(-1)
    while todo.size:
        walked = flat[todo]
        for factor in factors:
            walked = (walked * factor + np.uint64(0x632BE5AB)) & mask
            walked ^= walked >> shift
        flat[todo] = walked
        todo = todo[walked >= np.uint64(num_rows)]
    return out.astype(np.int64)


def scatter_factors(seed: int) -> npt.NDArray[np.uint64]:
    """Return the two odd factors of ``scatter``: uint64 (2,)."""
    return splitmix64(np.array([seed, seed ^ 0x5CA77E2], dtype=np.uint64)) | np.uint64(1)
