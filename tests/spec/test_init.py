"""Initial values: Philox against published vectors, the kernels against the reference."""

import numpy as np
import pytest

import tiered_embed as te
from tiered_embed import _native
from tiered_embed.spec.identity import table_hash
from tiered_embed.spec.init import Constant, Uniform, philox4x32, reference

# Known-answer vectors of Random123 (kat_vectors, philox4x32 with 10 rounds).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_known_answers(counter, key, words) -> None:
    got = philox4x32(np.array([counter], np.uint32), np.array(key, np.uint32))
    assert tuple(got[0].tolist()) == words


@pytest.mark.parametrize("dim", [1, 3, 4, 16, 130])
@pytest.mark.parametrize("init", [Uniform(-0.01, 0.01), Uniform(0.0, 3.0), Constant(1.5)])
def test_native_equals_reference(dim: int, init: Uniform | Constant) -> None:
    rows = np.array([0, 1, 2**31, 2**32 + 7, 2**63 - 1, -1, -(2**63)], np.int64)
    seed = 0x0123456789ABCDEF
    out = np.empty((len(rows), dim), np.float32)
    word = np.frombuffer(table_hash("user"), "<u4")[0]
    lo = np.float32(init.lo)
    scale = float(np.float32(init.hi) - lo)
    _native.initial_weights(np.full(len(rows), word, np.uint32), rows, seed, lo, scale, out)
    np.testing.assert_array_equal(out, reference(init, seed, "user", rows, dim))


def test_values_depend_on_seed_table_and_row_only() -> None:
    rows = np.arange(1000, dtype=np.int64)
    base = reference(Uniform(), 1, "a", rows, 8)
    assert base.min() >= np.float32(-0.01)
    assert base.max() < np.float32(0.01)
    assert abs(float(base.mean())) < 5e-4
    assert not np.array_equal(base, reference(Uniform(), 2, "a", rows, 8))
    assert not np.array_equal(base, reference(Uniform(), 1, "b", rows, 8))
    np.testing.assert_array_equal(base[500:], reference(Uniform(), 1, "a", rows[500:], 8))


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_bad_bounds(bounds: tuple[float, float]) -> None:
    with pytest.raises(te.ConfigError, match="finite bounds"):
        Uniform(*bounds)


def test_bounds_whose_range_float32_cannot_hold() -> None:
    with pytest.raises(te.ConfigError, match="hi - lo is beyond float32"):
        Uniform(-3e38, 3e38)
    widest = Uniform(-1.7e38, 1.7e38)
    rows = reference(widest, 0, "a", np.arange(50, dtype=np.int64), 8)
    assert np.isfinite(rows).all()
