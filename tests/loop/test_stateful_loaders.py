"""A loader's own state under te.prefetch is that of the batch trained, as without te.prefetch."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import tiered_embed as te

ROWS, BATCHES = 64, 40
TIERS = te.Tiers(ddr="1MiB")


class Stateful:
    """As torchdata's StatefulDataLoader: its state is how far it was pulled."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        while self.at < BATCHES:
            self.at += 1
            yield torch.tensor([self.at - 1, self.at])
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "random": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def make(**options: Any) -> te.TieredEmbedding:
    options = {"tiers": TIERS, "optimizer": te.optim.SGD(lr=0.1), **options}
    return te.TieredEmbedding(ROWS, 4, **options)


def loop(loader: Any, module: Any) -> Any:
    return te.prefetch(loader, module, ids=lambda batch: {module: batch})


def train(batches: Any, module: Any, most: int) -> list[int]:
    seen = []
    for batch in batches:
        module(batch).sum().backward()
        seen.append(int(batch[0]))
        if len(seen) == most:
            break
    return seen


@pytest.mark.parametrize(
    "options", [{}, {"lookahead": 3, "depth": 1}, {"lookahead": 0, "depth": 0}]
)
@pytest.mark.parametrize("most", [1, 29, BATCHES - 1])
@pytest.mark.parametrize("during", [True, False])
def test_a_run_resumes_where_it_was(most, during, options):
    loader, states = Stateful(), []
    with make(**options) as module:
        seen = []
        for batch in loop(loader, module):
            assert loader.state_dict()["at"] == len(seen), "it is still to be trained"
            module(batch).sum().backward()
            seen.append(int(batch[0]))
            states.append(loader.state_dict())
            if len(seen) == most:
                break
        state = states[-1] if during else loader.state_dict()
        assert state["at"] == most
        again = Stateful()
        again.load_state_dict(state)
        seen += train(loop(again, module), module, BATCHES)
        assert seen == list(range(BATCHES))


def test_a_batch_that_was_not_trained_comes_again():
    loader = Stateful()
    with make() as module:
        for batch in loop(loader, module):
            if int(batch[0]) == 5:
                break
            module(batch).sum().backward()
        assert loader.state_dict()["at"] == 5


def test_the_loader_speaks_for_itself_once_the_loop_has_ended():
    loader = Stateful()
    with make() as module:
        batches = loop(loader, module)
        assert train(batches, module, BATCHES + 1) == list(range(BATCHES))
        assert loader.state_dict()["at"] == 0
        assert "state_dict" not in vars(loader)
        assert train(batches, module, 7) == list(range(7)), "and again under the next loop"
        assert loader.state_dict()["at"] == 7


def test_who_uses_it_after_an_early_end_is_believed():
    loader = Stateful()
    with make() as module:
        train(loop(loader, module), module, 3)
        assert loader.state_dict()["at"] == 3
        loader.load_state_dict({"at": 17})
        assert loader.state_dict()["at"] == 17
        next(iter(loader))
        assert loader.state_dict()["at"] == 18


def test_a_loader_that_fails_leaves_the_state_of_what_was_trained():
    class Failing(Stateful):
        def __iter__(self) -> Iterator[torch.Tensor]:
            for batch in super().__iter__():
                if self.at == 12:
                    raise OSError("disk")
                yield batch

    loader = Failing()
    with make() as module:
        with pytest.raises(OSError, match="disk"):
            train(loop(loader, module), module, BATCHES)
        assert loader.state_dict()["at"] == 11
        assert module.stats().steps == 11


class Closed:
    """Takes no attribute."""

    __slots__ = ("at",)
    __init__ = Stateful.__init__
    __iter__ = Stateful.__iter__
    state_dict = Stateful.state_dict
    load_state_dict = Stateful.load_state_dict


@pytest.mark.parametrize("loader", [[torch.tensor([1])] * 3, Closed(), map(abs, [torch.ones(1)])])
def test_other_loaders_are_left_alone(loader):
    with make() as module:
        batches = te.prefetch(loader, module, ids=lambda batch: {module: batch.long()})
        for batch in batches:
            module(batch.long()).sum().backward()
    assert not hasattr(loader, "__dict__") or "state_dict" not in vars(loader)
