"""Contestants of ``hbm peers``: one training step of ten tables on a device.

Each trains the same batches with the same gradient and gives back how long its parts took.
"""

import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import tiered_embed as te
from tiered_embed.errors import ConfigError
from tiered_embed.kernels.fbgemm_pair import require_fbgemm

__all__ = ["CONTESTANTS", "OPTIMIZERS", "Step", "copy_rates", "measure", "missing"]

OPTIMIZERS = {
    "sgd": te.optim.SGD(lr=0.01),
    "rowwise_adagrad": te.optim.RowWiseAdagrad(lr=0.01, eps=1e-8),
    "adam": te.optim.Adam(lr=0.001),
}
DIFFERENT_BATCHES = 24  # made before anything is timed, and used again and again
FBGEMM_NAMES = {"sgd": "EXACT_SGD", "rowwise_adagrad": "EXACT_ROWWISE_ADAGRAD", "adam": "ADAM"}


@dataclass(frozen=True)
class Step:
    """Sizes of one cell. ``ids``: of all tables together."""

    optimizer: str
    cache_share: float
    tables: int = 10
    rows: int = 1_000_000
    dim: int = 128
    ids: int = 1_050_000
    batch_size: int = 4096
    exponent: float = 1.05
    warm_steps: int = 20
    steps: int = 30
    lookahead: int = 8
    depth: int = 2
    device: str = "cuda"

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


def missing(device: str) -> list[str]:
    """What a run on ``device`` needs and does not find, in words."""
    out = []
    if device == "cuda" and not torch.cuda.is_available():
        out.append("a CUDA device that torch can use")
    try:
        require_fbgemm()
    except ConfigError as error:
        out.append(str(error))
    if device == "cuda":
        try:
            import triton  # noqa: F401
        except ImportError:
            out.append("Triton, which torch's CUDA wheels bring: pip install triton")
    return out


