"""The command line, frozen: what exists, what it prints, how it fails."""

import json
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from tiered_embed.cli import app
from tiered_embed.traces import CriteoGenerator

runner = CliRunner()

TESTS = next(folder for folder in Path(__file__).resolve().parents if folder.name == "tests")
FROZEN = TESTS / "golden" / "command_line.json"


def described(command: Any) -> dict[str, Any]:
    """A command's options and arguments, or a group's commands, as plain data."""
    commands = getattr(command, "commands", None)
    if commands is not None:
        return {name: described(each) for name, each in sorted(commands.items())}
    return {
        " ".join([*param.opts, *param.secondary_opts]): (
            "required" if param.required else param.default
        )
        for param in command.params
    }


def test_the_command_line_is_frozen() -> None:
    """Scripts depend on it. A change here is a change for users: edit the file by hand, and say so
    in the changelog."""
    found = json.loads(json.dumps(described(typer.main.get_command(app)), default=str))
    assert found == json.loads(FROZEN.read_text())


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
