"""Drawn calls of ``nn.EmbeddingBag`` and ``nn.Embedding``: the tiered modules do what torch does.

The reference is torch in float32, from the same rows. A module's weight gradient is what one step
of SGD with ``lr=1`` takes off its rows. ``test_torch_refusals.py`` has the calls that are refused.
"""

from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tiered_embed as te

INF = float("inf")
TIERS = te.Tiers(ddr="1MiB")
# Of one rounding to the type, relative.
EPS = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}

# The same examples in every run; --hypothesis-seed and a larger number look for more.
drawn = settings(deadline=None, derandomize=True, print_blob=True)


@dataclass(frozen=True)
class Setup:
    """A module's arguments: those that torch has."""

    num_embeddings: int
    dim: int
    dtype: torch.dtype
    padding_idx: int | None
    max_norm: float | None
    norm_type: float
    scale_grad_by_freq: bool


@dataclass(frozen=True)
class BagCall:
    """A bag module and one call of it. ``weights``: None, or whether they ask for a gradient."""

    setup: Setup
    mode: str
    include_last_offset: bool
    ids: torch.Tensor
    offsets: torch.Tensor | None
    weights: bool | None
    weights_dtype: torch.dtype
    seed: int


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    num_embeddings = draw(st.integers(1, 12))
    padding = st.integers(-num_embeddings, num_embeddings - 1)
    return Setup(
        num_embeddings,
        draw(st.integers(1, 40)),
        draw(st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16])),
        draw(st.none() | padding),
        draw(st.none() | st.sampled_from([0.0, 0.25, 1.0, 4.0])),
        draw(st.sampled_from([2.0, 2.0, 1.0, 3.0, 0.5, INF])),
        draw(st.booleans()),
    )


def ids_in(setup: Setup, num_ids: int) -> st.SearchStrategy[list[int]]:
    row = st.integers(0, setup.num_embeddings - 1)
    if setup.padding_idx is not None:
        row |= st.just(setup.padding_idx % setup.num_embeddings)
    return st.lists(row, min_size=num_ids, max_size=num_ids)


@st.composite
def bag_calls(draw: st.DrawFn) -> BagCall:
    setup = draw(setups())
    mode = draw(st.sampled_from(["sum", "mean", "max"]))
    if mode == "max":
        setup = replace(setup, scale_grad_by_freq=False)
    include_last = draw(st.booleans())
    ids_type = draw(st.sampled_from([torch.int64, torch.int32]))
    offsets = None
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(0, 6), max_size=6))
        ids = torch.tensor(draw(ids_in(setup, sum(lengths))), dtype=ids_type)
        bounds = [sum(lengths[:i]) for i in range(len(lengths) + include_last)]
        offsets = torch.tensor(bounds, dtype=draw(st.sampled_from([torch.int64, torch.int32])))
    else:
        shape = draw(st.integers(0, 5)), draw(st.integers(0, 5))
        ids = torch.tensor(draw(ids_in(setup, shape[0] * shape[1])), dtype=ids_type).view(shape)
    weights = draw(st.none() | st.booleans()) if mode == "sum" else None
    return BagCall(
        setup,
        mode,
        include_last,
        ids,
        offsets,
        weights,
        draw(st.sampled_from([torch.float32, setup.dtype])),
        draw(st.integers(0, 2**20)),
    )


def values(setup: Setup, seed: int) -> tuple[torch.Tensor, torch.Generator]:
    """The rows that both start from, and what draws the rest."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(setup.num_embeddings, setup.dim, generator=generator)
    return rows.to(setup.dtype), generator


def module_options(setup: Setup) -> dict[str, Any]:
    return {
        "tiers": TIERS,
        "optimizer": te.optim.SGD(lr=1.0),
        "num_threads": 1,
        "dtype": setup.dtype,
        "padding_idx": setup.padding_idx,
        "max_norm": setup.max_norm,
        "norm_type": setup.norm_type,
        "scale_grad_by_freq": setup.scale_grad_by_freq,
    }


def check_close(
    got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, atol: float = 2**-24
) -> None:
    """``wanted`` is float32; ``got`` its rounding to ``dtype``, give or take the last place."""
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), wanted, rtol=2 * EPS[dtype], atol=atol)


def used_rows(module: Any, setup: Setup, rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The float32 rows that the forward on ``ids`` read: those that ``max_norm`` scaled.

    torch scales the padding row, too, where its id occurs; we leave it as it is.
    """
    now = module.rows(range(setup.num_embeddings))
    if setup.max_norm is None:
        assert torch.equal(now, rows)
        return now.float()
    scaled = nn.Embedding(
        *rows.shape, _weight=rows.float(), max_norm=setup.max_norm, norm_type=setup.norm_type
    )
    ids = ids.long()
    if setup.padding_idx is not None:
        ids = ids[ids != setup.padding_idx % setup.num_embeddings]
    scaled(ids)
    check_close(now, scaled.weight.detach(), setup.dtype)
    return now.float()


