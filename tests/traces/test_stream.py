"""Generated streams: the same ids everywhere, their laws, and the fit to published histograms."""

import hashlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiered_embed import traces
from tiered_embed.errors import ConfigError
from tiered_embed.traces import (
    GeneratedStream,
    GeneratedTable,
    Pooling,
    ReuseHistogram,
    Steps,
    WorkingSet,
    Zipf,
    popularity,
)
from tiered_embed.traces.chunk import CHUNK_IDS
from trace_samples import bags, batches

EVERYTHING = (
    GeneratedTable("zipf", Zipf(10**6, 1.1), Pooling.geometric(3.0, 20), drift_samples=50),
    GeneratedTable("fresh", Zipf(10**12), Pooling.uniform(0, 4), one_hit=0.3),
    GeneratedTable("steps", Steps((1, 9), (0.5, 0.5)), scatter_rows=False),
    GeneratedTable("set", Zipf(10**5, 0.0), working_set=WorkingSet(0.7, 20, 400)),
)


def column(table, num, seed=0):
    """The ids of one table of ``num`` samples."""
    stream = GeneratedStream((table,), 1000, -(-num // 1000), seed)
    return np.concatenate([chunk.table_ids[0][1] for chunk in stream.trace().chunks()])


def sha(trace):
    digest = hashlib.sha256()
    for chunk in trace.chunks():
        for offsets, ids in chunk.table_ids:
            digest.update(offsets.astype("<i8").tobytes() + ids.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def test_streams_are_pinned():
    stream = GeneratedStream(EVERYTHING, 100, 20, seed=7)
    assert sha(stream.trace()) == sha(stream.trace()) == "080b93ccfe9cba77"
    assert sha(replace(stream, seed=8).trace()) != sha(stream.trace())


def test_a_longer_stream_only_appends_and_batches_cut_the_same_samples():
    short, long = (GeneratedStream(EVERYTHING, 10, n).trace() for n in (5, 9))
    assert batches(long)[:5] == batches(short)
    other = GeneratedStream(EVERYTHING, 25, 2).trace()
    assert bags(other) == bags(short) == bags(short.rebatch(7))


def test_chunks_do_not_show(monkeypatch):
    trace = GeneratedStream(EVERYTHING, 10, 30).trace()
    whole = bags(trace)
    monkeypatch.setattr("tiered_embed.traces.stream.CHUNK_IDS", 100)
    assert len(list(trace.chunks())) == 30
    assert bags(trace) == whole


def test_a_stream_knows_its_size():
    trace = GeneratedStream(EVERYTHING, 10, 30).trace()
    assert (trace.num_batches, trace.num_accesses) == (30, None)
    rows = {table.name: table.num_rows for table in trace.tables}
    assert rows == {"zipf": 10**6, "fresh": 10**12 + 300 * 4, "steps": 10, "set": 10**5}
    fixed = GeneratedTable("a", Zipf(10), Pooling.fixed(8))
    trace = GeneratedStream((fixed,), 100_000, 3).trace()
    assert trace.num_accesses == sum(chunk.num_ids for chunk in trace.chunks()) == 2_400_000
    assert max(chunk.num_ids for chunk in trace.chunks()) <= CHUNK_IDS


@pytest.mark.parametrize("exponent", [0.0, 0.8, 1.0, 1.2, 3.0])
@pytest.mark.parametrize("num_rows", [1, 2, 50, 5000])
def test_zipf_law(exponent, num_rows):
    num = 200_000
    ids = column(GeneratedTable("a", Zipf(num_rows, exponent), scatter_rows=False), num, seed=1)
    counts = np.bincount(ids, minlength=num_rows)
    chances = np.arange(1.0, num_rows + 1) ** -exponent
    expected = num * chances / chances.sum()
    # Beyond rank 1024 rows of a step are alike: sums over 100 ranks are compared there.
    cuts = np.append(np.arange(min(num_rows, 1024)), np.arange(1024, num_rows, 100))
    found, wanted = np.add.reduceat(counts, cuts), np.add.reduceat(expected, cuts)
    assert (np.abs(found - wanted) <= 5 * np.sqrt(wanted) + 0.01 * wanted + 1).all()


@pytest.mark.parametrize("num_rows", [1500, 10**6, 10**12])
def test_zipf_steps_have_the_mass_of_their_ranks(num_rows):
    rows, shares = Zipf(num_rows, 1.05).steps()
    assert rows.sum() == num_rows
    assert len(rows) < 1024 + 32 * 40
    ends = np.cumsum(rows)
    for k in (0, 1023, 1024, 1024 + 5):
        if ends[k] - rows[k] < 10**5:
            exact = (np.arange(ends[k] - rows[k] + 1, ends[k] + 1) ** -1.05).sum()
            assert shares[k] == pytest.approx(exact, rel=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60).filter(lambda s: sum(s) > 1e-3))
def test_alias_table_keeps_every_share(shares):
    keep, other = popularity.alias_table(np.array(shares))
    got = np.zeros(len(shares))
    np.add.at(got, np.arange(len(shares)), keep / len(shares))
    np.add.at(got, other, (1 - keep) / len(shares))
    np.testing.assert_allclose(got, np.array(shares) / sum(shares), atol=1e-9)


def test_scattered_rows_are_the_ranks_under_the_package_s_permutation():
    table = GeneratedTable("a", Zipf(5000))
    ranks = column(replace(table, scatter_rows=False), 5000, seed=3)
    np.testing.assert_array_equal(
        column(table, 5000, seed=3), traces.hashing.scatter(ranks, 5000, 3)
    )


def test_one_hit_rows_occur_once_and_above_the_others():
    ids = column(GeneratedTable("a", Zipf(100), one_hit=0.25), 100_000)
    fresh = ids[ids >= 100]
    assert len(np.unique(fresh)) == len(fresh)
    assert abs(len(fresh) - 25_000) < 5 * np.sqrt(25_000)
    assert (np.diff(fresh) > 0).all()


def test_drift_ages_every_row_by_a_rank():
    table = GeneratedTable("a", Zipf(1000, 1.2), drift_samples=1000, scatter_rows=False)
    still = column(replace(table, drift_samples=None), 20_000)
    ages = np.arange(20_000) // 1000
    np.testing.assert_array_equal(column(table, 20_000), (still - ages) % 1000)


def test_a_working_set_has_its_share_its_size_and_its_life():
    table = GeneratedTable("a", Zipf(10**9, 0.0), working_set=WorkingSet(0.6, 50, 10_000))
    ids = column(table, 40_000)
    now = ids[20_000:21_000]
    distinct, uses = np.unique(now, return_counts=True)
    members = set(distinct[uses > 1].tolist())
    assert 45 <= len(members) <= 60  # 50, and those that took a place meanwhile
    assert abs(uses[uses > 1].sum() - 600) < 100
    assert len(members & set(ids[24_900:25_100].tolist())) in range(15, 36)  # half have left
    assert not members & set(ids[31_000:].tolist())


def test_pooling_laws():
    for pooling, mean in (
        (Pooling.fixed(5), 5.0),
        (Pooling.uniform(2, 8), 5.0),
        (Pooling.geometric(4.0, 1000), 4.0),
        (Pooling((1.0, 0.0, 3.0)), 1.5),
    ):
        assert pooling.mean == pytest.approx(mean)
        trace = GeneratedStream((GeneratedTable("a", Zipf(10), pooling),), 1000, 20).trace()
        lengths = np.concatenate([np.diff(chunk.bags.starts[0]) for chunk in trace.chunks()])
        found = np.bincount(lengths, minlength=len(pooling.weights)) / 20_000
        wanted = np.array(pooling.weights) / sum(pooling.weights)
        assert np.abs(found - wanted).max() < 0.02
    assert Pooling.geometric(1.0, 3).constant == 1


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (lambda: Zipf(0), r"num_rows must be in \[1, 2\*\*52\], got 0"),
        (lambda: Zipf(5, 9.0), r"exponent must be in \[0, 8\], got 9.0"),
        (lambda: Steps((), ()), "one share per class"),
        (lambda: Steps((1,), (1.0, 2.0)), "one share per class"),
        (lambda: Steps((0,), (1.0,)), "at least 1 row per class"),
        (lambda: Steps((1,), (0.0,)), "not all 0"),
        (lambda: Steps((1,), (float("nan"),)), "must be finite"),
        (lambda: Pooling(()), "pooling weights"),
        (lambda: Pooling.fixed(0), "at least 1"),
        (lambda: Pooling.uniform(3, 2), "least <= most"),
        (lambda: Pooling.geometric(0.5, 2), "mean >= 1"),
        (lambda: WorkingSet(2.0, 1, 1), "share must be in"),
        (lambda: WorkingSet(0.5, 0, 1), "at least 1 row"),
        (lambda: GeneratedTable("a", Zipf(1), one_hit=1.5), "'a': one_hit is 1.5"),
        (
            lambda: GeneratedTable("a", Zipf(1), one_hit=0.5, working_set=WorkingSet(0.6, 1, 1)),
            "each of them and their sum must be in",
        ),
        (lambda: GeneratedTable("a", Zipf(1), drift_samples=0), "drift_samples must be"),
        (lambda: GeneratedStream((), 1, 1), "at least one table"),
        (lambda: GeneratedStream(EVERYTHING, 0, 1), "batch must be at least 1"),
        (lambda: GeneratedStream(EVERYTHING, 1, -1), "num_batches must not be negative"),
        (lambda: GeneratedStream(EVERYTHING, 1, 1, -1), "seed must be in"),
        (lambda: GeneratedStream(EVERYTHING, 1, 1 << 60), "more than 2"),
        (lambda: ReuseHistogram((1.0,), (1.0,), 1.0), "a histogram of 17 buckets"),
        (lambda: ReuseHistogram((0.5,), (1.0,), 1.0, (0,)), "shares of rows sum to 0.5"),
        (lambda: ReuseHistogram((1.0,), (1.0,), 0.5, (0,)), "mean_uses must be at least 1"),
        (lambda: ReuseHistogram.of_counts([]), "at least one row"),
    ],
)
def test_arguments_are_checked(make, fact):
    with pytest.raises(ConfigError, match=fact):
        make()


