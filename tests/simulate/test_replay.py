"""``simulate.replay``: what it counts is what a run counts, to the last one."""

import itertools

import numpy as np
import pytest
import torch

import tiered_embed as te
from covering import covering
from id_traces import OPTIMIZER, SOURCES, from_batches, make_collection, ten_tables, train
from tiered_embed.errors import CapacityError, ConfigError, IdRangeError
from tiered_embed.residency.planner import POLICIES
from tiered_embed.simulate.planner_replay import Difference, replay
from tiered_embed.simulate.records import Records
from tiered_embed.spec import TierStats
from tiered_embed.traces.trace import Trace

# HBM (or none) and DDR (or none), shares of the bytes of all distinct rows.
SIZES = ((None, 0.03), (None, 0.2), (None, 0.6), (0.02, 0.1), (0.2, 0.4), (0.1, None))
WINDOWS = ((1, 0), (16, 0), (16, 2), (64, 0), (64, 2))  # lookahead, depth
CHOICES = [tuple(SOURCES), POLICIES, SIZES, WINDOWS]


def share_bytes(trace: Trace, records: Records, share: float) -> int:
    pools = records.pools(trace.tables)
    ids = [np.unique(np.concatenate(column)) for column in zip(*trace, strict=True)]
    total = sum(pool.record_bytes * len(ids[t]) for pool in pools for t in pool.members)
    return int(total * share)


def check(
    source: str,
    policy: str,
    shares: tuple[float | None, float | None],
    window: tuple[int, int],
    data_file,
    root,
) -> None:
    trace, records = SOURCES[source](data_file)
    hbm, ddr = (s if s is None else share_bytes(trace, records, s) for s in shares)
    tiers = te.Tiers(hbm=hbm, ddr=ddr, ssd=root, store="memory")
    lookahead, depth = window
    wanted = replay(trace, tiers, policy, lookahead, depth, records=records)
    assert set(wanted.tiers) == {"SSD"} | ({"HBM"} if hbm else set()) | ({"DDR"} if ddr else set())
    with make_collection(
        trace, records, tiers, policy=policy, lookahead=lookahead, depth=depth
    ) as module:
        train(trace, module)
        for pool in module.engine.pools:
            pool.scheduler.quiesce()
        stats = module.stats()
        assert wanted.differences(stats) == []
        for name in wanted.tiers.keys() - {"SSD"}:
            assert stats.tiers[name].evicted > 0
        assert wanted.steps == stats.steps
        module.flush()
        assert wanted.differences(module.stats(), flushed=True) == []


