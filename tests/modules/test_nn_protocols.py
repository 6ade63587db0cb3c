"""nn.Module's protocols and nn.Embedding's conveniences on the tiered modules."""

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import tiered_embed as te
from tiered_embed.modules import base
from tiered_embed.optim.adagrad import RowWiseAdagrad
from tiered_embed.optim.adam import Adam
from tiered_embed.optim.descent import SGD

ROWS, DIM = 12, 5
EVERY = range(ROWS)
TIERS = te.Tiers(ddr="1MiB")
MODULES = [te.TieredEmbeddingBag, te.TieredEmbedding]
IDS = torch.tensor([[3, 1, 3], [0, 11, 7]])

both = pytest.mark.parametrize("kind", MODULES)


def make(kind: Any, *args: Any, **options: Any) -> Any:
    options = {"tiers": TIERS, "optimizer": SGD(lr=0.5), "num_threads": 1, **options}
    return kind(*(args or (ROWS, DIM)), **options)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def collection(**options: Any) -> te.TieredEmbeddingBagCollection:
    options = {"tiers": TIERS, "optimizer": SGD(lr=0.5), "num_threads": 1, **options}
    tables = [te.TableConfig("user", 4, 3), te.TableConfig("item", 6, 2)]
    return te.TieredEmbeddingBagCollection(tables, **options)


# --- from_pretrained and weight -------------------------------------------------------------------


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_from_pretrained_takes_the_rows_and_freezes_them(kind, dtype):
    weights = numbers(ROWS, DIM).to(dtype)
    with kind.from_pretrained(weights, tiers=TIERS, optimizer=SGD(lr=1.0)) as module:
        assert module.num_embeddings == ROWS
        assert module.embedding_dim == DIM
        assert torch.equal(module.weight, weights)
        assert module.weight.dtype == dtype
        digest = module.digest()
        out = module(IDS)
        assert out.dtype == dtype
        assert not out.requires_grad
        assert module.digest() == digest
        assert module.stats().steps == 0


def test_sample_weights_of_frozen_rows_get_their_gradient():
    weights = numbers(ROWS, DIM)
    torchs = nn.EmbeddingBag.from_pretrained(weights, mode="sum")
    ours, theirs = (numbers(2, 3, seed=1).requires_grad_() for _ in range(2))
    with te.TieredEmbeddingBag.from_pretrained(weights, tiers=TIERS) as module:
        for mode in (True, False):
            module.train(mode)
            out, wanted = module(IDS, None, ours), torchs(IDS, None, theirs)
            torch.testing.assert_close(out, wanted)
            out.square().sum().backward()
            wanted.square().sum().backward()
            torch.testing.assert_close(ours.grad, theirs.grad)
        assert torch.equal(module.weight, weights)


@both
def test_from_pretrained_that_trains(kind):
    weights = numbers(ROWS, DIM)
    with pytest.raises(te.ConfigError, match="pass an optimizer"):
        kind.from_pretrained(weights, freeze=False, tiers=TIERS)
    with kind.from_pretrained(weights, freeze=False, tiers=TIERS, optimizer=SGD(lr=1.0)) as module:
        module(torch.tensor([[3]])).sum().backward()
        wanted = weights.clone()
        wanted[3] -= 1
        assert torch.equal(module.weight, wanted)


@both
def test_from_pretrained_passes_its_other_arguments_on(kind):
    weights = numbers(ROWS, DIM)
    options = {"padding_idx": -2, "max_norm": 0.5, "norm_type": 1.0, "name": "mine"}
    if kind is te.TieredEmbeddingBag:
        options |= {"mode": "max", "include_last_offset": True}
    with kind.from_pretrained(weights, tiers=TIERS, **options) as module:
        for name, value in {**options, "padding_idx": ROWS - 2}.items():
            assert name == "name" or getattr(module, name) == value
        # torch keeps the padding row that it was given.
        assert torch.equal(module.weight[-2], weights[-2])
    for shape in ((ROWS,), (1, ROWS, DIM)):
        with pytest.raises(te.ConfigError, match=r"pass \(rows, D\)"):
            kind.from_pretrained(numbers(*shape), tiers=TIERS)


