"""te.prefetch over torch's own loaders: a batch is trained as the dataset yielded it."""

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import tiered_embed as te

ROWS, DIM = 20, 3
TIERS = te.Tiers(ddr="1MiB")

Named = namedtuple("Named", "ids offsets weights")


class Batches(IterableDataset):
    """Whole batches (ids (6,), offsets (3,), weights (6,)), as ``form`` makes them."""

    def __init__(self, form: Any) -> None:
        self._form = form

    def __iter__(self):
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            ids = torch.randint(0, ROWS, (6,), generator=generator)
            yield self._form(ids, torch.tensor([0, 2, 2]), torch.rand(6, generator=generator))


def plain(*batch):
    return batch


def named(*batch):
    return Named(*batch)


def nested(*batch):
    return {"a": batch, "label": torch.zeros(3)}


def without_weights(ids, offsets, weights):
    return ids, offsets


def make(kind=te.TieredEmbeddingBag, *args, **options):
    options = {"tiers": TIERS, "optimizer": te.optim.SGD(lr=0.5), **options}
    return kind(*(args or (ROWS, DIM)), **options)


def torchs_rows(weights: torch.Tensor, form: Any) -> torch.Tensor:
    """The rows that nn.EmbeddingBag trains on the same batches."""
    bag = nn.EmbeddingBag(ROWS, DIM, mode="sum", _weight=weights.detach().clone())
    sgd = torch.optim.SGD(bag.parameters(), lr=0.5)
    for ids, offsets, scale in Batches(plain):
        sgd.zero_grad()
        scale = None if form is without_weights else scale
        bag(ids, offsets, scale).square().sum().backward()
        sgd.step()
    return bag.weight.detach()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("form", [plain, named, without_weights])
def test_a_loader_of_whole_batches_trains_as_torch(form, workers):
    """``batch_size=None`` makes a list of a tuple."""
    loader = DataLoader(Batches(form), batch_size=None, num_workers=workers)
    with make() as module:
        before = module.weight
        for batch in te.prefetch(loader, module, ids=lambda batch: {module: batch}):
            assert isinstance(batch, list if form is not named else Named)
            module(*batch).square().sum().backward()
        torch.testing.assert_close(module.weight, torchs_rows(before, form))
        assert module.stats().unmatched == 0


def test_a_loader_of_features_trains_as_torch():
    loader = DataLoader(Batches(nested), batch_size=None)
    with make(te.TieredEmbeddingBagCollection, [te.TableConfig("a", ROWS, DIM)]) as module:
        before = module.rows(range(ROWS))
        ids = lambda batch: {module: {"a": batch["a"]}}  # noqa: E731
        for batch in te.prefetch(loader, module, ids=ids):
            assert isinstance(batch["a"], list)
            module({"a": batch["a"]})["a"].square().sum().backward()
        torch.testing.assert_close(module.rows(range(ROWS)), torchs_rows(before, plain))
        assert module.stats().unmatched == 0


def test_a_loader_of_one_tensor():
    loader = DataLoader([(torch.tensor([i, i + 1]),) for i in range(4)], batch_size=2)
    with make(te.TieredEmbedding) as module:
        for batch in te.prefetch(loader, module, ids=lambda batch: {module: batch}):
            assert isinstance(batch, list)
            module(*batch).sum().backward()
        assert module.stats().unmatched == 0
        assert module.stats().steps == 2


def test_what_is_too_much_is_refused():
    """And is not left out without a word: a label is no weight."""
    ids, offsets = torch.tensor([1, 2]), torch.tensor([0])
    with make() as module:
        for kind in (tuple, list):
            with pytest.raises(te.ConfigError, match=r"was given 4 tensors; pass at most 3: \(ind"):
                module.present(kind((ids, offsets, None, torch.zeros(1))))
        with pytest.raises(te.ConfigError, match="indices is a list; pass"):
            module([1, 2], offsets)
        with pytest.raises(te.ConfigError, match="indices is a list; pass"):
            module([ids, offsets])
        with pytest.raises(te.ConfigError, match="indices is a list; pass"):
            list(te.prefetch([[1, 2]], module, ids=lambda batch: {module: batch}))
        with pytest.raises(te.ConfigError, match="indices is a list; pass"):
            list(te.prefetch([[]], module, ids=lambda batch: {module: batch}))
    with make(te.TieredEmbedding) as module:
        with pytest.raises(te.ConfigError, match="was given 2 tensors; pass at most 1"):
            module.present((ids, offsets))
        with pytest.raises(te.ConfigError, match="indices is a list"):
            module([ids])
    with (
        make(te.TieredEmbeddingBagCollection, [te.TableConfig("a", ROWS, DIM)]) as module,
        pytest.raises(te.ConfigError, match="feature 'a' was given 4 tensors"),
    ):
        module({"a": [ids, offsets, None, None]})
