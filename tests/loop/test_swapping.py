"""te.swap: what it replaces, what it leaves and why, and models that train on as before."""

import copy
import importlib
from collections import OrderedDict
from dataclasses import MISSING, fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import tiered_embed as te
from tiered_embed.loop.candidates import OWN_OPTIONS
from tiered_embed.loop.swapping import swap as swap_function
from tiered_embed.modules.base import TieredModule
from tiered_embed.optim.adagrad import Adagrad
from tiered_embed.optim.descent import SGD
from tiered_embed.spec import EngineOptions

ROWS, DIM = 40, 4
LR = 0.25
TIERS = te.Tiers(ddr="1MB")


def swap(model: nn.Module, **options: Any) -> te.SwapReport:
    return te.swap(model, **{"tiers": TIERS, "optimizer": SGD(lr=LR), **options})


def seeded(module: nn.Module) -> nn.Module:
    """Normal weights that repeat."""
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def holder(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict({name: seeded(module) for name, module in modules.items()}))


def ids_of(*shape: int, seed: int = 0, rows: int = ROWS) -> torch.Tensor:
    return torch.randint(0, rows, shape, generator=torch.Generator().manual_seed(seed))


def why(report: te.SwapReport, path: str) -> str:
    (entry,) = [entry for entry in report.entries if entry.path == path]
    return entry.reason


# --- what is carried ------------------------------------------------------------------------------

BAGS: dict[str, dict[str, Any]] = {
    "sum": {"mode": "sum"},
    "mean": {"mode": "mean"},
    "max": {"mode": "max"},
    "a padding row": {"mode": "sum", "padding_idx": 3},
    "a padding row from the end": {"mode": "mean", "padding_idx": -2},
    "max_norm": {"mode": "sum", "max_norm": 1.5},
    "norm_type": {"mode": "mean", "max_norm": 2.0, "norm_type": 1.0},
    "scale_grad_by_freq": {"mode": "sum", "scale_grad_by_freq": True},
    "include_last_offset": {"mode": "sum", "include_last_offset": True},
}
ARGUMENTS = ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type")


def check_training(model: nn.Module, plain: nn.Module, *args: torch.Tensor) -> None:
    """Same outputs and, after a step of SGD, the same rows."""
    ours, theirs = model.emb(*args), plain.emb(*args)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(5)).to(ours.dtype)
    ours.backward(grad)
    theirs.backward(grad)
    torch.optim.SGD(plain.parameters(), lr=LR).step()
    torch.testing.assert_close(model.emb.weight, plain.emb.weight.detach())


