"""How rows are stored: conversions to and from 16 bits, stochastic rounding, int8 rows.

The kernels' conversions are reached through training and lookup, under every instruction set.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import tiered_embed as te
from tiered_embed import _native
from tiered_embed.spec.row_formats import (
    TYPE_NUMBERS,
    decode,
    encode,
    round_nearest,
    round_stochastic,
)

SIXTEEN = ["float16", "bfloat16"]
PATTERNS = np.arange(65536, dtype=np.uint16)


@pytest.fixture(params=_native.available_isas())
def isa(request) -> Iterator[str]:
    before = _native.current_isa()
    _native.select_isa(request.param)
    yield request.param
    _native.select_isa(before)


def by_torch(patterns: np.ndarray, dtype: str) -> np.ndarray:
    """16-bit patterns as float32."""
    bits = torch.from_numpy(patterns.view(np.int16))
    return bits.view(getattr(torch, dtype)).to(torch.float32).numpy()


def hard_values(dtype: str) -> np.ndarray:
    """float32: every number of the type, every tie between two and its neighbours, and the ends."""
    every = by_torch(PATTERNS, dtype)
    exact = np.unique(every[np.isfinite(every)])
    ties = ((exact[1:].astype(np.float64) + exact[:-1]) / 2).astype(np.float32)
    around = [np.nextafter(x, np.float32(to)) for x in (exact, ties) for to in (-np.inf, np.inf)]
    tiny = np.arange(0, 3000, dtype=np.uint32).view(np.float32)
    ends = np.array([65504, 65519.996, 65520, 65535.996, 65536, 3.3895314e38, 3.4028235e38])
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)
    ends = ends.astype(np.float32)
    draw = np.random.default_rng(0).integers(0, 2**32, 50000, np.uint32).view(np.float32)
    draw[np.isnan(draw)] = np.nan  # quiet ones: NumPy warns of the others
    return np.concatenate([exact, ties, *around, tiny, -tiny, ends, -ends, special, draw])


def in_rows(values: np.ndarray, dim: int) -> np.ndarray:
    """(n, dim), the last row filled up with ones."""
    return np.append(values, np.ones(-len(values) % dim, np.float32)).reshape(-1, dim)


def from_zero(values: np.ndarray) -> np.ndarray:
    """``0 + values``: what a sum gives, which takes the sign of -0."""
    with np.errstate(invalid="ignore"):
        return np.float32(0) + values


def same(got: np.ndarray, wanted: np.ndarray) -> None:
    """Bit for bit, with any NaN for a NaN."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    number = ~np.isnan(wanted)
    np.testing.assert_array_equal(got[number].view(np.uint32), wanted[number].view(np.uint32))


def module(dim: int, dtype: str, **options: Any) -> te.TieredEmbedding:
    options = {
        "optimizer": te.optim.SGD(lr=1.0),
        "init": te.init.Constant(0.0),
        "output_dtype": torch.float32,
        "on_nonfinite": "allow",
        **options,
    }
    return te.TieredEmbedding(
        None, dim, tiers=te.Tiers(ddr="64MiB"), dtype=getattr(torch, dtype), **options
    )


