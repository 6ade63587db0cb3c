"""A loader that reuses its memory under te.prefetch is refused, and every other one is not."""

import copy
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tiered_embed as te
from tiered_embed.loop.contents import Contents

ROWS, DIM, BATCHES = 64, 4, 40
TIERS = te.Tiers(ddr="1MiB")


def make(**options: Any) -> te.TieredEmbedding:
    options = {"tiers": TIERS, "optimizer": te.optim.SGD(lr=0.1), **options}
    return te.TieredEmbedding(ROWS, DIM, **options)


def ids_of(i: int) -> torch.Tensor:
    return torch.tensor([[i, i + 1], [i + 7, i]])


def tensor(size: int = 1):
    buffer = torch.empty(size, 4, dtype=torch.long)
    for i in range(BATCHES):
        buffer.fill_(i)
        yield buffer


def array():
    """Writes through NumPy do not raise torch's version count."""
    memory = np.empty((2, 2), np.int64)
    buffer = torch.from_numpy(memory)
    for i in range(BATCHES):
        memory[:] = i
        yield buffer


def ring(slots: int):
    buffer = torch.empty(slots, 3, dtype=torch.long)
    for i in range(BATCHES):
        buffer[i % slots] = i
        yield buffer[i % slots]


def container():
    batch: dict[str, torch.Tensor] = {}
    for i in range(BATCHES):
        batch["ids"] = torch.full((3,), i)
        yield batch


def label():
    """The ids are new, the label is not."""
    memory = torch.empty(3)
    for i in range(BATCHES):
        memory.fill_(i)
        yield [torch.full((3,), i), memory]


def nested():
    memory = torch.empty(3, dtype=torch.bfloat16)
    for i in range(BATCHES):
        memory.fill_(i)
        yield types.SimpleNamespace(ids=torch.full((3,), i), more=[{"label": (memory,)}])


def numbers():
    memory = [0, 0, 0]
    for i in range(BATCHES):
        memory[:] = [i, i, i]
        yield (torch.full((3,), i), memory)


def ids_in(batch: Any) -> torch.Tensor:
    if isinstance(batch, torch.Tensor):
        return batch
    if isinstance(batch, dict):
        return batch["ids"]
    return batch[0] if isinstance(batch, (tuple, list)) else batch.ids


