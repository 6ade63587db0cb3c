"""The contestants of ``training in-memory``, and what they train on.

All keep one table in one process's memory. Legend: ``N`` ids of a batch, ``B`` bags, ``D`` dim.
"""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

import tiered_embed as te
from tiered_embed.kernels.fbgemm_pair import require_fbgemm
from tiered_embed.traces import IdStream

__all__ = [
    "FBGEMM",
    "Batch",
    "Contestant",
    "Fbgemm",
    "InMemory",
    "Ours",
    "Torch",
    "gradient",
    "id_batches",
]

LR, EPS = 0.02, 1e-8
FBGEMM = ("FBGEMM CPU", "FBGEMM CPU, 1 thread")


@dataclass(frozen=True)
class InMemory:
    """Parameters."""

    rows: int = 4_000_000
    dim: int = 128
    batch_size: int = 4096
    pooling: int = 20
    rounds: int = 7
    batches: int = 24
    warm_batches: int = 6
    distinct_batches: int = 64
    threads: int = 2
    scatter_rows: bool = True
    seed: int = 0

    @property
    def ids_per_batch(self) -> int:
        return self.batch_size * self.pooling

    @property
    def full_size(self) -> bool:
        default = InMemory()
        return all(
            getattr(self, name) == getattr(default, name)
            for name in ("rows", "dim", "batch_size", "pooling", "threads")
        )

    def stream(self, rows: int) -> IdStream:
        return IdStream(
            rows,
            self.batch_size,
            self.distinct_batches,
            pooling=self.pooling,
            distribution="log_uniform",
            scatter_rows=self.scatter_rows,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Batch:
    """ids (N,) int64, offsets (B,) and bounds (B + 1,) int64."""

    ids: torch.Tensor
    offsets: torch.Tensor
    bounds: torch.Tensor


class Contestant(Protocol):
    """Trains one table of (rows, D) float32."""

    name: str
    threads: int

    def load(self, start: int, weights: torch.Tensor) -> None:
        """Set rows from ``start`` on."""

    def next(self) -> Batch:
        """The next batch of an endless loop over the batches."""

    def forward(self, batch: Batch) -> torch.Tensor: ...

    def backward(self, out: torch.Tensor, grad: torch.Tensor) -> None:
        """Everything up to updated rows."""

    def rows(self, ids: torch.Tensor) -> torch.Tensor: ...

    def close(self) -> None: ...


class Ours:
    """``te.TieredEmbeddingBag`` with the whole table in DDR; bare where there is no depth."""

    def __init__(
        self, p: InMemory, rows: int, batches: list[Batch], lookahead: int, depth: int | None
    ) -> None:
        how = "bare forward" if depth is None else f"lookahead {lookahead} depth {depth}"
        self.name = f"tiered_embed, {how}"
        self.threads = p.threads
        optimizer = te.optim.RowWiseAdagrad(lr=LR, eps=EPS)
        self.emb = te.TieredEmbeddingBag(
            rows,
            p.dim,
            tiers=te.Tiers(ddr=rows * (p.dim + 1) * 4),
            optimizer=optimizer,
            lookahead=lookahead,
            depth=depth or 0,
            num_threads=p.threads,
        )
        self._batches: Iterator[Batch] = itertools.cycle(batches)
        if depth is not None:
            emb = self.emb
            loop = te.prefetch(self._batches, emb, ids=lambda batch: {emb: _arguments(batch)})
            self._batches = iter(loop)

    def load(self, start: int, weights: torch.Tensor) -> None:
        self.emb.load_rows(torch.arange(start, start + len(weights)), weights)

    def next(self) -> Batch:
        return next(self._batches)

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.emb(batch.ids, batch.offsets)

    def backward(self, out: torch.Tensor, grad: torch.Tensor) -> None:
        out.backward(grad)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return self.emb.rows(ids)

    def close(self) -> None:
        if not isinstance(self._batches, itertools.cycle):
            self._batches.close()  # type: ignore[attr-defined]
        self.emb.close()


class Fbgemm:
    """FBGEMM's table-batched embedding on the host, with its exact row-wise Adagrad."""

    def __init__(self, p: InMemory, rows: int, batches: list[Batch]) -> None:
        # Slow to import, and the other part does without it.
        require_fbgemm()
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
            EmbeddingLocation,
            PoolingMode,
        )
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        self.name = FBGEMM[0]
        self.threads = p.threads
        self._emb = SplitTableBatchedEmbeddingBagsCodegen(
            [(rows, p.dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=LR,
            eps=EPS,
            pooling_mode=PoolingMode.SUM,
        )
        self._weights = self._emb.split_embedding_weights()[0]
        self._batches = itertools.cycle(batches)

    def single(self) -> "Fbgemm":
        """The same table, trained with one thread: a second one may cost more than it gives."""
        other = copy.copy(self)
        other.name, other.threads = FBGEMM[1], 1
        return other

    def load(self, start: int, weights: torch.Tensor) -> None:
        self._weights[start : start + len(weights)] = weights

    def next(self) -> Batch:
        return next(self._batches)

    def forward(self, batch: Batch) -> torch.Tensor:
        return self._emb(batch.ids, batch.bounds)

    def backward(self, out: torch.Tensor, grad: torch.Tensor) -> None:
        out.backward(grad)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return self._weights[ids]

    def close(self) -> None: ...


class Torch:
    """``nn.EmbeddingBag(sparse=True)``; ``torch.optim.Adagrad``, which keeps a state per float."""

    name = "torch EmbeddingBag + Adagrad"

    def __init__(self, p: InMemory, rows: int, batches: list[Batch]) -> None:
        self.threads = p.threads
        self._emb = nn.EmbeddingBag(
            rows, p.dim, sparse=True, mode="sum", _weight=torch.empty(rows, p.dim)
        )
        torch.sparse.check_sparse_tensor_invariants.disable()  # as by default, without a warning
        self._optimizer = torch.optim.Adagrad(self._emb.parameters(), lr=LR, eps=EPS)
        self._batches = itertools.cycle(batches)

    def load(self, start: int, weights: torch.Tensor) -> None:
        with torch.no_grad():
            self._emb.weight[start : start + len(weights)] = weights

    def next(self) -> Batch:
        return next(self._batches)

    def forward(self, batch: Batch) -> torch.Tensor:
        return self._emb(batch.ids, batch.offsets)

    def backward(self, out: torch.Tensor, grad: torch.Tensor) -> None:
        out.backward(grad)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return self._emb.weight.detach()[ids]

    def close(self) -> None: ...


def _arguments(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return batch.ids, batch.offsets


def id_batches(p: InMemory, rows: int) -> list[Batch]:
    out = []
    for drawn in p.stream(rows):
        offsets = torch.from_numpy(drawn.offsets)
        bounds = torch.cat([offsets, torch.tensor([p.ids_per_batch])])
        out.append(Batch(torch.from_numpy(drawn.ids), offsets, bounds))
    return out


def gradient(p: InMemory) -> torch.Tensor:
    return torch.randn(p.batch_size, p.dim, generator=torch.Generator().manual_seed(p.seed)) * 0.01
