"""``tiered-embed trace``: what each command prints and writes, and how it fails."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from tiered_embed import traces
from tiered_embed.cli import app
from tiered_embed.cli.progress import LateBar
from tiered_embed.errors import ConfigError, CorruptionError
from trace_samples import batches

runner = CliRunner()

SCRIPT = """
import sys
import torch
from helper_beside_it import START

torch.manual_seed(0)
print("not JSON")
model = torch.nn.Sequential(torch.nn.Embedding(100, 4), torch.nn.Linear(4, 1))
for step in range(int(sys.argv[1])):
    model(torch.tensor([START + step, 7])).sum().backward()
sys.exit(0)
"""


def invoke(*args):
    result = runner.invoke(app, ["trace", *map(str, args)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item\n" + "".join(f"{i % 5},{i * i}\n" for i in range(100)))
    return path


def test_help_names_every_command():
    out = invoke("--help")
    for name in ("record", "info", "convert", "head", "sample", "generate"):
        assert name in out


def test_convert_then_info(tmp_path, log):
    out = tmp_path / "log.tet"
    written = json.loads(invoke("convert", log, out, "--columns", "u=user,item", "--json"))
    assert written == {
        "path": str(out),
        "batches": 1,
        "accesses": 200,
        "file_bytes": out.stat().st_size,
    }
    for source, more in ((out, []), (log, ["--columns", "u=user,item"])):
        told = json.loads(invoke("info", source, "--json", *more))
        assert (told["batches"], told["accesses"]) == (1, 200)
        user = told["tables"]["u"]
        assert (user["accesses"], user["unique"], user["most_uses"]) == (100, 5, 20)
        assert (user["least_id"], user["largest_id"], user["mean_uses"]) == (0, 4, 20.0)
        assert user["reuse"]["(16, 32]"] == {"rows": 1.0, "accesses": 1.0}
        assert told["tables"]["item"]["reuse"]["(0, 1]"]["rows"] == 1.0
    assert "100" in invoke("info", out)
    quick = json.loads(invoke("info", out, "--no-count", "--json"))
    assert quick["accesses"] == 200
    assert quick["tables"]["u"] == {"num_rows": None}


def test_convert_cuts_batches(tmp_path, log):
    out = tmp_path / "log.tet"
    assert "4 batches, 100 accesses" in invoke(
        "convert", log, out, "--columns", "user", "--batch", 30, "--codec", "none"
    )
    assert [len(parts[0]) for parts in traces.read_tet(out)] == [30, 30, 30, 10]


def test_head_shows_or_writes(tmp_path, log):
    options = ["--columns", "user,item", "--batch", "3", "--batches", "2"]
    expected = [
        {"user": [0, 1, 2], "item": [0, 1, 4]},
        {"user": [3, 4, 0], "item": [9, 16, 25]},
    ]
    assert json.loads(invoke("head", log, *options, "--json")) == {"batches": expected}
    assert "batch 1 item: 9 16 25" in invoke("head", log, *options)
    out = tmp_path / "head.tet"
    invoke("head", log, *options, "--out", out)
    assert batches(traces.read_tet(out)) == [list(each.values()) for each in expected]


def test_sample_writes_a_share_of_the_rows(tmp_path):
    whole, out = tmp_path / "a.i64le", tmp_path / "a.tet"
    whole.write_bytes(np.arange(10_000, dtype="<i8").tobytes())
    invoke("sample", whole, out, "--rate", "0.1", "--seed", "1")
    kept = traces.read_tet(out)
    assert kept.num_batches == 10
    assert 850 < kept.num_accesses < 1150


def test_generate_is_the_library_s_stream(tmp_path):
    out = tmp_path / "a.tet"
    law = ["--tables", 2, "--rows", 500, "--exponent", 0.9, "--one-hit", 0.1, "--pooling", 2]
    told = json.loads(invoke("generate", out, "--accesses", 20_000, *law, "--seed", 3, "--json"))
    assert abs(told["accesses"] - 20_000) < 3000
    tables = [
        traces.GeneratedTable(
            f"t{t}", traces.Zipf(500, 0.9), traces.Pooling.geometric(2, 16), one_hit=0.1
        )
        for t in range(2)
    ]
    expected = traces.GeneratedStream(tuple(tables), 1024, told["batches"], 3).trace()
    assert batches(traces.read_tet(out)) == batches(expected)


def test_generate_fits_a_histogram(tmp_path, data_file):
    out, source = tmp_path / "a.tet", data_file("dlrm_2021_locality.txt")
    invoke("generate", out, "--accesses", 1 << 20, "--histogram", source, "--window", 1 << 20)
    told = json.loads(invoke("info", out, "--json"))["tables"]["table"]
    assert abs(told["reuse"]["(0, 1]"]["rows"] - 0.473) < 0.02
    with pytest.raises(ConfigError, match="--histogram fits one table without bags"):
        invoke("generate", out, "--accesses", 100, "--histogram", source, "--tables", 2)


def test_record_runs_a_script(tmp_path):
    (tmp_path / "helper_beside_it.py").write_text("START = 40\n")
    script, out = tmp_path / "train_it.py", tmp_path / "a.tet"
    script.write_text(SCRIPT)
    told = json.loads(invoke("record", "--json", out, script, "3"))
    assert (told["batches"], told["accesses"]) == (3, 6)
    assert batches(traces.read_tet(out)) == [[[40 + step, 7]] for step in range(3)]


def test_record_runs_our_own_commands(tmp_path):
    traces.CriteoGenerator(600, 0).write(tmp_path / "log.tsv")
    out = tmp_path / "a.tet"
    invoke("record", out, "train", tmp_path / "log.tsv", "--ddr", "64KiB", "--ssd", tmp_path / "s")
    trace = traces.read_tet(out)
    options = traces.CriteoOptions(batch_size=128, part="train")
    expected = traces.criteo_trace(tmp_path / "log.tsv", options)
    assert trace.num_accesses == sum(chunk.num_ids for chunk in expected.chunks())
    assert len(trace.tables) == 26


def test_a_script_without_a_model_is_told(tmp_path):
    script, out = tmp_path / "nothing.py", tmp_path / "a.tet"
    script.write_text("print('hello')\n")
    with pytest.raises(
        ConfigError, match="nothing was recorded, as no module with embeddings was called"
    ):
        invoke("record", out, script)
    assert not out.exists()
    result = runner.invoke(app, ["trace", "record", str(out), str(tmp_path / "absent.py")])
    assert result.exit_code == 2
    assert "no script" in result.output


def test_what_cannot_be_read_is_told(tmp_path):
    result = runner.invoke(app, ["trace", "info", str(tmp_path / "absent.tet")])
    assert result.exit_code == 2
    assert "no file" in result.output
    bad = tmp_path / "bad.tet"
    bad.write_bytes(b"no trace")
    with pytest.raises(CorruptionError, match="at byte 0: starts with b'no trace'"):
        invoke("info", bad)


def test_a_bar_shows_itself_late(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("tiered_embed.cli.progress.time.monotonic", lambda: now[0])
    with LateBar("work", 10) as bar:
        bar.advance(1)
        assert not bar._shown
        now[0] = 2.5
        bar.advance(1)
        assert bar._shown
    assert "work" in capsys.readouterr().err
