"""te.swap on a directory that an earlier run has used: refused, and each remedy works."""

import copy

import pytest
import torch
from torch import nn

import tiered_embed as te

ROWS, DIM = 40, 4
STORES = ["rocksdb", "rocksdb_py", "memory"]


def model_of(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(ROWS, DIM), nn.EmbeddingBag(ROWS, DIM, mode="sum"))


def swap(model: nn.Module, ssd, store: str = "memory") -> None:
    tiers = te.Tiers(ddr=800, ssd=ssd, store=store)
    te.swap(model, tiers=tiers, optimizer=te.optim.SGD(lr=0.5))


def train(model: nn.Module) -> list[torch.Tensor]:
    for module in model:
        module(torch.tensor([[3, 4], [39, 0]])).square().sum().backward()
    return [module.weight for module in model]


def close(model: nn.Module) -> None:
    for module in model:
        module.close()


@pytest.fixture
def trained(tmp_path, request):
    """A directory with the rows of an earlier run, and its checkpoint."""
    model = model_of()
    swap(model, tmp_path / "ssd", request.param)
    weights = train(model)
    te.checkpoint.save(model, tmp_path / "steps", step=1)
    close(model)
    return request.param, tmp_path, weights


@pytest.mark.parametrize("trained", STORES, indirect=True)
def test_it_is_refused_and_nothing_changes(trained):
    store, path, _ = trained
    model = model_of(1)
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        with pytest.raises(te.ConfigError) as told:
            swap(model, path / "ssd", store)
        for part in (
            "holds rows of table '0' already",
            f"te.drop_table({str(path / 'ssd')!r}, '0')",
            "another ssd directory",
            "te.checkpoint.load(model, path)",
        ):
            assert part in str(told.value)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("trained", STORES, indirect=True)
def test_after_the_tables_are_dropped_it_starts_anew(trained):
    store, path, _ = trained
    model = model_of(1)
    weights = [module.weight.detach().clone() for module in model]
    te.drop_table(path / "ssd", "0")
    with pytest.raises(te.ConfigError, match="holds rows of table '1' already"):
        swap(model, path / "ssd", store)
    te.drop_table(path / "ssd", "1")
    swap(model, path / "ssd", store)
    assert all(torch.equal(m.weight, w) for m, w in zip(model, weights, strict=True))
    close(model)


@pytest.mark.parametrize("trained", STORES, indirect=True)
def test_in_another_directory_the_trained_rows_are_restored(trained):
    store, path, weights = trained
    model = model_of(1)
    swap(model, path / "new", store)
    te.checkpoint.load(model, path / "steps")
    assert all(torch.equal(m.weight, w) for m, w in zip(model, weights, strict=True))
    close(model)


@pytest.mark.parametrize("store", STORES)
def test_a_store_that_once_held_rows_is_filled_row_by_row(store, tmp_path):
    """A store of another table can take no import, and gets the weights all the same."""
    tables = [te.TableConfig(name, ROWS, DIM) for name in ("0", "other")]
    tiers = te.Tiers(ddr=800, ssd=tmp_path, store=store)
    module = te.TieredEmbeddingBagCollection(tables, tiers=tiers, optimizer=te.optim.SGD(lr=0.5))
    with module:
        module.load_rows([1, 2], torch.ones(2, DIM), table="other")
    model = nn.Sequential(nn.EmbeddingBag(ROWS, DIM, mode="sum"))
    weight = model[0].weight.detach().clone()
    te.swap(model, tiers=tiers, optimizer=te.optim.SGD(lr=0.5))
    assert torch.equal(model[0].weight, weight)
    close(model)


@pytest.mark.parametrize("store", STORES)
def test_an_import_into_a_store_with_rows_names_load_rows(store, tmp_path):
    tiers = te.Tiers(ddr=800, ssd=tmp_path, store=store)
    options = {"tiers": tiers, "optimizer": te.optim.SGD(lr=0.5)}
    with te.TieredEmbedding(ROWS, DIM, **options) as module:
        module.load_rows([1], torch.ones(1, DIM))
    with te.TieredEmbedding(ROWS, DIM, **options) as module:
        with pytest.raises(te.ConfigError, match="load_rows, or choose another ssd directory"):
            module.import_rows([([2], torch.ones(1, DIM))])
        module.load_rows([2], torch.ones(1, DIM))
        assert module.rows([1, 2]).tolist() == [[1.0] * DIM] * 2
