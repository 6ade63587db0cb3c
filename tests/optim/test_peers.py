"""Optimizers beside torch.optim and FBGEMM's CPU kernels, where the semantics coincide.

Where every row trains at every step, training rows and training a dense table are the same.
FBGEMM's CPU kernels have three of the optimizers; they ignore its ``weight_decay`` silently (1.8),
so decay is compared with torch alone.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import tiered_embed as te
from tiered_embed.optim.base import Optimizer

Parameters = list[torch.nn.Parameter]
Maker = Callable[[Parameters], torch.optim.Optimizer]

# Ours, theirs, and the dim where only one will do.
PEERS: dict[str, tuple[Optimizer, Maker, int]] = {
    "SGD": (te.optim.SGD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1), 12),
    "SGD, l2": (
        te.optim.SGD(lr=0.1, weight_decay=0.2),
        lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2),
        12,
    ),
    "MomentumSGD": (
        te.optim.MomentumSGD(lr=0.05, momentum=0.7),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.7),
        12,
    ),
    "MomentumSGD, l2": (
        te.optim.MomentumSGD(lr=0.05, weight_decay=0.2),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.2),
        12,
    ),
    "Adagrad": (
        te.optim.Adagrad(lr=0.05, eps=1e-10),
        lambda p: torch.optim.Adagrad(p, lr=0.05, eps=1e-10),
        12,
    ),
    "Adagrad, l2": (
        te.optim.Adagrad(lr=0.05, eps=1e-8, weight_decay=0.2),
        lambda p: torch.optim.Adagrad(p, lr=0.05, eps=1e-8, weight_decay=0.2),
        12,
    ),
    "RowWiseAdagrad of one column": (
        te.optim.RowWiseAdagrad(lr=0.05, weight_decay=0.1),
        lambda p: torch.optim.Adagrad(p, lr=0.05, eps=1e-8, weight_decay=0.1),
        1,
    ),
    "RowWiseRMSProp of one column": (
        te.optim.RowWiseRMSProp(lr=0.02, alpha=0.9),
        lambda p: torch.optim.RMSprop(p, lr=0.02, alpha=0.9),
        1,
    ),
    "RowWiseRMSProp of one column, l2": (
        te.optim.RowWiseRMSProp(lr=0.02, weight_decay=0.2),
        lambda p: torch.optim.RMSprop(p, lr=0.02, weight_decay=0.2),
        1,
    ),
    "Adam": (
        te.optim.Adam(lr=0.02, beta1=0.8, beta2=0.98),
        lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.8, 0.98)),
        12,
    ),
    "Adam, l2": (
        te.optim.Adam(lr=0.02, weight_decay=0.2),
        lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.2),
        12,
    ),
    "Adam, decoupled": (
        te.optim.Adam(lr=0.02, weight_decay=0.2, weight_decay_mode="decoupled"),
        lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.2),
        12,
    ),
    "AdamW": (te.optim.AdamW(lr=0.02), lambda p: torch.optim.AdamW(p, lr=0.02), 12),
    "PartialRowWiseAdam of one column, l2": (
        te.optim.PartialRowWiseAdam(lr=0.02, weight_decay=0.2),
        lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.2),
        1,
    ),
}


def sizes(rng: np.random.Generator, num_rows: int, dim: int) -> np.ndarray:
    """(U, D) float64 gradients, rows of many sizes."""
    scale = 10.0 ** rng.uniform(-2, 0.5, (num_rows, 1))
    return rng.standard_normal((num_rows, dim)) * scale


class Dense:
    """A torch parameter that torch trains, with its clipping before the step."""

    def __init__(self, maker: Maker, weights: np.ndarray, clip: str) -> None:
        self.parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
        self.optimizer = maker([self.parameter])
        self.clip = clip

    def step(self, grad: np.ndarray) -> None:
        self.parameter.grad = torch.from_numpy(grad.copy())
        if self.clip in ("value", "all"):
            torch.nn.utils.clip_grad_value_([self.parameter], 0.5)
        if self.clip in ("row", "all"):
            for row in self.parameter.grad:
                alone = torch.nn.Parameter(torch.empty_like(row))
                alone.grad = row  # a view, clipped in place
                torch.nn.utils.clip_grad_norm_([alone], 1.0)
        if self.clip in ("global", "all"):
            torch.nn.utils.clip_grad_norm_([self.parameter], 2.0)
        self.optimizer.step()


CLIPS: dict[str, dict[str, Any]] = {
    "no clip": {},
    "value": {"clip_value": 0.5},
    "row": {"clip_row_norm": 1.0},
    "global": {"clip_global_norm": 2.0},
    "all": {"clip_value": 0.5, "clip_row_norm": 1.0, "clip_global_norm": 2.0},
}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("peer", PEERS)
def test_references_agree_with_torch(peer: str, clip: str) -> None:
    optimizer, maker, dim = PEERS[peer]
    optimizer = replace(optimizer, **CLIPS[clip])
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((7, dim))
    state = np.zeros((7, optimizer.state_floats(dim)))
    dense = Dense(maker, weights, clip)
    for step in range(1, 41):
        grad = sizes(rng, 7, dim)
        optimizer.update(weights, state, grad, step)
        dense.step(grad)
    np.testing.assert_allclose(weights, dense.parameter.detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("clip", ["no clip", "all"])
@pytest.mark.parametrize("peer", PEERS)
def test_training_agrees_with_torch(peer: str, clip: str) -> None:
    """Float32 rows through the module, against torch in float64."""
    optimizer, maker, dim = PEERS[peer]
    rng = np.random.default_rng(4)
    with te.TieredEmbedding(
        9, dim, tiers=te.Tiers(ddr="1MiB"), optimizer=replace(optimizer, **CLIPS[clip])
    ) as emb:
        emb.load_rows(torch.arange(9), torch.from_numpy(rng.standard_normal((9, dim))).float())
        dense = Dense(maker, emb.rows(np.arange(9)).double().numpy(), clip)
        for _ in range(40):
            grad = sizes(rng, 9, dim).astype(np.float32)
            emb(torch.arange(9)).backward(torch.from_numpy(grad))
            dense.step(grad.astype(np.float64))
        wanted = dense.parameter.detach()
        scale = wanted.abs().max(dim=1, keepdim=True).values.clamp(min=0.1)
        assert ((emb.rows(np.arange(9)) - wanted).abs() / scale).max() < 1e-5


def test_adam_agrees_with_sparse_adam() -> None:
    """Rows that are not used rest in both. Theirs corrects the bias after adding eps: none here."""
    rng = np.random.default_rng(5)
    theirs = torch.nn.EmbeddingBag(20, 6, mode="sum", sparse=True).double()
    peer = torch.optim.SparseAdam(theirs.parameters(), lr=0.02, betas=(0.8, 0.98), eps=1e-300)
    optimizer = te.optim.Adam(lr=0.02, beta1=0.8, beta2=0.98, eps=0.0)
    with te.TieredEmbeddingBag(20, 6, tiers=te.Tiers(ddr="1MiB"), optimizer=optimizer) as emb:
        theirs.weight.data.copy_(emb.rows(np.arange(20)))
        for _ in range(60):
            ids = torch.from_numpy(rng.integers(0, 20, 12) ** 2 // 20)
            offsets = torch.arange(0, 12, 3)
            grad = torch.from_numpy(rng.standard_normal((4, 6)).astype(np.float32))
            emb(ids, offsets).backward(grad)
            peer.zero_grad()
            theirs(ids, offsets).backward(grad.double())
            peer.step()
        wanted = theirs.weight.detach()
        assert ((emb.rows(np.arange(20)) - wanted).abs().max() / wanted.abs().max()) < 1e-5


# --- FBGEMM ---------------------------------------------------------------------------------------


def fbgemm(kind: str, rows: int, dim: int, **options: Any) -> Any:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    return SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType[kind],
        learning_rate=0.05,
        **options,
    )


FBGEMM = {
    "SGD": ("EXACT_SGD", {}),
    "RowWiseAdagrad": ("EXACT_ROWWISE_ADAGRAD", {"eps": 1e-8}),
    "Adagrad": ("EXACT_ADAGRAD", {"eps": 1e-8}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FBGEMM)
def test_training_agrees_with_fbgemm(name: str) -> None:
    dim, rows = 32, 200
    kind, options = FBGEMM[name]
    peer = fbgemm(kind, rows, dim, **options)
    emb = te.TieredEmbeddingBag(
        rows, dim, tiers=te.Tiers(ddr="4MiB"), optimizer=getattr(te.optim, name)(lr=0.05, **options)
    )
    everything = np.arange(rows)
    peer.split_embedding_weights()[0].copy_(emb.rows(everything))
    rng = np.random.default_rng(5)
    for _ in range(20):
        ids = torch.from_numpy(rng.zipf(1.3, 300) % rows)
        offsets = torch.arange(0, 300, 10)
        grad = torch.from_numpy(rng.standard_normal((30, dim)).astype(np.float32))
        ours = emb(ids, offsets)
        theirs = peer(ids, torch.cat([offsets, torch.tensor([300])]))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        ours.backward(grad)
        theirs.backward(grad)
    torch.testing.assert_close(
        emb.rows(everything), peer.split_embedding_weights()[0], rtol=1e-4, atol=1e-5
    )
    emb.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FBGEMM)
def test_clip_value_agrees_with_fbgemm(name: str) -> None:
    """Its clipping is of a bag's gradient; where bags are rows that is the row's."""
    kind, options = FBGEMM[name]
    peer = fbgemm(kind, 30, 8, gradient_clipping=True, max_gradient=0.4, **options)
    optimizer = getattr(te.optim, name)(lr=0.05, clip_value=0.4, **options)
    with te.TieredEmbedding(30, 8, tiers=te.Tiers(ddr="1MiB"), optimizer=optimizer) as emb:
        peer.split_embedding_weights()[0].copy_(emb.rows(np.arange(30)))
        rng = np.random.default_rng(6)
        for _ in range(20):
            grad = torch.from_numpy(rng.standard_normal((30, 8)).astype(np.float32))
            emb(torch.arange(30)).backward(grad)
            peer(torch.arange(30), torch.arange(31)).backward(grad.clone())
        torch.testing.assert_close(
            emb.rows(np.arange(30)), peer.split_embedding_weights()[0], rtol=1e-5, atol=1e-6
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FBGEMM)
def test_fbgemm_still_ignores_weight_decay_on_the_cpu(name: str) -> None:
    """The day that it does not, this fails, and decay can be compared too."""
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode

    kind, options = FBGEMM[name]
    rows = []
    for decay in ({}, {"weight_decay": 0.5, "weight_decay_mode": WeightDecayMode.L2}):
        peer = fbgemm(kind, 10, 8, **options, **decay)
        peer.split_embedding_weights()[0].copy_(torch.ones(10, 8))
        peer(torch.arange(10), torch.arange(11)).backward(torch.ones(10, 8))
        rows.append(peer.split_embedding_weights()[0].clone())
    assert torch.equal(*rows)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", ["ADAM", "PARTIAL_ROWWISE_ADAM", "LAMB", "PARTIAL_ROWWISE_LAMB", "LARS_SGD"]
)
def test_fbgemm_has_no_others_on_the_cpu(kind: str) -> None:
    with pytest.raises(AssertionError, match="not supported in CPU mode"):
        fbgemm(kind, 10, 8)