@both
def test_weight_is_a_copy(kind):
    with make(kind) as module:
        module(IDS).sum().backward()
        weight = module.weight
        assert weight.shape == (ROWS, DIM)
        assert not weight.requires_grad
        assert torch.equal(weight, module.rows(EVERY))
        digest = module.digest()
        weight.clone().zero_()
        assert module.digest() == digest


@both
def test_weight_of_a_large_table_names_rows(kind, monkeypatch):
    with make(kind) as module:
        monkeypatch.setattr(base, "WEIGHT_LIMIT_BYTES", ROWS * DIM * 4)
        assert module.weight.shape == (ROWS, DIM)
        monkeypatch.setattr(base, "WEIGHT_LIMIT_BYTES", ROWS * DIM * 4 - 1)
        with pytest.raises(te.ConfigError, match=r"12 rows of 20 bytes.*at most 239.*rows\(ids\)"):
            _ = module.weight
    with make(kind, None, DIM) as module, pytest.raises(te.ConfigError, match=r"any number of"):
        _ = module.weight


def test_weight_of_several_tables_is_no_one_thing():
    with collection() as module, pytest.raises(te.ConfigError, match="pass table="):
        _ = module.weight


def test_forward_takes_torchs_argument_names():
    offsets, weights = torch.tensor([0, 2]), torch.ones(6)
    with make(te.TieredEmbeddingBag) as module, make(te.TieredEmbedding) as embedding:
        named = module(input=IDS.view(-1), offsets=offsets, per_sample_weights=weights)
        assert torch.equal(named, module(IDS.view(-1), offsets, weights))
        assert torch.equal(embedding(input=IDS), embedding(IDS))


# --- representation, state_dict, copies -----------------------------------------------------------


def test_a_repr_says_what_it_is(tmp_path):
    tiers = te.Tiers(ddr=4096, ssd=tmp_path, store="memory")
    options = {"tiers": tiers, "optimizer": Adam(lr=0.25), "dtype": torch.bfloat16, "name": "user"}
    with make(te.TieredEmbeddingBag, **options) as module:
        for part in ("TieredEmbeddingBag(", "user: 12 x 5", "bfloat16", "ddr=4096", "Adam", "0.25"):
            assert part in repr(nn.Sequential(module))
    with collection() as module:
        assert "user: 4 x 3, item: 6 x 2" in repr(module)


def test_a_state_dict_is_small_and_says_where_the_rows_are(tmp_path):
    tiers = te.Tiers(ddr=4096, ssd=tmp_path, store="memory")
    module = make(te.TieredEmbedding, 10**9, 64, tiers=tiers)
    model = nn.ModuleDict({"emb": module, "top": nn.Linear(2, 2)})
    with module:
        state = model.state_dict()
        assert set(state) == {"emb._extra_state", "top.weight", "top.bias"}
        assert state["emb._extra_state"].numel() < 1000
        assert str(tmp_path) in bytes(state["emb._extra_state"].tolist()).decode()
        assert model.load_state_dict(state, strict=True) == ([], [])
        digest = module.digest()
        torch.save(state, tmp_path / "state.pt")
        model.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert module.digest() == digest


def test_a_state_dict_of_other_tables_is_refused():
    with make(te.TieredEmbedding, name="one") as one:
        state = one.state_dict()
    reason = pytest.raises(te.ConfigError, match=r"saved from tables.*'one'.*module has.*'two'")
    with make(te.TieredEmbedding, name="two") as two, reason:
        two.load_state_dict(state)


def as_state(content):
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    "state",
    [
        None,
        torch.zeros(3),
        torch.tensor([1], dtype=torch.uint8),
        torch.tensor([[1]], dtype=torch.uint8),
        torch.tensor(1 << 40),
        torch.tensor((1 << 63) - 1).numpy(),
        as_state({"tables": {"emb": [ROWS, DIM]}, "steps": -1}),
        as_state({"tables": {"emb": [ROWS, DIM]}, "steps": 10**30}),
        as_state([1]),
    ],
)
def test_a_state_of_another_kind_is_refused(state):
    with (
        make(te.TieredEmbedding) as module,
        pytest.raises(te.ConfigError, match="this state was not saved by a tiered module"),
    ):
        module.load_state_dict({"_extra_state": state})


