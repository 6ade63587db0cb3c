"""The streamed form: batches, cutting anew, range checks, selections."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trace_samples
from tiered_embed import traces
from tiered_embed.errors import ConfigError, IdRangeError
from tiered_embed.traces import Trace, TraceChunk, TraceTable
from tiered_embed.traces.chunk import CHUNK_IDS
from trace_samples import bags, batches


@given(st.lists(st.integers(-5, 5), max_size=40), st.integers(1, 12))
def test_an_array_in_batches(ids, batch):
    trace = Trace.from_ids(np.array(ids, np.int32), batch, "user")
    expected = [[ids[i : i + batch]] for i in range(0, len(ids), batch)]
    assert batches(trace) == batches(trace) == expected
    assert (trace.num_batches, trace.num_accesses) == (len(expected), len(ids))
    assert trace.tables == (TraceTable("user", None),)


def test_chunks_are_bounded_and_hold_whole_batches():
    trace = Trace.from_ids(np.arange(3 * CHUNK_IDS), 1000)
    sizes = [chunk.num_ids for chunk in trace.chunks()]
    assert len(sizes) == 4
    assert max(sizes) <= CHUNK_IDS
    assert all(size % 1000 == 0 for size in sizes[:-1])
    (whole,) = Trace.from_ids(np.arange(3 * CHUNK_IDS), 3 * CHUNK_IDS).chunks()
    assert whole.num_batches == 1


def test_columns_are_tables():
    trace = Trace.from_columns({"a": [1, 2, 3], "b": [7, 8, 9]}, 2, {"b": 10})
    assert batches(trace) == [[[1, 2], [7, 8]], [[3], [9]]]
    assert trace.tables == (TraceTable("a", None), TraceTable("b", 10))
    assert bags(trace) == [[[1], [7]], [[2], [8]], [[3], [9]]]


@given(trace_samples.traces(with_bags=True), st.integers(1, 9))
def test_rebatch_keeps_every_sample(trace, batch):
    again = trace.rebatch(batch)
    assert bags(again) == bags(trace)
    sizes = [np.diff(chunk.bags.samples).tolist() for chunk in again.chunks()]
    flat = list(itertools.chain(*sizes))
    total = len(bags(trace))
    assert flat == [batch] * (total // batch) + [total % batch] * (total % batch > 0)
    for chunk in again.chunks():
        for (cuts, _), starts in zip(chunk.table_ids, chunk.bags.starts, strict=True):
            samples = chunk.bags.samples
            np.testing.assert_array_equal(cuts, samples if starts is None else starts[samples])


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 9), st.integers(1, 9))
def test_rebatch_of_one_table_cuts_ids(ids, before, after):
    trace = Trace.from_ids(np.array(ids, np.int64), before).rebatch(after)
    assert batches(trace) == [[ids[i : i + after]] for i in range(0, len(ids), after)]


def test_rebatch_over_many_chunks():
    ids = np.arange(2 * CHUNK_IDS + 7)
    again = list(Trace.from_ids(ids, 1000).rebatch(999).chunks())
    np.testing.assert_array_equal(np.concatenate([chunk.table_ids[0][1] for chunk in again]), ids)
    assert max(chunk.num_ids for chunk in again) <= CHUNK_IDS + 1000


def test_rebatch_needs_samples_for_several_tables():
    one = np.array([0, 1]), np.array([5])
    trace = Trace([TraceTable("a"), TraceTable("b")], lambda: iter([TraceChunk((one, one))]))
    with pytest.raises(ConfigError, match="a trace of 2 tables without bags cannot be split"):
        list(trace.rebatch(1))
    with pytest.raises(ConfigError, match="batch must be at least 1, got 0"):
        trace.rebatch(0)


@pytest.mark.parametrize("bad", [-1, 10, 2**63 - 1])
def test_an_id_out_of_range_is_named(bad):
    ids = np.zeros(CHUNK_IDS + 100, np.int64)
    ids[CHUNK_IDS + 17] = bad
    trace = Trace.from_ids(ids, 1024, "user", num_rows=10)
    fact = rf"'user': id {bad} at access {CHUNK_IDS + 17} of the table \(batch 1024\) .* \[0, 10\)"
    with pytest.raises(IdRangeError, match=fact):
        list(trace.chunks())
    assert len(list(itertools.islice(trace.chunks(), 1))) == 1


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (lambda: Trace.from_ids([1.5]), "ids are float64"),
        (lambda: Trace.from_ids([[1]]), r"of shape \(1, 1\)"),
        (lambda: Trace.from_ids(np.array([1, 2**63], np.uint64)), "position 1 is beyond int64"),
        (lambda: Trace.from_ids([1], batch=0), "batch must be at least 1"),
        (lambda: Trace.from_ids([1], num_rows=0), "num_rows must be at least 1"),
        (
            lambda: Trace.from_columns({"a": [1], "b": [1, 2]}),
            "the columns of a trace must be equally long",
        ),
        (lambda: Trace([], lambda: iter([])), "at least one table"),
        (lambda: Trace([TraceTable("a")] * 2, lambda: iter([])), "'a' is in the trace twice"),
        (lambda: TraceTable(""), "needs a name"),
        (lambda: traces.head(Trace.from_ids([1]), -1), "must not be negative"),
        (lambda: traces.sample(Trace.from_ids([1]), 0.0), r"rate must be in \(0, 1\]"),
        (lambda: traces.sample(Trace.from_ids([1]), 0.5, -1), r"seed must be in"),
    ],
)
def test_arguments_are_checked(make, fact):
    with pytest.raises(ConfigError, match=fact):
        make()


@given(trace_samples.traces(), st.integers(0, 12))
def test_head_is_a_prefix(trace, count):
    assert batches(traces.head(trace, count)) == batches(trace)[:count]


def test_head_reads_no_further():
    def source():
        yield from Trace.from_ids([1, 2], 1).chunks()
        raise AssertionError("read on")

    assert batches(traces.head(Trace([TraceTable("a")], source), 2)) == [[[1]], [[2]]]


@given(trace_samples.traces(), st.integers(0, 2**64 - 1))
def test_a_sample_keeps_all_uses_of_its_rows_and_their_bags(trace, seed):
    kept = traces.sample(trace, 0.5, seed)
    chosen = [set() for _ in trace.tables]
    for parts in kept:
        for own, ids in zip(chosen, parts, strict=True):
            own.update(ids.tolist())

    def filtered(nested):
        return [
            [[i for i in ids if i in own] for own, ids in zip(chosen, parts, strict=True)]
            for parts in nested
        ]

    assert batches(kept) == filtered(batches(trace))
    if all(chunk.bags is not None for chunk in trace.chunks()):
        assert bags(kept) == filtered(bags(trace))


def test_a_sample_has_its_rate_and_follows_its_seed():
    trace = Trace.from_columns({"a": np.arange(100_000), "b": np.arange(100_000)})
    kept = list(traces.sample(trace, 0.1))
    a, b = (set(np.concatenate([parts[t] for parts in kept]).tolist()) for t in (0, 1))
    assert abs(len(a) - 10_000) < 500  # five standard deviations
    assert len(a & b) < 1500
    assert batches(traces.sample(trace, 0.1, 1)) != batches(traces.sample(trace, 0.1))
    assert traces.sample(trace, 1.0) is trace


@given(trace_samples.traces())
def test_rows_are_counted(trace):
    counted = traces.count_rows(trace)
    for t, counts in enumerate(counted):
        ids = np.concatenate([np.empty(0, np.int64), *(parts[t] for parts in trace)])
        distinct, uses = np.unique(ids, return_counts=True)
        np.testing.assert_array_equal(counts.ids, distinct)
        np.testing.assert_array_equal(counts.uses, uses)


def test_the_package_stays_light():
    code = (
        "import sys, tiered_embed, tiered_embed.traces, tiered_embed.cli;"
        "print([m for m in ('numba', 'pyarrow', 'zstandard') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
