"""Optimizers: the references against torch and FBGEMM, the kernels against the references."""

import numpy as np
import pytest
import torch

import tiered_embed as te
from tiered_embed import _native
from tiered_embed.optim import lane_sum, row_gradient

OPTIMIZERS = [
    te.optim.SGD(lr=0.1),
    te.optim.RowWiseAdagrad(lr=0.05, eps=1e-8),
    te.optim.Adagrad(lr=0.05, eps=1e-10),
    te.optim.Adam(lr=0.01),
]
IDS = [type(o).__name__ for o in OPTIMIZERS]


def test_lane_sum_order() -> None:
    x = np.random.default_rng(0).standard_normal((5, 37)).astype(np.float32)
    for row, got in zip(x, lane_sum(x), strict=True):
        lanes = [np.float32(0)] * 16
        for c, value in enumerate(row):
            lanes[c % 16] = np.float32(lanes[c % 16] + value)
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [np.float32(lanes[i] + lanes[i + half]) for i in range(half)]
        assert got == lanes[0]
    np.testing.assert_allclose(lane_sum(x.astype(np.float64)), x.astype(np.float64).sum(1))


def test_row_gradient_chunks() -> None:
    x = np.random.default_rng(1).standard_normal((700, 3)).astype(np.float32)
    parts = []
    for start in (0, 256, 512):
        part = np.zeros(3, np.float32)
        for row in x[start : start + 256]:
            part += row
        parts.append(part)
    np.testing.assert_array_equal(row_gradient(x), (parts[0] + parts[1]) + parts[2])
    np.testing.assert_array_equal(row_gradient(x[:0]), np.zeros(3, np.float32))


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("dim", [1, 5, 16, 100, 128, 300])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=IDS)
def test_kernels_give_the_reference_bits(optimizer: te.optim.Optimizer, dim: int, isa: str) -> None:
    before = _native.current_isa()
    _native.select_isa(isa)
    try:
        emb = te.TieredEmbedding(
            50, dim, tiers=te.Tiers(ddr="4MiB"), optimizer=optimizer, num_threads=2
        )
        ids = np.arange(50)
        weights = emb.rows(ids).numpy().copy()
        state = np.zeros((50, optimizer.state_floats(dim)), np.float32)
        wide, wide_state = weights.astype(np.float64), state.astype(np.float64)
        rng = np.random.default_rng(dim)
        for step in range(1, 6):
            grad = rng.standard_normal((50, dim)).astype(np.float32)
            emb(torch.arange(50)).backward(torch.from_numpy(grad))
            optimizer.update(weights, state, grad, step)
            optimizer.update(wide, wide_state, grad.astype(np.float64), step)
        np.testing.assert_array_equal(emb.rows(ids).numpy(), weights)
        stored = emb.optimizer_state(ids)
        if stored:
            np.testing.assert_array_equal(torch.cat(list(stored.values()), 1).numpy(), state)
        np.testing.assert_allclose(weights, wide, rtol=1e-5, atol=1e-6)
        emb.close()
    finally:
        _native.select_isa(before)


@pytest.mark.parametrize(
    ("optimizer", "theirs"),
    [
        (OPTIMIZERS[0], lambda p: torch.optim.SGD(p, lr=0.1)),
        (OPTIMIZERS[2], lambda p: torch.optim.Adagrad(p, lr=0.05, eps=1e-10)),
        (OPTIMIZERS[3], lambda p: torch.optim.Adam(p, lr=0.01)),
    ],
    ids=["SGD", "Adagrad", "Adam"],
)
def test_references_agree_with_torch(optimizer: te.optim.Optimizer, theirs) -> None:
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((7, 12))
    state = np.zeros((7, optimizer.state_floats(12)))
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    peer = theirs([parameter])
    for step in range(1, 30):
        grad = rng.standard_normal((7, 12))
        optimizer.update(weights, state, grad, step)
        parameter.grad = torch.from_numpy(grad)
        peer.step()
    np.testing.assert_allclose(weights, parameter.detach().numpy(), rtol=1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["SGD", "RowWiseAdagrad", "Adagrad"])
def test_training_agrees_with_fbgemm(name: str) -> None:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    kinds = {
        "SGD": EmbOptimType.EXACT_SGD,
        "RowWiseAdagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        "Adagrad": EmbOptimType.EXACT_ADAGRAD,
    }
    dim, rows = 32, 200
    eps = {} if name == "SGD" else {"eps": 1e-8}
    peer = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=kinds[name],
        learning_rate=0.05,
        **eps,
    )
    emb = te.TieredEmbeddingBag(
        rows, dim, tiers=te.Tiers(ddr="4MiB"), optimizer=getattr(te.optim, name)(lr=0.05, **eps)
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


@pytest.mark.parametrize(
    "make",
    [
        lambda: te.optim.SGD(lr=-1.0),
        lambda: te.optim.SGD(lr=float("nan")),
        lambda: te.optim.SGD(lr="fast"),  # type: ignore[arg-type]
        lambda: te.optim.Adagrad(lr=0.1, eps=-1e-3),
        lambda: te.optim.Adam(lr=0.1, beta1=1.0),
    ],
)
def test_bad_hyperparameters(make) -> None:
    with pytest.raises(te.ConfigError):
        make()
