"""Drawn calls and modules that torch refuses, or that we do; nothing changes when one is refused.

``MISTAKES`` and ``MODULES`` list where the two differ on purpose, and why.
"""

import enum
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tiered_embed as te

ROWS, DIM = 9, 3
I64 = torch.int64

Args = tuple[Any, ...]


class Torch(enum.Enum):
    """What torch does with a mistake that we refuse."""

    REFUSES = enum.auto()
    ACCEPTS = enum.auto()
    UNDEFINED = enum.auto()  # reads beyond its arrays, or dies: not even tried here


@dataclass(frozen=True)
class Call:
    """A valid call: ids (N,), two bags or more, N of at least 2."""

    mode: str
    ids: torch.Tensor
    offsets: torch.Tensor
    at: int  # a position to spoil
    by: int  # how far, 1 or more

    @property
    def weights(self) -> torch.Tensor | None:
        return torch.ones(len(self.ids)) if self.mode == "sum" else None

    def with_id(self, value: int) -> Args:
        ids = self.ids.clone()
        ids[self.at % len(ids)] = value
        return ids, self.offsets, self.weights

    def with_offset(self, position: int, value: int) -> Args:
        offsets = self.offsets.clone()
        offsets[position] = value
        return self.ids, offsets, self.weights

    def with_weights(self, weights: Any) -> Args:
        return self.ids, self.offsets, weights


@dataclass(frozen=True)
class Mistake:
    """What is wrong, what we raise, and, where torch does not raise, why we do."""

    spoil: Callable[[Call], Args]
    error: type[Exception] = te.ConfigError
    torch: Torch = Torch.REFUSES
    why: str = ""
    modes: tuple[str, ...] = ("sum", "mean", "max")
    include_last_offset: bool = False


SUM = ("sum",)
NOT_SUM = ("mean", "max")

MISTAKES = {
    "float ids": Mistake(lambda c: (c.ids.float(), c.offsets)),
    "double ids in 2-D": Mistake(lambda c: (c.ids.double()[None],)),
    "short ids": Mistake(
        lambda c: (c.ids.short(), c.offsets.long()),
        torch=Torch.ACCEPTS,
        why="it makes them the offsets' type; without offsets, and in nn.Embedding, it errs",
    ),
    "ids in a list": Mistake(lambda c: (c.ids.tolist(), c.offsets)),
    "too large id": Mistake(lambda c: c.with_id(ROWS + c.by - 1), te.IdRangeError),
    "negative id": Mistake(lambda c: c.with_id(-c.by), te.IdRangeError),
    "huge id in 2-D": Mistake(lambda c: (c.ids.long()[None] + 2**40 * c.by,), te.IdRangeError),
    "first offset": Mistake(lambda c: c.with_offset(0, c.by)),
    "first offset below 0": Mistake(lambda c: c.with_offset(0, -c.by)),
    "last offset beyond the ids": Mistake(lambda c: c.with_offset(-1, len(c.ids) + c.by)),
    "falling offsets": Mistake(
        lambda c: (c.ids, torch.cat([c.offsets, c.offsets[-1:] - c.by])),
        torch=Torch.UNDEFINED,
        why="it reads other bags' ids, or what lies before its arrays",
    ),
    "an offset beyond the ids, then the end": Mistake(
        lambda c: (c.ids, torch.cat([c.offsets, torch.tensor([len(c.ids) + c.by, len(c.ids)])])),
        torch=Torch.UNDEFINED,
        why="it reads what lies behind its arrays",
    ),
    "ids without a bag": Mistake(
        lambda c: (c.ids, c.offsets[:0]),
        torch=Torch.UNDEFINED,
        why="sum and mean leave the ids out without a word; max dies (SIGSEGV)",
    ),
    "ids behind the last bag": Mistake(
        lambda c: (c.ids, torch.cat([c.offsets, torch.tensor([len(c.ids) - 1])])),
        torch=Torch.ACCEPTS,
        why="it leaves them out without a word",
        include_last_offset=True,
    ),
    "a last offset beyond the ids": Mistake(
        lambda c: (c.ids, torch.cat([c.offsets, torch.tensor([len(c.ids) + c.by])])),
        include_last_offset=True,
    ),
    "no last offset": Mistake(lambda c: (c.ids[:0], c.offsets[:0]), include_last_offset=True),
    "float offsets": Mistake(lambda c: (c.ids, c.offsets.float())),
    "2-D offsets": Mistake(lambda c: (c.ids, c.offsets[None])),
    "offsets in a list": Mistake(lambda c: (c.ids, c.offsets.tolist())),
    "1-D without offsets": Mistake(lambda c: (c.ids,)),
    "2-D with offsets": Mistake(lambda c: (c.ids[None], c.offsets)),
    "3-D ids": Mistake(lambda c: (c.ids[None, None],)),
    "a single id": Mistake(lambda c: (c.ids[0],)),
    "too few weights": Mistake(lambda c: c.with_weights(c.weights[1:]), modes=SUM),
    "too many weights": Mistake(lambda c: c.with_weights(torch.ones(len(c.ids) + 1)), modes=SUM),
    "2-D weights": Mistake(lambda c: c.with_weights(c.weights[None]), modes=SUM),
    "1-D weights of 2-D ids": Mistake(lambda c: (c.ids[None], None, c.weights), modes=SUM),
    "double weights": Mistake(lambda c: c.with_weights(c.weights.double()), modes=SUM),
    "whole weights": Mistake(lambda c: c.with_weights(c.weights.long()), modes=SUM),
    "weights in a list": Mistake(lambda c: c.with_weights(c.weights.tolist()), modes=SUM),
    "weights": Mistake(lambda c: c.with_weights(torch.ones(len(c.ids))), modes=NOT_SUM),
}