@pytest.mark.parametrize("name", BAGS)
@pytest.mark.parametrize("ssd", [False, True], ids=["memory", "ssd"])
def test_a_bag_keeps_its_arguments_and_weights(name, ssd, tmp_path):
    options = BAGS[name]
    model = holder(emb=nn.EmbeddingBag(ROWS, DIM, **options))
    plain = copy.deepcopy(model)
    tiers = te.Tiers(ddr=10 * 4 * DIM, ssd=tmp_path / "rows", store="memory") if ssd else TIERS
    report = swap(model, tiers=tiers)
    assert [entry.path for entry in report.swapped] == ["emb"]
    assert type(model.emb) is te.TieredEmbeddingBag
    assert [p.numel() for p in model.parameters()] == [0]
    for argument in (*ARGUMENTS, "mode", "scale_grad_by_freq", "include_last_offset"):
        assert getattr(model.emb, argument) == getattr(plain.emb, argument), argument
    offsets = [0, 2, 2, 7] + ([12] if options.get("include_last_offset") else [])
    # torch divides by another row's count unless all counts agree (its bag on the CPU, 2.13).
    ids = torch.arange(6).repeat(2) if options.get("scale_grad_by_freq") else ids_of(12)
    check_training(model, plain, ids, torch.tensor(offsets))
    model.emb.close()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding_idx": 0},
        {"max_norm": 1.0, "norm_type": 3.0},
        {"scale_grad_by_freq": True},
        {"sparse": True},
    ],
    ids=str,
)
def test_an_embedding_keeps_its_arguments_and_weights(options):
    model = holder(emb=nn.Embedding(ROWS, DIM, **options))
    plain = copy.deepcopy(model)
    swap(model)
    assert type(model.emb) is te.TieredEmbedding
    for argument in ARGUMENTS:
        assert getattr(model.emb, argument) == getattr(plain.emb, argument), argument
    check_training(model, plain, ids_of(3, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ssd", [False, True], ids=["memory", "ssd"])
def test_the_dtype_is_kept_and_no_weight_is_rounded(dtype, ssd, tmp_path):
    model = holder(emb=nn.Embedding(ROWS, DIM)).to(dtype)
    weight = model.emb.weight.detach().clone()
    ids = ids_of(3, 5)
    tiers = te.Tiers(ddr=10 * 4 * DIM, ssd=tmp_path / "rows", store="memory") if ssd else TIERS
    swap(model, tiers=tiers)
    assert model.emb.weight.dtype == dtype
    assert torch.equal(model.emb.weight, weight)
    assert torch.equal(model.emb(ids), weight[ids])
    model.emb.close()


def test_weights_are_copied_in_chunks(monkeypatch, tmp_path):
    module = importlib.import_module("tiered_embed.loop.swapping")
    monkeypatch.setattr(module, "COPY_BYTES", 7 * 4 * DIM)
    model = holder(a=nn.Embedding(ROWS, DIM), b=nn.Embedding(7, DIM))
    weights = {name: module.weight.detach().clone() for name, module in model.named_children()}
    for tiers in (TIERS, te.Tiers(ddr=20 * 4 * DIM, ssd=tmp_path / "rows", store="memory")):
        mine = copy.deepcopy(model)
        swap(mine, tiers=tiers)
        for name, weight in weights.items():
            assert torch.equal(getattr(mine, name).weight, weight)
            getattr(mine, name).close()


def test_weights_need_not_be_contiguous():
    module = nn.Embedding(ROWS, DIM)
    module.weight = nn.Parameter(torch.randn(DIM, ROWS).t())
    model = nn.Sequential(OrderedDict(emb=module))
    weight = module.weight.detach().clone()
    swap(model)
    assert torch.equal(model.emb.weight, weight)


def test_a_frozen_weight_stays_as_it_is():
    model = holder(emb=nn.Embedding.from_pretrained(torch.randn(ROWS, DIM)), head=nn.Linear(DIM, 1))
    weight = model.emb.weight.detach().clone()
    swap(model, optimizer=Adagrad(lr=1.0))
    assert model.emb.engine.options.optimizer is None
    out = model.emb(ids_of(6))
    assert not out.requires_grad
    model.head(out).sum().backward()
    assert torch.equal(model.emb.weight, weight)


def test_no_optimizer_makes_all_read_only():
    model = holder(emb=nn.Embedding(ROWS, DIM))
    swap(model, optimizer=None)
    assert not model.emb(ids_of(6)).requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept(training):
    model = holder(emb=nn.Embedding(ROWS, DIM), other=nn.Embedding(ROWS, DIM))
    model.emb.train(training)
    swap(model)
    assert (model.emb.training, model.other.training) == (training, True)


def test_forward_hooks_and_their_handles_are_carried():
    model = holder(emb=nn.Embedding(ROWS, DIM))
    seen: list[str] = []
    handles = [
        model.emb.register_forward_pre_hook(lambda *_: seen.append("before")),
        model.emb.register_forward_hook(lambda *_: seen.append("after")),
        model.emb.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append("keywords"), with_kwargs=True
        ),
        model.emb.register_forward_hook(lambda *_: seen.append("always"), always_call=True),
    ]
    assert swap(model).left == ()
    model.emb(ids_of(2))
    assert seen == ["before", "keywords", "after", "always"]
    for handle in handles:
        handle.remove()
    model.emb(ids_of(2))
    assert len(seen) == 4


def test_options_reach_every_module():
    options = {
        "policy": "lru",
        "lookahead": 5,
        "depth": 1,
        "num_threads": 1,
        "on_nonfinite": "skip",
        "rounding": "stochastic",
        "bounds_check": "clamp",
    }
    model = holder(emb=nn.Embedding(ROWS, DIM), bag=nn.EmbeddingBag(ROWS, DIM))
    swap(model, seed=9, **options)
    for module in model.children():
        given = module.engine.options
        assert {name: getattr(given, name) for name in options} == options
        assert given.seed == 9


def test_any_container_holds_them():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.listed = nn.ModuleList([nn.Embedding(ROWS, DIM), nn.Linear(2, 2)])
            self.named = nn.ModuleDict({"x": nn.Sequential(nn.EmbeddingBag(ROWS, DIM))})
            self.nothing = None
            self.register_module("absent", None)

        def __setattr__(self, name: str, value: Any) -> None:
            if isinstance(value, te.TieredEmbedding):
                raise RuntimeError("assignment is not the way in")
            super().__setattr__(name, value)

    model = Odd()
    report = swap(model)
    assert [entry.path for entry in report.swapped] == ["listed.0", "named.x.0"]
    assert type(model.listed[0]) is te.TieredEmbedding
    assert type(model.named["x"][0]) is te.TieredEmbeddingBag
    assert [m.engine.tables[0].name for m in (model.listed[0], model.named["x"][0])] == [
        "listed.0",
        "named.x.0",
    ]
    assert swap(model).entries == ()


def test_a_module_at_two_places_stays_one():
    shared = seeded(nn.Embedding(ROWS, DIM))
    inner = nn.Sequential(OrderedDict(emb=shared))
    model = nn.ModuleDict({"a": inner, "b": nn.ModuleList([shared]), "c": inner})
    report = swap(model)
    (entry,) = report.entries
    assert entry.swapped
    assert (entry.path, entry.other_paths) == ("a.emb", ("b.0", "c.emb"))
    assert type(model["a"].emb) is te.TieredEmbedding
    assert model["a"].emb is model["b"][0]
    assert model["c"] is model["a"]


def test_a_module_used_twice_in_a_step_is_torchs_with_sgd():
    model = holder(emb=nn.Embedding(ROWS, DIM))
    plain = copy.deepcopy(model)
    swap(model)
    for m in (model, plain):
        (m.emb(ids_of(5)) * 2 + m.emb(ids_of(5, seed=1))).sum().backward()
    torch.optim.SGD(plain.parameters(), lr=LR).step()
    torch.testing.assert_close(model.emb.weight, plain.emb.weight.detach())


def test_a_module_used_twice_in_a_step_needs_accumulate_with_state():
    model = holder(emb=nn.Embedding(ROWS, DIM))
    plain = copy.deepcopy(model)
    swap(model, optimizer=Adagrad(lr=LR))
    optimizer = torch.optim.Adagrad(plain.parameters(), lr=LR, eps=1e-8)
    for seed in range(3):
        loss, wanted = (
            (m.emb(ids_of(5, seed=seed)) * 2 + m.emb(ids_of(5, seed=9 - seed))).square().sum()
            for m in (model, plain)
        )
        with te.accumulate(model):
            loss.backward()
        optimizer.zero_grad()
        wanted.backward()
        optimizer.step()
        torch.testing.assert_close(model.emb.weight, plain.emb.weight.detach())


def test_a_dense_checkpoint_of_the_model_before_loads():
    model = holder(emb=nn.Embedding(ROWS, DIM), head=nn.Linear(DIM, 1))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    swap(model)
    model.emb(ids_of(5)).sum().backward()
    model.load_state_dict(state)
    assert torch.equal(model.emb.weight, state["emb.weight"])


# --- what is left, and why ------------------------------------------------------------------------


class Scaled(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


def patched() -> nn.Module:
    module = nn.Embedding(ROWS, DIM)
    module.forward = lambda input: torch.zeros(1)
    return module


def with_child() -> nn.Module:
    module = nn.Embedding(ROWS, DIM)
    module.child = nn.Linear(1, 1)
    return module


def parametrized() -> nn.Module:
    module = nn.Embedding(ROWS, DIM)
    parametrize.register_parametrization(module, "weight", nn.Identity())
    return module


def hooked(register: str) -> nn.Module:
    module = nn.Embedding(ROWS, DIM)
    getattr(module, register)(lambda *_: None)
    return module


def weight_hooked(register: str) -> nn.Module:
    module = nn.Embedding(ROWS, DIM)
    getattr(module.weight, register)(lambda *_: None)
    return module


LEFT = {
    "a subclass": (lambda: Scaled(ROWS, DIM), "its class Scaled may have a different forward"),
    "a replaced forward": (patched, "its forward was replaced"),
    "a child": (with_child, "holds more than its weight"),
    "a parametrization": (parametrized, "it is parametrized"),
    "a pruned weight": (
        lambda: prune.identity(nn.Embedding(ROWS, DIM), "weight"),
        "it is parametrized, or holds more than its weight",
    ),
    "spectral norm": (
        lambda: torch.nn.utils.spectral_norm(nn.Embedding(ROWS, DIM)),
        "it is parametrized, or holds more than its weight",
    ),
    "a backward hook": (lambda: hooked("register_full_backward_hook"), "it has backward hooks"),
    "a backward pre-hook": (
        lambda: hooked("register_full_backward_pre_hook"),
        "it has backward pre hooks",
    ),
    "a state_dict hook": (lambda: hooked("_register_state_dict_hook"), "it has state dict hooks"),
    "a load_state_dict hook": (
        lambda: hooked("register_load_state_dict_post_hook"),
        "it has load state dict post hooks",
    ),
    "a gradient hook": (lambda: weight_hooked("register_hook"), "its weight has gradient hooks"),
    "an accumulation hook": (
        lambda: weight_hooked("register_post_accumulate_grad_hook"),
        "its weight has gradient hooks",
    ),
    "float64": (lambda: nn.Embedding(ROWS, DIM, dtype=torch.float64), "its weight is torch.float6"),
    "meta": (lambda: nn.Embedding(ROWS, DIM, device="meta"), "its weight is on meta, not on cpu"),
    "no rows": (lambda: nn.Embedding(0, DIM), "its weight has shape (0, 4)"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm|.*spectral_norm:FutureWarning")
@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_replaced_is_left_with_its_reason(name):
    make, reason = LEFT[name]
    module = make()
    model = nn.Sequential(OrderedDict(odd=module, emb=nn.Embedding(ROWS, DIM)))
    report = swap(model)
    assert model.odd is module
    assert reason in why(report, "odd")
    assert [entry.path for entry in report.left] == ["odd"]
    assert [entry.path for entry in report.swapped] == ["emb"]
    assert f"left: {why(report, 'odd')}" in str(report)


def test_a_lazy_weight_is_left():
    module = nn.Embedding(ROWS, DIM)
    module.weight = nn.parameter.UninitializedParameter()
    report = swap(nn.ModuleDict({"emb": module}))
    assert why(report, "emb") == "its weight is of type UninitializedParameter"


@pytest.mark.parametrize("tie", ["parameter", "view", "buffer"])
def test_tied_weights_are_left(tie):
    model = holder(
        emb=nn.Embedding(ROWS, DIM), head=nn.Linear(DIM, ROWS), other=nn.Embedding(ROWS, DIM)
    )
    if tie == "parameter":
        model.head.weight = model.emb.weight
    elif tie == "view":
        model.head.weight = nn.Parameter(model.emb.weight.data[5:])
    else:
        model.head.register_buffer("weight_copy", model.emb.weight.detach()[:, 1])
    report = swap(model)
    path = "head.weight_copy" if tie == "buffer" else "head.weight"
    assert why(report, "emb") == f"its weight is shared with '{path}'"
    assert [entry.path for entry in report.swapped] == ["other"]


def test_two_embeddings_of_one_weight_are_left():
    model = holder(a=nn.Embedding(ROWS, DIM), b=nn.Embedding(ROWS, DIM))
    model.b.weight = model.a.weight
    report = swap(model)
    assert why(report, "a") == "its weight is shared with 'b.weight'"
    assert why(report, "b") == "its weight is shared with 'a.weight'"


def test_neighbours_in_one_storage_are_not_tied():
    flat = torch.randn(2 * ROWS, DIM)
    model = holder(a=nn.Embedding(ROWS, DIM), b=nn.Embedding(ROWS, DIM))
    model.a.weight, model.b.weight = nn.Parameter(flat[:ROWS]), nn.Parameter(flat[ROWS:])
    assert swap(model).left == ()


@pytest.mark.parametrize("min_bytes", [ROWS * DIM * 4, f"{ROWS * DIM * 4}B"])
def test_small_tables_are_left(min_bytes):
    model = holder(small=nn.Embedding(ROWS - 1, DIM), large=nn.Embedding(ROWS, DIM))
    report = swap(model, min_bytes=min_bytes)
    assert why(report, "small") == "its 624 bytes are below min_bytes=640"
    assert [entry.path for entry in report.swapped] == ["large"]


def test_include_chooses_by_path_and_module():
    model = holder(a=nn.Embedding(ROWS, DIM), b=nn.EmbeddingBag(ROWS, DIM))
    report = swap(model, include=lambda path, module: path == "b" and module is model.b)
    assert why(report, "a") == "include returned False"
    assert [entry.path for entry in report.swapped] == ["b"]


def test_the_report_reads_well():
    model = holder(emb=nn.Embedding(1000, 8), bag=nn.EmbeddingBag(10, 4), odd=Scaled(10, 4))
    model.append(model.emb)
    report = swap(model, min_bytes=161)
    assert str(report).splitlines() == [
        "module  class          rows  dim   bytes",
        "emb, 3  Embedding     1,000    8  32,000  swapped",
        "bag     EmbeddingBag     10    4     160  left: its 160 bytes are below min_bytes=161",
        "odd     Scaled           10    4     160  left: its class Scaled may have a different "
        "forward",
        "1 of 3 tables swapped, 32,000 of 32,320 bytes",
        "a forward that reads .weight of a swapped module (logits, a penalty) is refused when it "
        "trains; leave such modules out with include=",
    ]
    assert str(swap(nn.Linear(2, 2))).splitlines()[1:] == ["0 of 0 tables swapped, 0 of 0 bytes"]


# --- the budget -----------------------------------------------------------------------------------


def budgets(model: nn.Module) -> list[int]:
    return [module.engine.options.tiers.ddr for module in model.children()]


def test_the_budget_is_shared_max_min_fair(tmp_path):
    sizes = {"small": 10, "large": 1000, "larger": 2000}
    model = holder(**{name: nn.Embedding(rows, DIM) for name, rows in sizes.items()})
    # Adagrad doubles a record: 32 bytes.
    tiers = te.Tiers(ddr=320 + 2 * 3200, ssd=tmp_path / "rows", store="memory")
    swap(model, tiers=tiers, optimizer=Adagrad(lr=LR))
    assert budgets(model) == [320, 3200, 3200]
    for module in model.children():
        module.close()


def test_a_frozen_table_wants_its_weights_alone():
    model = holder(
        frozen=nn.Embedding.from_pretrained(torch.randn(ROWS, DIM)), emb=nn.Embedding(ROWS, DIM)
    )
    swap(model, tiers=te.Tiers(ddr=ROWS * 16 * 3), optimizer=Adagrad(lr=LR))
    assert budgets(model) == [ROWS * 16, ROWS * 32]


def test_all_must_fit_where_nothing_is_below():
    model = holder(a=nn.Embedding(ROWS, DIM), b=nn.Embedding(ROWS, DIM))
    before = dict(model.named_modules())
    with pytest.raises(
        te.ConfigError, match=r"the 2 modules to swap need 1280 bytes .* ddr is 127"
    ):
        swap(model, tiers=te.Tiers(ddr=1279))
    assert dict(model.named_modules()) == before
    swap(model, tiers=te.Tiers(ddr=1280))


def test_hbm_and_ddr_are_shared_out_both(tmp_path):
    model = holder(a=nn.Embedding(ROWS, DIM), b=nn.Embedding(10 * ROWS, DIM))
    options = {"device": "cpu", "kernel": "native"}
    with pytest.raises(te.ConfigError, match="hbm is 400 and ddr is 100, and there is no SSD"):
        swap(model, tiers=te.Tiers(hbm=400, ddr=100), **options)
    tiers = te.Tiers(hbm=1000, ddr=1000, ssd=tmp_path, store="memory")
    weights = {name: module.weight.clone() for name, module in model.named_children()}
    swap(model, tiers=tiers, **options)
    shares = [(m.engine.options.tiers.hbm, m.engine.options.tiers.ddr) for m in model.children()]
    # The small one takes what it wants of HBM and then of DDR.
    assert shares == [(500, ROWS * 4 * DIM - 500), (500, 1000 - (ROWS * 4 * DIM - 500))]
    for name, module in model.named_children():
        assert torch.equal(module.weight, weights[name])
        module.close()


def test_each_needs_room_for_a_row(tmp_path):
    model = holder(a=nn.Embedding(ROWS, DIM), b=nn.Embedding(ROWS, 100))
    tiers = te.Tiers(ddr=700, ssd=tmp_path / "rows", store="memory")
    message = (
        "module 'b' needs at least 400 bytes of ddr and would get 350, because 2 modules share "
        "ddr=700"
    )
    with pytest.raises(te.ConfigError, match=message):
        swap(model, tiers=tiers)
    assert type(model.a) is nn.Embedding
    assert not (tmp_path / "rows").exists()


# --- all or nothing -------------------------------------------------------------------------------


def unchanged(model: nn.Module, plain: nn.Module) -> None:
    assert [type(module) for module in model.modules()] == [type(m) for m in plain.modules()]
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("fails_to", ["make", "fill"])
@pytest.mark.parametrize("ssd", [False, True], ids=["memory", "ssd"])
def test_a_failure_leaves_the_model_as_it_was(fails_to, ssd, monkeypatch, tmp_path):
    model = holder(a=nn.Embedding(ROWS, DIM), b=nn.EmbeddingBag(ROWS, DIM, mode="sum"))
    plain = copy.deepcopy(model)
    made = []

    def fails(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        raise KeyboardInterrupt

    method = {"make": "__init__", "fill": "import_rows" if ssd else "load_rows"}[fails_to]
    tiers = te.Tiers(ddr=2 * 10 * 16, ssd=tmp_path, store="memory") if ssd else TIERS
    with monkeypatch.context() as patch:
        patch.setattr(te.TieredEmbeddingBag, method, fails)
        with pytest.raises(KeyboardInterrupt):
            swap(model, tiers=tiers)
    assert len(made) == 1
    unchanged(model, plain)
    assert list(tmp_path.glob("pool-*")) == []
    # Nothing holds what the first attempt opened.
    assert len(swap(model, tiers=tiers).swapped) == 2
    for module in model.children():
        module.close()


def test_stores_of_others_survive_a_failure(tmp_path):
    tiers = te.Tiers(ddr=10 * 16, ssd=tmp_path, store="memory")
    model = holder(b=nn.Embedding(ROWS, DIM))
    swap(model, tiers=tiers)
    weight = model.b.weight
    model.b.close()
    again = holder(a=nn.Embedding(ROWS, DIM), b=nn.Embedding(ROWS, DIM))
    with pytest.raises(te.ConfigError, match="holds rows of table 'b' already"):
        swap(again, tiers=te.Tiers(ddr=2 * 10 * 16, ssd=tmp_path, store="memory"))
    assert type(again.a) is nn.Embedding
    assert len(list(tmp_path.glob("pool-*"))) == 1
    with te.TieredEmbedding(ROWS, DIM, name="b", tiers=tiers, optimizer=SGD(lr=LR)) as kept:
        assert torch.equal(kept.weight, weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tiers": None}, "tiers is None; pass te.Tiers"),
        ({"tiers": te.Tiers(ssd="/nowhere")}, r"holds the rows in use: pass te.Tiers\(ddr=...\)"),
        ({"tiers": te.Tiers(hbm="1MB", ddr="1MB")}, "needs a GPU.*pass device='cpu'"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'"),
        ({"min_bytes": -1}, "min_bytes is -1"),
        ({"min_bytes": "many"}, "min_bytes is 'many'"),
        ({"include": "emb"}, "include is 'emb'"),
        (
            {"dtype": torch.float16},
            "takes dtype from each module that it replaces; leave dtype out",
        ),
        ({"policy": "fifo"}, "policy is 'fifo'"),
        ({"seed": -1}, "seed is -1"),
    ],
    ids=str,
)
def test_bad_arguments_change_nothing(arguments, message):
    model = holder(emb=nn.Embedding(ROWS, DIM))
    plain = copy.deepcopy(model)
    with pytest.raises(te.ConfigError, match=message):
        swap(model, **arguments)
    unchanged(model, plain)


def test_every_option_is_passed_on_or_follows_from_the_module():
    defaults = {f.name: f.default for f in fields(EngineOptions) if f.default is not MISSING}
    own = {"dtype", "output_dtype", "init", "max_norm", "norm_type", "scale_grad_by_freq"}
    assert own == set(OWN_OPTIONS)
    for name in own:
        assert f"``{name}``" in te.swap.__doc__
        with pytest.raises(te.ConfigError, match=f"te.swap takes {name} from each module"):
            swap(holder(emb=nn.Embedding(ROWS, DIM)), **{name: defaults.pop(name)})
    assert swap(holder(emb=nn.Embedding(ROWS, DIM)), **defaults).left == ()


def test_options_are_keywords_as_pythons_are():
    model = holder(emb=nn.Embedding(ROWS, DIM))
    with pytest.raises(TypeError, match=r"te.swap\(\) got an unexpected keyword argument 'dept'"):
        swap(model, dept=1)
    with pytest.raises(TypeError, match=r"te.swap\(\) needs the keyword argument optimizer"):
        te.swap(model, tiers=TIERS)
    assert type(model.emb) is nn.Embedding


@pytest.mark.parametrize("model", [nn.Embedding(3, 2), nn.EmbeddingBag(3, 2), Scaled(3, 2)])
def test_an_embedding_itself_cannot_be_replaced(model):
    with pytest.raises(
        te.ConfigError, match=f"is an embedding module, {type(model).__name__}, and"
    ):
        swap(model)


def test_a_model_is_a_module():
    with pytest.raises(te.ConfigError, match="model is a dict"):
        swap({})


def test_the_name_is_the_functions():
    assert te.swap is swap_function


# --- TorchRec -------------------------------------------------------------------------------------


@pytest.fixture
def torchrec(imported) -> Any:
    imported("torchrec.models.dlrm")
    return imported("torchrec")


def tables_of(torchrec: Any, **kinds: Any) -> list[Any]:
    """One table per name: (features, rows, dim, pooling)."""
    return [
        torchrec.EmbeddingBagConfig(
            name=name,
            feature_names=features,
            num_embeddings=rows,
            embedding_dim=dim,
            pooling=torchrec.PoolingType[pooling],
        )
        for name, (features, rows, dim, pooling) in kinds.items()
    ]


def jagged(torchrec: Any, keys: list[str], num_bags: int, seed: int, *, weighted: bool) -> Any:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (len(keys) * num_bags,), generator=generator)
    total = int(lengths.sum())
    return torchrec.KeyedJaggedTensor(
        keys=keys,
        values=torch.randint(0, ROWS, (total,), generator=generator),
        lengths=lengths,
        weights=torch.randn(total, generator=generator) if weighted else None,
    )


@pytest.mark.filterwarnings("ignore")  # TorchRec's own
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("ssd", [False, True], ids=["memory", "ssd"])
def test_a_torchrec_collection(weighted, ssd, torchrec, tmp_path):
    pooling = "SUM" if weighted else "MEAN"
    configs = tables_of(
        torchrec,
        user=(["viewer", "author"], ROWS, DIM, "SUM"),
        item=(["seen"], ROWS, 3, pooling),
        both=(["seen", "hour"], ROWS + 5, DIM, pooling),
    )
    collection = torchrec.EmbeddingBagCollection(configs, is_weighted=weighted)
    model = holder(ebc=collection)
    plain = copy.deepcopy(model)
    tiers = te.Tiers(ddr=900, ssd=tmp_path, store="memory") if ssd else TIERS
    report = swap(model, tiers=tiers)
    assert [(e.path, e.class_name, e.num_embeddings, e.swapped) for e in report.entries] == [
        (f"ebc.{name}", "EmbeddingBagCollection", rows, True)
        for name, rows in (("user", ROWS), ("item", ROWS), ("both", ROWS + 5))
    ]
    assert type(model.ebc) is te.TieredEmbeddingBagCollection
    optimizer = torch.optim.SGD(plain.parameters(), lr=LR)
    keys = ["hour", "unused", "seen", "viewer", "author"]
    for step in range(3):
        # A collection that is not weighted takes no notice of weights.
        batch = jagged(torchrec, keys, 5, step, weighted=True)
        ours, theirs = model.ebc(batch), plain.ebc(batch)
        assert ours.keys() == theirs.keys()
        assert ours.keys() == ["viewer", "author", "seen@item", "seen@both", "hour"]
        assert ours.offset_per_key() == theirs.offset_per_key()
        torch.testing.assert_close(ours.values(), theirs.values())
        optimizer.zero_grad()
        for out in (ours, theirs):
            out.values().square().sum().backward()
        optimizer.step()
    for name, bag in plain.ebc.embedding_bags.items():
        rows = model.ebc.rows(range(bag.num_embeddings), f"ebc.{name}")
        torch.testing.assert_close(rows, bag.weight.detach())
    model.load_state_dict(plain.state_dict())
    model.ebc.close()


@pytest.mark.filterwarnings("ignore")  # TorchRec's own
def test_a_half_precision_collection_gives_float32(torchrec):
    (config,) = tables_of(torchrec, a=(["a"], ROWS, DIM, "SUM"))
    config.data_type = torchrec.types.DataType.FP16
    model = nn.ModuleDict({"ebc": torchrec.EmbeddingBagCollection([config])})
    batch = jagged(torchrec, ["a"], 5, 0, weighted=False)
    wanted = model["ebc"](batch).values()
    weight = model["ebc"].embedding_bags["a"].weight.detach().clone()
    assert swap(model).left == ()
    out = model["ebc"](batch).values()
    assert out.dtype == wanted.dtype == torch.float32
    assert torch.equal(model["ebc"].rows(range(ROWS)), weight)
    torch.testing.assert_close(out, wanted, rtol=2e-3, atol=2e-3)  # torch sums in float16


@pytest.mark.filterwarnings("ignore")  # TorchRec's own
def test_torchrec_collections_that_are_left(torchrec):
    def make(cls: Any = torchrec.EmbeddingBagCollection) -> Any:
        kinds = {name: ([name], ROWS, DIM, "SUM") for name in ("a", "b")}
        return cls(tables_of(torchrec, **kinds))

    class Mine(torchrec.EmbeddingBagCollection):
        pass

    model = nn.ModuleDict({name: make() for name in ("mixed", "frozen", "hook", "tied", "outside")})
    model["mine"] = make(Mine)
    model["mixed"].embedding_bags["a"].half()
    model["frozen"].embedding_bags["a"].weight.requires_grad_(False)
    model["hook"].embedding_bags["b"].register_forward_hook(lambda *_: None)
    model["tied"].embedding_bags["b"].weight = model["tied"].embedding_bags["a"].weight
    model["bag"] = model["outside"].embedding_bags["b"]
    report = swap(model)
    reasons = {
        "mixed": "its tables differ in weight.dtype: torch.float16, torch.float32",
        "frozen": "its tables differ in weight.requires_grad: False, True",
        "hook": "it has forward hooks",
        "tied": "its weight is shared with 'tied.embedding_bags.b.weight'",
        "outside": "its weight is shared with 'bag.weight'",
        "mine": "its class Mine may have a different forward",
    }
    assert report.swapped == ()
    for path, reason in reasons.items():
        assert {why(report, f"{path}.a"), why(report, f"{path}.b")} == {reason}
    assert why(report, "bag") == "its weight is shared with 'outside.embedding_bags.b.weight'"
    with pytest.raises(te.ConfigError, match="the model itself is an embedding module, Mine, and"):
        swap(make(Mine))


# --- models train on as before --------------------------------------------------------------------

STEPS = 50


@pytest.fixture
def one_thread():
    """Small matrices: a second thread would only wait for the first."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


OPTIMIZERS = {
    "sgd": (SGD(lr=2.0), lambda p: torch.optim.SGD(p, lr=2.0)),
    "adagrad": (Adagrad(lr=0.05, eps=1e-8), lambda p: torch.optim.Adagrad(p, lr=0.05, eps=1e-8)),
}


def losses_of(model: nn.Module, tables: Any, loss_of: Any) -> list[float]:
    """Of 50 steps, Adam on everything that ``tables`` does not hold."""
    mine = {id(p) for group in (tables.param_groups if tables else []) for p in group["params"]}
    dense = torch.optim.Adam([p for p in model.parameters() if id(p) not in mine], lr=1e-3)
    losses = []
    model.train()
    for step in range(STEPS):
        for optimizer in filter(None, (dense, tables)):
            optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        for optimizer in filter(None, (dense, tables)):
            optimizer.step()
        losses.append(loss.item())
    return losses


def check_losses(model: nn.Module, kind: str, tiers: te.Tiers, loss_of: Any) -> te.SwapReport:
    """Swapped and not, from the same weights: equal losses at every step, and equal rows then."""
    ours, theirs = OPTIMIZERS[kind]
    plain = copy.deepcopy(model)
    bags = [m for m in plain.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    first = [bag.weight.detach().clone() for bag in bags]
    report = te.swap(model, tiers=tiers, optimizer=ours, num_threads=1)
    assert report.left == ()
    wanted = losses_of(plain, theirs([bag.weight for bag in bags]), loss_of)
    losses = losses_of(model, None, loss_of)
    np.testing.assert_allclose(losses, wanted, rtol=0, atol=1e-4)
    places = [
        (module, table.name, table.num_embeddings)
        for module in model.modules()
        if isinstance(module, TieredModule)
        for table in module.engine.tables
    ]
    for (module, name, num_rows), bag, before in zip(places, bags, first, strict=True):
        rows = module.rows(range(num_rows), name)
        torch.testing.assert_close(rows, bag.weight.detach(), rtol=0, atol=1e-4)
        assert (rows - before).abs().max() > 2e-3
    for module, _, _ in places:
        module.close()
    return report


@pytest.mark.filterwarnings("ignore")  # TorchRec's own
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_torchrecs_dlrm_trains_as_before(kind, torchrec, tmp_path):
    torch.manual_seed(0)
    configs = tables_of(
        torchrec,
        user=(["viewer", "author"], 1000, 8, "SUM"),
        item=(["seen"], 3000, 8, "MEAN"),
        hour=(["hour"], 24, 8, "SUM"),
    )
    model = torchrec.models.dlrm.DLRM(
        torchrec.EmbeddingBagCollection(configs),
        5,
        dense_arch_layer_sizes=[16, 8],
        over_arch_layer_sizes=[16, 1],
    )
    rows = {"viewer": 1000, "author": 1000, "seen": 3000, "hour": 24}
    batches = []
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        lengths = torch.randint(0, 5, (len(rows), 32), generator=generator)
        values = [
            torch.randint(0, num_rows, (int(n.sum()),), generator=generator)
            for num_rows, n in zip(rows.values(), lengths, strict=True)
        ]
        features = torchrec.KeyedJaggedTensor(
            keys=list(rows), values=torch.cat(values), lengths=lengths.reshape(-1)
        )
        dense = torch.randn(32, 5, generator=generator)
        batches.append((dense, features, torch.rand(32, 1, generator=generator).round()))

    def loss_of(dlrm: nn.Module, step: int) -> torch.Tensor:
        dense, features, labels = batches[step % len(batches)]
        return nn.functional.binary_cross_entropy_with_logits(dlrm(dense, features), labels)

    tiers = te.Tiers(ddr=1000 * 4 * 8, ssd=tmp_path / "rows")
    report = check_losses(model, kind, tiers, loss_of)
    names = ["user", "item", "hour"]
    assert [entry.path for entry in report.entries] == [
        f"sparse_arch.embedding_bag_collection.{name}" for name in names
    ]


@pytest.fixture
def bert(imported) -> nn.Module:
    transformers = imported("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50_000,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=2,
    )
    return transformers.BertForSequenceClassification(config)


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_hugging_face_model_trains_as_before(kind, bert, tmp_path):
    batches = []
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(1, 50_000, (8, 16), generator=generator)
        mask = torch.arange(16) < torch.randint(4, 17, (8, 1), generator=generator)
        labels = torch.randint(0, 2, (8,), generator=generator)
        batches.append((ids * mask, mask.long(), labels))  # 0 is the padding row

    def loss_of(model: nn.Module, step: int) -> torch.Tensor:
        ids, mask, labels = batches[step % len(batches)]
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss

    tiers = te.Tiers(ddr="1MB", ssd=tmp_path / "rows")
    report = check_losses(bert, kind, tiers, loss_of)
    words = report.entries[0]
    assert (words.path, words.num_embeddings) == ("bert.embeddings.word_embeddings", 50_000)
    assert len(report.swapped) == 3
    assert bert.bert.embeddings.word_embeddings.padding_idx == 0


@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_a_tied_language_model_head_is_left(imported):
    transformers = imported("transformers")
    config = transformers.BertConfig(
        vocab_size=100,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        tie_word_embeddings=True,
    )
    model = transformers.BertForMaskedLM(config)
    report = swap(model)
    path = "bert.embeddings.word_embeddings"
    assert why(report, path) == "its weight is shared with 'cls.predictions.decoder.weight'"
    assert len(report.swapped) == 2
