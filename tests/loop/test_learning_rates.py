"""te.lr_optimizer: gradient scalers, autocast, learning-rate schedules."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

import tiered_embed as te
from small import DIM, EVERY, ROWS, make, random_ids
from tiered_embed.optim.adam import Adam
from tiered_embed.optim.descent import LARSSGD, SGD


def make_model(emb: nn.Module) -> nn.Module:
    """With a dense part of the same values every time."""
    top = nn.Sequential(nn.Linear(DIM, 8), nn.ReLU(), nn.Linear(8, 1))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in top.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 4)
    return nn.Sequential(emb, top)


def loss_of(model: nn.Module, seed: int) -> torch.Tensor:
    return (model(random_ids(seed)).float() - 1).square().mean()


# --- autocast and gradient scalers ----------------------------------------------------------------


def test_autocast_around_a_model(tmp_path):
    """As with nn.EmbeddingBag in our place, whose rows autocast leaves in float32, too."""
    weights = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1))
    tiers = te.Tiers(ddr=8 * 4 * DIM, ssd=tmp_path, store="memory")
    with make(optimizer=SGD(lr=0.05), tiers=tiers) as emb:
        emb.load_rows(EVERY, weights)
        torchs = nn.EmbeddingBag(ROWS, DIM, mode="sum", _weight=weights.clone())
        models = make_model(emb), make_model(torchs)
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in models]
        for seed in range(5):
            for model, optimizer in zip(models, optimizers, strict=True):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    assert model[0](random_ids(seed)).dtype == torch.float32
                    assert model(random_ids(seed)).dtype == torch.bfloat16
                    loss = loss_of(model, seed)
                loss.backward()
                optimizer.step()
        torch.testing.assert_close(emb.weight, torchs.weight.detach(), rtol=1e-2, atol=1e-2)
        assert not torch.equal(emb.weight, weights)
        assert emb.stats().steps == 5


def train_scaled(emb: Any, scaler: torch.amp.GradScaler | None, steps: int = 6) -> Any:
    """A loop of AMP; the scale doubles on the way. Returns the dense part."""
    model = make_model(emb)
    dense = torch.optim.SGD(model.parameters(), lr=0.01)
    if scaler is None:
        scaler = torch.amp.GradScaler("cpu", enabled=False)
    rows = te.lr_optimizer(model, grad_scaler=scaler if scaler.is_enabled() else None)
    for seed in range(steps):
        dense.zero_grad()
        scaler.scale(loss_of(model, seed)).backward()
        scaler.step(dense)
        scaler.step(rows)
        scaler.update()
    return model[1]


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1), Adam(lr=0.1), LARSSGD(lr=0.1)])
@pytest.mark.parametrize(
    "options",
    [{}, {"clip": "value"}, {"clip": "row_norm"}, {"clip": "global_norm"}, {"max_norm": 0.05}],
)
def test_a_scaled_run_gives_the_bits_of_an_unscaled_one(optimizer, options):
    options = dict(options)
    if "clip" in options:
        limit = {f"clip_{options.pop('clip')}": 0.02}
        optimizer = type(optimizer)(lr=optimizer.lr, **limit)
    digests = []
    for scale in (None, 2.0**16, 2.0**-20):
        scaler = scale and torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
        with make(optimizer=optimizer, **options) as emb:
            top = train_scaled(emb, scaler)
            digests.append((emb.digest(), [p.tolist() for p in top.parameters()]))
        assert not scaler or scaler.get_scale() == 8 * scale
    assert digests[0] == digests[1] == digests[2]


def through_a_hook(model: nn.Module, scaler: Any) -> torch.Tensor:
    out = model[0](random_ids(0))
    out.register_hook(lambda grad: grad * torch.tensor([1.0, float("inf"), 1.0, 1.0]))
    return model[1](out).sum()


def through_the_scale(model: nn.Module, scaler: Any) -> torch.Tensor:
    """Finite as it is, and not when scaled."""
    return 1e36 * model(random_ids(0)).sum()


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip", "allow"])
@pytest.mark.parametrize("lose", [through_a_hook, through_the_scale])
def test_an_infinite_gradient_lowers_the_scale_and_leaves_every_row(lose, on_nonfinite, caplog):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    with make(on_nonfinite=on_nonfinite) as emb:
        model = make_model(emb)
        rows = te.lr_optimizer(model, grad_scaler=scaler)
        loss_of(model, 0).backward()
        digest, steps = emb.digest(), emb.stats().steps
        for i in range(1, 3):
            scaler.scale(lose(model, scaler)).backward()
            assert emb.digest() == digest
            scaler.step(rows)
            scaler.update()
            assert scaler.get_scale() == 2.0**14 / 2**i
            assert emb.stats().skipped == i
            assert emb.stats().steps == steps
        # There is no zero_grad in between: what a step reported does not count for the next one.
        scaler.scale(loss_of(model, 1)).backward()
        assert emb.digest() != digest
        scaler.step(rows)
        scaler.update()
        assert scaler.get_scale() == 2.0**12
        assert emb.stats().steps == steps + 1


@pytest.mark.parametrize("infinite", [0, 1])
def test_a_scaler_hears_of_any_of_several_backwards(infinite):
    """The last one's word does not take back the first one's."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with make() as emb:
        rows = te.lr_optimizer(emb, grad_scaler=scaler)
        for i in range(2):
            loss = emb(random_ids(i)).sum() * (float("inf") if i == infinite else 1.0)
            scaler.scale(loss).backward()
        assert emb.stats().skipped == 1
        assert emb.stats().steps == 1
        scaler.step(rows)
        scaler.update()
        assert scaler.get_scale() == 512.0