def store_by_training(emb: te.TieredEmbedding, ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What rows that are zero read as after a step of SGD with lr 1 and gradient ``-values``."""
    emb(torch.from_numpy(ids)).backward(torch.from_numpy(-values))
    return emb.rows(ids).to(torch.float32).numpy()


# --- conversions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_the_reference_rounds_as_torch(dtype: str) -> None:
    values = hard_values(dtype)
    same(
        round_nearest(values, dtype),
        torch.from_numpy(values).to(getattr(torch, dtype)).float().numpy(),
    )


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_native_rows_are_the_references(dtype: str) -> None:
    """Of rows that are initialised, loaded and read: the plain conversions."""
    nothing = np.empty((1, 0), np.float32)
    wide = np.empty((1, 65536), np.float32)
    _native.decode_rows(PATTERNS.view(np.uint8)[None], TYPE_NUMBERS[dtype], nothing, wide)
    same(wide[0], by_torch(PATTERNS, dtype))
    same(decode(PATTERNS.view(np.uint8)[None], nothing, dtype)[0], by_torch(PATTERNS, dtype))
    values = hard_values(dtype)[None]
    rows = np.empty((1, 2 * values.size), np.uint8)
    _native.encode_rows(values, TYPE_NUMBERS[dtype], rows, nothing)
    np.testing.assert_array_equal(rows, encode(values, dtype)[0])


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_kernels_read_all_65536(dtype: str, isa: str) -> None:
    wanted = by_torch(PATTERNS, dtype)
    for dim in (128, 37):
        rows = in_rows(wanted, dim)
        with module(dim, dtype) as emb:
            ids = torch.arange(len(rows))
            emb.load_rows(ids, torch.from_numpy(rows).to(getattr(torch, dtype)))
            same(emb.rows(ids).float().numpy(), rows)
            same(emb(ids).detach().numpy(), from_zero(rows))


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_kernels_round_to_nearest(dtype: str, isa: str) -> None:
    values = hard_values(dtype)
    for dim in (128, 37):
        rows = in_rows(values, dim)
        with module(dim, dtype) as emb:
            got = store_by_training(emb, np.arange(len(rows)), rows)
            same(got, round_nearest(from_zero(rows), dtype))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", SIXTEEN)
def test_minus_zero_stays(dtype: str, rounding: str, isa: str) -> None:
    with module(20, dtype, rounding=rounding) as emb:
        emb.load_rows([0], torch.full((1, 20), -0.0))
        emb(torch.tensor([0])).backward(torch.zeros(1, 20))
        assert torch.signbit(emb.rows([0])).all()


# --- stochastic rounding --------------------------------------------------------------------------


def toward_zero(values: np.ndarray, dtype: str) -> np.ndarray:
    """The largest number of the type that is no larger in magnitude."""
    near = round_nearest(values, dtype)
    bits = torch.from_numpy(near).to(getattr(torch, dtype)).view(torch.int16).numpy()
    below = by_torch((bits - np.int16(1)).view(np.uint16), dtype)
    return np.where(np.abs(near) > np.abs(values), below, near)


def away_from_zero(values: np.ndarray, dtype: str) -> np.ndarray:
    below = toward_zero(values, dtype)
    bits = torch.from_numpy(below).to(getattr(torch, dtype)).view(torch.int16).numpy()
    above = by_torch((bits + np.int16(1)).view(np.uint16), dtype)
    above = np.copysign(above, values)
    return np.where(below == values, values, above)


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_kernels_round_as_the_stochastic_reference(dtype: str, isa: str) -> None:
    values = hard_values(dtype)
    for step, dim in ((1, 130), (3, 37)):
        rows = in_rows(values, dim)
        ids = np.arange(len(rows), dtype=np.int64) * 7 - len(rows)
        ids[:2] = [2**62 + 5, -(2**63)]
        with module(dim, dtype, rounding="stochastic", seed=2**63 + 3, name="one") as emb:
            for _ in range(step - 1):
                emb(torch.tensor([2**61])).backward(torch.zeros(1, dim))
            wanted = round_stochastic(
                from_zero(rows), dtype, seed=2**63 + 3, step=step, table="one", rows=ids
            )
            same(store_by_training(emb, ids, rows), wanted)


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_stochastic_rounding_takes_one_of_two_neighbours(dtype: str) -> None:
    values = hard_values(dtype)
    values = in_rows(values[np.isfinite(values)], 128)
    below, above = toward_zero(values, dtype), away_from_zero(values, dtype)
    seen = np.zeros((2, *values.shape), bool)
    for step in range(1, 9):
        ids = np.arange(len(values))
        got = round_stochastic(values, dtype, seed=1, step=step, table="t", rows=ids)
        assert ((got == below) | (got == above)).all()
        np.testing.assert_array_equal(np.signbit(got), np.signbit(values))
        seen |= [got == below, got == above]
    # Ties go both ways nearly always; what the type holds never moves.
    between = below != above
    assert (seen[0] & seen[1])[between].mean() > 0.5
    np.testing.assert_array_equal(below[~between], values[~between])


@pytest.mark.parametrize("share", [2.0**-13, 0.1, 1 / 3, 0.5, 0.9])
@pytest.mark.parametrize(
    ("dtype", "base", "place"),
    [
        ("float16", 1.0, 2.0**-10),
        ("float16", -3.0, -(2.0**-9)),
        ("float16", 5 * 2.0**-24, 2.0**-24),
        ("float16", 0.0, 2.0**-24),
        ("bfloat16", 1.0, 2.0**-7),
        ("bfloat16", -100.0, -0.5),
    ],
)
def test_stochastic_rounding_is_unbiased(
    dtype: str, base: float, place: float, share: float
) -> None:
    """The mean of 2**18 draws is within four standard errors."""
    value = np.float32(base + share * place)
    exact_share = (float(value) - base) / place
    values = np.full((1024, 128), value)
    ups = []
    for step in (1, 2):
        got = round_stochastic(values, dtype, seed=9, step=step, table="t", rows=np.arange(1024))
        ups.append((got.astype(np.float64) - base) / place)
    found = np.array(ups)
    assert set(np.unique(found)) <= {0.0, 1.0}
    standard_error = np.sqrt(exact_share * (1 - exact_share) / found.size)
    # The dropped part counts in units of 2**-16.
    assert abs(found.mean() - exact_share) < 4 * standard_error + 2.0**-16


def test_draws_are_independent() -> None:
    """Between columns, rows, steps, tables and seeds, as far as correlation tells."""

    def draws(seed: int = 1, step: int = 1, table: str = "t", first: int = 0) -> np.ndarray:
        values = np.full((512, 256), np.float32(1 + 2.0**-8))
        rows = np.arange(first, first + 512)
        got = round_stochastic(values, "bfloat16", seed=seed, step=step, table=table, rows=rows)
        return got.astype(np.float64) > 1

    one = draws()
    others = [
        np.roll(one, 1, 0),
        *(np.roll(one, n, 1) for n in (1, 16, 32, 64, 128)),
        draws(step=2),
        draws(step=1 + 2**32),
        draws(seed=2),
        draws(table="u"),
        draws(first=512),
        draws(first=2**32),
    ]
    assert abs(one.mean() - 0.5) < 4 * 0.5 / np.sqrt(one.size)
    for other in others:
        correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(one.size)


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_a_row_rounds_the_same_in_any_company(dtype: str) -> None:
    """What it becomes depends on seed, table, row and step, and on nothing else of the batch."""
    rng = np.random.default_rng(2)
    values = rng.standard_normal((50, 70)).astype(np.float32)

    def trained(ids: np.ndarray, **options: Any) -> np.ndarray:
        with module(70, dtype, rounding="stochastic", **options) as emb:
            for start in (0, 20):  # two steps: the second alone has row 31
                part = ids[(ids >= start) & (ids < start + 20)]
                emb(torch.from_numpy(part)).backward(torch.from_numpy(-values[part]))
            return emb.rows([31]).float().numpy()

    alone = trained(np.array([3, 31]), num_threads=1)
    order = rng.permutation(50)
    np.testing.assert_array_equal(trained(order, num_threads=2), alone)
    np.testing.assert_array_equal(trained(order, name="table", seed=0), alone)
    assert (trained(order, name="other") != alone).mean() > 0.1
    assert (trained(order, seed=1) != alone).mean() > 0.1


def test_small_updates_add_up_in_the_mean() -> None:
    """A tenth of a place at a time: to nearest nothing ever moves, stochastically the mean does."""
    moved = {}
    for rounding in ("nearest", "stochastic"):
        with module(128, "bfloat16", rounding=rounding) as emb:
            ids = torch.arange(16)
            emb.load_rows(ids, torch.ones(16, 128))
            for _ in range(100):
                emb(ids).backward(torch.full((16, 128), -0.1 * 2.0**-7))
            moved[rounding] = float((emb.rows(ids).double().mean() - 1) / 2.0**-7)
    assert moved["nearest"] == 0
    deviation = np.sqrt(100 * 0.1 * 0.9 / (16 * 128))
    assert abs(moved["stochastic"] - 10) < 4 * deviation


# --- int8 -----------------------------------------------------------------------------------------


def int8_rows(dim: int) -> np.ndarray:
    rng = np.random.default_rng(dim)
    rows = rng.standard_normal((40, dim)).astype(np.float32)
    rows *= 10.0 ** rng.integers(-6, 7, (40, 1)).astype(np.float32)
    rows[3] = 0.0
    rows[4] = np.float32(-1.7)  # constant
    rows[5] += 1000.0  # far from zero
    rows[6] = np.linspace(-1, 1, dim)
    rows[7, 0] = 100.0  # one that stands out
    return rows


@pytest.mark.parametrize("dim", [1, 2, 16, 37, 128])
def test_int8_rows(dim: int, isa: str) -> None:
    values = int8_rows(dim)
    rows, scale_bias = encode(values, "int8")
    wanted = decode(rows, scale_bias, "int8")
    native_rows = np.empty_like(rows)
    native_scale_bias = np.empty_like(scale_bias)
    _native.encode_rows(values, TYPE_NUMBERS["int8"], native_rows, native_scale_bias)
    np.testing.assert_array_equal(native_rows, rows)
    np.testing.assert_array_equal(native_scale_bias, scale_bias)

    scale = scale_bias[:, :1].astype(np.float64)
    computed = 4 * np.spacing(np.abs(values).max(1, keepdims=True))  # the float32 around it
    assert (np.abs(wanted - values.astype(np.float64)) <= scale / 2 + computed).all()
    np.testing.assert_array_equal(wanted[3:5], values[3:5])
    np.testing.assert_array_equal(wanted.min(1), values.min(1))

    with te.TieredEmbeddingBag(
        40, dim, tiers=te.Tiers(ddr="1MiB"), optimizer=None, dtype=torch.int8
    ) as emb:
        emb.load_rows(torch.arange(40), torch.from_numpy(values))
        np.testing.assert_array_equal(emb.rows(np.arange(40)).numpy(), wanted)
        state = emb.optimizer_state(np.arange(40))
        np.testing.assert_array_equal(torch.cat([state["scale"], state["bias"]], 1), scale_bias)
        out = emb(torch.arange(40), torch.arange(40))
        np.testing.assert_array_equal(out.numpy(), from_zero(wanted))
        ids = torch.tensor([[3, 9, 9, 31], [0, 1, 2, 5]])
        pooled = wanted[ids.numpy()]
        total = np.zeros((2, dim), np.float32)
        for i in range(4):
            total = total + pooled[:, i]
        np.testing.assert_array_equal(emb(ids).numpy(), total)


@pytest.mark.parametrize("dim", [1, 2, 16, 37])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_int8_rows_with_a_nan_or_an_infinity_are_nan(bad: float, dim: int) -> None:
    """Wherever it is: a NaN that was not first lost every comparison."""
    values = np.concatenate([int8_rows(dim)[: dim + 2], int8_rows(dim)])
    for c in range(dim):
        values[c % len(values), c] = bad
    expected = ~np.isfinite(values).all(axis=1)
    assert expected.any()
    assert not expected.all()
    rows, scale_bias = encode(values, "int8")
    native_rows = np.empty_like(rows)
    native_scale_bias = np.empty_like(scale_bias)
    _native.encode_rows(values, TYPE_NUMBERS["int8"], native_rows, native_scale_bias)
    np.testing.assert_array_equal(native_rows, rows)
    np.testing.assert_array_equal(native_scale_bias.view(np.int32), scale_bias.view(np.int32))
    got = np.empty_like(values)
    _native.decode_rows(native_rows, TYPE_NUMBERS["int8"], native_scale_bias, got)
    assert np.isnan(got[expected]).all()
    np.testing.assert_array_equal(
        got[~expected], decode(*encode(values[~expected], "int8"), "int8")
    )


def test_int8_rows_beyond_float32s_range_are_nan() -> None:
    values = np.array([[-3e38, 0, 3e38], [3e38, 1e38, 2e38]], np.float32)
    rows, scale_bias = encode(values, "int8")
    native = np.empty_like(rows), np.empty_like(scale_bias)
    _native.encode_rows(values, TYPE_NUMBERS["int8"], *native)
    np.testing.assert_array_equal(native[0], rows)
    np.testing.assert_array_equal(native[1].view(np.int32), scale_bias.view(np.int32))
    assert np.isnan(scale_bias[0]).all()
    assert np.isfinite(decode(rows, scale_bias, "int8")[1]).all()


def test_scale_and_bias_have_a_place_for_every_row() -> None:
    values = np.zeros((3, 4), np.float32)
    rows = np.empty((3, 4), np.uint8)
    for shape in ((2, 2), (3, 1), (3, 0)):
        short = np.zeros(shape, np.float32)
        with pytest.raises(ValueError, match=r"differ in number|scale and bias"):
            _native.encode_rows(values, TYPE_NUMBERS["int8"], rows, short)
        with pytest.raises(ValueError, match=r"differ in number|scale and bias"):
            _native.decode_rows(rows, TYPE_NUMBERS["int8"], short, values)


@pytest.mark.parametrize(
    "bad", [[1, np.nan, 3], [np.nan, 1, 3], [1, np.inf, 3], [1, -np.inf, 3], [-3e38, 0, 3e38]]
)
def test_int8_rows_have_a_finite_range(bad: list[float]) -> None:
    with module(3, "int8", optimizer=None) as emb:
        rows = torch.tensor([[1.0, 2.0, 3.0], bad])
        with pytest.raises(te.ConfigError, match=r"position 1 range from .* finite weights"):
            emb.load_rows([4, 5], rows)
        assert torch.equal(emb.rows([4, 5]), torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [*SIXTEEN, "int8"])
@pytest.mark.parametrize("dim", [1, 2, 3, 5, 37])
def test_the_state_of_one_row(dtype: str, dim: int) -> None:
    """Beside weights of any number of bytes."""
    optimizer = None if dtype == "int8" else te.optim.Adam(lr=0.1)
    with module(dim, dtype, optimizer=optimizer) as emb:
        values = torch.linspace(-1, 1, 3 * dim).view(3, dim)
        emb.load_rows([0, 1, 2], values)
        if optimizer is not None:
            emb(torch.arange(3)).backward(values)
        several = emb.optimizer_state([0, 1, 2])
        for row in range(3):
            for name, array in emb.optimizer_state([row]).items():
                assert torch.equal(array, several[name][row : row + 1]), name
            assert torch.equal(emb.rows([row]), emb.rows([0, 1, 2])[row : row + 1])