def check_step(module: Any, torchs: Any, setup: Setup, ids: torch.Tensor) -> None:
    """The rows after the step; each lost at most one gradient of every id."""
    wanted = torchs.weight.detach()
    if torchs.weight.grad is not None:
        wanted = wanted - torchs.weight.grad
    got = module.rows(range(setup.num_embeddings))
    check_close(got, wanted, setup.dtype, 2e-6 * (1 + ids.numel()))


@settings(drawn, max_examples=1200)
@given(bag_calls())
def test_a_bag_is_torchs(call: BagCall) -> None:
    setup = call.setup
    rows, generator = values(setup, call.seed)
    ours = theirs = None
    if call.weights is not None:
        ours = torch.randn(call.ids.shape, generator=generator).to(call.weights_dtype)
        theirs = ours.float()
        for weights in (ours, theirs):
            weights.requires_grad_(call.weights)
    last = {"mode": call.mode, "include_last_offset": call.include_last_offset}
    options = {**module_options(setup), **last}
    with closing(te.TieredEmbeddingBag(*rows.shape, **options)) as module:
        module.load_rows(range(setup.num_embeddings), rows)
        out = module(call.ids, call.offsets, ours)
        rows = used_rows(module, setup, rows, call.ids)
        torchs = nn.EmbeddingBag(
            *rows.shape, padding_idx=setup.padding_idx, _weight=rows.clone(), **last
        )
        if call.ids.dim() == 2 and call.ids.shape[1] == 0:
            # torch has no bags of length 0 there: "step must be nonzero".
            wanted = torchs.weight.sum() * torch.zeros(len(call.ids), setup.dim)
        else:
            offsets = None if call.offsets is None else call.offsets.long()
            wanted = torchs(call.ids.long(), offsets, theirs)
        check_close(out, wanted.detach(), setup.dtype, 1e-5)
        grad = torch.randn(wanted.shape, generator=generator).to(setup.dtype)
        out.backward(grad)
        wanted.backward(grad.float())
        if setup.scale_grad_by_freq:
            divide_by_frequency(torchs.weight.grad, call.ids)
        check_step(module, torchs, setup, call.ids)
        if call.weights and call.ids.numel():
            check_close(ours.grad, theirs.grad, call.weights_dtype, 1e-4)


def divide_by_frequency(grad: torch.Tensor, ids: torch.Tensor) -> None:
    """What ``scale_grad_by_freq`` is documented to do.

    torch's bag divides by other rows' counts (2.13: ``counts[indices[i]]`` with ``i`` counting
    distinct ids); nn.Embedding is right.
    """
    counts = torch.bincount(ids.reshape(-1).long(), minlength=len(grad)).clamp(min=1)
    grad /= counts[:, None]


@settings(drawn, max_examples=600)
@given(setups(), st.lists(st.integers(0, 4), max_size=3), st.data())
def test_an_embedding_is_torchs(setup: Setup, shape: list[int], data: st.DataObject) -> None:
    size = int(torch.Size(shape).numel())
    ids_type = data.draw(st.sampled_from([torch.int64, torch.int32]))
    ids = torch.tensor(data.draw(ids_in(setup, size)), dtype=ids_type).view(shape)
    rows, generator = values(setup, data.draw(st.integers(0, 2**20)))
    with closing(te.TieredEmbedding(*rows.shape, **module_options(setup))) as module:
        module.load_rows(range(setup.num_embeddings), rows)
        out = module(ids)
        rows = used_rows(module, setup, rows, ids)
        torchs = nn.Embedding(
            *rows.shape,
            padding_idx=setup.padding_idx,
            scale_grad_by_freq=setup.scale_grad_by_freq,
            _weight=rows.clone(),
        )
        wanted = torchs(ids.long())
        assert out.dtype == setup.dtype
        assert torch.equal(out.float(), wanted)
        grad = torch.randn(wanted.shape, generator=generator).to(setup.dtype)
        out.backward(grad)
        wanted.backward(grad.float())
        check_step(module, torchs, setup, ids)
