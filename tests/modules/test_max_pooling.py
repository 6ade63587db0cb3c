"""``mode="max"``: values, and whose gradient it is."""

import numpy as np
import pytest
import torch

import tiered_embed as te
from reference import Bags, DenseTrainer, Stream, Table
from running import Prepared, make_module
from streams import Draw
from tiered_embed import _native

STORAGES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dim", [1, 5, 16, 100, 130])
def test_every_instruction_set_and_thread_count_gives_the_reference_bits(
    dim: int, storage: str
) -> None:
    """Half of the rows start alike, so that most maxima are shared at first."""
    draw = Draw(6)
    tables = (Table("t", dim, num_embeddings=90, mode="max"),)
    batches = []
    for _ in range(5):
        n = 4000  # bags of more than one block, for the threads
        batches.append({"t": Bags(draw.integers(0, 90, n), draw.offsets(1500, n))})
    gradients = [draw.gradients(tables, batch) for batch in batches]
    prepared = Prepared(Stream(tables, tuple(batches), tuple(gradients)))
    optimizer, init = te.optim.Adagrad(lr=0.1), te.init.Constant(0.25)
    trainer = DenseTrainer(tables, optimizer, init=init, seed=0, storage=storage)
    outputs = []
    for batch, grads in zip(batches, gradients, strict=True):
        outputs.append(trainer.forward(batch))
        trainer.backward(batch, grads)
    before = _native.current_isa()
    try:
        for isa in _native.available_isas():
            _native.select_isa(isa)
            for threads in (1, 2, 4):
                with make_module(
                    tables,
                    te.Tiers(ddr="1MiB"),
                    optimizer,
                    init=init,
                    seed=0,
                    num_threads=threads,
                    dtype=STORAGES[storage],
                    output_dtype=torch.float32,
                ) as module:
                    prepared.train(module, outputs)
                    assert module.digest() == trainer.digest(), (isa, threads)
    finally:
        _native.select_isa(before)


def test_the_first_of_equals_gets_the_gradient() -> None:
    with te.TieredEmbeddingBag(
        4, 20, "max", tiers=te.Tiers(ddr="1MiB"), optimizer=te.optim.SGD(lr=1.0)
    ) as emb:
        rows = torch.zeros(4, 20)
        rows[1] = -0.0  # no smaller than 0
        rows[0, 7] = rows[3, 7] = 1.0
        emb.load_rows(torch.arange(4), rows)
        out = emb(torch.tensor([[1, 0, 2, 3]]))
        assert torch.equal(out[0, 7], torch.tensor(1.0))
        assert torch.signbit(out[0, 0])
        out.backward(torch.ones(1, 20))
        moved = emb.rows(np.arange(4)) - rows
        expected = torch.zeros(4, 20)
        expected[1] = -1.0
        expected[1, 7], expected[0, 7] = 0.0, -1.0
        assert torch.equal(moved, expected)


@pytest.mark.parametrize("dim", [1, 16, 37])
def test_agrees_with_torch(dim: int) -> None:
    rng = np.random.default_rng(dim)
    theirs = torch.nn.EmbeddingBag(30, dim, mode="max", include_last_offset=True)
    peer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    with te.TieredEmbeddingBag(
        30,
        dim,
        "max",
        tiers=te.Tiers(ddr="1MiB"),
        optimizer=te.optim.SGD(lr=0.1),
        include_last_offset=True,
    ) as emb:
        emb.load_rows(torch.arange(30), theirs.weight.detach())
        for _ in range(20):
            ids = torch.from_numpy(rng.integers(0, 30, 60))
            cuts = np.sort(rng.integers(0, 61, 14))  # some bags are empty
            offsets = torch.from_numpy(np.concatenate([[0], cuts, [60]]))
            grad = torch.from_numpy(rng.standard_normal((15, dim)).astype(np.float32))
            ours, wanted = emb(ids, offsets), theirs(ids, offsets)
            torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)
            ours.backward(grad)
            peer.zero_grad()
            wanted.backward(grad)
            peer.step()
        torch.testing.assert_close(emb.rows(np.arange(30)), theirs.weight.detach())


def test_empty_bags_are_zeros_and_train_nothing() -> None:
    with te.TieredEmbeddingBag(
        4, 3, "max", tiers=te.Tiers(ddr="1MiB"), optimizer=te.optim.SGD(lr=1.0)
    ) as emb:
        before = emb.rows(np.arange(4))
        out = emb(torch.tensor([2]), torch.tensor([0, 0, 1]))
        assert torch.equal(out[[0, 2]], torch.zeros(2, 3))
        out.backward(torch.tensor([[1.0] * 3, [0.0] * 3, [1.0] * 3]))
        assert torch.equal(emb.rows(np.arange(4)), before)
