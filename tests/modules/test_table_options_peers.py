"""Tables with options of their own, pooled and not, beside FBGEMM's CPU kernels and torch.optim.

Each table is held against a table of its own in one of the two: the peer that is drawn, where both
have its optimizer. Rows of float16 are FBGEMM's; torch would round its optimizer state too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tiered_embed as te

ROWS, BAGS, STEPS = 40, 5, 4
EVERY = range(ROWS)
TINY = 1e-30  # Adam's eps: SparseAdam adds it before its correction of the bias

pytestmark = [pytest.mark.filterwarnings("ignore")]  # FBGEMM's and torch's own

OPTIMIZERS: dict[str, te.optim.Optimizer] = {
    "sgd": te.optim.SGD(lr=0.1),
    "adagrad": te.optim.Adagrad(lr=0.2, eps=1e-8),
    "rowwise": te.optim.RowWiseAdagrad(lr=0.1, eps=1e-8),
    "adam": te.optim.Adam(lr=0.05, eps=TINY),
}
PEERS = {
    "sgd": ("torch", "fbgemm"),
    "adagrad": ("torch", "fbgemm"),
    "rowwise": ("fbgemm",),
    "adam": ("torch",),
}


@dataclass(frozen=True)
class Drawn:
    """A table, and what it is held against."""

    config: te.TableConfig
    optimizer: str
    peer: str
    weighted: bool

    @property
    def lr(self) -> float:
        return OPTIMIZERS[self.optimizer].lr * self.config.lr_factor


@dataclass(frozen=True)
class Case:
    tables: tuple[Drawn, ...]
    default: str  # the module's optimizer
    pooled: bool
    prefetch: bool
    cached: bool
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    pooled, default = draw(st.booleans()), draw(st.sampled_from(list(OPTIMIZERS)))
    dim = draw(st.sampled_from([4, 8, 12]))
    tables = []
    for i in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from([default, *OPTIMIZERS]))
        peer = draw(st.sampled_from(PEERS[kind]))
        mode = draw(st.sampled_from(["sum", "mean"])) if pooled else "sum"
        half = peer == "fbgemm" and draw(st.booleans())
        config = te.TableConfig(
            f"t{i}",
            ROWS,
            draw(st.sampled_from([4, 8, 12])) if pooled else dim,
            mode=mode,
            optimizer=None if kind == default and draw(st.booleans()) else OPTIMIZERS[kind],
            dtype=torch.float16 if half else None,
            init=draw(st.sampled_from([None, te.init.Constant(0.25), te.init.Uniform(-2, 2)])),
            lr_factor=draw(st.sampled_from([1.0, 1.0, 0.5, 2.0, 0.0])),
            trainable=draw(st.sampled_from([True, True, True, False])),
        )
        weighted = pooled and mode == "sum" and draw(st.booleans())
        tables.append(Drawn(config, kind, peer, weighted))
    flags = [draw(st.booleans()) for _ in range(2)]
    return Case(tuple(tables), default, pooled, *flags, draw(st.integers(0, 10**6)))


class Torch:
    """Tables in ``nn.EmbeddingBag``: a parameter group each, in one of torch's optimizers."""

    def __init__(self, tables: Sequence[Drawn], rows: dict[str, torch.Tensor]) -> None:
        self.bags = {
            t.config.name: nn.EmbeddingBag(
                ROWS,
                t.config.embedding_dim,
                mode=t.config.mode,
                sparse=t.optimizer == "adam",
                include_last_offset=True,
                _weight=rows[t.config.name].clone(),
            ).requires_grad_(t.config.trainable)
            for t in tables
        }
        self.optimizers = []
        for kind, make in (
            ("sgd", torch.optim.SGD),
            ("adagrad", lambda p, lr: torch.optim.Adagrad(p, lr=lr, eps=1e-8)),
            ("adam", lambda p, lr: torch.optim.SparseAdam(p, lr=lr, eps=TINY)),
        ):
            groups = [
                # SparseAdam refuses a learning rate of 0.
                {"params": [self.bags[t.config.name].weight], "lr": max(t.lr, 1e-40)}
                for t in tables
                if t.optimizer == kind and t.config.trainable
            ]
            if groups:
                self.optimizers.append(make(groups, lr=1.0))

    def forward(self, name: str, ids: Any, offsets: Any, weights: Any) -> torch.Tensor:
        return self.bags[name](ids, offsets, weights)

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def rows(self, name: str) -> torch.Tensor:
        return self.bags[name].weight.detach()