@st.composite
def spoilt_calls(draw: st.DrawFn) -> tuple[Call, str]:
    name = draw(st.sampled_from(sorted(MISTAKES)))
    lengths = draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    num_ids = sum(lengths)
    ids = draw(st.lists(st.integers(0, ROWS - 1), min_size=num_ids, max_size=num_ids))
    dtype = draw(st.sampled_from([torch.int64, torch.int32]))
    call = Call(
        draw(st.sampled_from(MISTAKES[name].modes)),
        torch.tensor(ids, dtype=dtype),
        torch.tensor([sum(lengths[:i]) for i in range(len(lengths))], dtype=dtype),
        draw(st.integers(0, 20)),
        draw(st.integers(1, 2**20)),
    )
    return call, name


def make_bag(mode: str = "sum", **options: Any) -> te.TieredEmbeddingBag:
    options = {"optimizer": te.optim.RowWiseAdagrad(lr=0.5), "num_threads": 1, **options}
    return te.TieredEmbeddingBag(ROWS, DIM, mode, tiers=te.Tiers(ddr="1MiB"), **options)


def torch_refuses(call: Callable[[], Any]) -> bool:
    """Whether it raises; what kind is torch's affair."""
    try:
        call()
    except Exception:
        return True
    return False


@settings(max_examples=800, deadline=None, derandomize=True, print_blob=True)
@given(spoilt_calls(), st.booleans())
def test_a_spoilt_call_is_refused_and_changes_nothing(
    spoilt: tuple[Call, str], training: bool
) -> None:
    call, name = spoilt
    mistake = MISTAKES[name]
    args = mistake.spoil(call)
    last = {"include_last_offset": mistake.include_last_offset}
    if mistake.torch is not Torch.UNDEFINED:
        torchs = nn.EmbeddingBag(ROWS, DIM, mode=call.mode, **last)
        refused = torch_refuses(lambda: torchs(*args))
        assert refused == (mistake.torch is Torch.REFUSES), f"torch on {name}: {mistake.why}"
    with closing(make_bag(call.mode, **last)) as module:
        module(torch.arange(ROWS)[None]).sum().backward()
        before = module.digest(), module.stats().steps
        with pytest.raises(mistake.error, match="table 'table'"):
            module.train(training)(*args)
        assert (module.digest(), module.stats().steps) == before


