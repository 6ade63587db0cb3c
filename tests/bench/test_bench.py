"""``tiered-embed bench``: what it runs, tells and draws."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import tiered_embed as te
from tiered_embed.bench.measuring import run, simulated
from tiered_embed.bench.options import BenchOptions, engine_options
from tiered_embed.bench.report import shares
from tiered_embed.cli import app
from tiered_embed.traces import Trace

SMALL = ["--rows", "3000", "--dim", "8", "--batch-size", "32", "--warm-steps", "5", "--steps", "20"]


def invoke(*args: str) -> str:
    small = SMALL[2:] if "--trace" in args else SMALL  # a trace has its own rows
    result = CliRunner().invoke(app, ["bench", *small, *args])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("depth", ["0", "2", "auto"])
@pytest.mark.parametrize("model", ["embedding", "dlrm"])
def test_json_tells_rates_and_shares(model, depth, tmp_path):
    out = json.loads(
        invoke(
            *("--model", model, "--depth", depth, "--tables", "3", "--ddr", "20KiB", "--json"),
            *("--ssd", str(tmp_path)),
        )
    )
    assert out["steps"] == 20
    assert sum(out["step_shares"].values()) == pytest.approx(1.0)
    assert out["stats"]["tiers"]["DDR"]["lookups"] == 20 * 3 * 32 * 8
    assert 0 < out["hit_rate"] < 1
    assert out["stats"]["phases"]["read"]["count"] > 0
    assert set(out["stats"]["tables"]) == {"t0", "t1", "t2"}


def test_tables_and_a_chart_for_people(tmp_path):
    picture = tmp_path / "steps.png"
    text = invoke("--tables", "2", "--ddr", "20KiB", "--picture", str(picture))
    for word in ("ids/s", "hit rate", "wait", "lookup", "update", "rest", "read", "p99 ms", "t1"):
        assert word in text
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_trace_is_replayed(tmp_path):
    ids = np.arange(-100, 1900)
    path = tmp_path / "ids.i64be"
    path.write_bytes(ids.astype(">i8").tobytes())
    out = json.loads(invoke("--trace", str(path), "--ddr", "1MiB", "--warm-steps", "9", "--json"))
    # 7 whole batches of 256 ids, again and again: all of them are planned in the warm-up.
    assert out["stats"]["tables"]["t0"]["misses"] == 0
    assert out["stats"]["tables"]["t0"]["lookups"] == 20 * 256


def test_a_trace_of_several_tables_is_replayed_and_simulated(data_file):
    log = str(data_file("lbsn_checkins_nyc.tsv.xz"))
    out = json.loads(invoke("--trace", log, "--ddr", "16KiB", "--depth", "1", "--json"))
    assert set(out["stats"]["tables"]) == {"user", "hour", "venue", "category"}
    assert out["differences"] == []
    assert out["stats"]["tiers"]["DDR"]["lookups"] == 20 * 4 * 32
    assert out["stats"]["tiers"]["DDR"]["evicted"] > 0
    with pytest.raises(te.ConfigError, match="dlrm needs"):
        BenchOptions(
            engine_options(te.Tiers(ddr="1MiB")), trace=Trace.from_ids(np.arange(9)), model="dlrm"
        )
    with pytest.raises(te.ConfigError, match="no batch"):
        run(
            BenchOptions(
                engine_options(te.Tiers(ddr="1MiB")), trace=Trace.from_ids(np.empty(0, np.int64))
            )
        )
    with pytest.raises(te.ConfigError, match="its stream has an end"):
        simulated(BenchOptions(engine_options(te.Tiers(ddr="1MiB"))))


@pytest.mark.parametrize("policy", ["lru", "lookahead"])
def test_the_simulation_beside_it_has_the_same_counts(policy, tmp_path):
    options = ["--tables", "3", "--ddr", "20KiB", "--policy", policy]
    out = json.loads(invoke(*options, "--ssd", str(tmp_path), "--json"))
    assert out["differences"] == []
    measured, told = out["stats"]["tiers"]["DDR"], out["simulated"]["tiers"]["DDR"]
    assert measured["lookups"] == told["lookups"] == 20 * 3 * 32 * 8
    assert out["not_compared"] == []
    assert measured["written_back"] == told["written_back"] > 0
    text = invoke(*options)
    assert "all counts are equal" in text
    # The store has rows now, of which a simulation knows nothing: other counts are equal still.
    again = json.loads(invoke(*options, "--ssd", str(tmp_path), "--json"))
    assert again["differences"] == []
    assert again["not_compared"] == [["SSD", "hits"], ["SSD", "misses"], ["SSD", "bytes_out"]]
    assert "the store held rows before" in invoke(*options, "--ssd", str(tmp_path))
    alone = json.loads(invoke(*options, "--no-compare", "--json"))
    assert "differences" not in alone


def test_what_cannot_work_is_refused():
    for bad in (
        {"steps": 0},
        {"model": "dense"},
        {"trace": np.arange(3), "tables": 2},
        {"compare": True, "depth": "auto"},
        {"compare": True, "fill": True},
    ):
        engine = engine_options(te.Tiers(ddr="1MiB"), depth=bad.pop("depth", 2))
        with pytest.raises(te.ConfigError):
            BenchOptions(engine, **bad)
    with pytest.raises(te.ConfigError, match="less than one batch"):
        run(BenchOptions(engine_options(te.Tiers(ddr="1MiB")), trace=np.arange(3)))
    result = CliRunner().invoke(app, ["bench", "--depth", "deep"])
    assert result.exit_code == 2


def test_shares_are_of_the_timed_steps():
    options = BenchOptions(
        engine_options(te.Tiers(ddr="1MiB")), rows=100, dim=4, batch_size=8, steps=10, warm_steps=2
    )
    result = run(options)
    lookups = result.stats.tiers["DDR"].lookups
    assert lookups == 10 * options.tables * options.batch_size * options.pooling
    assert all(0 <= share <= 1 for share in shares(result).values())


def test_a_profile_shows_the_stages(tmp_path):
    tiers = te.Tiers(ddr=40 * 16, ssd=tmp_path, store="memory")
    with te.TieredEmbeddingBag(None, 4, tiers=tiers, optimizer=te.optim.SGD(lr=0.1)) as emb:
        batches = [torch.arange(8 * n, 8 * n + 24).reshape(4, 6) for n in range(12)]
        everything = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], experimental_config=everything
        ) as profile:
            for ids in te.prefetch(batches, emb, ids=lambda ids: {emb: ids}):
                emb(ids).sum().backward()
            emb.flush()
        seen = {event.key for event in profile.key_averages()}
        phases = emb.stats().phases
    for name in ("wait", "lookup", "update", "plan", "evict", "read", "fill", "write"):
        assert f"tiered_embed::{name}" in seen
        assert phases[name].count > 0
