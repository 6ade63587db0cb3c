"""What a benchmark counts: exactly its timed steps, as a simulation does, and the same twice."""

import itertools
import random

import numpy as np
import pytest

import tiered_embed as te
from tiered_embed.bench.measuring import run
from tiered_embed.bench.options import BenchOptions, engine_options
from tiered_embed.residency import POLICIES
from tiered_embed.spec import Counts
from tiered_embed.traces import Trace

COUNTS = [name for name in vars(Counts()) if name != "stall_s"]


def drawn(seed, root):
    """A benchmark of random shape whose rows do not all fit."""
    chance = random.Random(seed)
    dim, tables = chance.choice((4, 16)), chance.choice((1, 2, 5))
    batch_size, pooling = chance.choice((1, 16, 64)), chance.choice((1, 3, 8))
    rows = chance.choice((60, 600, 5000))
    record = 4 * dim + 4
    budget = int(record * rows * chance.choice((0.05, 0.3, 0.9))) + record * tables
    shape = chance.choice(("ddr", "ddr", "hbm+ddr", "hbm", "large"))
    sizes = {
        "ddr": {"ddr": budget},
        "hbm+ddr": {"hbm": budget // 3 + record, "ddr": budget},
        "hbm": {"hbm": budget},
        "large": {"ddr": "64MiB"},
    }[shape]
    depth = chance.choice((0, 1, 2, 5))
    engine = engine_options(
        te.Tiers(**sizes, ssd=root, store="memory"),
        policy=chance.choice(POLICIES),
        lookahead=max(depth, chance.choice((0, 1, 4, 40))),
        depth=depth,
        seed=seed,
        device="cpu" if "hbm" in shape else None,
        kernel="native",
        num_threads=chance.choice((1, 2)),
    )
    trace = None
    if chance.random() < 0.3:
        tables = 1
        draw = np.random.default_rng(seed)
        columns = {f"c{i}": draw.zipf(1.3, 900) % rows for i in range(chance.choice((1, 3)))}
        trace = Trace.from_columns(columns, batch_size)
    return BenchOptions(
        engine,
        rows=rows,
        tables=tables,
        dim=dim,
        batch_size=batch_size,
        pooling=pooling,
        distribution=chance.choice(("zipf", "uniform")),
        trace=trace,
        warm_steps=chance.choice((1, 2, 7)),
        steps=chance.choice((1, 3, 12)),
        compare=chance.random() < 0.8,
    )


def plain(result):
    parts = {**result.stats.tiers, **{f"table {n}": c for n, c in result.stats.tables.items()}}
    return {name: {c: getattr(counts, c) for c in COUNTS} for name, counts in parts.items()}


def check(seed, root):
    options = drawn(seed, root / "first")
    first = run(options)
    counts = plain(first)
    again = run(drawn(seed, root / "again"))
    assert counts == plain(again), f"seed {seed}: other numbers the second time"
    if options.compare:
        assert first.differences == [], f"seed {seed}"
        assert first.not_compared == []
    # Plain Python over the timed batches.
    batches = options.batches()
    for _ in range(options.warm_steps):
        next(batches)
    timed = [next(batches) for _ in range(options.steps)]
    for t, table in enumerate(options.shapes):
        ids = [batch[t][0].tolist() for batch in timed]
        mine = counts[f"table {table.name}"]
        assert mine["lookups"] == sum(map(len, ids)), f"seed {seed}"
        assert mine["unique"] == sum(len(set(each)) for each in ids), f"seed {seed}"
    assert first.num_ids == first.stats.topmost.lookups
    below = [counts[name] for name in first.stats.tiers]
    for above, tier in itertools.pairwise(below):
        assert tier["lookups"] == above["misses"]
        assert tier["hits"] + tier["misses"] == tier["unique"]


def test_drawn_runs_count_their_timed_steps_as_a_simulation_does(tmp_path):
    for seed in range(15):
        check(seed, tmp_path / str(seed))


@pytest.mark.long
def test_many_drawn_runs_count_their_timed_steps_as_a_simulation_does(tmp_path):
    for seed in range(15, 215):
        check(seed, tmp_path / str(seed))


@pytest.mark.parametrize("fill", [False, True])
def test_a_run_of_any_depth_counts_its_timed_steps(tmp_path, fill):
    engine = engine_options(te.Tiers(ddr="20KiB", ssd=tmp_path, store="memory"), depth="auto")
    options = BenchOptions(
        engine, rows=3000, dim=8, batch_size=32, warm_steps=3, steps=9, fill=fill
    )
    result = run(options)
    assert result.stats.topmost.lookups == result.num_ids == 9 * 32 * 8
