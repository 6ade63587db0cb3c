"""The command line, frozen: what exists, what it prints, how it fails."""

import json
from pathlib import Path

from typer.testing import CliRunner

from tiered_embed.cli import app
from tiered_embed.traces import CriteoGenerator

runner = CliRunner()


def test_help_names_every_command() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "train" in result.output


def test_train_prints_json(tmp_path: Path) -> None:
    log = tmp_path / "log.tsv"
    CriteoGenerator(600, 0).write(log)
    args = ["train", str(log), "--ddr", "64KiB", "--ssd", str(tmp_path / "ssd"), "--json"]
    result = runner.invoke(app, args)
    assert result.exit_code == 0, result.output
    out = json.loads(result.stdout)
    assert 0.0 <= out["auc"] <= 1.0
    assert len(out["digest"]) == 64
    assert out["stats"]["tiers"]["SSD"]["lookups"] > 0


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    result = runner.invoke(app, ["train", str(tmp_path / "none.tsv")])
    assert result.exit_code == 2
    assert "no file" in result.output
