"""A little of every kind of torture; ``make torture`` does the rest."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from kinds import KINDS
from torture import run_kind


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.short])
def test_a_little_of(name: str) -> None:
    report, _ = run_kind(name, KINDS[name].short, seed=int.from_bytes(os.urandom(4), "big"))
    if report.skipped:
        pytest.skip(report.skipped)
    assert not report.failures, report.messages
    assert report.done
