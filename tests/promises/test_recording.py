"""What records or transforms a model is refused, with one message; the dense part is recorded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tiered_embed as te

ROWS, DIM = 10, 4
TIERS = te.Tiers(ddr="1MiB")
IDS = torch.tensor([[1, 2]])


class Model(nn.Module):
    def __init__(self, emb: nn.Module) -> None:
        super().__init__()
        self.emb, self.top = emb, nn.Linear(DIM, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out = self.emb({"user": ids})["user"] if isinstance(self.emb, COLLECTION) else self.emb(ids)
        return self.top(out)


COLLECTION = te.TieredEmbeddingBagCollection


def make(kind: Any, optimizer: Any) -> nn.Module:
    options = {"tiers": TIERS, "optimizer": optimizer}
    if kind is COLLECTION:
        return Model(COLLECTION([te.TableConfig("user", ROWS, DIM)], **options))
    return Model(kind(ROWS, DIM, **options))


def fake(model: nn.Module) -> None:
    with torch._subclasses.FakeTensorMode() as mode:
        model(mode.from_tensor(IDS))


def gradient(model: nn.Module) -> None:
    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, parameters, (IDS,)).sum()

    torch.func.grad(loss)(dict(model.named_parameters()))


def make_fx(model: nn.Module) -> None:
    torch.fx.experimental.proxy_tensor.make_fx(model)(IDS)


RECORDS: dict[str, Callable[[nn.Module], object]] = {
    "export": lambda model: torch.export.export(model, (IDS,), strict=False),
    "jit.trace": lambda model: torch.jit.trace(model, (IDS,)),
    "jit.script": torch.jit.script,
    "make_fx": make_fx,
    "fake tensors": fake,
    "vmap": lambda model: torch.func.vmap(model)(torch.stack([IDS, IDS])),
    "grad": gradient,
    "jvp": lambda model: torch.func.jvp(lambda x: model(IDS) * x, (IDS[0] * 1.0,), (IDS[0] * 1.0,)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optimizer", [te.optim.SGD(lr=0.1), None], ids=["trains", "reads"])
def test_a_strict_export_gives_the_reason(optimizer):
    """torch's own error, once the module was called with the compiler there to break graphs."""
    torch.compiler.reset()
    model = make(te.TieredEmbeddingBag, optimizer)
    with model.emb:
        model(IDS)
        with pytest.raises(Exception, match=r"cannot contain a tiered module.*serving"):
            torch.export.export(model, (IDS,), strict=True)


@pytest.mark.filterwarnings("ignore")  # torch's own: of deprecations, and while it traces
@pytest.mark.parametrize("kind", [te.TieredEmbedding, te.TieredEmbeddingBag, COLLECTION])
@pytest.mark.parametrize("optimizer", [te.optim.SGD(lr=0.1), None], ids=["trains", "reads"])
@pytest.mark.parametrize("name", RECORDS)
def test_it_is_refused(name, kind, optimizer):
    model = make(kind, optimizer)
    with model.emb as emb:
        before = emb.digest()
        for training in (True, False):
            model.train(training)
            with pytest.raises(te.ConfigError, match=r"cannot contain a tiered module.*serving"):
                RECORDS[name](model)
        assert emb.digest() == before
        assert model.train()(IDS).shape[-1] == 1, "and the module goes on"


@pytest.mark.parametrize("kind", [te.TieredEmbedding, te.TieredEmbeddingBag])
def test_symbolic_tracing_is_refused(kind):
    class Plain(nn.Module):
        def __init__(self, emb):
            super().__init__()
            self.emb = emb

        def forward(self, ids):
            return self.emb(ids)

    with (
        kind(ROWS, DIM, tiers=TIERS, optimizer=None) as emb,
        pytest.raises(te.ConfigError, match="symbolic_trace cannot contain"),
    ):
        torch.fx.symbolic_trace(Plain(emb))


@pytest.mark.filterwarnings("ignore")
def test_the_part_after_it_is_recorded():
    model = make(te.TieredEmbeddingBag, te.optim.SGD(lr=0.1))
    with model.emb as emb:
        rows = emb(IDS)
        wanted = model(IDS)
        for top in (
            torch.jit.script(model.top),
            torch.jit.trace(model.top, (rows.detach(),)),
            torch.export.export(model.top, (rows.detach(),)).module(),
        ):
            torch.testing.assert_close(top(emb(IDS)), wanted)
        gradient = torch.func.grad(lambda x: model.top(x).sum())(rows.detach())
        torch.testing.assert_close(gradient, model.top.weight.detach())