class Batches:
    """Ids (N,) and offsets (tables * B + 1,) without end, popular rows anywhere in their table."""

    def __init__(self, p: Step, seed: int) -> None:
        self.p = p
        self.draw = np.random.default_rng(seed)
        weights = np.arange(1, p.rows + 1, dtype=np.float64) ** -p.exponent
        self.edges = np.cumsum(weights) / weights.sum()
        places = np.random.default_rng(1)
        self.place = [places.permutation(p.rows) for _ in range(p.tables)]
        per_table = p.ids // p.tables
        bounds = np.linspace(0, per_table, p.batch_size + 1).astype(np.int64)
        self.bounds = torch.from_numpy(bounds)
        starts = np.arange(p.tables)[:, None] * per_table + bounds[None, :-1]
        self.offsets = torch.from_numpy(np.append(starts.ravel(), per_table * p.tables))

        self.made = [self._make() for _ in range(DIFFERENT_BATCHES)]

    def _make(self) -> torch.Tensor:
        shape = (self.p.tables, self.p.ids // self.p.tables)
        ranks = np.searchsorted(self.edges, self.draw.random(shape))
        parts = [place[rank] for place, rank in zip(self.place, ranks, strict=True)]
        return torch.from_numpy(np.concatenate(parts))

    def __iter__(self) -> Iterator[torch.Tensor]:
        return itertools.cycle(self.made)


class Clock:
    """Milliseconds between marks: events on a GPU, the wall clock on a CPU."""

    def __init__(self, p: Step) -> None:
        self.on_gpu = p.on_gpu

    def mark(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: Any, last: Any) -> float:
        if self.on_gpu:
            last.synchronize()
            return float(first.elapsed_time(last))
        return 1e3 * float(last - first)


class Ours:
    """Under ``te.prefetch``; HBM holds the share, DDR the rest."""

    def __init__(self, p: Step, kernel: str) -> None:
        self.p = p
        optimizer = OPTIMIZERS[p.optimizer]
        size = 4 * p.dim + 4 * optimizer.state_floats(p.dim)
        total = p.tables * p.rows * size
        whole = p.cache_share >= 1.0
        self.module = te.TieredEmbeddingBagCollection(
            [te.TableConfig(f"t{i}", p.rows, p.dim) for i in range(p.tables)],
            tiers=te.Tiers(hbm=int(total * p.cache_share), ddr=None if whole else total),
            optimizer=optimizer,
            lookahead=p.lookahead,
            depth=p.depth,
            device=p.device,
            kernel=kernel,
            on_nonfinite="allow",
        )
        self.batches = Batches(p, seed=0)
        self.loop: Any = iter(
            te.prefetch(self._given(), self.module, ids=lambda batch: {self.module: batch})
        )

    def _given(self) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        p = self.p
        for ids in self.batches:
            parts = ids.view(p.tables, -1)
            yield {f"t{i}": (part, self.batches.bounds[:-1]) for i, part in enumerate(parts)}

    def step(self, grad: torch.Tensor, clock: Clock) -> tuple[float, float]:
        """Milliseconds of forward and backward."""
        batch = next(self.loop)
        start = clock.mark()
        out = torch.cat(list(self.module(batch).values()), dim=1)
        middle = clock.mark()
        out.backward(grad)
        end = clock.mark()
        return clock.between(start, middle), clock.between(middle, end)

    def extras(self) -> dict[str, Any]:
        stats = self.module.stats()
        top = next(iter(stats.tiers.values()))
        phases = {name: 1e3 * times.p50_s for name, times in stats.phases.items()}
        return {"hit_rate": 1.0 - top.misses / max(1, top.lookups), "phases_ms": phases}

    def close(self) -> None:
        self.loop.close()
        self.module.close()


class Fbgemm:
    """One TBE; ``placement`` DEVICE, or MANAGED_CACHING with or without its prefetch pipeline."""

    def __init__(self, p: Step, placement: str, *, prefetch: bool = False) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            from fbgemm_gpu import split_embedding_configs as configs
            from fbgemm_gpu import split_table_batched_embeddings_ops_training as ops
        self.p, self.prefetch = p, prefetch
        optimizer = OPTIMIZERS[p.optimizer]
        place = getattr(ops.EmbeddingLocation, placement if p.on_gpu else "HOST")
        compute = ops.ComputeDevice.CUDA if p.on_gpu else ops.ComputeDevice.CPU
        scalars = {
            n: getattr(optimizer, n) for n in ("eps", "beta1", "beta2") if hasattr(optimizer, n)
        }
        self.module = ops.SplitTableBatchedEmbeddingBagsCodegen(
            [(p.rows, p.dim, place, compute)] * p.tables,
            optimizer=getattr(configs.EmbOptimType, FBGEMM_NAMES[p.optimizer]),
            cache_load_factor=min(p.cache_share, 1.0),
            learning_rate=optimizer.lr,
            stochastic_rounding=False,
            bounds_check_mode=ops.BoundsCheckMode.NONE,
            prefetch_pipeline=prefetch,
            device=torch.device(p.device),
            **scalars,
        )
        self.batches = Batches(p, seed=0)
        self.offsets = self.batches.offsets.to(p.device)
        self.source = iter(self.batches)
        self.stream = torch.cuda.Stream() if prefetch and p.on_gpu else None
        self.next = self._load()

    def _load(self) -> torch.Tensor:
        ids = next(self.source)
        if not self.p.on_gpu:
            return ids
        moved = ids.pin_memory().to(self.p.device, non_blocking=True)
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.module.prefetch(moved, self.offsets, torch.cuda.current_stream())
        return moved

    def step(self, grad: torch.Tensor, clock: Clock) -> tuple[float, float]:
        ids = self.next
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)
        start = clock.mark()
        out = self.module(ids, self.offsets)
        middle = clock.mark()
        self.next = self._load()
        out.backward(grad)
        end = clock.mark()
        return clock.between(start, middle), clock.between(middle, end)

    def extras(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        del self.module


CONTESTANTS: dict[str, Callable[[Step], Any]] = {
    "ours, fbgemm kernel": lambda p: Ours(p, "fbgemm"),
    "ours, triton kernel": lambda p: Ours(p, "triton"),
    "FBGEMM all in HBM": lambda p: Fbgemm(p, "DEVICE"),
    "FBGEMM MANAGED_CACHING": lambda p: Fbgemm(p, "MANAGED_CACHING"),
    "FBGEMM MANAGED_CACHING, prefetch": lambda p: Fbgemm(p, "MANAGED_CACHING", prefetch=True),
}


def measure(name: str, p: Step) -> dict[str, Any]:
    """One contestant's times in ms, medians over the steps; ``step``: wall clock per step."""
    contestant = CONTESTANTS[name](p)
    try:
        grad = torch.full((p.batch_size, p.tables * p.dim), 1e-4, device=p.device)
        clock = Clock(p)
        for _ in range(p.warm_steps):
            contestant.step(grad, clock)
        parts, walls = [], []
        for _ in range(p.steps):
            start = time.perf_counter()
            parts.append(contestant.step(grad, clock))
            walls.append(1e3 * (time.perf_counter() - start))
        return {
            "forward_ms": statistics.median(f for f, _ in parts),
            "backward_ms": statistics.median(b for _, b in parts),
            "step_ms": statistics.median(walls),
            **contestant.extras(),
        }
    finally:
        contestant.close()
        if p.on_gpu:
            torch.cuda.empty_cache()


def copy_rates(device: str, num_bytes: int = 1 << 28) -> dict[str, float]:
    """Bytes/s that the device copies within itself, and from pinned host memory and back."""
    if device != "cuda":
        return {}
    here = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    other = torch.empty_like(here)
    pinned = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    rates = {}
    for name, to, source, moved in (
        ("within", other, here, 2 * num_bytes),
        ("to device", here, pinned, num_bytes),
        ("to host", pinned, here, num_bytes),
    ):
        times = []
        for _ in range(5):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            to.copy_(source, non_blocking=True)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        rates[name] = moved / statistics.median(times)
    return rates
