"""Tensors that are not what they look like: nested, fake, batched, negated, or without memory."""

import warnings

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch._subclasses.fake_tensor import FakeTensorMode

import tiered_embed as te

OPTIONS = {"tiers": te.Tiers(ddr="64KiB"), "optimizer": te.optim.SGD(lr=0.1)}
IDS, OFFSETS, ONES = torch.arange(3), torch.tensor([0]), torch.ones(3)


def bag() -> te.TieredEmbeddingBag:
    return te.TieredEmbeddingBag(10, 4, **OPTIONS)


def embedding() -> te.TieredEmbedding:
    return te.TieredEmbedding(10, 4, **OPTIONS)


def nested(dtype: torch.dtype, layout: torch.layout) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = [torch.tensor([1, 2], dtype=dtype), torch.tensor([3], dtype=dtype)]
        return torch.nested.nested_tensor(parts, layout=layout)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused(layout) -> None:
    ids, weights = nested(torch.int64, layout), nested(torch.float32, layout)
    collection = te.TieredEmbeddingBagCollection([te.TableConfig("a", 10, 4)], **OPTIONS)
    for call in (
        lambda: embedding()(ids),
        lambda: bag()(ids),
        lambda: bag()(ids, OFFSETS),
        lambda: bag()(IDS, ids),
        lambda: bag()(IDS, OFFSETS, per_sample_weights=weights),
        lambda: collection({"a": (ids, OFFSETS)}),
        lambda: embedding().rows(ids),
        lambda: embedding().load_rows(ids, torch.ones(3, 4)),
        lambda: embedding().load_rows([1], weights),
    ):
        with pytest.raises(te.ConfigError, match=r"nested|jagged"):
            call()


@pytest.mark.parametrize("make", [bag, embedding])
def test_fake_tensors_and_their_mode_are_refused(make) -> None:
    module = make()
    args = (IDS,) if make is embedding else (IDS, OFFSETS)
    before = module.digest()
    mode = FakeTensorMode()
    with mode:
        fake = torch.arange(3)
        for call in (
            make,
            lambda: module(*args),
            lambda: module.eval()(*args),
            lambda: module.rows([1]),
            lambda: module.load_rows([1], torch.ones(1, 4)),
        ):
            with pytest.raises(te.ConfigError, match="fake tensors"):
                call()
    module.train()
    for call in (lambda: module(fake, *args[1:]), lambda: module.rows(fake)):
        with pytest.raises(te.ConfigError, match="fake tensors"):
            call()
    assert module.digest() == before
    module(*args).sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_transforms_are_refused() -> None:
    module, rows = bag(), embedding()
    before = module.digest()

    def weighted(weights: torch.Tensor) -> torch.Tensor:
        return module(IDS, OFFSETS, per_sample_weights=weights).sum()

    for call in (
        lambda: torch.vmap(rows)(torch.arange(6).view(2, 3)),
        lambda: torch.vmap(rows.rows)(torch.arange(6).view(2, 3)),
        lambda: torch.vmap(lambda w: rows.load_rows([1], w))(torch.ones(2, 1, 4)),
        lambda: torch.func.grad(weighted)(ONES),
        lambda: torch.func.jacrev(weighted)(ONES),
    ):
        with pytest.raises(te.ConfigError):
            call()
    weights = ONES.clone().requires_grad_()
    out = module(IDS, OFFSETS, per_sample_weights=weights)
    with pytest.raises(te.ConfigError, match="one gradient at a time"):
        torch.autograd.grad(out, [weights], torch.ones(2, 1, 4), is_grads_batched=True)
    with forward_ad.dual_level(), pytest.raises(te.ConfigError, match="forward-mode"):
        weighted(forward_ad.make_dual(ONES, ONES))
    assert module.digest() == before


def same_training(ids, weights, grad, *, plain_ids, plain_weights, plain_grad) -> bool:
    digests = []
    for args in ((ids, weights, grad), (plain_ids, plain_weights, plain_grad)):
        module = bag()
        out = module(args[0], OFFSETS, per_sample_weights=args[1])
        out.backward(args[2])
        digests.append((module.digest(), out.tolist()))
    return digests[0] == digests[1]


def test_negated_views_and_zeros_without_memory_count_as_their_values() -> None:
    negated = torch.randn(3, dtype=torch.complex64).conj().imag
    gradient = torch.randn(1, 4, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    plain = torch.tensor(negated.tolist()), torch.tensor(gradient.tolist())
    assert same_training(
        *(IDS, negated, gradient),
        plain_ids=IDS,
        plain_weights=plain[0],
        plain_grad=plain[1],
    )
    zeros = torch._efficientzerotensor
    assert same_training(
        *(zeros((3,), dtype=torch.int64), zeros((3,)), zeros((1, 4))),
        plain_ids=torch.zeros(3, dtype=torch.int64),
        plain_weights=torch.zeros(3),
        plain_grad=torch.zeros(1, 4),
    )
    module = embedding()
    rows = torch.randn(3, 4, dtype=torch.complex64).conj().imag
    module.load_rows(range(3), rows)
    assert module.rows(zeros((3,), dtype=torch.int64)).tolist() == [rows[0].tolist()] * 3
    module.load_rows(range(3), zeros((3, 4)))
    assert not module.rows(range(3)).any()