def test_without_numba_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tiered_embed.traces.sampler", None)
    trace = GeneratedStream(EVERYTHING, 1, 1).trace()
    with pytest.raises(ConfigError, match=r"pip install 'tiered_embed\[sim\]'"):
        list(trace.chunks())


# --- histograms and the fit -------------------------------------------------------------------


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=50))
def test_a_histogram_counts_rows_and_accesses(uses):
    histogram = ReuseHistogram.of_counts(uses)
    for b, low in enumerate(histogram.edges):
        high = histogram.edges[b + 1] if b + 1 < len(histogram.edges) else 1 << 62
        inside = [n for n in uses if low < n <= high]
        assert histogram.rows[b] == pytest.approx(len(inside) / len(uses))
        assert histogram.accesses[b] == pytest.approx(sum(inside) / sum(uses))
    assert histogram.mean_uses == pytest.approx(sum(uses) / len(uses))


def test_published_histograms_are_read(data_file):
    (first,) = traces.read_locality(data_file("dlrm_2021_locality.txt"))
    assert first.name == "fbgemm_t856_bs65536.pt"
    assert first.mean_uses == pytest.approx(887017990 / 128435723)
    assert first.rows[:3] == (0.473, 0.152, 0.139)
    assert first.accesses[-1] == 0.019
    assert first.labels()[0] == "(0, 1]"
    assert first.labels()[-1] == "(32768, ...)"


