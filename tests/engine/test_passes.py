"""Which backward passes update which rows: modules that are called several times, frozen rows,
losses that share a forward, checkpointed forwards, and what a trainer does that misses the rows."""

import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import tiered_embed as te
from small import DIM, EVERY, ROWS, make, random_ids
from tiered_embed.optim.adam import Adam
from tiered_embed.optim.descent import SGD

WAYS = ["backward", "step"]


def weights() -> torch.Tensor:
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(4))


def adagrad(**options: Any) -> te.TieredEmbeddingBag:
    options = {"optimizer": te.optim.Adagrad(lr=0.1, eps=1e-10), **options}
    emb = make(**options)
    emb.load_rows(EVERY, weights())
    return emb


def plain() -> tuple[nn.EmbeddingBag, torch.optim.Optimizer]:
    bag = nn.EmbeddingBag(ROWS, DIM, mode="sum", _weight=weights())
    return bag, torch.optim.Adagrad(bag.parameters(), lr=0.1)


class Rows:
    """Steps a module's rows, whichever way it updates them."""

    def __init__(self, module: nn.Module, update: str) -> None:
        self.optimizer = te.row_optimizer(module) if update == "step" else None

    def step(self) -> None:
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()


def near(emb: te.TieredEmbeddingBag, bag: nn.EmbeddingBag) -> None:
    torch.testing.assert_close(emb.weight, bag.weight.detach(), rtol=0, atol=1e-5)


# --- a module that is called several times --------------------------------------------------------


@pytest.mark.parametrize("update", WAYS)
@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("calls", [2, 3])
def test_a_module_called_several_times_is_updated_once(update, prefetch, calls, tmp_path):
    """Also with a cache far too small for one of the calls."""
    tiers = te.Tiers(ddr=8 * 8 * DIM, ssd=tmp_path, store="memory")
    bag, optimizer = plain()
    with adagrad(update=update, tiers=tiers, lookahead=4) as emb:
        rows = Rows(emb, update)
        batches: Any = range(50)
        if prefetch:  # it knows of the first call alone
            batches = te.prefetch(batches, emb, ids=lambda b: {emb: (random_ids(10 * b),)})
        for b in batches:
            for model in (emb, bag):
                out = [model(random_ids(10 * b + c)) for c in range(calls)]
                torch.stack(out).prod(0).sum().tanh().backward()
            rows.step()
            optimizer.step()
            optimizer.zero_grad()
        assert emb.stats().steps == 50
        near(emb, bag)


@pytest.mark.parametrize("update", WAYS)
def test_the_same_bits_in_either_way_and_on_any_tiers(update, tmp_path):
    digests = set()
    for i, (way, ddr) in enumerate([(update, 2**20), (update, 10 * 12 * DIM), ("backward", 2**20)]):
        tiers = te.Tiers(ddr=ddr, ssd=tmp_path / str(i), store="memory")
        with make(update=way, tiers=tiers) as emb:
            rows = Rows(emb, way)
            for b in range(10):
                (emb(random_ids(b)) * emb(random_ids(50 + b))).sum().backward()
                rows.step()
            digests.add(emb.digest())
    assert len(digests) == 1


def test_a_forward_that_is_never_differentiated_changes_nothing():
    with make() as emb, make() as twin:
        left = emb(random_ids(9))
        for module in (emb, twin):
            for b in range(3):
                module(random_ids(b)).sum().backward()
        assert emb.digest() == twin.digest()
        left.sum().backward()
        assert emb.stats().steps == 4