@pytest.mark.parametrize("assign", [False, True])
@both
def test_a_checkpoint_of_the_module_replaced_is_loaded(kind, assign):
    replaced = {te.TieredEmbeddingBag: nn.EmbeddingBag, te.TieredEmbedding: nn.Embedding}[kind]
    dense = nn.ModuleDict({"emb": replaced(ROWS, DIM), "top": nn.Linear(2, 2)})
    with make(kind, optimizer=RowWiseAdagrad(lr=0.5)) as module:
        module(IDS).sum().backward()
        model = nn.ModuleDict({"emb": module, "top": nn.Linear(2, 2)})
        assert model.load_state_dict(dense.state_dict(), strict=True, assign=assign) == ([], [])
        assert torch.equal(module.weight, dense["emb"].weight.detach())
        assert not module.optimizer_state(EVERY)["sum"].any(), "state of other rows"
        assert torch.equal(model["top"].weight, dense["top"].weight)


def test_a_checkpoint_of_a_collection_is_loaded():
    weights = {"user": numbers(4, 3), "item": numbers(6, 2)}
    state = {f"embedding_bags.{name}.weight": value for name, value in weights.items()}
    with collection() as module:
        assert module.load_state_dict(state) == ([], [])
        for name, value in weights.items():
            assert torch.equal(module.rows(range(len(value)), name), value)


def test_a_checkpoint_is_loaded_in_parts(monkeypatch):
    monkeypatch.setattr(base, "LOAD_ROWS", 5)
    weights = numbers(ROWS, DIM)
    with make(te.TieredEmbedding) as module:
        module.load_state_dict({"weight": weights})
        assert torch.equal(module.weight, weights)
    with te.TieredEmbedding.from_pretrained(weights, tiers=TIERS) as module:
        assert torch.equal(module.weight, weights)


@both
def test_a_checkpoint_that_does_not_fit_is_refused(kind):
    with make(kind) as module:
        module(IDS).sum().backward()
        digest = module.digest()
        model = nn.ModuleDict({"emb": module})
        for shape in ((ROWS, DIM + 1), (ROWS + 1, DIM), (ROWS * DIM,)):
            with pytest.raises(RuntimeError, match=r"emb.weight has shape .*\(12, 5\)"):
                model.load_state_dict({"emb.weight": numbers(*shape)})
        with pytest.raises(RuntimeError, match=r"Unexpected key.*emb\.bias"):
            model.load_state_dict({**model.state_dict(), "emb.bias": numbers(1)})
        with pytest.raises(RuntimeError, match=r"Missing key.*emb\._extra_state"):
            model.load_state_dict({})
        assert module.digest() == digest


@both
@pytest.mark.parametrize("take", [copy.deepcopy, copy.copy, pickle.dumps])
def test_copies_and_pickles_are_refused_with_a_reason(kind, take):
    reason = pytest.raises(te.NotCopyableError, match=r"owns files, threads.*second module")
    with make(kind) as module:
        with reason:
            take(module)
        if take is not copy.copy:  # of a container, that shares what it holds
            with reason:
                take(nn.Sequential(module))
        module(IDS).sum().backward()


def test_moving_a_model_leaves_its_rows():
    """``model.double()`` and the like are of the output alone: the next layer has that type."""
    with make(te.TieredEmbedding) as module:
        before = module.weight
        model = nn.Sequential(module, nn.Linear(DIM, 1)).double().to("cpu").eval().train()
        model.requires_grad_(False).zero_grad()
        model.apply(lambda m: None)
        assert torch.equal(module.weight, before)
        assert module.weight.dtype == torch.float32
        assert torch.equal(module(IDS), before[IDS].double())
        assert not model(IDS).requires_grad
        model.requires_grad_()(IDS).sum().backward()
        assert module.stats().steps == 1


# --- ids outside the table ------------------------------------------------------------------------

OUTSIDE = torch.tensor([[3, ROWS, 0], [-1, 2**40, -(2**62)]])
TAKEN = torch.tensor([[True, False, True], [False] * 3])


