"""The contestants of the kernels benchmark: each trains one table of (rows, D) float32 in memory.

All get the same batches and the same gradient; a step ends with updated rows. Legend: ``N`` ids of
a batch, ``B`` bags, ``D`` dim.
"""

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

import tiered_embed as te
from benchmarks.kernels.optimizers import Entry
from tiered_embed.kernels import UpdateOptions
from tiered_embed.kernels.fbgemm_pair import require_fbgemm

__all__ = [
    "BARE",
    "FORMS",
    "KERNELS",
    "Batch",
    "Contestant",
    "Ours",
    "OursKernels",
    "TorchTable",
    "fill",
    "peers",
]

LOAD_ROWS = 1 << 16
BARE, KERNELS = "bare", "kernels"
FORMS = {
    BARE: "module(ids, offsets).backward(grad): checks, planning, autograd, lookup, update",
    KERNELS: "native lookup and update alone, from a plan made beforehand",
}


@dataclass(frozen=True)
class Batch:
    """ids (N,) and bounds (B + 1,), both int64."""

    ids: torch.Tensor
    bounds: torch.Tensor


class Contestant(Protocol):
    """Trains on the batches that it was given, in turn."""

    name: str
    threads: int

    def start(self, batches: Sequence[Batch], grad: torch.Tensor) -> None:
        """The batches to go round from here on, and the gradient (B, D) of every output."""

    def step(self) -> None:
        """Forward, backward and update of the next batch."""

    def load(self, start: int, weights: torch.Tensor) -> None:
        """Sets rows from ``start`` on."""

    def rows(self) -> torch.Tensor:
        """All weights."""


def fill(contestants: Sequence[Contestant], rows: int, dim: int, seed: int = 0) -> None:
    """The same initial rows for everybody; touches all memory."""
    draw = torch.Generator().manual_seed(seed)
    for start in range(0, rows, LOAD_ROWS):
        weights = torch.empty(min(LOAD_ROWS, rows - start), dim)
        weights.uniform_(-0.01, 0.01, generator=draw)
        for contestant in contestants:
            contestant.load(start, weights)


class Ours:
    """``te.TieredEmbeddingBag`` with the whole table in DDR, in one of the two forms."""

    def __init__(self, entry: Entry, rows: int, dim: int, threads: int) -> None:
        self.name = BARE
        self.threads = threads
        self.spec = entry.spec
        self.module = te.TieredEmbeddingBag(
            rows,
            dim,
            tiers=te.Tiers(ddr=rows * (dim + sum(entry.widths(dim))) * 4),
            optimizer=self.spec,
            num_threads=threads,
            include_last_offset=True,
        )
        self._rows = rows
        self._batches: Iterator[Batch] = iter(())
        self._grad = torch.empty(0)

    def start(self, batches: Sequence[Batch], grad: torch.Tensor) -> None:
        self._batches, self._grad = itertools.cycle(batches), grad

    def step(self) -> None:
        batch = next(self._batches)
        self.module(batch.ids, batch.bounds).backward(self._grad)

    def load(self, start: int, weights: torch.Tensor) -> None:
        self.module.load_rows(torch.arange(start, start + len(weights)), weights)

    def rows(self) -> torch.Tensor:
        return self.module.rows(torch.arange(self._rows))

    def close(self) -> None:
        self.module.close()


class OursKernels:
    """The native calls alone, on the table of ``ours``; plans are made by :meth:`start`."""

    def __init__(self, ours: Ours) -> None:
        self.name = KERNELS
        self.threads = ours.threads
        self._ours = ours
        self.engine = ours.module.engine
        self._steps = 0

    def start(self, batches: Sequence[Batch], grad: torch.Tensor) -> None:
        pool = self.engine.pools[0]
        plans = []
        for batch in batches:
            module = self._ours.module
            checked = module.check(module.present((batch.ids, batch.bounds)))
            plan = pool.planner.plan_now(checked.segments[0])
            pool.planner.release(plan.number, updated=True)
            plans.append((plan, self.engine.bags(checked)[0]))
        self._plans = itertools.cycle(plans)
        self._grad = grad.numpy()
        self._out = torch.empty(grad.shape).numpy()

    def step(self) -> None:
        self._steps += 1
        plan, bags = next(self._plans)
        kernel = self.engine.pools[0].kernel
        spec = self._ours.spec
        looked_up = kernel.lookup(plan, bags, self._out, self._steps, spec)
        kernel.update(plan, bags, self._grad, spec, UpdateOptions(self._steps), looked_up)

    def load(self, start: int, weights: torch.Tensor) -> None:
        self._ours.load(start, weights)

    def rows(self) -> torch.Tensor:
        return self._ours.rows()


