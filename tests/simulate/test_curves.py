"""Miss-ratio curves: the exact one against replays of single sizes, the others against it."""

import numpy as np
import pytest

from tiered_embed import simulate, traces
from tiered_embed.errors import ConfigError
from tiered_embed.simulate import (
    aet,
    belady,
    che,
    lru,
    lru_curve,
    mini_simulation,
    misses_of,
    sampled,
    shards,
)
from tiered_embed.simulate.curve import even_sizes
from tiered_embed.simulate.distances import Bins, StackDistances
from tiered_embed.simulate.numbering import Numbering, accesses
from tiered_embed.simulate.planner_replay import replay
from tiered_embed.traces.trace import Trace


def zipf_ids(num: int, rows: int, exponent: float = 0.9, seed: int = 1) -> np.ndarray:
    """Ids whose popularity falls as rank ** -exponent."""
    weights = np.cumsum(np.arange(1, rows + 1) ** -exponent)
    draws = np.random.default_rng(seed).random(num) * weights[-1]
    return np.searchsorted(weights, draws) * 7919


@pytest.fixture(scope="module")
def scarab(data_file) -> Trace:
    return Trace.from_ids(traces.read_raw(data_file("scarab_recs.i64be.xz")), batch=1024)


# --- exact ----------------------------------------------------------------------------------------


def test_every_size_of_scarab_is_exact(scarab):
    curve = lru_curve(scarab)
    assert curve.hit_rate([2583, 25836]) == pytest.approx([0.3471, 0.6060], abs=5e-5)
    single = scarab.rebatch(1)
    for size in (1, 2, 300, 2583, 25836, 200_000, 10**7):
        assert curve.misses_at(size)[0] == lru(single, size)["table"].misses
    assert curve.cold == 258_368
    assert curve.lookups == curve.unique == 1_245_184


@pytest.mark.parametrize("size", [1100, 2583, 25836])
def test_batches_of_scarab_are_what_the_planner_counts(size, scarab):
    curve = lru_curve(scarab, "batch")
    counts = replay(scarab, size, "lru", 1, 0).total
    assert counts.overflow == 0
    assert curve.misses_at(size)[0] == counts.misses
    assert curve.unique_hit_rate(size)[0] == pytest.approx(counts.unique_hit_rate)
    assert curve.hit_rate(size)[0] == pytest.approx(counts.hit_rate)


def plain_distances(batches: list[list[int]]) -> tuple[dict[int, int], int]:
    stack: list[int] = []
    counts: dict[int, int] = {}
    cold = 0
    for batch in batches:
        unique = list(dict.fromkeys(batch))
        for row in unique:
            if row in stack:
                distance = len(stack) - stack.index(row)
                counts[distance] = counts.get(distance, 0) + 1
            else:
                cold += 1
        for row in unique:
            if row in stack:
                stack.remove(row)
            stack.append(row)
    return counts, cold


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("piece", [40, 700])
def test_distances_are_ranks_on_a_stack(batch, piece, monkeypatch):
    from tiered_embed.simulate import numbering

    monkeypatch.setattr(numbering, "PIECE_IDS", piece)
    ids = zipf_ids(4000, 1200)
    trace = Trace.from_ids(ids, batch=batch)
    stack = StackDistances()
    stack._resize(128)  # compacted again and again
    rows = Numbering(1)
    for part in accesses(trace, rows):
        for first in range(0, len(part.offsets) - 1, 5):
            cuts = part.offsets[first : first + 6]
            piece_rows = part.rows[cuts[0] : cuts[-1]]
            stack.push(simulate.numbering.Accesses(piece_rows, cuts - cuts[0]), rows.tables)
    wanted, cold = plain_distances([ids[i : i + batch].tolist() for i in range(0, len(ids), batch)])
    found = {int(d): int(stack.counts[d]) for d in np.flatnonzero(stack.counts)}
    assert found == wanted
    assert stack.cold.tolist() == [cold]
    assert stack.by_table()[0].sum() == sum(wanted.values())


def test_removed_rows_are_forgotten():
    stack = StackDistances()
    numbering = Numbering(1)
    (part,) = accesses(Trace.from_ids(np.arange(600), batch=1), numbering)
    stack.push(part, numbering.tables)
    stack.remove(np.arange(100, 500, dtype=np.int32))
    assert stack.num_rows == 200
    (again,) = accesses(Trace.from_ids(np.array([50, 550, 200]), batch=1), numbering)
    stack.push(again, numbering.tables)
    assert np.flatnonzero(stack.counts).tolist() == [51, 150]
    assert stack.cold.tolist() == [601]


def test_bins_hold_what_they_say():
    edges = Bins.last()
    assert edges[:512].tolist() == list(range(512))
    distances = np.array([1, 511, 512, 513, 514, 1023, 1024, 99_999, 2**40])
    bins = Bins.of(distances)
    assert (edges[bins] >= distances).all()
    assert (edges[bins - 1] < distances).all()
    assert (np.diff(edges[512:]) <= edges[512:-1] / 256 + 1).all()