@pytest.mark.parametrize("training", [True, False])
@both
def test_outside_ids_are_refused_by_default(kind, training):
    with make(kind) as module:
        module(IDS).sum().backward()
        digest = module.digest()
        with pytest.raises(te.IdRangeError, match=r"id 12 at position 1 is outside \[0, 12\)"):
            module.train(training)(OUTSIDE)
        assert module.digest() == digest


@both
def test_outside_ids_are_clamped_to_the_nearest_row(kind):
    clamped = OUTSIDE.clamp(0, ROWS - 1)
    with make(kind, bounds_check="clamp") as module, make(kind) as twin:
        for training in (True, False):
            out, wanted = module.train(training)(OUTSIDE), twin.train(training)(clamped)
            assert torch.equal(out, wanted)
            if training:
                out.square().sum().backward()
                wanted.square().sum().backward()
        assert module.digest() == twin.digest()


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_outside_ids_that_are_ignored_take_no_part_in_bags(mode):
    ids, offsets = torch.tensor([3, 0]), torch.tensor([0, 2])
    weights = [numbers(2, 3).requires_grad_(), numbers(2, 3)[TAKEN].requires_grad_()]
    args, twin_args = ((w,) if mode == "sum" else () for w in weights)
    options = {"mode": mode}
    with (
        make(te.TieredEmbeddingBag, bounds_check="ignore", **options) as module,
        make(te.TieredEmbeddingBag, **options) as twin,
    ):
        for training in (True, False):
            out = module.train(training)(OUTSIDE, None, *args)
            wanted = twin.train(training)(ids, offsets, *twin_args)
            assert torch.equal(out, wanted)
            assert out[1].tolist() == [0.0] * DIM
            if training:
                out.sum().backward()
                wanted.sum().backward()
        assert module.digest() == twin.digest()
        if args:
            assert torch.equal(weights[0].grad[TAKEN], weights[1].grad)
            assert not weights[0].grad[~TAKEN].any()


def test_outside_ids_that_are_ignored_get_zeros_from_an_embedding():
    with (
        make(te.TieredEmbedding, bounds_check="ignore") as module,
        make(te.TieredEmbedding) as twin,
    ):
        for training in (True, False):
            out = module.train(training)(OUTSIDE)
            wanted = twin.train(training)(OUTSIDE[TAKEN])
            assert torch.equal(out[TAKEN], wanted)
            assert not out[~TAKEN].any()
            if training:
                out.square().sum().backward()
                wanted.square().sum().backward()
        nothing = module(OUTSIDE[1])
        assert not nothing.any()
        module.train()
        assert module.digest() == twin.digest()


@both
def test_any_int64_is_an_id_of_an_unbounded_table(kind):
    with make(kind, None, DIM) as module:
        module(OUTSIDE).sum().backward()
        assert module.stats().tables["table"].unique == OUTSIDE.numel()


# --- rows that are only read, and other dtypes ----------------------------------------------------


@both
def test_a_frozen_module_trains_nothing(kind, tmp_path):
    tiers = te.Tiers(ddr=3 * 4 * DIM, ssd=tmp_path, store="memory")
    weights = numbers(ROWS, DIM)
    with make(kind, optimizer=None, tiers=tiers) as module:
        module.load_rows(EVERY, weights)
        digest = module.digest()
        model = nn.Sequential(module, nn.Flatten(), nn.LazyLinear(2))
        for _ in range(3):
            model(IDS).square().sum().backward()
        assert model[2].weight.grad is not None
        assert module.digest() == digest
        assert torch.equal(module.weight, weights)
        assert module.stats().steps == 0
        assert "optimizer=none" in repr(module)
        with pytest.raises(te.ConfigError, match="so there is no learning rate to set"):
            te.lr_optimizer(module)
        with te.accumulate(model):
            model(IDS).sum().backward()


@both
@pytest.mark.parametrize("training", [True, False])
def test_a_frozen_module_with_max_norm_scales_copies(kind, training, tmp_path):
    """Rows that are only read are not written by a forward."""
    weights = 9 * numbers(ROWS, DIM)
    tiers = te.Tiers(ddr=4 * 4 * DIM, ssd=tmp_path, store="memory")
    with make(kind, optimizer=None, max_norm=1.0, tiers=tiers) as module:
        module.load_rows(EVERY, weights)
        digest = module.digest()
        torchs = nn.Embedding(ROWS, DIM, max_norm=1.0, _weight=weights.clone())
        wanted = torchs(IDS)
        if kind is te.TieredEmbeddingBag:
            wanted = wanted.sum(1)
        torch.testing.assert_close(module.train(training)(IDS), wanted.detach())
        assert torch.equal(module.weight, weights)
        assert module.digest() == digest


