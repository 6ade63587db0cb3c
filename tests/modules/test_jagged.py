"""Batches that are checked and dealt to the pools in one native call give what the features give
one by one, and are refused with the same words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiered_embed as te

torchrec = pytest.importorskip("torchrec")
KeyedJaggedTensor = torchrec.sparse.jagged_tensor.KeyedJaggedTensor

ROWS = 30


def collection(dims: list[int], paddings: list[int | None], modes: list[str]) -> Any:
    tables = [
        te.TableConfig(f"t{i}", ROWS, dim, padding_idx=padding, mode=mode)
        for i, (dim, padding, mode) in enumerate(zip(dims, paddings, modes, strict=True))
    ]
    return te.TieredEmbeddingBagCollection(
        tables, tiers=te.Tiers(ddr="1MiB"), optimizer=te.optim.Adagrad(lr=0.1), num_threads=2
    )


def feature_by_feature(module: Any) -> None:
    """Takes the native call out of a module."""
    module._check_together = lambda presented: None


@st.composite
def programs(draw: st.DrawFn) -> tuple[Any, ...]:
    n = draw(st.integers(1, 5))
    dims = [draw(st.sampled_from([4, 8])) for _ in range(n)]
    paddings = [draw(st.sampled_from([None, None, 3])) for _ in range(n)]
    modes = [draw(st.sampled_from(["sum", "mean", "max"])) for _ in range(n)]
    form = draw(st.sampled_from(["keyed", "offsets", "dense"]))
    dtype = draw(st.sampled_from([torch.int64, torch.int32]))
    return dims, paddings, modes, form, dtype, draw(st.integers(0, 5)), draw(st.integers(0, 99))


def batches(n: int, form: str, dtype: torch.dtype, bags: int, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    names = [f"t{i}" for i in range(n)]
    out: list[Any] = []
    for _ in range(3):
        if form == "dense":
            widths = rng.integers(0, 4, n)
            ids = [torch.from_numpy(rng.integers(0, ROWS, (bags, w))).to(dtype) for w in widths]
            out.append(dict(zip(names, ids, strict=True)))
            continue
        lengths = rng.integers(0, 4, (n, bags))
        ids = [torch.from_numpy(rng.integers(0, ROWS, k.sum())).to(dtype) for k in lengths]
        starts = [torch.from_numpy(np.cumsum(k) - k).to(dtype) for k in lengths]
        if form == "offsets":
            out.append(dict(zip(names, zip(ids, starts, strict=True), strict=True)))
            continue
        # The keys in another order, and one that nobody reads.
        order = rng.permutation(n + 1)
        every = [*zip(ids, lengths, strict=True), (torch.arange(bags).to(dtype), [1] * bags)]
        out.append(
            KeyedJaggedTensor(
                keys=[[*names, "other"][k] for k in order],
                values=torch.cat([every[k][0] for k in order]),
                lengths=torch.tensor(np.concatenate([every[k][1] for k in order]), dtype=dtype),
            )
        )
    return out


def train(module: Any, given: list[Any], *, prefetch: bool) -> list[torch.Tensor]:
    outputs = []
    for batch in te.prefetch(given, module, ids=lambda b: {module: b}) if prefetch else given:
        out = module(batch)
        whole = te.joined(out) if isinstance(out, dict) else out.values()
        outputs.append(whole.detach().clone())
        (whole * torch.linspace(-1, 1, whole.numel()).view_as(whole)).sum().backward()
    return outputs


@settings(deadline=None, derandomize=True, print_blob=True, max_examples=120)
@given(programs(), st.booleans())
def test_one_call_gives_what_the_features_give(program, prefetch):
    dims, paddings, modes, *kind = program
    given_batches = batches(len(dims), *kind)
    with collection(dims, paddings, modes) as fast, collection(dims, paddings, modes) as slow:
        feature_by_feature(slow)
        got = train(fast, given_batches, prefetch=prefetch)
        expected = train(slow, given_batches, prefetch=False)
        for mine, theirs in zip(got, expected, strict=True):
            assert torch.equal(mine, theirs)
        assert fast.digest() == slow.digest()
        for batch in given_batches:
            assert [
                (name, rows, ids.tolist(), starts.tolist())
                for name, rows, ids, starts in fast.lookups(batch)
            ] == [
                (name, rows, ids.tolist(), starts.tolist())
                for name, rows, ids, starts in slow.lookups(batch)
            ]


def ids_of(*parts: list[int]) -> list[torch.Tensor]:
    return [torch.tensor(part) for part in parts]


WRONG: dict[str, Callable[[], Any]] = {
    "an id outside": lambda: dict(
        zip("ab", ((t, torch.tensor([0, 1])) for t in ids_of([1, 2], [3, 30])), strict=True)
    ),
    "a first offset that is not 0": lambda: {
        "a": (torch.tensor([1, 2]), torch.tensor([0, 1])),
        "b": (torch.tensor([1, 2]), torch.tensor([1, 1])),
    },
    "an offset beyond the ids": lambda: {
        "a": (torch.tensor([1, 2]), torch.tensor([0, 3])),
        "b": (torch.tensor([1, 2, 3]), torch.tensor([0, 1])),
    },
    "offsets that decrease": lambda: {
        "a": (torch.tensor([1, 2, 3]), torch.tensor([0, 2, 1])),
        "b": (torch.tensor([1, 2, 3]), torch.tensor([0, 1, 1])),
    },
    "different numbers of bags": lambda: {
        "a": torch.tensor([[1], [2]]),
        "b": torch.tensor([[1]]),
    },
    "float ids": lambda: {"a": torch.tensor([[1.0]]), "b": torch.tensor([[1.0]])},
    "bool ids beside integers": lambda: {"a": torch.tensor([[1]]), "b": torch.tensor([[True]])},
    "a key with an id outside": lambda: KeyedJaggedTensor(
        keys=["b", "a"], values=torch.tensor([-1, 2]), lengths=torch.tensor([1, 1])
    ),
    "a key that is missing": lambda: KeyedJaggedTensor(
        keys=["a"], values=torch.tensor([1, 2]), lengths=torch.tensor([1, 1])
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_as_feature_by_feature(wrong):
    messages = []
    for one_by_one in (False, True):
        tables = [te.TableConfig(name, ROWS, 4) for name in "ab"]
        options: Any = {"tiers": te.Tiers(ddr="1MiB"), "optimizer": te.optim.SGD(lr=0.1)}
        with te.TieredEmbeddingBagCollection(tables, **options) as module:
            if one_by_one:
                feature_by_feature(module)
            with pytest.raises(te.TieredEmbedError) as error:
                module(WRONG[wrong]())
            messages.append((type(error.value), str(error.value)))
            assert module.stats().steps == 0
    assert messages[0] == messages[1]


def test_the_native_call_is_made(monkeypatch):
    """Otherwise the tests above would compare the slow way with itself."""
    taken = []
    for form in ("keyed", "offsets", "dense"):
        with collection([4, 8], [None, None], ["sum", "sum"]) as module:
            monkeypatch.setattr(module, "features", lambda presented: taken.append(presented))
            for batch in batches(2, form, torch.int64, 3, 0):
                module(batch)
    assert taken == []


def test_outputs_are_joined_without_a_copy():
    with collection([4, 8, 4], [None] * 3, ["sum"] * 3) as module:
        batch = batches(3, "dense", torch.int64, 4, 0)[0]
        out = module(batch)
        whole = te.joined(out)
        assert whole.data_ptr() == out["t0"].data_ptr()
        assert torch.equal(whole, torch.cat(list(out.values()), dim=1))
        with torch.no_grad():
            assert not te.joined(out).requires_grad
        assert not te.joined({k: v.detach() for k, v in out.items()}).requires_grad
        whole.sum().backward()
        assert module.stats().steps == 1
        out = module(batch)
        swapped = {"t1": out["t1"], "t0": out["t0"]}
        part = {"t0": out["t0"], "t1": out["t1"]}
        for some in (swapped, part, {k: v.clone() for k, v in out.items()}):
            assert torch.equal(te.joined(some), torch.cat(list(some.values()), dim=1))
    with pytest.raises(te.ConfigError, match="no outputs to join"):
        te.joined({})
