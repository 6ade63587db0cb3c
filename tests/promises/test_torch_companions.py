"""Inside ``torch.compile`` and ``DistributedDataParallel``: the same digests as without."""

import json

import pytest
import torch

import tiered_embed as te
from two_ranks import STEPS, Model, ids_of, loss_of, make, run_rank, run_refused, train

# --- torch.compile --------------------------------------------------------------------------------


def compiler_works() -> bool:
    """Whether inductor can build and load a kernel here."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(3))
    except Exception:
        return False
    return True


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
@pytest.mark.parametrize(
    "backend",
    ["eager", pytest.param("inductor", marks=pytest.mark.long)],  # compiles for a minute
)
def test_a_compiled_model_trains_the_same_rows(backend, tmp_path):
    if backend == "inductor" and not compiler_works():
        pytest.skip("inductor finds no working C++ compiler")
    torch.compiler.reset()
    digests, outputs, rows = [], [], []
    for compiled in (False, True):
        with (
            make(tmp_path / f"bag {compiled}") as bag,
            make(tmp_path / f"embedding {compiled}", te.TieredEmbedding) as embedding,
        ):
            model = Model(bag, embedding)
            call = torch.compile(model, backend=backend) if compiled else model
            train(call)
            assert bag.stats().steps == embedding.stats().steps == STEPS
            outputs.append(call.eval()(ids_of(9)).detach())
            digests.append((bag.digest(), embedding.digest()))
            rows.append((bag.weight, embedding.weight))
    torch.testing.assert_close(outputs[1], outputs[0])
    # Inductor's arithmetic is its own: what reaches the rows may differ in the last place.
    torch.testing.assert_close(rows[1], rows[0], rtol=1e-4, atol=1e-5)
    if backend == "eager":
        assert digests[0] == digests[1]


# --- DistributedDataParallel ----------------------------------------------------------------------


def test_ranks_share_the_dense_part_and_keep_their_rows(tmp_path):
    """As one process that trains a model per rank and averages the dense gradients."""
    torch.multiprocessing.spawn(run_rank, (tmp_path,), nprocs=2)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0]["dense"] == found[1]["dense"]
    assert found[0]["digests"] != found[1]["digests"]

    kinds = (te.TieredEmbeddingBag, te.TieredEmbedding)
    modules = [[make(tmp_path / f"own {r} {k.__name__}", k) for k in kinds] for r in range(2)]
    models = [Model(*pair) for pair in modules]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    for step in range(STEPS):
        for rank, model in enumerate(models):
            optimizers[rank].zero_grad()
            loss_of(model, step, rank).backward()
        for p, q in zip(*(m.parameters() for m in models), strict=True):
            if p.numel() == 0:
                continue  # of the rows
            mean = p.grad / 2 + q.grad / 2
            p.grad, q.grad = mean, mean.clone()
        for optimizer in optimizers:
            optimizer.step()
    for rank, pair in enumerate(modules):
        assert [p.tolist() for p in models[rank].parameters()] == found[rank]["dense"]
        assert [module.digest() for module in pair] == found[rank]["digests"]
        for module in pair:
            module.close()


def test_ranks_that_would_train_other_rows_are_refused(tmp_path):
    torch.multiprocessing.spawn(run_refused, (tmp_path,), nprocs=2)
    for rank in range(2):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert told.pop("rank_local") == ""
        assert set(told) == {
            "bag",
            "embedding",
            "collection",
            "DistributedDataParallel",
            "prefetch",
        }
        for text in told.values():
            assert "torch.distributed has 2 ranks" in text
            assert "or pass rank_local=True" in text


def test_a_group_of_one_rank_trains(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        with make(tmp_path / "rows", rank_local=False) as bag:
            bag(ids_of(0)).sum().backward()
            assert bag.stats().steps == 1
    finally:
        torch.distributed.destroy_process_group()


def test_data_parallel_is_refused(tmp_path):
    """On devices it copies modules by this call, and every copy would own the same rows."""
    with make(tmp_path / "rows") as bag, pytest.raises(te.NotCopyableError, match="DataParallel"):
        bag._replicate_for_data_parallel()