def test_a_scale_of_one_forgets_too():
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, backoff_factor=0.5, growth_interval=1)
    with make() as emb:
        rows = te.lr_optimizer(emb, grad_scaler=scaler)
        for factor, scale in ((float("nan"), 0.5), (1.0, 1.0), (float("inf"), 0.5), (1.0, 1.0)):
            scaler.scale(factor * emb(random_ids(0)).sum()).backward()
            scaler.step(rows)
            scaler.update()
            assert scaler.get_scale() == scale


# --- learning rates -------------------------------------------------------------------------------

SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": lambda o: schedules.StepLR(o, step_size=2, gamma=0.25),
    "one cycle": lambda o: schedules.OneCycleLR(o, max_lr=0.7, total_steps=9, cycle_momentum=False),
    "cosine": lambda o: schedules.CosineAnnealingLR(o, T_max=5),
    "lambda": lambda o: schedules.LambdaLR(o, lambda step: 1 / (1 + step)),
    "warm up, then decay": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, total_iters=3), schedules.ExponentialLR(o, 0.8)], [3]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_that_of_torchs_optimizer(name):
    weights = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1))
    with make(optimizer=SGD(lr=0.5)) as emb, make(optimizer=SGD(lr=0.5)) as manual:
        for module in (emb, manual):
            module.load_rows(EVERY, weights)
        torchs = nn.EmbeddingBag(ROWS, DIM, mode="sum", _weight=weights.clone())
        optimizers = te.lr_optimizer(emb), torch.optim.SGD(torchs.parameters(), lr=0.5)
        schedulers = [SCHEDULES[name](o) for o in optimizers]
        by_hand = te.lr_optimizer(manual)
        used = set()
        for seed in range(8):
            lr = optimizers[0].param_groups[0]["lr"]
            assert lr == optimizers[1].param_groups[0]["lr"]
            used.add(lr)
            by_hand.param_groups[0]["lr"] = lr
            for module in (emb, torchs, manual):
                module(random_ids(seed)).square().sum().backward()
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
        assert len(used) > 3
        torch.testing.assert_close(emb.weight, torchs.weight.detach(), rtol=1e-4, atol=1e-4)
        assert emb.digest() == manual.digest()


def test_a_schedule_goes_on_where_it_was_saved(tmp_path):
    def run(module: Any, seeds: range, saved: Any = None) -> Any:
        rows = te.lr_optimizer(module)
        scheduler = SCHEDULES["cosine"](rows)
        if saved is not None:
            for obj, state in zip((rows, scheduler), saved, strict=True):
                obj.load_state_dict(state)
        for seed in seeds:
            module(random_ids(seed)).square().sum().backward()
            rows.step()
            scheduler.step()
        return rows.state_dict(), scheduler.state_dict()

    with make() as whole:
        run(whole, range(8))
        tiers = te.Tiers(ddr=4096, ssd=tmp_path, store="auto")
        with make(tiers=tiers) as first:
            states = run(first, range(3))
            torch.save(states, tmp_path / "states.pt")
        states = torch.load(tmp_path / "states.pt", weights_only=True)
        with make(tiers=tiers) as second:
            run(second, range(3, 8), states)
            assert second.digest() == whole.digest()