def test_tables_share_a_cache():
    draw = np.random.default_rng(4)
    columns = {"a": draw.zipf(1.2, 6000) % 800, "b": draw.zipf(1.4, 6000) % 80}
    trace = Trace.from_columns(columns, batch=10)
    curve = lru_curve(trace, "batch")
    for size in (50, 200, 500):
        tables = lru(trace, size)
        assert curve.misses_at(size)[0] == sum(c.misses for c in tables.values())
        for name, counts in tables.items():
            assert curve.by_table[name].misses_at(size)[0] == counts.misses
            assert curve.by_table[name].lookups == counts.lookups
            assert curve.by_table[name].unique == counts.unique


# --- estimates ------------------------------------------------------------------------------------


def test_shards_is_close_at_a_hundredth(scarab):
    exact = lru_curve(scarab)
    error = shards(scarab, 0.02).error_to(exact)
    assert error.mean < 0.01
    assert error.most < 0.05
    whole = shards(scarab, 1.0)
    assert whole.error_to(exact, [1, 100, 500, 511]).most == 0.0
    assert whole.error_to(exact).most < 0.002


def test_shards_knows_batches(scarab):
    exact = lru_curve(scarab, "batch")
    error = shards(scarab, 0.05, batched=True).error_to(exact, even_sizes(250_000)[2:])
    assert error.mean < 0.01


def test_a_bounded_sample_lowers_its_rate(scarab):
    exact = lru_curve(scarab)
    curve = shards(scarab, 1.0, max_rows=8000)
    assert curve.method == "SHARDS 8000 rows"
    assert curve.error_to(exact).mean < 0.015
    few = shards(scarab, 1.0, max_rows=50)
    assert few.misses_at(10**9)[0] > 0


def test_sampling_keeps_all_uses_of_a_row():
    ids = zipf_ids(50_000, 3000)
    trace = Trace.from_ids(ids, batch=64)
    kept = np.concatenate([batch[0] for batch in sampled(trace, 0.25)])
    chosen = np.unique(kept)
    assert 0.2 < len(chosen) / len(np.unique(ids)) < 0.3
    assert len(kept) == np.isin(ids, chosen).sum()
    other = np.unique(np.concatenate([b[0] for b in sampled(trace, 0.25, seed=1)]))
    assert len(np.intersect1d(chosen, other)) < 0.5 * len(chosen)
    assert len(list(sampled(trace, 0.25))) == len(list(trace))


@pytest.mark.parametrize(("method", "mean"), [(aet, 0.01), (che, 0.02)])
def test_models_are_close_where_their_assumptions_hold(method, mean):
    """Independent accesses of a fixed popularity, long enough for first uses to matter little."""
    trace = Trace.from_ids(zipf_ids(400_000, 4000), batch=4096)
    exact = lru_curve(trace)
    assert method(trace).error_to(exact).mean < mean


def test_aet_is_close_on_scarab_and_che_tells_its_error(scarab):
    exact = lru_curve(scarab)
    assert aet(scarab).error_to(exact).mean < 0.02
    error = che(scarab).error_to(exact)
    assert 0.02 < error.mean < error.most < 0.5
    assert 1 <= error.at_size <= 258_368


def test_mini_simulations_are_close_for_any_policy(scarab):
    sizes = [25_836, 51_673]
    for policy, rate, options in (
        ("access:sieve", 0.1, {}),
        ("access:lru", 0.1, {}),
        ("lookahead", 0.1, {"lookahead": 64, "depth": 0}),
        ("belady", 0.1, {}),
    ):
        small = mini_simulation(scarab, sizes, policy, rate, **options)
        wanted = [misses_of(scarab, size, policy, **options).misses for size in sizes]
        assert small.misses_at(sizes) / 1_245_184 == pytest.approx(
            np.array(wanted) / 1_245_184, abs=0.015
        )


# --- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [lru_curve, shards, aet, che])
@pytest.mark.parametrize("ids", [[], [5], [5, 5, 5], [1, 2, 3]])
def test_tiny_traces(method, ids):
    trace = Trace.from_ids(np.array(ids, np.int64))
    curve = shards(trace, 1.0) if method is shards else method(trace)
    assert curve.lookups == len(ids)
    assert ((curve.miss_ratio([1, 5, 10]) >= 0) & (curve.miss_ratio([1, 5, 10]) <= 1)).all()
    if method in (lru_curve, shards) and ids:
        assert curve.misses_at(10)[0] == len(set(ids))
    assert belady(trace, 10).misses == len(set(ids))


def test_a_curve_as_plain_data():
    trace = Trace.from_columns({"a": np.arange(50) % 7, "b": np.arange(50) % 3}, batch=5)
    out = lru_curve(trace).as_dict([1, 10, 100])
    assert out["sizes"] == [1, 10, 100]
    assert out["hit_rate"] == sorted(out["hit_rate"])
    assert out["hit_rate"][-1] == pytest.approx(1 - 10 / 100)
    assert set(out["by_table"]) == {"a", "b"}


def test_what_cannot_be_sampled_is_refused():
    trace = Trace.from_ids(np.arange(9))
    for message, call in (
        ("must be in", lambda: shards(trace, 0.0)),
        ("must be in", lambda: sampled(trace, 1.5)),
        ("at least one row", lambda: shards(trace, max_rows=0)),
        ("choose one of access, batch", lambda: lru_curve(trace, "row")),  # type: ignore[arg-type]
        ("leave less than one row", lambda: mini_simulation(trace, [10], "lru", 0.01)),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
