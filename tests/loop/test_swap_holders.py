"""te.swap reports what still holds the weights that it replaced."""

import gc
import warnings
import weakref

import pytest
import torch
from torch import nn

import tiered_embed as te

TIERS = te.Tiers(ddr="1MiB")


def model_of() -> nn.ModuleDict:
    return nn.ModuleDict({"emb": nn.Embedding(10, 4), "bag": nn.EmbeddingBag(10, 4, mode="sum")})


def swap(model: nn.Module) -> te.SwapReport:
    return te.swap(model, tiers=TIERS, optimizer=te.optim.SGD(lr=0.1))


class Regulariser:
    def __init__(self, *weights: nn.Parameter) -> None:
        self.weights = list(weights)


class Slots:
    __slots__ = ("weight",)


def slotted(weight):
    held = Slots()
    held.weight = weight
    return held


def closure(weight):
    def penalty():
        return weight.pow(2).sum()

    return penalty


class Outside(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight


HOLDERS = {
    "Regulariser": Regulariser,
    "Adam": lambda weight: torch.optim.Adam([weight]),
    "SGD": lambda weight: torch.optim.SGD([{"params": [weight]}], lr=0.1),
    "Slots": slotted,
    "closure": closure,
    "Outside": Outside,
    "ParameterList": lambda weight: nn.ParameterList([weight]),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_holder_is_reported(name):
    model = model_of()
    holder = HOLDERS[name](model["bag"].weight)
    with pytest.warns(UserWarning, match=f"'bag' by .*{name}.*no longer reaches the rows"):
        report = swap(model)
    emb, bag = report.entries
    assert emb.held_by == ()
    (who,) = bag.held_by
    assert name in who
    assert f"swapped; its old weight is held by {who}" in str(report)
    del holder
    te.close_all()


def test_a_model_that_nobody_else_holds_is_swapped_in_silence():
    model = nn.Sequential(model_of(), model_of())
    model.again = model[0]["emb"]
    old = weakref.ref(model[0]["emb"].weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = swap(model)
    assert all(entry.held_by == () for entry in report.entries)
    gc.collect()
    assert old() is None, "and its memory is free"
    te.close_all()


def test_only_modules_that_are_replaced_are_asked_for():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    report = te.swap(model, tiers=TIERS, optimizer=None, include=lambda path, module: False)
    assert all(entry.held_by == () for entry in report.entries)
    assert len(optimizer.param_groups[0]["params"]) == 2