@pytest.mark.parametrize("update", WAYS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_forwards_of_one_pass_make_one_update(update, reentrant):
    bag, optimizer = plain()
    with adagrad(update=update) as emb:
        rows = Rows(emb, update)
        scale = torch.ones((), requires_grad=True)
        for b in range(20):
            for model in (emb, bag):

                def part(s: torch.Tensor, ids: torch.Tensor, model: Any = model) -> torch.Tensor:
                    return (s * model(ids)).sin()

                one, two = (
                    checkpoint(part, scale, random_ids(2 * b + i), use_reentrant=reentrant)
                    for i in range(2)
                )
                (one * two + model(random_ids(b))).sum().backward()
            rows.step()
            optimizer.step()
            optimizer.zero_grad()
        assert emb.stats().steps == 20
        near(emb, bag)


@pytest.mark.parametrize("update", WAYS)
def test_a_pass_that_fails_changes_no_row_and_holds_none(update, tmp_path):
    tiers = te.Tiers(ddr=20 * 12 * DIM, ssd=tmp_path, store="memory")

    def fail(grad: torch.Tensor) -> None:
        raise KeyError("half way")

    with make(update=update, tiers=tiers) as emb, make() as twin:
        rows = Rows(emb, update)
        for b in range(8):
            x = torch.ones(6, DIM, requires_grad=True)
            x.register_hook(fail)
            digest = emb.digest()
            with pytest.raises(KeyError):
                (emb(random_ids(b)) * emb(random_ids(b + 1)) * x).sum().backward()
            rows.step()
            assert emb.digest() == digest
            for module in (emb, twin):
                module(random_ids(b)).sum().backward()
            rows.step()
        assert emb.digest() == twin.digest()
        assert emb.stats().steps == 8


def test_a_sum_of_several_forwards_that_is_not_finite_changes_nothing():
    with make() as emb:
        emb(random_ids(0)).sum().backward()
        digest = emb.digest()
        with pytest.raises(te.NonFiniteError):
            (3e38 * emb(random_ids(1)).sum() + 3e38 * emb(random_ids(1)).sum()).backward()
        assert emb.digest() == digest
        assert emb.stats().steps == 1


# --- torch.autograd.grad --------------------------------------------------------------------------


@pytest.mark.parametrize("update", WAYS)
def test_gradients_of_something_else_train_no_rows(update):
    """As torch.autograd.grad and backward(inputs=...) add nothing to other parameters."""
    with make(update=update) as emb:
        digest = emb.digest()
        given = torch.ones(6, 3, requires_grad=True)
        out = emb(random_ids(0), None, given).sum()
        (grad,) = torch.autograd.grad(out, given, retain_graph=True)
        torch.testing.assert_close(grad, emb.rows(random_ids(0).view(-1)).sum(1).view(6, 3))
        out.backward(inputs=[given])
        torch.testing.assert_close(given.grad, grad)
        assert emb.digest() == digest
        assert emb.stats().steps == 0
        emb(random_ids(0)).sum().backward()
        Rows(emb, update).step()
        assert emb.stats().steps == 1


# --- several losses of one forward ----------------------------------------------------------------


@pytest.mark.parametrize("update", WAYS)
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_of_one_forward_are_summed(update, weighted):
    bag, optimizer = plain()
    with adagrad(update=update) as emb:
        rows = Rows(emb, update)
        for b in range(20):
            given = [torch.full((6, 3), 0.5, requires_grad=weighted) for _ in range(2)]
            with te.accumulate(emb):
                for model, w in zip((emb, bag), given, strict=True):
                    out = model(random_ids(b), None, w)
                    out.sum().backward(retain_graph=True)
                    model(random_ids(b + 1)).cos().sum().backward()
                    (out**2).sum().backward(retain_graph=True)
                    out.sin().sum().backward()
            rows.step()
            optimizer.step()
            optimizer.zero_grad()
            if weighted:
                torch.testing.assert_close(given[0].grad, given[1].grad)
        assert emb.stats().steps == 20
        near(emb, bag)


@pytest.mark.parametrize("update", WAYS)
def test_a_graph_that_was_freed_is_refused(update):
    with make(update=update) as emb:
        out = emb(random_ids(0))
        out.sum().backward()
        with pytest.raises(RuntimeError, match="Call forward again"):
            out.sum().backward()


def test_a_second_loss_of_a_forward_names_what_sums_them():
    with make() as emb:
        out = emb(random_ids(0))
        out.sum().backward(retain_graph=True)
        with pytest.raises(RuntimeError, match=r"te\.accumulate\(model\), or with update='step'"):
            out.sum().backward()


# --- frozen rows ----------------------------------------------------------------------------------


def by_module(model: nn.Module, on: bool) -> None:
    model[0].requires_grad_(on)


def by_model(model: nn.Module, on: bool) -> None:
    model.requires_grad_(on)


def by_parameters(model: nn.Module, on: bool) -> None:
    for parameter in model.parameters():
        parameter.requires_grad = on


@pytest.mark.parametrize("update", WAYS)
@pytest.mark.parametrize("freeze", [by_module, by_model, by_parameters])
@pytest.mark.parametrize("prefetch", [False, True])
def test_frozen_rows_stay_as_torchs_do(update, freeze, prefetch, tmp_path):
    tiers = te.Tiers(ddr=20 * 12 * DIM, ssd=tmp_path, store="memory")
    bag, optimizer = plain()
    with adagrad(update=update, tiers=tiers, lookahead=4) as emb:
        rows = Rows(emb, update)
        models = nn.Sequential(emb, nn.Linear(DIM, 1)), nn.Sequential(bag, nn.Linear(DIM, 1))
        models[1][1].load_state_dict(models[0][1].state_dict())
        steps = 0
        batches: Any = range(24)
        if prefetch:
            batches = te.prefetch(batches, emb, ids=lambda b: {emb: (random_ids(b),)})
        for b in batches:
            for model in models:
                freeze(model, b // 6 % 2 == 0)
                x = torch.ones((), requires_grad=True)
                loss = (x * model(random_ids(b))).sum()
                if b % 6 == 5:  # under way
                    freeze(model, b // 6 % 2 == 1)
                loss.backward()
            steps += bag.weight.grad is not None
            rows.step()
            optimizer.step()
            optimizer.zero_grad()
        assert emb.stats().steps == steps == 10
        assert emb.stats().unmatched == 0
        near(emb, bag)


def test_frozen_rows_give_weights_their_gradient_and_are_not_materialised():
    with make() as emb:
        emb.requires_grad_(False)
        given = torch.ones(6, 3, requires_grad=True)
        out = emb(random_ids(0), None, given)
        out.sum().backward()
        torch.testing.assert_close(
            given.grad, emb.rows(random_ids(0).view(-1)).sum(1).view(6, 3), rtol=0, atol=1e-6
        )
        assert not emb(random_ids(0)).requires_grad
        with make() as fresh:
            assert emb.digest() == fresh.digest()


@pytest.mark.parametrize("update", WAYS)
def test_one_pool_is_frozen_alone(update):
    tables = [te.TableConfig("narrow", ROWS, 4), te.TableConfig("wide", ROWS, 8)]
    with te.TieredEmbeddingBagCollection(
        tables, tiers=te.Tiers(ddr="1MiB"), optimizer=SGD(lr=0.5), update=update
    ) as module:
        assert [n for n, _ in module.named_parameters()] == ["touched_rows_0", "touched_rows_1"]
        assert [p.shape[1] for p in module.parameters()] == [4, 8]
        rows = Rows(module, update)
        module.touched_rows_1.requires_grad_(False)
        before = [module.rows(EVERY, t.name) for t in tables]
        out = module({"narrow": random_ids(0), "wide": random_ids(1)})
        torch.cat(list(out.values()), 1).sum().backward()
        rows.step()
        assert not torch.equal(module.rows(EVERY, "narrow"), before[0])
        assert torch.equal(module.rows(EVERY, "wide"), before[1])


def test_the_parameter_is_no_table():
    """A penalty on parameters would leave out every row; writing them would change none."""
    for update in WAYS:
        with make(update=update) as emb:
            loss = emb(random_ids(0)).sum() + sum(p.square().sum() for p in emb.parameters())
            with pytest.raises(te.ConfigError, match="weight_decay="):
                loss.backward()
    rows = Rows(emb := make(update="step"), "step")
    emb(random_ids(0)).sum().backward()
    with torch.no_grad():
        emb.touched_rows.add_(1.0)
    with pytest.raises(te.ConfigError, match="load_rows"):
        rows.step()
    emb.close()


# --- what misses the rows is said -----------------------------------------------------------------


def train(emb: Any, act: Any, steps: int = 5, optimizer: Any = None) -> None:
    model = nn.Sequential(emb, nn.Linear(DIM, 1))
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    for b in range(steps):
        act(model, lambda b=b: model(random_ids(b)).sum().backward())
        optimizer.step()
        optimizer.zero_grad()


def clipped(model: nn.Module, backward: Any) -> None:
    backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def twice(model: nn.Module, backward: Any) -> None:
    backward()
    backward()


def once(model: nn.Module, backward: Any) -> None:
    backward()


def accumulated(model: nn.Module, backward: Any) -> None:
    with te.accumulate(model):
        twice(model, backward)


def accumulated_and_clipped(model: nn.Module, backward: Any) -> None:
    accumulated(model, backward)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)


@pytest.mark.parametrize(
    ("act", "options", "said"),
    [
        (once, {}, None),
        (accumulated, {}, None),
        (clipped, {}, "clip_global_norm="),
        (clipped, {"optimizer": SGD(lr=0.1, clip_global_norm=1.0)}, None),
        (accumulated_and_clipped, {}, "clip_global_norm="),
        (twice, {}, "te.accumulate"),
        (clipped, {"update": "step"}, None),
        (twice, {"update": "step"}, None),
    ],
)
def test_clipping_and_accumulation_that_miss_the_rows_are_said_once(act, options, said, caplog):
    with make(**options) as emb:
        optimizer = None
        if options.get("update") == "step":
            head = nn.Sequential(emb, nn.Linear(DIM, 1))
            optimizer = te.row_optimizer(head, torch.optim.SGD(head.parameters(), lr=0.1))
        with caplog.at_level(logging.WARNING, "tiered_embed"):
            train(emb, act, optimizer=optimizer)
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == (said is not None)
        assert all(said in message for message in messages)


def test_another_models_clipping_says_nothing(caplog):
    """A discriminator's, say, whose backward passes hold no rows."""
    other = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with make() as emb:

        def act(model: nn.Module, backward: Any) -> None:
            backward()
            other(torch.ones(1, 3)).sum().backward()
            torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
            optimizer.step()

        train(emb, act)
        assert not caplog.records


# --- gradient scalers -----------------------------------------------------------------------------


def scaled(scaler: Any, loss: torch.Tensor) -> None:
    scaler.scale(loss).backward()


def scaled_in_a_list(scaler: Any, loss: torch.Tensor) -> None:
    torch.autograd.backward(scaler.scale([loss, loss * 2]))


def scaled_in_part(scaler: Any, loss: torch.Tensor) -> None:
    (scaler.scale(loss) + 1).backward()


@pytest.mark.parametrize("backward", [scaled, scaled_in_a_list, scaled_in_part])
def test_a_scaler_that_the_rows_do_not_know_is_refused(backward):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with make() as emb:
        digest = emb.digest()
        with pytest.raises(te.ConfigError, match=r"scaled by 1024.*te\.lr_optimizer"):
            backward(scaler, emb(random_ids(0)).sum())
        assert emb.digest() == digest
        emb(random_ids(0)).sum().backward()
        te.lr_optimizer(emb, scaler)
        backward(scaler, emb(random_ids(0)).sum())
        assert emb.stats().steps == 2
    with make() as emb:
        te.lr_optimizer(emb, torch.amp.GradScaler("cpu"))
        with pytest.raises(te.ConfigError, match="scaled by 1024"):
            backward(scaler, emb(random_ids(0)).sum())
        assert emb.stats().steps == 0


def test_scalers_that_scale_nothing_here_are_no_matter():
    off = torch.amp.GradScaler("cpu", enabled=False)
    on = torch.amp.GradScaler("cpu")
    other = nn.Linear(2, 1)
    with make(optimizer=Adam(lr=0.1)) as emb:
        off.scale(emb(random_ids(0)).sum()).backward()
        on.scale(other(torch.ones(1, 2)).sum()).backward()
        emb(random_ids(1)).sum().backward()
        assert emb.stats().steps == 2
