"""Millions of row updates through the module against a dense oracle: no bit differs.

Most rows are below memory. Between stretches of training the run is saved, reopened with other
tiers, or taken back to a checkpoint; rows are written and read by id, the store is flushed.
"""

import random
from pathlib import Path

import numpy as np
import torch

import tiered_embed as te
from dense_oracle import DenseOracle
from report import Report

NAME, DIM, BAG = "soak", 8, 4
LR, EPS, SEED = 0.05, 1e-6, 77
INIT = te.init.Uniform(-0.5, 0.25)
RECORD_BYTES = 2 * 4 * DIM
STRETCH = 6  # batches


class Soak:
    def __init__(self, count: int, seed: int, folder: Path, report: Report) -> None:
        self._draw = random.Random(seed)
        self._rng = np.random.default_rng(seed)
        self._folder = folder
        self._report = report
        self._num_rows = min(150_000, max(3000, count // 30))
        self._num_bags = self._num_rows // 30
        self._oracle = DenseOracle(NAME, self._num_rows, DIM, lr=LR, eps=EPS, init=INIT, seed=SEED)
        self._saved: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._steps = 0
        self._saves = 0
        self._evicted = 0
        self._module = self._open()

    def _open(self) -> te.TieredEmbeddingBag:
        share = self._draw.choice([0.05, 0.1, 0.2, 0.5])
        return te.TieredEmbeddingBag(
            self._num_rows,
            DIM,
            tiers=te.Tiers(
                ddr=int(share * self._num_rows) * RECORD_BYTES, ssd=self._folder / "work"
            ),
            optimizer=te.optim.Adagrad(lr=LR, eps=EPS),
            name=NAME,
            seed=SEED,
            init=INIT,
            policy=self._draw.choice(["lookahead", "lru", "lfu", "s3fifo"]),
            lookahead=3,
            depth=self._draw.choice([0, 1, 2]),
            num_threads=self._draw.choice([1, 2]),
        )

    def _ids(self) -> np.ndarray:
        u = self._rng.random((self._num_bags, BAG))
        ids = (u**1.5 * self._num_rows).astype(np.int64)
        return (ids * 7919) % self._num_rows  # the frequent ones are spread over the keys

    def train(self) -> None:
        batches = [self._ids() for _ in range(STRETCH)]
        module = self._module
        for i in te.prefetch(
            range(STRETCH), module, ids=lambda i: {module: torch.from_numpy(batches[i])}
        ):
            out = module(torch.from_numpy(batches[i]))
            expected = self._oracle.forward(batches[i])
            if not np.array_equal(out.detach().numpy().view(np.int32), expected.view(np.int32)):
                self._report.fail(f"the forward of step {self._steps} differs")
            grad = self._rng.standard_normal(out.shape).astype(np.float32)
            out.backward(torch.from_numpy(grad))
            self._report.count(n=self._oracle.backward(batches[i], grad))
            self._steps += 1

    def write_and_read(self) -> None:
        rows = self._rng.choice(self._num_rows, self._num_rows // 100, replace=False)
        rows = rows.astype(np.int64)
        weights = self._rng.standard_normal((len(rows), DIM)).astype(np.float32)
        self._module.load_rows(rows, torch.from_numpy(weights))
        self._oracle.write(rows, weights)
        rows = self._rng.integers(0, self._num_rows, self._num_rows // 50)
        if not np.array_equal(self._module.rows(rows).numpy(), self._oracle.weights[rows]):
            self._report.fail(f"rows read by id differ after step {self._steps}")
        self._report.note("rows read by id", len(rows))

    def flush(self) -> None:
        self._module.flush()

    def compare(self) -> None:
        if self._module.digest() != self._oracle.digest():
            self._report.fail(f"the digest after step {self._steps} differs")
        self._report.note("digests compared")

    def reopen(self) -> None:
        self._close()
        self._module = self._open()
        self.compare()
        self._report.note("reopened")

    def save(self) -> None:
        self._saves += 1
        background = self._draw.random() < 0.5
        handle = te.checkpoint.save(
            self._module, self._folder / "saved", step=self._saves, background=background
        )
        self._saved[self._saves] = self._oracle.copy_of_rows()
        if background:
            self.train()
        handle.wait()
        te.checkpoint.prune(self._folder / "saved", keep=3)
        for step in sorted(self._saved)[:-3]:
            del self._saved[step]
        self._report.note("saved")

    def go_back(self) -> None:
        """To any kept checkpoint, in a module with other tiers."""
        if not self._saved:
            return
        step = self._draw.choice(sorted(self._saved))
        if self._draw.random() < 0.5:
            self._close()
            self._module = self._open()
        te.checkpoint.load(self._module, self._folder / "saved", step)
        self._oracle.put_back(self._saved[step])
        self.compare()
        self._report.note("gone back")

    def run(self, count: int) -> None:
        actions = [self.train] * 6 + [self.write_and_read, self.flush, self.reopen]
        actions += [self.save, self.save, self.go_back]
        while self._report.done < count and not self._report.failures:
            self._draw.choice(actions)()
        self.reopen()
        self._close()
        self._report.note("evictions", self._evicted)

    def _close(self) -> None:
        self._evicted += self._module.stats().tiers["DDR"].evicted
        self._module.close()


def run(count: int, seed: int, folder: Path) -> Report:
    """``count``: row updates."""
    report = Report()
    Soak(count, seed, folder, report).run(count)
    return report