def train(module: nn.Module, loop: Any) -> None:
    for batch in loop:
        module(ids_in(batch)).sum().backward()


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (tensor, "batch holds other values now"),
        (lambda: tensor(100_000), "batch holds other values"),
        (array, "batch holds other values"),
        (lambda: ring(20), "batch holds other values"),
        (container, r"batch\['ids'\] is another Tensor"),
        (label, r"batch\[1\] holds other values"),
        (nested, r"batch\.more\[0\]\['label'\]\[0\] holds"),
        (numbers, r"batch\[1\] holds"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_a_reused_buffer_is_refused_before_it_trains(loader, message, training):
    with make() as module:
        module.train(training)
        digest = module.digest()
        loop = te.prefetch(loader(), module, ids=lambda batch: {module: ids_in(batch)})
        with pytest.raises(te.ConfigError, match=rf"batch 0 changed .* {message}"):
            train(module, loop)
        assert module.digest() == digest
        assert loop.state_dict() == {"epochs": 0, "batches": 0}
        module.train()(ids_of(1)).sum().backward()  # and nothing is left behind


def test_a_buffer_that_is_changed_later_is_refused_at_its_batch():
    """The batches before it have trained."""

    def loader():
        buffer = torch.zeros(2, dtype=torch.long)
        for i in range(10):
            yield torch.full((2,), i)
        yield buffer
        buffer.fill_(5)
        yield torch.tensor([1, 2])

    with make() as module:
        loop = te.prefetch(loader(), module, ids=lambda batch: {module: batch})
        with pytest.raises(te.ConfigError, match="batch 10 changed"):
            train(module, loop)
        assert module.stats().steps == 10
        assert loop.state_dict() == {"epochs": 0, "batches": 10}


def torchs_rows(before: torch.Tensor, batches: list[torch.Tensor]) -> torch.Tensor:
    embedding = nn.Embedding(ROWS, DIM, _weight=before.detach().clone())
    sgd = torch.optim.SGD(embedding.parameters(), lr=0.1)
    for batch in batches:
        sgd.zero_grad()
        embedding(batch).square().sum().backward()
        sgd.step()
    return embedding.weight.detach()


def constant():
    """One tensor in every batch, and one view of a tensor that is written elsewhere."""
    same, arena = torch.ones(3), torch.zeros(100)
    for i in range(BATCHES):
        arena[50:].fill_(i)
        yield (torch.full((3,), i), same, arena[:10], {"nan": float("nan"), "at": i})


def counting():
    """An object with a count of its own."""
    shared = types.SimpleNamespace(count=0)
    for i in range(BATCHES):
        shared.count += 1
        yield types.SimpleNamespace(ids=torch.full((3,), i), owner=shared)


@pytest.mark.parametrize(
    "loader",
    [
        lambda: map(ids_of, range(BATCHES)),
        lambda: ring(BATCHES),
        lambda: [torch.tensor([3, 4])] * BATCHES,
        constant,
        counting,
    ],
)
def test_a_loader_that_keeps_its_batches_trains_as_torch(loader):
    wanted = [ids_in(copy.deepcopy(batch)) for batch in loader()]
    with make() as module:
        before = module.weight
        for batch in te.prefetch(loader(), module, ids=lambda batch: {module: ids_in(batch)}):
            module(ids_in(batch)).square().sum().backward()
        torch.testing.assert_close(module.weight, torchs_rows(before, wanted))


@pytest.mark.parametrize("loader", [tensor, array, container, label])
def test_without_looking_ahead_every_loader_trains_as_torch(loader):
    wanted = [ids_in(copy.deepcopy(batch)) for batch in loader()]
    with make(lookahead=0, depth=0) as module:
        before = module.weight
        for batch in te.prefetch(loader(), module, ids=lambda batch: {module: ids_in(batch)}):
            module(ids_in(batch)).square().sum().backward()
        torch.testing.assert_close(module.weight, torchs_rows(before, wanted))


def test_ids_may_change_the_batch_and_so_may_the_loop():
    with make() as module:

        def ids(batch):
            batch["ids"] = batch["raw"] % ROWS
            return {module: batch["ids"]}

        loader = [{"raw": torch.tensor([i, 100 + i])} for i in range(BATCHES)]
        for batch in te.prefetch(loader, module, ids=ids):
            module(batch["ids"]).sum().backward()
            batch.clear()
        assert module.stats().steps == BATCHES


CHANGES = {
    "float": (lambda: torch.rand(3, 3), lambda t: t[1, 1].fill_(9)),
    "bool": (lambda: torch.zeros(5, dtype=torch.bool), lambda t: t.fill_(True)),
    "complex": (lambda: torch.zeros(5, dtype=torch.complex64).conj(), lambda t: t.fill_(1j)),
    "of one byte": (
        lambda: torch.zeros(9000, dtype=torch.float8_e4m3fn),
        lambda t: t.copy_(torch.ones(9000)),
    ),
    "bfloat16": (lambda: torch.zeros(90, 90, dtype=torch.bfloat16).t(), lambda t: t.fill_(1)),
    "negated": (lambda: torch.ones(5, dtype=torch.complex64).conj().imag, lambda t: t.fill_(1)),
    "of no dims": (lambda: torch.tensor(3), lambda t: t.fill_(4)),
    "transposed": (lambda: torch.rand(300, 400).t(), lambda t: t.zero_()),
    "a parameter": (lambda: nn.Parameter(torch.rand(3)), lambda t: t.data.zero_()),
    "sparse": (lambda: torch.eye(3).to_sparse(), lambda t: t._values().fill_(2)),
    "compressed": (lambda: torch.eye(3).to_sparse_csr(), lambda t: t.values().fill_(2)),
    "shape": (lambda: torch.rand(4, 2), lambda t: t.resize_(2, 4)),
    "array": (lambda: np.zeros((200, 200)), lambda a: a.fill(1)),
    "a column": (lambda: np.zeros((200, 200)).T[::2], lambda a: a.fill(1)),
    "text": (lambda: ["a"] * 5, lambda text: text.__setitem__(slice(None), ["b"] * 5)),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_every_kind_of_tensor_are_seen(name):
    build, change = CHANGES[name]
    value = build()
    contents = Contents([value])
    assert contents.changed([value]) is None
    change(value)
    assert contents.changed([value]) == "batch[0] holds other values" or name == "text"
    assert contents.changed([value]) is not None


def test_what_holds_no_values_that_can_be_read_passes():
    nothing = [torch.empty(0), torch.empty(3, device="meta"), np.array([object()]), object(), {}]
    assert Contents(nothing).changed(nothing) is None
    with torch.inference_mode():
        inferred = torch.ones(3)
    assert Contents(inferred).changed(inferred) is None
    assert Contents({"a": 1}).changed({}) == "batch['a'] is gone"


def test_of_very_many_tensors_some_are_read():
    """Enough to see a loader that fills all of them again."""
    batch = {f"f{t}": (torch.arange(4) + t, torch.tensor([0, 2])) for t in range(300)}
    held = Contents(batch)
    assert held.changed(batch) is None
    for ids, _ in batch.values():
        ids += 1
    assert "holds other values" in held.changed(batch)
    again = {name: (ids - 1, offsets) for name, (ids, offsets) in batch.items()}
    assert "is another Tensor" in held.changed(again)