def test_sample_weights_of_frozen_rows_with_max_norm_get_their_gradient():
    weights = 9 * numbers(ROWS, DIM)
    torchs = nn.EmbeddingBag(ROWS, DIM, mode="sum", max_norm=1.0, _weight=weights.clone())
    ours, theirs = (numbers(2, 3, seed=1).requires_grad_() for _ in range(2))
    with make(te.TieredEmbeddingBag, optimizer=None, max_norm=1.0) as module:
        module.load_rows(EVERY, weights)
        module(IDS, None, ours).square().sum().backward()
        torchs(IDS, None, theirs).square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)
        assert torch.equal(module.weight, weights)


def dequantised(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with 256 levels from their least to their greatest value; and the levels' distance."""
    low, high = weights.min(1, keepdim=True).values, weights.max(1, keepdim=True).values
    scale = (high - low) / 255
    return ((weights - low) / scale).round() * scale + low, scale


@both
def test_int8_rows_are_quantised_by_row_and_only_read(kind, tmp_path):
    weights = numbers(ROWS, 40) * torch.logspace(-3, 3, ROWS)[:, None]
    wanted, scale = dequantised(weights)
    tiers = te.Tiers(ddr=4 * 48, ssd=tmp_path, store="memory")
    with make(kind, ROWS, 40, optimizer=None, dtype=torch.int8, tiers=tiers) as module:
        module.load_rows(EVERY, weights)
        digest = module.digest()
        assert module.weight.dtype == torch.float32
        assert ((module.weight - weights).abs() <= 0.501 * scale).all()
        torch.testing.assert_close(module.weight, wanted)
        pooled = wanted[IDS].sum(1) if kind is te.TieredEmbeddingBag else wanted[IDS]
        for training in (True, False):
            out = module.train(training)(IDS)
            assert out.dtype == torch.float32
            assert not out.requires_grad
            torch.testing.assert_close(out, pooled)
        assert set(module.optimizer_state([0])) == {"scale", "bias"}
        torch.testing.assert_close(module.optimizer_state(EVERY)["scale"], scale)
        assert module.digest() == digest


def test_int8_rows_of_one_value_are_exact():
    with make(te.TieredEmbedding, optimizer=None, dtype=torch.int8) as module:
        weights = torch.tensor([0.0, -3.25, 1e-30, 1e30])[:, None].expand(-1, DIM).contiguous()
        module.load_rows(range(4), weights)
        assert torch.equal(module.rows(range(4)), weights)


def test_int8_rows_do_not_train():
    for options in ({"optimizer": SGD(lr=0.1)}, {"optimizer": None, "max_norm": 1.0}):
        with pytest.raises(te.ConfigError, match="int8 rows are read-only"):
            make(te.TieredEmbedding, dtype=torch.int8, **options)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("output", [None, torch.float32, torch.float16, torch.bfloat16])
def test_outputs_have_their_own_dtype(kind, dtype, output):
    weights = numbers(ROWS, DIM)
    with make(kind, dtype=dtype, output_dtype=output) as module:
        module.load_rows(EVERY, weights)
        assert torch.equal(module.weight, weights.to(dtype))
        assert module.weight.dtype == dtype
        rows = weights.to(dtype).float()
        wanted = (rows[IDS].sum(1) if kind is te.TieredEmbeddingBag else rows[IDS]).to(
            output or dtype
        )
        for training in (True, False):
            out = module.train(training)(IDS)
            torch.testing.assert_close(out, wanted)
        module.train()(torch.tensor([[3]])).sum().backward()
        after = module.rows([3])
        assert torch.equal(after, (rows[[3]] - 0.5).to(dtype))
    with pytest.raises(te.ConfigError, match=r"output_dtype is torch\.float64"):
        make(kind, output_dtype=torch.float64)