class Fbgemm:
    """FBGEMM's table-batched embedding on the host."""

    name = "FBGEMM CPU"
    threads = 1

    def __init__(self, entry: Entry, rows: int, dim: int) -> None:
        # Slow to import, and optimizers that it lacks do without it.
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

        spec = entry.spec
        self._emb = SplitTableBatchedEmbeddingBagsCodegen(
            [(rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
            optimizer=getattr(EmbOptimType, entry.fbgemm or ""),
            learning_rate=spec.lr,
            eps=getattr(spec, "eps", 1e-8),
            pooling_mode=PoolingMode.SUM,
        )
        self._weights = self._emb.split_embedding_weights()[0]

    def start(self, batches: Sequence[Batch], grad: torch.Tensor) -> None:
        self._batches, self._grad = itertools.cycle(batches), grad

    def step(self) -> None:
        batch = next(self._batches)
        self._emb(batch.ids, batch.bounds).backward(self._grad)

    def load(self, start: int, weights: torch.Tensor) -> None:
        self._weights[start : start + len(weights)] = weights

    def rows(self) -> torch.Tensor:
        return self._weights.detach()


class TorchTable:
    """``nn.EmbeddingBag(sparse=True)``; peers of one dim may share it."""

    def __init__(self, rows: int, dim: int) -> None:
        warnings.filterwarnings("ignore", "Sparse invariant checks")
        self.emb = nn.EmbeddingBag(
            rows,
            dim,
            sparse=True,
            mode="sum",
            include_last_offset=True,
            _weight=torch.zeros(rows, dim),
        )


class _TorchPeer:
    """One step of the shared table; subclasses apply the sparse gradient."""

    name = "torch"
    threads = 1

    def __init__(self, table: TorchTable) -> None:
        self._table = table
        self._weight = table.emb.weight

    def start(self, batches: Sequence[Batch], grad: torch.Tensor) -> None:
        self._batches, self._grad = itertools.cycle(batches), grad

    def step(self) -> None:
        batch = next(self._batches)
        self._weight.grad = None
        self._table.emb(batch.ids, batch.bounds).backward(self._grad)
        self._apply()

    def _apply(self) -> None:
        raise NotImplementedError

    def load(self, start: int, weights: torch.Tensor) -> None:
        with torch.no_grad():
            self._weight[start : start + len(weights)] = weights

    def rows(self) -> torch.Tensor:
        return self._weight.detach()


class TorchOptim(_TorchPeer):
    """A ``torch.optim`` class that takes sparse gradients."""

    def __init__(self, entry: Entry, table: TorchTable) -> None:
        assert entry.native is not None
        super().__init__(table)
        self.name = f"torch sparse + torch.optim.{entry.native_name}"
        self._optimizer = entry.native(table.emb.parameters(), entry.spec)

    def _apply(self) -> None:
        self._optimizer.step()


class TorchRows(_TorchPeer):
    """Torch operations on the touched rows of the coalesced gradient."""

    name = "torch sparse + torch ops on touched rows"

    def __init__(self, entry: Entry, table: TorchTable) -> None:
        super().__init__(table)
        rows, dim = self._weight.shape
        self._entry, self._spec, self._steps = entry, entry.spec, 0
        self._states = [torch.zeros(rows, width) for width in entry.widths(dim)]

    @torch.no_grad()
    def _apply(self) -> None:
        self._steps += 1
        gradient = self._weight.grad
        assert gradient is not None
        gradient = gradient.coalesce()
        ids = gradient.indices()[0]
        weights = self._weight.index_select(0, ids)
        states = [state.index_select(0, ids) for state in self._states]
        hyper = self._spec.hyper(self._steps)
        self._entry.formula(weights, states, gradient.values(), self._spec, hyper)
        self._weight.index_copy_(0, ids, weights)
        for whole, part in zip(self._states, states, strict=True):
            whole.index_copy_(0, ids, part)


def _threaded(peer: Any, threads: int) -> Contestant:
    """The same table, trained with another number of threads."""
    other: Any = copy.copy(peer)
    other.name, other.threads = f"{peer.name}, {threads} thread{'s'[: threads - 1]}", threads
    return other  # type: ignore[no-any-return]


def peers(entry: Entry, table: Callable[[], TorchTable], threads: int) -> list[Contestant]:
    """Everybody that has the optimizer, with one thread and with all: more may cost more than it
    gives. ``table`` gives each torch peer its weights."""
    found: list[Any] = [TorchRows(entry, table())]
    if entry.native is not None:
        found.append(TorchOptim(entry, table()))
    if entry.fbgemm is not None:
        rows, dim = found[0].rows().shape
        found.insert(0, Fbgemm(entry, rows, dim))
    return [_threaded(peer, n) for peer in found for n in sorted({1, threads})]
