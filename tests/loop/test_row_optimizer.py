"""te.row_optimizer and the parameters of touched rows: plain torch programs beside the same ones on
``nn.EmbeddingBag``."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler as schedules

import tiered_embed as te
from small import DIM, EVERY, ROWS, make, random_ids

STEPS = 50
OPTIMIZERS: dict[str, tuple[Any, Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (te.optim.SGD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "adagrad": (
        te.optim.Adagrad(lr=0.1, eps=1e-10),
        lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-10),
    ),
    "adam": (te.optim.Adam(lr=0.01, eps=1e-6), lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-6)),
}


class Pair:
    """The same model twice: over tiers, and over torch's module with torch's optimizer."""

    def __init__(self, kind: str, tiers: te.Tiers | None = None, **options: Any) -> None:
        ours, theirs = OPTIMIZERS[kind]
        given = {"tiers": tiers} if tiers else {}
        self.emb = make(optimizer=ours, update="step", **given, **options)
        weights = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(2))
        self.emb.load_rows(EVERY, weights)
        self.bag = nn.EmbeddingBag(ROWS, DIM, mode="sum", _weight=weights.clone())
        self.models = [nn.Sequential(m, nn.Linear(DIM, 1)) for m in (self.emb, self.bag)]
        self.models[1][1].load_state_dict(self.models[0][1].state_dict())
        dense = torch.optim.SGD(self.models[0].parameters(), lr=0.05)
        self.optimizers: list[Any] = [
            te.row_optimizer(self.models[0], dense),
            Both(theirs([self.bag.weight]), torch.optim.SGD(self.models[1][1].parameters(), 0.05)),
        ]

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *_: object) -> None:
        self.emb.close()

    def check(self) -> None:
        for ours, theirs in (
            (self.emb.weight, self.bag.weight),
            *zip(self.models[0][1].parameters(), self.models[1][1].parameters(), strict=True),
        ):
            torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=0, atol=1e-5)

    def each(self) -> Any:
        return zip(self.models, self.optimizers, strict=True)


class Both:
    """Two of torch's optimizers as one."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)


def batch(b: int) -> torch.Tensor:
    """Ids of every row: a dense Adam also moves those that a step does not touch."""
    generator = torch.Generator().manual_seed(b)
    return torch.randperm(ROWS, generator=generator).view(10, 3)


def loss_of(model: nn.Module, b: int) -> torch.Tensor:
    return (model(batch(b)) - 1).square().mean()


@pytest.fixture(params=["memory", "small"])
def tiers(request, tmp_path) -> te.Tiers:
    if request.param == "memory":
        return te.Tiers(ddr="1MiB")
    return te.Tiers(ddr=8 * 12 * DIM, ssd=tmp_path / "ssd", store="memory")


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_accumulation_of_four_clipping_and_a_schedule(kind, tiers):
    with Pair(kind, tiers) as pair:
        rows = pair.optimizers[0]
        rates = [group["lr"] for group in rows.param_groups]
        schedule = schedules.LambdaLR(rows, lambda step: min(1.0, (step + 1) / 10))
        for step in range(STEPS):
            norms = []
            for model, optimizer in pair.each():
                for part in range(4):
                    (loss_of(model, 4 * step + part) / 4).backward()
                norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5))
                if isinstance(optimizer, Both):
                    for one, rate in zip(optimizer.optimizers, reversed(rates), strict=True):
                        one.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 10)
                optimizer.step()
                optimizer.zero_grad()
            torch.testing.assert_close(*norms, rtol=1e-4, atol=1e-5)
            schedule.step()
        assert pair.emb.stats().steps == STEPS
        pair.check()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_gradient_scaler(kind, tiers):
    with Pair(kind, tiers) as pair:
        scalers = [torch.amp.GradScaler("cpu", 2.0**14, growth_interval=7) for _ in range(2)]
        for step in range(STEPS):
            for (model, optimizer), scaler in zip(pair.each(), scalers, strict=True):
                factor = float("inf") if step in (3, 20) else 1.0
                scaler.scale(factor * loss_of(model, step)).backward()
                each = getattr(optimizer, "optimizers", [optimizer])
                for one in each:
                    scaler.unscale_(one)
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                for one in each:
                    scaler.step(one)
                scaler.update()
                optimizer.zero_grad()
        assert scalers[0].get_scale() == scalers[1].get_scale()
        assert pair.emb.stats().steps == STEPS - 2
        pair.check()


def forgotten(optimizer: Any, model: nn.Module, step: int) -> None:
    """Gradients stay until they are dropped."""


def every_third(optimizer: Any, model: nn.Module, step: int) -> None:
    if step % 3 == 2:
        optimizer.zero_grad()