def test_groups_are_named_and_separate():
    with make(name="one") as one, make(name="two", optimizer=SGD(lr=0.3)) as two:
        rows = te.lr_optimizer(nn.ModuleList([one, two]))
        assert [(g["name"], g["lr"]) for g in rows.param_groups] == [("one", 0.1), ("two", 0.3)]
        rows.param_groups[0]["lr"] = 0.0
        rows.param_groups[1]["lr"] = 1.0
        before = one.rows([3]), two.rows([3])
        (one(torch.tensor([[3]])) + two(torch.tensor([[3]]))).sum().backward()
        assert torch.equal(one.rows([3]), before[0])
        assert torch.equal(two.rows([3]), before[1] - 1)


def test_a_closure_is_called_once():
    with make(optimizer=SGD(lr=1.0)) as emb:
        rows = te.lr_optimizer(emb)

        def closure() -> torch.Tensor:
            loss = emb(random_ids(0)).sum()
            loss.backward()
            return loss

        assert rows.step(closure).requires_grad
        assert emb.stats().steps == 1


BAD_RATES = (
    *(float("nan"), -0.1, float("inf"), 1e39, 10**400, "0.1", None, True, 1j, [0.1]),
    *(torch.tensor([0.1, 0.2]), torch.tensor(1e39, dtype=torch.float64), np.array("x")),
)


@pytest.mark.parametrize("lr", BAD_RATES, ids=repr)
@pytest.mark.parametrize("accumulating", [False, True])
def test_a_learning_rate_that_cannot_be_changes_no_row(lr, accumulating):
    with make() as emb, make() as twin:
        rows = te.lr_optimizer(emb)
        for module in (emb, twin):
            loss_of(make_model(module), 0).backward()
        digest = emb.digest()
        rows.param_groups[0]["lr"] = lr
        with (
            pytest.raises(te.ConfigError, match=r"lr|learning rate"),
            te.accumulate(emb) if accumulating else contextlib.nullcontext(),
        ):
            emb(random_ids(1)).sum().backward()
        assert emb.digest() == digest
        assert emb.stats().steps == 1
        rows.param_groups[0]["lr"] = 0.1
        for module in (emb, twin):
            loss_of(make_model(module), 1).backward()
        assert emb.digest() == twin.digest()


@pytest.mark.parametrize("lr", BAD_RATES, ids=repr)
def test_a_step_with_a_learning_rate_that_cannot_be_changes_no_row_of_any_module(lr):
    with make(name="one", update="step") as one, make(name="two", update="step") as two:
        rows = te.row_optimizer(nn.ModuleList([one, two]))
        (one(random_ids(0)).sum() + two(random_ids(0)).sum()).backward()
        before = one.digest(), two.digest()
        rows.param_groups[1]["lr"] = lr
        with pytest.raises(te.ConfigError, match=r"lr|learning rate"):
            rows.step()
        assert (one.digest(), two.digest()) == before
        rows.param_groups[1]["lr"] = torch.tensor(0.1)
        rows.step()
        assert one.digest() != before[0]


@pytest.mark.parametrize(
    "options",
    [{"lr": 1e39}, {"lr": 1e30, "weight_decay": 1e30, "weight_decay_mode": "decoupled"}],
)
def test_options_beyond_float32_are_refused(options):
    with pytest.raises(te.ConfigError, match="beyond float32"):
        SGD(**options)
    with pytest.raises(te.ConfigError, match="beyond float32"):
        te.optim.Adagrad(lr=0.1, eps=1e39)
    with pytest.raises(te.ConfigError, match="beyond float32"):
        te.optim.LARSSGD(lr=1e30, eta=1e30)
    with pytest.raises(te.ConfigError, match="0 in float32"):
        te.optim.FTRL(lr=1e-60)


def test_a_table_s_factor_that_makes_its_rate_too_large_is_refused():
    emb = te.TieredEmbeddingBagCollection(
        [te.TableConfig("t", 9, 4, lr_factor=1e20)],
        tiers=te.Tiers(ddr="1KiB"),
        optimizer=SGD(lr=1e20),
    )
    with emb, pytest.raises(te.ConfigError, match="beyond float32"):
        te.joined(emb({"t": (torch.arange(3), torch.tensor([0]))})).sum().backward()
