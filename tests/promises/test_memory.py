"""The memory that README promises: overhead within a tenth, the process within budget and base."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, sys
import numpy as np, torch
import tiered_embed as te

def peak_bytes():
    # Not ru_maxrss: it starts with what the parent had.
    with open("/proc/self/status") as status:
        (line,) = [line for line in status if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])

budget = 200_000_000
emb = te.TieredEmbeddingBag(
    10_000_000, 128, tiers=te.Tiers(ddr=budget, ssd=sys.argv[1]),
    optimizer=te.optim.RowWiseAdagrad(lr=0.1))
rng = np.random.default_rng(0)
batches = [torch.from_numpy(rng.integers(0, 10_000_000, (128, 20))) for _ in range(260)]
most = 0
for batch in te.prefetch(batches, emb, ids=lambda batch: {emb: batch}):
    emb(batch).sum().backward()
    most = max(most, emb.stats().tiers["DDR"].overhead_bytes)
ddr = emb.stats().tiers["DDR"]
emb.close()
print(json.dumps({
    "overhead": most / ddr.budget_bytes,
    "full": ddr.resident * 516 / budget,
    "evicted": ddr.evicted,
    "rss": peak_bytes() - 1.15 * budget}))
"""
FIXED_BASE_BYTES = 600 << 20  # as README says


def test_memory_stays_within_its_bounds(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True
    )
    seen = json.loads(run.stdout)
    assert seen["full"] > 0.99
    assert seen["evicted"] > 100_000
    assert seen["overhead"] <= 0.10
    assert seen["rss"] <= FIXED_BASE_BYTES