def of_the_model(optimizer: Any, model: nn.Module, step: int) -> None:
    model.zero_grad()


def to_zeros(optimizer: Any, model: nn.Module, step: int) -> None:
    optimizer.zero_grad(set_to_none=False)


def zeros_of_the_model(optimizer: Any, model: nn.Module, step: int) -> None:
    model.zero_grad(set_to_none=False)


def by_hand(optimizer: Any, model: nn.Module, step: int) -> None:
    for parameter in model.parameters():
        parameter.grad = None


@pytest.mark.parametrize(
    "drop", [forgotten, every_third, of_the_model, to_zeros, zeros_of_the_model, by_hand]
)
def test_gradients_stay_until_they_are_dropped(drop, tiers):
    """And are applied once more where nobody drops them, as torch has it."""
    with Pair("adagrad", tiers) as pair:
        for step in range(20):
            for model, optimizer in pair.each():
                if step % 4 != 3:
                    out = model(random_ids(step))
                    out.square().mean().backward()
                optimizer.step()
                drop(optimizer, model, step)
        pair.check()


def test_the_parameter_is_the_touched_rows():
    with make(update="step") as emb:
        (touched,) = emb.parameters()
        optimizer = te.row_optimizer(emb)
        seen = []
        touched.register_hook(lambda grad: seen.append(grad.clone()))
        touched.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
        emb(torch.tensor([[3, 5, 3]])).sum().backward()
        assert touched.grad.tolist() == [[2.0] * DIM, [1.0] * DIM]
        assert torch.equal(touched.detach(), emb.rows([3, 5]))
        assert all(torch.equal(grad, touched.grad) for grad in seen)
        emb(torch.tensor([[7, 5, 5]])).sum().backward()
        assert touched.grad.tolist() == [[2.0] * DIM, [3.0] * DIM, [1.0] * DIM]
        assert torch.equal(touched.detach(), emb.rows([3, 5, 7]))
        assert len(seen) == 4
        optimizer.step()
        assert torch.equal(touched.detach(), emb.rows([3, 5, 7]))
        optimizer.zero_grad()
        assert touched.shape == (0, DIM)
        assert touched.grad is None


def test_a_hook_may_change_the_gradient(tiers):
    with Pair("adagrad", tiers) as pair:
        for parameter in (*pair.emb.parameters(), *pair.bag.parameters()):
            parameter.register_hook(lambda grad: grad.clamp(-0.01, 0.01))
        for step in range(10):
            for model, optimizer in pair.each():
                loss_of(model, step).backward()
                optimizer.step()
                optimizer.zero_grad()
        pair.check()


def test_accumulated_rows_may_exceed_the_cache_and_are_counted_once(tmp_path):
    """They give up their slots while the next forward takes its own."""
    tiers = te.Tiers(ddr=6 * 12 * DIM, ssd=tmp_path, store="memory")
    with make(update="step", tiers=tiers) as emb, make() as twin:
        optimizer = te.row_optimizer(emb)
        with te.accumulate(twin):
            for first in range(0, 30, 3):
                ids = torch.arange(first, first + 3)[None]
                for module in (emb, twin):
                    module(ids).sum().backward()
        assert emb.stats().tiers["DDR"].overflow == 0
        optimizer.step()
        assert emb.digest() == twin.digest()
        assert emb.stats().tiers["DDR"].lookups == 30
    with make(update="step", tiers=te.Tiers(ddr=6 * 12 * DIM)) as emb:
        optimizer = te.row_optimizer(emb)
        for first in range(0, 30, 3):
            emb(torch.arange(first, first + 3)[None]).sum().backward()
        digest = emb.digest()
        with pytest.raises(
            te.CapacityError, match=r"30 rows .* add up fewer backwards.*add an ssd"
        ):
            optimizer.step()
        assert emb.digest() == digest
        optimizer.zero_grad()
        emb(torch.arange(3)[None]).sum().backward()
        optimizer.step()
        assert emb.stats().steps == 1


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip", "allow"])
def test_a_gradient_that_is_not_finite(on_nonfinite, caplog):
    with make(update="step", on_nonfinite=on_nonfinite) as emb:
        optimizer = te.row_optimizer(emb)
        digest = emb.digest()
        (float("inf") * emb(random_ids(0))).sum().backward()
        if on_nonfinite == "raise":
            with pytest.raises(te.NonFiniteError):
                optimizer.step()
        else:
            optimizer.step()
        assert (emb.digest() == digest) == (on_nonfinite != "allow")
        optimizer.zero_grad()
        emb(random_ids(0)).sum().backward()
        optimizer.step()
        assert emb.stats().steps == 1 + (on_nonfinite == "allow")