class Fbgemm:
    """One of its modules for each table: a module has one optimizer and one precision."""

    def __init__(self, tables: Sequence[Drawn], rows: dict[str, torch.Tensor]) -> None:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
            EmbeddingLocation,
            PoolingMode,
        )
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        kinds = {
            "sgd": EmbOptimType.EXACT_SGD,
            "adagrad": EmbOptimType.EXACT_ADAGRAD,
            "rowwise": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        }
        self.modules: dict[str, Any] = {}
        for t in tables:
            half = t.config.dtype is torch.float16
            self.modules[t.config.name] = SplitTableBatchedEmbeddingBagsCodegen(
                [(ROWS, t.config.embedding_dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
                optimizer=kinds[t.optimizer],
                learning_rate=t.lr,
                eps=1e-8,
                weights_precision=SparseType.FP16 if half else SparseType.FP32,
                stochastic_rounding=False,
                pooling_mode=PoolingMode[t.config.mode.upper()],
            )
            self.rows(t.config.name).copy_(rows[t.config.name])
        self.frozen = {t.config.name for t in tables if not t.config.trainable}

    def forward(self, name: str, ids: Any, offsets: Any, weights: Any) -> torch.Tensor:
        out: torch.Tensor = self.modules[name](ids, offsets, per_sample_weights=weights)
        return out.detach() if name in self.frozen else out

    def zero_grad(self) -> None:
        pass

    def step(self) -> None:
        pass

    def rows(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self.modules[name].split_embedding_weights()[0]
        return found


def batches(case: Case) -> list[dict[str, tuple[torch.Tensor, ...]]]:
    """Of each table ids, ends of its bags (B + 1,), and weights where it is weighted."""
    generator = torch.Generator().manual_seed(case.seed)
    out = []
    for _ in range(STEPS):
        batch = {}
        for t in case.tables:
            lengths = torch.randint(0, 5, (BAGS,), generator=generator)
            total = int(lengths.sum())
            ids = (torch.rand(total, generator=generator) ** 3 * ROWS).long()
            ends = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
            if not case.pooled:
                ends = torch.arange(total + 1)
            weights = torch.rand(total, generator=generator) if t.weighted else None
            batch[t.config.name] = (ids, ends, weights)
        out.append(batch)
    return out


def given_to(case: Case, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch as our collections take it."""
    if not case.pooled:
        return {name: ids for name, (ids, _, _) in batch.items()}
    return {name: (ids, ends[:-1], weights) for name, (ids, ends, weights) in batch.items()}


def check(case: Case, folder: Any) -> None:
    configs = [t.config for t in case.tables]
    kind = te.TieredEmbeddingBagCollection if case.pooled else te.TieredEmbeddingCollection
    tiers = te.Tiers(ddr="1MiB")
    if case.cached:
        tiers = te.Tiers(ddr=len(configs) * 16 * 96, ssd=folder, store="memory")
    with kind(
        configs,
        tiers=tiers,
        optimizer=OPTIMIZERS[case.default],
        init=te.init.Uniform(-0.5, 0.5),
        output_dtype=torch.float32,
        lookahead=2,
        depth=1,
        num_threads=1,
    ) as module:
        start = {c.name: module.rows(EVERY, c.name) for c in configs}
        sides = {
            "torch": Torch([t for t in case.tables if t.peer == "torch"], start),
            "fbgemm": Fbgemm([t for t in case.tables if t.peer == "fbgemm"], start),
        }
        given = batches(case)
        loop = te.prefetch(given, module, ids=lambda b: {module: given_to(case, b)})
        for batch in loop if case.prefetch else given:
            ours = module(given_to(case, batch))
            for side in sides.values():
                side.zero_grad()
            trained: list[torch.Tensor] = []
            factors = []
            for t in case.tables:
                name = t.config.name
                ids, ends, weights = batch[name]
                theirs = sides[t.peer].forward(name, ids, ends, weights)
                half = t.config.dtype is torch.float16
                near = {"rtol": 4e-3, "atol": 4e-3} if half else {"rtol": 1e-4, "atol": 1e-5}
                torch.testing.assert_close(ours[name], theirs, **near, msg=f"{t}")
                factor = torch.linspace(-1, 1.5, theirs.numel()).view_as(theirs)
                for out in (ours[name], theirs):
                    if out.requires_grad:
                        trained.append(out)
                        factors.append(factor)
            if trained:
                torch.autograd.backward(trained, factors)
            for side in sides.values():
                side.step()
        for t in case.tables:
            name, half = t.config.name, t.config.dtype is torch.float16
            rows, wanted = module.rows(EVERY, name), sides[t.peer].rows(name)
            assert rows.dtype == wanted.dtype
            near = {"rtol": 4e-3, "atol": 4e-3} if half else {"rtol": 1e-4, "atol": 2e-5}
            torch.testing.assert_close(rows, wanted, **near, msg=f"{t}")
            if not t.config.trainable:
                assert torch.equal(rows, start[name])


common = settings(deadline=None, derandomize=True, print_blob=True)


@settings(common, max_examples=40)
@given(case=cases())
def test_drawn_tables_train_as_their_peers(case, tmp_path_factory, imported):
    imported("fbgemm_gpu")
    check(case, tmp_path_factory.mktemp("rows"))


@pytest.mark.long
@settings(common, max_examples=300)
@given(case=cases())
def test_300_drawn_tables_train_as_their_peers(case, tmp_path_factory, imported):
    imported("fbgemm_gpu")
    check(case, tmp_path_factory.mktemp("rows"))