@pytest.mark.parametrize("choice", covering(CHOICES, seed=7), ids=str)
def test_simulated_counts_are_the_runs(choice, data_file, tmp_path):
    check(*choice, data_file, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("choice", list(itertools.product(*CHOICES)), ids=str)
def test_simulated_counts_are_the_runs_everywhere(choice, data_file, tmp_path):
    check(*choice, data_file, tmp_path)


def test_without_a_tier_below_the_counts_are_the_runs_too():
    trace, records = ten_tables()
    tiers = te.Tiers(ddr=share_bytes(trace, records, 3.0))
    wanted = replay(trace, tiers, "lru", 8, 1, records=records)
    with make_collection(trace, records, tiers, policy="lru", lookahead=8, depth=1) as module:
        train(trace, module)
        assert wanted.differences(module.stats()) == []
    assert set(wanted.tiers) == {"DDR"}
    assert wanted.total.evicted == wanted.total.capacity_misses == 0
    small = te.Tiers(ddr=share_bytes(trace, records, 0.2))
    with pytest.raises(CapacityError, match="raise ddr or add an ssd tier"):
        replay(trace, small, records=records)


def test_a_difference_is_told():
    trace = Trace.from_ids(np.arange(40), batch=10)
    wanted = replay(trace, te.Tiers(ddr="1MiB"))
    other = replay(Trace.from_ids(np.arange(50), batch=10), te.Tiers(ddr="1MiB"))
    stats = te.Stats(5, {"DDR": TierStats(**_plain(other.total))}, other.tables)
    found = wanted.differences(stats)
    assert Difference("table 'table'", "lookups", 40, 50) in found
    assert Difference("DDR", "misses", 40, 50) in found


def _plain(counts) -> dict[str, int]:
    return {name: value for name, value in vars(counts).items() if name != "cold"}


def test_steps_add_up_and_tell_cold_misses():
    trace, records = ten_tables()
    tiers = te.Tiers(ddr=share_bytes(trace, records, 0.3), ssd="unused")
    whole = replay(trace, tiers, "lookahead", 16, 2, records=records, per_step=True)
    assert whole.per_step is not None
    assert whole.per_step.shape == (whole.steps, 10, 7)
    sums = whole.per_step.sum(axis=0)
    for t, counts in enumerate(whole.tables.values()):
        names = ("lookups", "unique", "misses", "evicted", "written_back", "overflow", "cold")
        assert sums[t].tolist() == [getattr(counts, name) for name in names]
    for t, column in enumerate(zip(*trace, strict=True)):
        seen: set[int] = set()
        for b, ids in enumerate(column):
            new = set(ids.tolist()) - seen
            seen |= new
            lookups, unique, *_, cold = whole.per_step[b, t].tolist()
            assert (lookups, unique, cold) == (len(ids), len(set(ids.tolist())), len(new))
    assert whole.total.cold + whole.total.capacity_misses == whole.total.misses
    assert whole.total.capacity_misses > 0


def test_a_number_of_rows_is_shared_by_all_tables_and_batches_are_cut_anew():
    ids = np.random.default_rng(1).zipf(1.2, 4000) % 700
    trace = Trace.from_ids(ids, batch=1)
    result = replay(trace, 100, "lru", 4, 0, batch=50)
    assert result.steps == 80
    assert result.slots == 100
    again = replay(Trace.from_ids(ids, batch=50), 100, "lru", 4, 0)
    assert result.tables == again.tables
    record = Records().pools(trace.tables)[0].record_bytes
    assert record == 64 * 4 + 4
    assert result.total.bytes_in == result.total.misses * record
    seen = []
    replay(trace, 100, progress=seen.append)
    assert seen


def test_what_cannot_be_simulated_is_refused():
    trace = Trace.from_ids(np.arange(9), batch=3)
    two = Trace.from_columns({"a": np.arange(9), "b": np.arange(9)}, batch=3)
    for message, call in (
        ("choose one of lru", lambda: replay(trace, 5, "belady")),
        ("'auto' depends on time", lambda: replay(trace, 5, depth="auto")),  # type: ignore[arg-type]
        ("raise lookahead or lower depth", lambda: replay(trace, 5, lookahead=1, depth=2)),
        ("lookahead is -1", lambda: replay(trace, 5, lookahead=-1)),
        ("pass a positive number of rows", lambda: replay(trace, 0)),
        ("HBM has 1 bytes", lambda: replay(trace, te.Tiers(hbm=1, ddr=1))),
        ("pass te.Tiers", lambda: replay(trace, te.Tiers(ssd="x"))),
        ("less than one record", lambda: replay(trace, te.Tiers(ddr=10))),
        ("add its dim", lambda: replay(trace, 5, records=Records({"other": 3}))),
        ("cannot share slots", lambda: replay(two, 5, records=Records({"a": 3, "b": 4}))),
        ("dim is 0", lambda: Records(0)),
        ("dtype is 'int8'", lambda: Records(dtype="int8")),
        ("pass one of te.optim", lambda: Records(optimizer="sgd")),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    with pytest.raises(IdRangeError, match="outside"):
        replay(Trace.from_ids(np.arange(9), name="t", num_rows=5), 5)


def test_the_native_loop_refuses_arrays_that_do_not_fit():
    from tiered_embed.residency.budgets import PoolSlots
    from tiered_embed.residency.planner import Planner
    from tiered_embed.residency.replay import Replay

    planner = Planner(
        [("t", None)], PoolSlots((-1,), 0, 5, 9), policy="lru", backed=True, tier="DDR"
    )
    one = Replay(planner, lookahead=0, depth=0)
    ids = np.arange(6)
    for offsets in ([0, 7], [3, 1], [-1, 2]):
        with pytest.raises(ValueError, match="offsets"):
            one.push([(0, np.array(offsets), ids)])
    with pytest.raises(TypeError, match="contiguous int64"):
        one.push([(0, np.array([0, 3]), ids[::2])])
    with pytest.raises(ValueError, match="differ in their number of batches"):
        one.push([(0, np.array([0, 3]), ids), (0, np.array([0, 3, 6]), ids)])
    assert one.num_steps == 0


def test_simulating_does_not_import_numba():
    import subprocess
    import sys

    code = (
        "import sys, numpy, tiered_embed.simulate as s, tiered_embed.traces.trace as t;"
        "s.replay(t.Trace.from_ids(numpy.arange(9)), 5); assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_optimizer_and_dtype_decide_what_a_row_takes():
    trace = Trace.from_ids(np.arange(9))
    for records, size in (
        (Records(8, te.optim.SGD(lr=0.1)), 32),
        (Records(8, te.optim.Adam(lr=0.1)), 96),
        (Records(8, OPTIMIZER, "float16"), 20),
    ):
        assert records.pools(trace.tables)[0].record_bytes == size
        dtype = getattr(torch, records.dtype)
        module = te.TieredEmbeddingBag(
            9, 8, tiers=te.Tiers(ddr="1MiB"), optimizer=records.optimizer, dtype=dtype
        )
        assert module.engine.pools[0].layout.record_bytes == size
        module.close()


# --- tables with options of their own -------------------------------------------------------------

OWN: list[dict] = [
    {},
    {"optimizer": te.optim.Adam(lr=0.1)},
    {"dtype": torch.float16, "lr_factor": 0.5},
    {"trainable": False},
    {"trainable": False, "dtype": torch.int8, "init": te.init.Constant(0.5)},
    {"init": te.init.Uniform(0, 1)},
    {"init": te.init.Uniform(-0.01, 0.01)},  # as the module's: the same pool
    {"lr_factor": 0.5},
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shares", [(None, 0.1), (0.05, 0.2), (0.1, None), (None, 3.0)], ids=str)
@pytest.mark.parametrize("kind", [te.TieredEmbeddingBagCollection, te.TieredEmbeddingCollection])
def test_tables_with_their_own_options_count_as_in_the_run(kind, shares, policy, tmp_path):
    pooled = kind is te.TieredEmbeddingBagCollection
    tables = [
        te.TableConfig(f"t{i}", None if i == 1 else 300, 5 if pooled and i == 3 else 4, **own)
        for i, own in enumerate(OWN)
    ]
    rng = np.random.default_rng(3)
    batches = [[rng.zipf(1.2, 40) % 300 for _ in tables] for _ in range(60)]
    trace = from_batches({t.name: None for t in tables}, batches)  # its rows are the module's
    hbm, ddr = (s if s is None else int(s * 300 * 24 * len(tables)) for s in shares)
    backed = ddr is None or shares[1] < 1
    tiers = te.Tiers(hbm=hbm, ddr=ddr, ssd=tmp_path if backed else None, store="memory")
    options = {"device": "cpu", "kernel": "native"} if hbm else {}
    with kind(
        tables,
        tiers=tiers,
        optimizer=OPTIMIZER,
        policy=policy,
        lookahead=4,
        depth=1,
        num_threads=1,
        **options,
    ) as module:
        records = Records.of(module.engine.tables, module.engine.options)
        pools = records.pools(trace.tables)
        sizes = [(p.tables, p.record_bytes, p.trains) for p in pools]
        assert sizes == [
            (p.layout.tables, p.layout.record_bytes, p.layout.trains) for p in module.engine.pools
        ]
        wanted = replay(trace, tiers, policy, 4, 1, records=records)
        train(trace, module)
        for pool in module.engine.pools:
            pool.scheduler.quiesce()
        assert wanted.differences(module.stats()) == []
        module.flush()
        assert wanted.differences(module.stats(), flushed=True) == []
        assert wanted.tables["t3"].written_back == 0
        if backed:
            assert wanted.tables["t3"].evicted > 0 < wanted.tables["t0"].written_back
    with pytest.raises(ConfigError, match=r"make [78] pools, which cannot share slots"):
        replay(trace, 100, records=records)


@pytest.mark.parametrize("window", [(0, 0), (5, 2), (64, 3)])
def test_counts_may_begin_with_a_later_step(window):
    trace, records = ten_tables()
    lookahead, depth = window
    for shares in ((None, 0.1), (0.02, 0.1)):
        hbm, ddr = (s if s is None else share_bytes(trace, records, s) for s in shares)
        tiers = te.Tiers(hbm=hbm, ddr=ddr, ssd="unused")
        whole = replay(trace, tiers, "lru", lookahead, depth, records=records, per_step=True)
        assert whole.per_step is not None
        for first in (0, 1, 3, whole.steps - 1, whole.steps):
            part = replay(
                *(trace, tiers, "lru", lookahead, depth),
                records=records,
                per_step=True,
                first_step=first,
            )
            assert part.steps == whole.steps - first
            assert np.array_equal(part.per_step, whole.per_step[first:])
            sums = whole.per_step[first:].sum(axis=(0, 1))
            names = ("lookups", "unique", "misses", "evicted", "written_back", "overflow", "cold")
            assert sums.tolist() == [getattr(part.total, name) for name in names]
            if first == 0:
                assert part.tiers == whole.tiers
    whole = replay(trace, tiers, "lru", 10**20, depth, records=records)
    assert whole.tables == replay(trace, tiers, "lru", 10**6, depth, records=records).tables
    with pytest.raises(ConfigError, match="first_step is 10000, but the trace has only"):
        replay(trace, tiers, "lru", lookahead, depth, records=records, first_step=10000)
    with pytest.raises(ConfigError, match="first_step is -1"):
        replay(trace, tiers, "lru", lookahead, depth, records=records, first_step=-1)