# --- its own protocols ----------------------------------------------------------------------------


def test_the_parameter_is_in_no_state_dict_and_keeps_its_dtype():
    with make(update="step") as emb, make(update="step") as other:
        emb(random_ids(0)).sum().backward()
        assert list(emb.state_dict()) == ["_extra_state"]
        assert not other.load_state_dict(emb.state_dict()).missing_keys
        emb.half()
        assert emb.touched_rows.dtype == torch.float32
        assert len(emb.touched_rows) > 0


def test_the_parameter_stays_out_of_buckets(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        for update in ("backward", "step"):
            with make(update=update) as emb, make() as twin:
                model = nn.Sequential(emb, nn.Linear(DIM, 1))
                head = nn.Linear(DIM, 1)
                head.load_state_dict(model[1].state_dict())
                ranks = DistributedDataParallel(model)
                dense = torch.optim.SGD(model.parameters(), lr=0.1)
                peer = torch.optim.SGD(head.parameters(), lr=0.1)
                optimizer = te.row_optimizer(model, dense) if update == "step" else dense
                for step in range(3):
                    for out in (ranks(random_ids(step)), head(twin(random_ids(step)))):
                        out.square().sum().backward()
                    for one in (optimizer, peer):
                        one.step()
                        one.zero_grad()
                assert emb.digest() == twin.digest()
    finally:
        torch.distributed.destroy_process_group()


def test_groups_rates_and_state_travel(tmp_path):
    def made(folder: str) -> tuple[Any, Any]:
        torch.manual_seed(0)
        emb = make(update="step", tiers=te.Tiers(ddr="1MiB", ssd=tmp_path / folder, store="auto"))
        model = nn.Sequential(emb, nn.Linear(DIM, 1))
        return model, te.row_optimizer(model, torch.optim.Adam(model.parameters(), lr=0.1))

    def train(model: Any, optimizer: Any, steps: range) -> None:
        schedule = schedules.StepLR(optimizer, 2, 0.5)
        for step in steps:
            loss_of(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()

    model, optimizer = made("one")
    assert [group.get("name") for group in optimizer.param_groups] == [None, "table"]
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1]
    train(model, optimizer, range(4))
    saved = optimizer.state_dict(), model.state_dict()
    model[0].close()
    again, second = made("one")
    second.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    train(again, second, range(4, 8))
    whole, third = made("other")
    train(whole, third, range(4))
    train(whole, third, range(4, 8))
    assert again[0].digest() == whole[0].digest()
    assert torch.equal(again[1].weight, whole[1].weight)
    assert second.param_groups[1]["lr"] == third.param_groups[1]["lr"] == 0.1 / 2**4
    again[0].close()
    whole[0].close()


def test_a_closure_and_a_new_group():
    with make(update="step") as emb:
        model = nn.Sequential(emb, nn.Linear(DIM, 1), nn.Linear(1, 1))
        optimizer = te.row_optimizer(model, torch.optim.SGD(model[1].parameters(), lr=0.1))
        optimizer.add_param_group({"params": list(model[2].parameters())})
        before = [p.detach().clone() for p in model[1:].parameters()]

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(random_ids(0)).sum()
            loss.backward()
            return loss

        assert optimizer.step(closure).requires_grad
        assert emb.stats().steps == 1
        after = list(model[1:].parameters())
        assert not any(torch.equal(p, q) for p, q in zip(before, after, strict=True))
        assert [g.get("name") for g in optimizer.param_groups] == [None, None, "table"]
        with pytest.raises(te.ConfigError, match="pass dense="):
            te.row_optimizer(model).add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def test_what_cannot_be_is_refused():
    with make(update="step") as step, make() as backward:
        with pytest.raises(te.ConfigError, match=r"update='step'.*te\.lr_optimizer"):
            te.row_optimizer(backward)
        with pytest.raises(te.ConfigError, match=r"te\.row_optimizer"):
            te.lr_optimizer(step)
        with pytest.raises(te.ConfigError, match="dense is a list"):
            te.row_optimizer(step, list(step.parameters()))
        with pytest.raises(te.ConfigError, match="update is 'later'"):
            make(update="later")
        wrong = torch.optim.Adam(step.parameters())
        step(random_ids(0)).sum().backward()
        with pytest.raises(te.ConfigError, match=r"te\.row_optimizer\(model, dense=optimizer\)"):
            wrong.step()


def test_rows_that_nobody_applies_are_said_once(caplog):
    with make(update="step") as emb:
        for step in range(6):
            emb(random_ids(step)).sum().backward()
            emb.zero_grad()
        assert [r.getMessage().count("te.row_optimizer") for r in caplog.records] == [1]
    assert json.dumps(emb.stats().as_dict())