@pytest.mark.parametrize(
    ("text", "fact"),
    [("", "no line starts with"), ("a\nLocality stats\nAvg # of indices: 5\n", "line 2: .* has 0")],
)
def test_malformed_histograms(tmp_path, text, fact):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ConfigError, match=fact):
        traces.read_locality(tmp_path / "a.txt")


def counted_shares(ids, edges):
    """Shares of rows and accesses per bucket, counted without the package."""
    uses = np.bincount(ids)
    uses = uses[uses > 0]
    borders = [*edges, np.inf]
    inside = [(uses > low) & (uses <= high) for low, high in itertools.pairwise(borders)]
    rows = np.array([mask.sum() for mask in inside]) / len(uses)
    return rows, np.array([uses[mask].sum() for mask in inside]) / uses.sum()


@pytest.mark.parametrize("year", [2021, 2022])
def test_a_calibrated_stream_has_meta_s_histogram(data_file, year):
    published = traces.read_locality(data_file(f"dlrm_{year}_locality.txt"))[0]
    fit = traces.calibrate(published, window=1 << 22)
    assert fit.error < 0.01
    trace = fit.trace(2 * fit.window, batch=4096, seed=1)
    ids = np.concatenate([chunk.table_ids[0][1] for chunk in trace.chunks()])
    assert len(ids) == 2 * fit.window
    for window in (ids[: fit.window], ids[fit.window :]):
        rows, accesses = counted_shares(window, published.edges)
        assert np.abs(rows - published.rows).max() < 0.02
        assert np.abs(accesses - published.accesses).max() < 0.02
        # What the fit promises is what the stream has.
        assert np.abs(rows - fit.expected.rows).max() < 0.005
        assert np.abs(accesses - fit.expected.accesses).max() < 0.005


@pytest.mark.parametrize("exponent", [0.5, 0.8, 1.0, 1.2])
def test_a_measured_stream_can_be_imitated(exponent):
    table = GeneratedTable("a", Zipf(30_000, exponent), one_hit=0.1)
    ids = column(table, 1 << 19)[: 1 << 19]
    measured = ReuseHistogram.of_counts(np.unique(ids, return_counts=True)[1])
    fit = traces.calibrate(measured, window=len(ids))
    again = np.concatenate([c.table_ids[0][1] for c in fit.trace().chunks()])
    uses = np.unique(again, return_counts=True)[1]

    assert ReuseHistogram.of_counts(uses).error(measured) < 0.01
    assert fit.error < 0.005


def test_a_window_too_small_is_refused():
    with pytest.raises(ConfigError, match="window must be at least 65536 accesses, got 100"):
        traces.calibrate(ReuseHistogram.of_counts([1]), 100)
