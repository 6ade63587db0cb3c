"""``tests/gpu`` stays alive where there is no GPU: what is not the device's own runs on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="make test-gpu runs them")
def test_the_gpu_tests_run_dry():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "gpu"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "TIERED_EMBED_DRY_RUN": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert "skipped" in done.stdout
