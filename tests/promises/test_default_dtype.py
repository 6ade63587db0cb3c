"""torch's default dtype and device change nothing: rows and outputs are those of a plain run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import tiered_embed as te
from tiered_embed import checkpoint

ROWS, DIM = 30, 8
DTYPES = [torch.float64, torch.float16, torch.bfloat16]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def run(tmp_path: Any, **options: Any) -> list[Any]:
    """Trains, evaluates, saves and restores; returns everything that came of it."""
    draw = torch.Generator().manual_seed(0)
    options = {"tiers": te.Tiers(ddr="1MiB"), "num_threads": 1, **options}
    seen: list[Any] = []
    options.setdefault("optimizer", te.optim.Adam(lr=0.1))
    with te.TieredEmbeddingBag(ROWS, DIM, **options) as module:
        weights = torch.randn(ROWS, DIM, generator=draw, dtype=torch.float32, device="cpu")
        module.load_rows(range(ROWS), weights)
        schedule = te.lr_optimizer(module, torch.amp.GradScaler("cpu", init_scale=4.0))
        batches = [
            torch.randint(ROWS, (6, 3), generator=draw, dtype=torch.int64, device="cpu")
            for _ in range(4)
        ]
        for ids in te.prefetch(batches, module, ids=lambda batch: {module: batch}):
            scale = None
            if module.mode == "sum":
                scale = torch.full((6, 3), 0.5, dtype=torch.float32, device="cpu")
                scale.requires_grad_()
            out = module(ids, None, scale)
            out.backward(torch.ones_like(out))
            seen.append(out.detach().clone())
            seen.append(None if scale is None else scale.grad)
        with te.accumulate(module):
            for ids in batches[:2]:
                module(ids).sum().backward()
        module.eval()
        seen += [module(batches[0]), module.weight, *module.optimizer_state([1, 2]).values()]
        seen.append(module.state_dict()["_extra_state"])
        seen.append(module.digest())
        checkpoint.save(module, tmp_path, step=1)
        module.load_rows(range(ROWS), weights)
        checkpoint.load(module, tmp_path)
        seen += [module.digest(), schedule.param_groups[0]["lr"]]
    return seen


def check_equal(got: list[Any], wanted: list[Any]) -> None:
    assert len(got) == len(wanted)
    for mine, theirs in zip(got, wanted, strict=True):
        if isinstance(theirs, torch.Tensor):
            assert (mine.dtype, mine.device) == (theirs.dtype, theirs.device)
            assert torch.equal(mine, theirs)
        else:
            assert mine == theirs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("rows", [torch.float32, torch.bfloat16])
def test_the_default_dtype_changes_nothing(dtype, mode, rows, tmp_path):
    options = {"mode": mode, "dtype": rows}
    wanted = run(tmp_path / "plain", **options)
    with default_dtype(dtype):
        check_equal(run(tmp_path / "other", **options), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nor_with_fbgemm(dtype, tmp_path):
    pytest.importorskip("fbgemm_gpu")
    size = 4 * DIM * 3
    options = {
        "tiers": te.Tiers(hbm=12 * size, ddr=18 * size),
        "device": "cpu",
        "kernel": "fbgemm",
        "optimizer": te.optim.SGD(lr=0.1),
    }

    def train() -> list[Any]:
        draw = torch.Generator().manual_seed(0)
        with te.TieredEmbeddingBag(ROWS, DIM, **options) as module:
            for _ in range(4):
                ids = torch.randint(ROWS, (6, 3), generator=draw)
                out = module(ids)
                out.backward(torch.ones_like(out))
            return [out.detach(), module.eval()(ids), module.digest()]

    wanted = train()
    with default_dtype(dtype):
        check_equal(train(), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_embedding_and_frozen_rows(dtype):
    weights = torch.randn(ROWS, DIM)
    ids = torch.tensor([[1, 2], [0, 29]])
    wanted = nn.functional.embedding(ids, weights)
    with default_dtype(dtype):
        tiers = te.Tiers(ddr="1MiB")
        with te.TieredEmbedding.from_pretrained(weights, tiers=tiers, padding_idx=0) as module:
            assert torch.equal(module(ids), wanted)
            assert torch.equal(module.eval()(ids), wanted)
        with te.TieredEmbedding(ROWS, DIM, tiers=tiers, optimizer=te.optim.SGD(lr=1.0)) as module:
            first = module.rows(ids.reshape(-1))
            assert torch.equal(module(ids).reshape(-1, DIM), first)


def test_the_default_device_changes_nothing(tmp_path):
    wanted = run(tmp_path / "plain")
    with torch.device("meta"):  # what has no values would be noticed
        got = run(tmp_path / "other")
    check_equal(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_te_swap_under_a_default_dtype(dtype):
    """The rows keep the dtype of the weights that they were made from."""
    with default_dtype(dtype):
        model = nn.Sequential(nn.EmbeddingBag(ROWS, DIM, mode="sum", dtype=torch.float32))
        ids = torch.tensor([[1, 2], [0, 29]])
        wanted = model(ids).detach()
        te.swap(model, tiers=te.Tiers(ddr="1MiB"), optimizer=te.optim.SGD(lr=1.0))
        with model[0]:
            out = model(ids)
            torch.testing.assert_close(out.detach(), wanted)
            out.sum().backward()
            torch.testing.assert_close(model(ids).detach(), wanted - 2.0)
