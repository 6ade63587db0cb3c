"""``extra``: what comes back is what was given, or the save refuses it."""

import collections
import enum
import http
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import tiered_embed as te
from tiered_embed import checkpoint
from tiered_embed.checkpoint.extra import encode, read


def a_model() -> te.TieredEmbedding:
    tiers = te.Tiers(ddr="1KiB")
    return te.TieredEmbedding(9, 4, tiers=tiers, optimizer=te.optim.SGD(lr=0.1))


class Point(NamedTuple):
    x: int
    y: int


class Kind(str, enum.Enum):
    A = "a"


class Text(str):
    pass


class Rows(list):
    pass


NOT_THE_SAME = [
    Point(1, 2),
    Kind.A,
    Text("a"),
    Rows([1]),
    http.HTTPStatus.OK,
    collections.defaultdict(list, {"a": [1]}),
    np.ma.masked_array([1, 2], [True, False]),
    np.rec.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
    np.array(["a"]),
    np.array([1], ">i8"),
    np.array([object()]),
    np.datetime64("2020-01-01"),
    np.longdouble(1),
    torch.zeros(4, dtype=torch.uint8).view(torch.float8_e8m0fnu),
    torch.nn.UninitializedParameter(),
    torch.float32,
    torch.device("cpu"),
    range(3),
    {1},
    {Kind.A: 1},
    {np.float64(1): 1},
    Path("x"),
    torch.empty(3, device="meta"),
]


@pytest.mark.parametrize("value", NOT_THE_SAME, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("nested", [False, True])
def test_an_extra_that_would_come_back_as_something_else_is_refused(value, nested):
    with pytest.raises(te.ConfigError, match="extra"):
        encode({"a": [1, (value,)]} if nested else value)


def come_back(value, folder):
    for name, content in encode(value).items():
        (folder / name).write_bytes(content)
    return read(folder)


def same(a, b) -> bool:
    """Values and types alike; an independent comparison."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        a, b = (x.detach().resolve_conj().resolve_neg() for x in (a, b))
        bits = [(torch.empty(x.shape, dtype=x.dtype).copy_(x)).reshape(-1) for x in (a, b)]
        bits = [x.view(torch.uint8).tolist() if x.numel() else [] for x in bits]
        return (a.dtype, a.shape, bits[0]) == (b.dtype, b.shape, bits[1])
    if isinstance(a, (np.ndarray, np.generic)):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(same, a.items(), b.items()))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


SCALARS = [
    None,
    True,
    False,
    0,
    -(2**70),
    1.5,
    -0.0,
    math.nan,
    -math.inf,
    "",
    "ä\ud800\0",
    "x" * 99,
]
ARRAYS = [
    *(np.array([0, 1, 3], t) for t in ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")),
    *(np.array([0.1, np.nan, -np.inf], t) for t in ("f2", "f4", "f8", "c8")),
    *(np.zeros(()), np.zeros((0, 3)), np.arange(12).reshape(3, 4)[::-1, ::2], np.ones((2, 3)).T),
    *(np.float32(0.1), np.int8(-3), np.bool_(True), np.uint64(2**64 - 1), np.float16(1)),
]
LEAF = torch.tensor([1.0, 2.0], requires_grad=True)
TENSORS = [
    *(torch.zeros(3, dtype=t) for t in (torch.bool, torch.uint8, torch.int64, torch.bfloat16)),
    *(torch.zeros(2, dtype=t) for t in (torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64)),
    *(torch.tensor(5), torch.zeros(0, 4), torch.arange(6).view(2, 3).t(), torch.ones(1).expand(4)),
    torch.tensor([1 + 2j]).conj(),
    torch.tensor([1 + 2j]).conj().imag,
    torch._efficientzerotensor((2, 2)),
    torch.nn.Parameter(torch.ones(2)),
    torch.nn.Parameter(torch.ones(2), requires_grad=False),
    (LEAF * 2).detach(),
]


def test_what_comes_back_is_what_was_given(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    milestones = torch.optim.lr_scheduler.MultiStepLR(
        torch.optim.SGD(net.parameters(), 1.0), [1, 1]
    )
    containers = [
        {}, [], (), {"a": {1: {True: {None: {2.5: []}}}}}, [((), [()])],
        collections.OrderedDict(b=1, a=2), collections.Counter("abca"), torch.Size([2, 3]),
        milestones.state_dict(), dict(net.named_parameters()), checkpoint.rng_state(),
    ]  # fmt: skip
    for value in [*SCALARS, *ARRAYS, *TENSORS, *containers]:
        assert same(come_back(value, tmp_path), value), value
    assert same(
        come_back([*SCALARS, *ARRAYS, containers], tmp_path), [*SCALARS, *ARRAYS, containers]
    )
    given = net.state_dict()
    back = come_back(given, tmp_path)
    assert same(back, given)
    assert same(back._metadata, given._metadata)
    assert come_back(torch.nn.Parameter(torch.ones(1), False), tmp_path).requires_grad is False
    assert come_back(LEAF * 2, tmp_path).requires_grad is False  # as documented


def test_the_rows_come_back_without_an_extra_that_cannot_be_read(tmp_path, monkeypatch):
    """As a version that did not check dtypes saved it."""
    extra = torch.zeros(4, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    with a_model() as m:
        with monkeypatch.context() as patch:
            patch.setattr("tiered_embed.checkpoint.extra._is_storable", lambda dtype: True)
            checkpoint.save(m, tmp_path, step=1, extra={"x": extra})
        digest = m.digest()
        with pytest.raises(te.CorruptionError, match="extra=False"):
            checkpoint.load(m, tmp_path)
        assert checkpoint.load(m, tmp_path, extra=False) == {"step": 1, "extra": None}
        assert checkpoint.load_weights(m, tmp_path, extra=False) == {"step": 1, "extra": None}
        assert m.digest() == digest
