"""A slow and jittery store: reads of 0 to 50 ms that end in any order, late writes.

Time is invented (``stepped.Clock``): who waits lets it pass. Trained bytes must not notice.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiered_embed as te
from reference import Bags, DenseTrainer, Table
from stepped import Clock
from tiered_embed.engine import scheduler as scheduler_module
from tiered_embed.engine.executors import PLANS_READING, Executors

DIM = 4
ADAGRAD = te.optim.Adagrad(lr=0.1)
TABLE = Table("table", DIM)
SLOW_S = 0.05


class InventedTime:
    """Stands for the module ``time`` in the pipeline."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def perf_counter(self) -> float:
        return self._clock.now_s


def make(folder: Path, clock: Clock, *, write_buffer_rows: int, **options: Any) -> Any:
    tiers = te.Tiers(ddr=24 * 2 * 4 * DIM, ssd=folder, store="memory")
    module = te.TieredEmbeddingBag(
        None, DIM, tiers=tiers, optimizer=ADAGRAD, num_threads=1, **options
    )
    scheduler = module.engine.pools[0].scheduler
    scheduler._jobs.executors.shutdown()
    lanes = Executors(
        clock.lane(1, 0.001), clock.lane(PLANS_READING, SLOW_S), clock.lane(1, 4 * SLOW_S)
    )
    scheduler._jobs.executors = scheduler._mover._executors = lanes
    scheduler._mover._writes.limit_bytes = write_buffer_rows * 2 * 4 * DIM
    return module


def batches_of(seed: int, num_batches: int) -> list[torch.Tensor]:
    """Rows come and go: most of a batch is near the last ones, some of it anywhere."""
    draw = np.random.default_rng(seed)
    out = []
    for b in range(num_batches):
        near = draw.integers(b, b + 14, (4, 2))
        out.append(np.concatenate([near, draw.integers(0, 60, (4, 1))], axis=1))
    return [torch.from_numpy(ids) for ids in out]


def dense_digest(batches: list[torch.Tensor], gradients: list[torch.Tensor]) -> str:
    dense = DenseTrainer([TABLE], ADAGRAD, init=te.init.Uniform(), seed=0)
    for ids, grad in zip(batches, gradients, strict=True):
        offsets = np.arange(len(ids) + 1, dtype=np.int64) * ids.shape[1]
        dense.backward({"table": Bags(ids.reshape(-1).numpy(), offsets)}, {"table": grad.numpy()})
    return dense.digest()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return iter(lambda: tmp_path_factory.mktemp("jitter"), None)


def train(
    folder: Path,
    seed: int,
    depth: int | str,
    policy: str,
    write_buffer_rows: int,
    bare: int,
    leave: int,
) -> tuple[Clock, te.Stats]:
    """Trains streams of ``leave`` batches each, none to its end, but the last.

    Every ``bare``-th batch is followed by one outside of the stream.
    """
    batches = batches_of(seed, 40)
    generator = torch.Generator().manual_seed(seed)
    clock = Clock(seed)
    real = scheduler_module.time
    scheduler_module.time = InventedTime(clock)  # type: ignore[attr-defined]
    try:
        with make(
            folder,
            clock,
            write_buffer_rows=write_buffer_rows,
            lookahead=8,
            depth=depth,
            policy=policy,
        ) as module:
            trained, gradients = [], []

            def step(ids: torch.Tensor) -> None:
                grad = torch.randn(len(ids), DIM, generator=generator)
                module(ids).backward(grad)
                trained.append(ids)
                gradients.append(grad)

            for first in range(0, 40, leave):
                rest = range(first, 40)
                loop = iter(te.prefetch(rest, module, ids=lambda n: {module: batches[n]}))
                for n in itertools.islice(loop, leave):
                    step(batches[n])
                    clock.pass_s(0.01)
                    if bare and n % bare == 0:
                        step(batches[(n * 7) % 40])
                loop.close()
            stats = module.stats()
            assert module.digest() == dense_digest(trained, gradients)
            return clock, stats
    finally:
        scheduler_module.time = real  # type: ignore[attr-defined]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    depth=st.sampled_from([0, 1, 2, 5, "auto"]),
    policy=st.sampled_from(["lru", "s3fifo", "lookahead"]),
    write_buffer_rows=st.sampled_from([0, 10, 1000]),
    bare=st.sampled_from([0, 3]),
    leave=st.sampled_from([40, 9]),
)
def test_trained_bytes_do_not_notice(folders, seed, depth, policy, write_buffer_rows, bare, leave):
    train(next(folders), seed, depth, policy, write_buffer_rows, bare, leave)


def test_the_store_is_as_bad_as_it_says(tmp_path):
    """Reads overtake each other, and rows are found on their way down."""
    clock, stats = train(tmp_path, 5, 5, "lookahead", 1000, 0, 40)
    assert clock.reordered > 10
    assert stats.tiers["SSD"].hits > 20


def test_auto_finds_the_depth_that_hides_a_slow_store(tmp_path):
    """Steps of 20 ms: one batch ahead hides reads of up to 40 ms, and two all of them."""
    clock = Clock(3)
    real = scheduler_module.time
    scheduler_module.time = InventedTime(clock)  # type: ignore[attr-defined]
    draw = np.random.default_rng(0)
    batches = [torch.from_numpy(draw.integers(0, 500, (2, 2))) for _ in range(1500)]
    try:
        module = make(tmp_path, clock, write_buffer_rows=1000, lookahead=8, depth="auto")
        seen, waited = [], []
        with module:
            for ids in te.prefetch(batches, module, ids=lambda ids: {module: ids}):
                module(ids).sum().backward()
                clock.pass_s(0.02)
                seen.append(module.stats().depth)
                waited.append(module.stats().tiers["DDR"].stall_s)
    finally:
        scheduler_module.time = real  # type: ignore[attr-defined]
    # 24 slots: batches of at most 4 rows may pin 12 of them, so 2 ahead at most.
    assert max(seen) <= 2
    assert seen[0] == 1
    assert seen[500:].count(2) > 0.9 * len(seen[500:])
    waits = np.diff(waited)
    assert waits[500:].mean() < 0.5 * waits[:20].mean()
