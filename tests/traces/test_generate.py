"""Generators: the same bits everywhere (pinned hashes), and the laws that they promise."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiered_embed import traces
from tiered_embed.errors import ConfigError
from tiered_embed.traces import criteo, elementary
from tiered_embed.traces.hashing import scatter


def sha(*arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "1886274b13ab8bf8"),
        ({"exponent": 1.0, "num_rows": 10**12}, "567af08f603341c8"),
        ({"distribution": "log_uniform", "num_rows": 10**12}, "5efa551ff990ca95"),
        ({"distribution": "uniform"}, "67eef5588e2e3824"),
    ],
)
def test_streams_are_pinned(options, expected):
    options = {"num_rows": 100_000, "batch_size": 512, "num_batches": 4, "pooling": 3, **options}
    stream = traces.IdStream(**options, seed=7)
    batches = list(stream)
    assert len(batches) == len(stream) == 4
    for batch in batches:
        assert batch.ids.shape == (1536,)
        assert batch.ids.dtype == batch.offsets.dtype == np.int64
        assert batch.offsets.tolist() == list(range(0, 1536, 3))
        assert batch.ids.min() >= 0
        assert batch.ids.max() < options["num_rows"]
    np.testing.assert_array_equal(stream.batch(2).ids, batches[2].ids)
    assert sha(*(batch.ids for batch in batches)) == expected
    other = traces.IdStream(**options, seed=8)
    assert not np.array_equal(other.batch(0).ids, batches[0].ids)
    with pytest.raises(IndexError):
        stream.batch(4)


@pytest.mark.parametrize(
    ("distribution", "exponent", "weights"),
    [
        ("zipf", 0.0, lambda k: np.ones_like(k)),
        ("zipf", 0.8, lambda k: k**-0.8),
        ("zipf", 1.0, lambda k: 1 / k),
        ("zipf", 1.2, lambda k: k**-1.2),
        ("zipf", 3.0, lambda k: k**-3.0),
        ("log_uniform", 1.0, lambda k: np.log1p(1 / k)),
        ("uniform", 1.0, lambda k: np.ones_like(k)),
    ],
)
@pytest.mark.parametrize("num_rows", [1, 2, 50])
def test_popularity_law(distribution, exponent, weights, num_rows):
    num_draws = 200_000
    stream = traces.IdStream(
        num_rows,
        num_draws,
        1,
        distribution=distribution,
        exponent=exponent,
        scatter_rows=False,
        seed=1,
    )
    counts = np.bincount(stream.batch(0).ids, minlength=num_rows)
    chances = weights(np.arange(1.0, num_rows + 1))
    expected = num_draws * chances / chances.sum()
    # Five standard deviations of a binomial count; the seed is fixed.
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected) + 1).all()


@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_scatter_is_a_permutation(num_rows, seed):
    rows = scatter(np.arange(num_rows), num_rows, seed)
    assert np.array_equal(np.sort(rows), np.arange(num_rows))


def test_elementary_functions_are_accurate():
    x = np.concatenate([np.linspace(-600, 600, 50_001), np.linspace(-0.2, 0.2, 4001), [0.0]])
    np.testing.assert_allclose(elementary.exp(x), np.exp(x), rtol=4e-16)
    positive = np.concatenate([np.exp(np.linspace(-30, 30, 20_001)), [1.0, 2.0**52]])
    np.testing.assert_allclose(elementary.log(positive), np.log(positive), rtol=1e-15, atol=1e-16)
    near = x[(x != 0) & (np.abs(x) < 30)]
    np.testing.assert_allclose(elementary.expm1_over_x(near), np.expm1(near) / near, rtol=5e-15)
    above = near[near > -1]
    np.testing.assert_allclose(elementary.log1p_over_x(above), np.log1p(above) / above, rtol=5e-15)
    zero = np.zeros(1)
    assert elementary.expm1_over_x(zero)[0] == elementary.log1p_over_x(zero)[0] == 1.0


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"num_rows": 0}, r"num_rows must be an integer in \[1, "),
        ({"num_rows": 1.5}, "got 1.5"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"pooling": -1}, "pooling must be"),
        ({"seed": -1}, "seed must be"),
        ({"exponent": float("nan")}, r"exponent must be in \[0, 8\]"),
        ({"distribution": "normal"}, "distribution must be one of zipf, log_uniform, uniform"),
    ],
)
def test_stream_options_are_checked(options, fact):
    with pytest.raises(ConfigError, match=fact):
        traces.IdStream(**{"num_rows": 10, "batch_size": 1, "num_batches": 1, **options})


def test_criteo_log_is_pinned_and_a_longer_one_only_appends(tmp_path):
    path = tmp_path / "log"
    traces.CriteoGenerator(1500, seed=3).write(path)
    text = path.read_bytes()
    assert hashlib.sha256(text).hexdigest()[:16] == "85a7bfd55b27c55c"
    traces.CriteoGenerator(2500, seed=3).write(path)
    assert path.read_bytes().startswith(text)
    traces.CriteoGenerator(1500, seed=4).write(path)
    assert path.read_bytes() != text


def test_criteo_log_reads_back_and_looks_like_one(tmp_path):
    generator = traces.CriteoGenerator(4000, seed=1)
    path = tmp_path / "log"
    generator.write(path)
    blocks = list(generator.blocks())
    (batch,) = traces.CriteoReader(path, traces.CriteoOptions(batch_size=len(generator)))
    np.testing.assert_array_equal(
        batch.ids, np.concatenate([block.categories for block in blocks]).T
    )
    assert 0.15 < batch.labels.mean() < 0.45
    assert (batch.ids == traces.MISSING_ID).any()
    integers = np.concatenate([block.integers for block in blocks])
    assert 0.08 < (integers == criteo.MISSING_INTEGER).mean() < 0.16
    distinct = [len(np.unique(column)) for column in batch.ids]
    assert min(distinct) == 3  # the table of 3 rows
    assert max(distinct) > 1500  # a long tail of rare ids


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"num_lines": -1}, "num_lines must not be negative"),
        ({"num_lines": 1, "seed": -1}, "seed must be in"),
        ({"num_lines": 1, "cardinalities": (5,) * 25}, "cardinalities must be 26"),
        ({"num_lines": 1, "cardinalities": (0,) * 26}, "cardinalities must be 26"),
    ],
)
def test_criteo_generator_options_are_checked(options, fact):
    with pytest.raises(ConfigError, match=fact):
        traces.CriteoGenerator(**options)
