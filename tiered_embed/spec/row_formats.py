"""How rows are stored: float32, float16, bfloat16, or int8 with a scale and a bias per row.

These are the plain definitions. The native conversions (``native/core/weight_type.h``,
``native/kernels/lanes.inc``) give the same bits. Optimizer state is float32 whatever the weights
are; an update computes in float32 and rounds its result once. Pure functions.

Legend: ``n`` rows, ``D`` dim.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..optim import lane_sum
from .identity import table_hash
from .init import philox4x32

__all__ = [
    "ITEM_BYTES",
    "ROUNDINGS",
    "TYPE_NUMBERS",
    "decode",
    "encode",
    "renormalised",
    "round_nearest",
    "round_stochastic",
    "rounding_key",
]

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]

# As in native/core/weight_type.h.
TYPE_NUMBERS: Mapping[str, int] = {"float32": 0, "float16": 1, "bfloat16": 2, "int8": 3}
ITEM_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
ROUNDINGS = ("nearest", "stochastic")

COLUMNS_PER_BLOCK = 128  # in stochastic rounding: sixteen Philox blocks give 16 bits a column


def round_nearest(values: F32, dtype: str) -> F32:
    """``values`` rounded to ``dtype`` (of 16 bits): to nearest, ties to even."""
    return _widen(_nearest(values, dtype), dtype)


def round_stochastic(
    values: F32, dtype: str, *, seed: int, step: int, table: str, rows: npt.NDArray[np.int64]
) -> F32:
    """``values`` (n, D) rounded to ``dtype`` at random, correct on average.

    A value is rounded up in magnitude with a probability equal to the part that rounding down
    would drop, in units of 2^-16 of the last place. The result is a function of (seed, step,
    table, row, column) alone.
    """
    random = _random_bits(seed, step, table, rows, values.shape[1])
    bits = values.view(np.uint32)
    size, sign = bits & np.uint32(0x7FFFFFFF), bits >> np.uint32(31)
    if dtype == "bfloat16":
        up = np.where(size < 0x7F800000, size + random, size)
        out = (sign << np.uint32(15)) | (up >> np.uint32(16))
        out = np.where(size > 0x7F800000, np.uint32(0x7FC0), out)
        return _widen(out.astype(np.uint16), dtype)
    # Below 2^-14 halves are multiples of 2^-24.
    tiny = np.where(size < 0x38800000, size, 0).astype(np.uint32).view(np.float32)
    units = (tiny.astype(np.float64) * 2.0**40).astype(np.uint32)
    small = (units + random) >> np.uint32(16)
    normal = (size - np.uint32(112 << 23) + (random >> np.uint32(3))) >> np.uint32(13)
    out = np.where(size < 0x38800000, small, normal)
    out = np.where((out >= 0x7C00) | (size >= 0x47800000), np.uint32(0x7C00), out)
    out = np.where(size > 0x7F800000, np.uint32(0x7E00), (sign << np.uint32(15)) | out)
    return _widen(out.astype(np.uint16), dtype)


def rounding_key(seed: int, step: int) -> int:
    """The 64-bit key of Philox for stochastic rounding in step ``step``."""
    counter = np.array([[step & 0xFFFFFFFF, step >> 32, 0x524E4421, 0]], np.uint32)
    words = philox4x32(counter, np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32))[0]
    return int(words[0]) | int(words[1]) << 32


def encode(values: F32, dtype: str) -> tuple[U8, F32]:
    """Rows as stored: bytes (n, D * item size), and for int8 (scale, bias) as (n, 2).

    An int8 row with a NaN, or a range that float32 cannot hold, is all NaN.
    """
    nothing = np.empty((len(values), 0), np.float32)
    if dtype == "float32":
        return np.ascontiguousarray(values).view(np.uint8), nothing
    if dtype == "int8":
        low, high = values.min(axis=1), values.max(axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            scale = (high - low) / np.float32(255)
        bounded = np.isfinite(scale)
        scale = np.where(bounded, scale, np.float32(np.nan))
        low = np.where(bounded, low, np.float32(np.nan))
        divisor = np.where(scale > 0, scale, np.float32(1))[:, None]
        level = np.where(scale[:, None] > 0, np.rint((values - low[:, None]) / divisor), 0)
        return np.minimum(level, 255).astype(np.uint8), np.stack([scale, low], axis=1)
    return _nearest(values, dtype).view(np.uint8), nothing


def decode(rows: U8, scale_bias: F32, dtype: str) -> F32:
    """The values of stored rows as float32, (n, D)."""
    if dtype == "float32":
        return np.ascontiguousarray(rows).view(np.float32)
    if dtype == "int8":
        out: F32 = rows.astype(np.float32) * scale_bias[:, :1] + scale_bias[:, 1:2]
        return out
    return _widen(np.ascontiguousarray(rows).view(np.uint16), dtype)


def renormalised(values: F32, max_norm: float, norm_type: float, dtype: str) -> F32:
    """``values`` (n, D), where rows whose ``norm_type``-norm exceeds ``max_norm`` are scaled down.

    As in ``torch.embedding_renorm_``, by ``max_norm / (norm + 1e-7)``; then rounded to ``dtype``.
    """
    if norm_type == 2.0:
        norm = np.sqrt(lane_sum(values * values))
    elif norm_type == 1.0:
        norm = lane_sum(np.abs(values))
    elif norm_type == float("inf"):
        norm = np.abs(values).max(axis=1)
    else:
        wide = np.abs(values.astype(np.float64)) ** norm_type
        norm = (wide.sum(axis=1) ** (1.0 / norm_type)).astype(np.float32)
    exceeds = norm > np.float32(max_norm)
    factor = np.float32(max_norm) / (norm + np.float32(1e-7))
    scaled = values * np.where(exceeds, factor, np.float32(1))[:, None]
    return scaled if dtype == "float32" else round_nearest(scaled, dtype)


def _nearest(values: F32, dtype: str) -> U16:
    values = np.ascontiguousarray(values)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        return np.where(np.isnan(values), np.uint16(0x7E00), half.view(np.uint16))
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        up = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return np.where(np.isnan(values), np.uint16(0x7FC0), (up >> np.uint32(16))).astype(
            np.uint16
        )
    raise ConfigError(f"{dtype} is not a 16-bit dtype; use float16 or bfloat16")


def _widen(bits: U16, dtype: str) -> F32:
    if dtype == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _random_bits(seed: int, step: int, table: str, rows: npt.NDArray[np.int64], dim: int) -> U32:
    """Random bits of every element, (n, D) in [0, 65536).

    Column c takes half (c / 16) % 2 of word (c % 128) / 32 of the Philox block with the counter
    ((c / 128) * 16 + c % 16, table, row).
    """
    key = rounding_key(seed, step)
    column = np.arange(dim)
    block = column // COLUMNS_PER_BLOCK * 16 + column % 16
    unsigned = rows.astype(np.int64).view(np.uint64)
    counter = np.empty((len(rows), dim, 4), np.uint32)
    counter[:, :, 0] = block
    counter[:, :, 1] = np.frombuffer(table_hash(table), "<u4")[0]
    counter[:, :, 2] = (unsigned & np.uint64(0xFFFFFFFF)).astype(np.uint32)[:, None]
    counter[:, :, 3] = (unsigned >> np.uint64(32)).astype(np.uint32)[:, None]
    words = philox4x32(
        counter.reshape(-1, 4), np.array([key & 0xFFFFFFFF, key >> 32], np.uint32)
    ).reshape(len(rows), dim, 4)
    word = np.take_along_axis(
        words, np.broadcast_to((column % COLUMNS_PER_BLOCK // 32)[:, None], (len(rows), dim, 1)), 2
    )[:, :, 0]
    shift = (column // 16 % 2 * 16).astype(np.uint32)
    out: U32 = (word >> shift) & np.uint32(0xFFFF)
    return out