def test_every_difference_has_a_reason() -> None:
    for name, mistake in MISTAKES.items():
        assert bool(mistake.why) == (mistake.torch is not Torch.REFUSES), name


IDS = torch.tensor([0, 4, 4])
# Arguments of the module -> whether torch refuses them when made or called; why we do otherwise.
MODULES: dict[str, tuple[dict[str, Any], bool, str]] = {
    "another mode": ({"mode": "min"}, True, ""),
    "max by frequency": ({"mode": "max", "scale_grad_by_freq": True}, True, ""),
    "padding behind the end": ({"padding_idx": ROWS}, True, ""),
    "padding before the start": ({"padding_idx": -ROWS - 1}, True, ""),
    "half a padding row": ({"padding_idx": 1.5}, True, ""),
    "negative max_norm": ({"max_norm": -1.0}, False, "it turns every row around"),
    "no number as max_norm": ({"max_norm": float("nan")}, False, "it does nothing"),
    "norm_type 0": ({"max_norm": 1.0, "norm_type": 0.0}, False, "a count is not a norm"),
    "negative norm_type": ({"max_norm": 1.0, "norm_type": -1.0}, False, "not a norm"),
    "no number as norm_type": ({"max_norm": 1.0, "norm_type": float("nan")}, False, "not a norm"),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_cannot_work_is_refused(name) -> None:
    options, refused, why = MODULES[name]
    assert bool(why) != refused
    arguments = {"mode": "sum", **options}
    call = torch_refuses(lambda: nn.EmbeddingBag(ROWS, DIM, **arguments)(IDS[None]))
    assert call == refused
    with pytest.raises(te.ConfigError):
        make_bag(**arguments)


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        (torch.tensor([1.0]), te.ConfigError),
        (torch.tensor([1], dtype=torch.int16), te.ConfigError),
        (torch.tensor([1], dtype=torch.uint8), te.ConfigError),
        (torch.tensor([True]), te.ConfigError),
        (torch.tensor([[ROWS]]), te.IdRangeError),
        (torch.tensor(-1), te.IdRangeError),
        ([1], te.ConfigError),
    ],
)
def test_an_embedding_refuses_what_torch_refuses(ids, error) -> None:
    assert torch_refuses(lambda: nn.Embedding(ROWS, DIM)(ids))
    tiers, sgd = te.Tiers(ddr="1MiB"), te.optim.SGD(lr=1.0)
    with te.TieredEmbedding(ROWS, DIM, tiers=tiers, optimizer=sgd) as module:
        module(IDS).sum().backward()
        digest = module.digest()
        with pytest.raises(error, match="table 'table'"):
            module(ids)
        assert module.digest() == digest


# --- what torch refuses and we take ---------------------------------------------------------------


def test_bags_of_length_zero() -> None:
    """torch: "step must be nonzero". A bag of nothing is zeros there, too, with offsets."""
    nothing = torch.empty(2, 0, dtype=I64)
    assert torch_refuses(lambda: nn.EmbeddingBag(ROWS, DIM)(nothing))
    with make_bag() as module:
        assert module(nothing).tolist() == [[0.0] * DIM] * 2


@pytest.mark.parametrize("rows", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_another_float_type_than_the_rows(rows, weights) -> None:
    """torch wants one type. Weights that autocast made are not the rows' type, and need not be."""
    given = torch.tensor([[0.5, 2.0, -1.0]], dtype=weights, requires_grad=True)
    torchs = nn.EmbeddingBag(ROWS, DIM, mode="sum", dtype=rows)
    assert torch_refuses(lambda: torchs(IDS[None], None, given)) == (rows != weights)
    with make_bag(dtype=rows) as module:
        own = module.rows(IDS).float()
        out = module(IDS[None], None, given)
        torch.testing.assert_close(out[0], given.float()[0].detach().matmul(own).to(rows))
        out.sum().backward()
        torch.testing.assert_close(given.grad, own.sum(1)[None].to(weights), rtol=1e-2, atol=1e-6)
