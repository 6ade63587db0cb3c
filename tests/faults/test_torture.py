"""A little of every kind of torture; ``make torture`` does the rest."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import torture
from kinds import KINDS
from torture import run_kind


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.short])
def test_a_little_of(name: str) -> None:
    report, _ = run_kind(name, KINDS[name].short, seed=int.from_bytes(os.urandom(4), "big"))
    if report.skipped:
        pytest.skip(report.skipped)
    assert not report.failures, report.messages
    assert report.done


def test_a_kind_that_does_not_end_in_time_is_a_failure(monkeypatch):
    monkeypatch.setattr(torture, "TIME_LIMIT_S", 0.01)
    report, _ = run_kind("manifests", 1, seed=0)
    assert report.failures == 1
    assert report.messages == ["manifests did not end within 0.01 seconds"]
