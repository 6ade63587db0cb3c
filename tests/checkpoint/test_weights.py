"""te.checkpoint.load_weights: weights into a model with another optimizer, or with none."""

import pytest
import torch

import tiered_embed as te
from tiered_embed import checkpoint

ROWS, DIM = 30, 4
OPTIMIZERS = [None, te.optim.SGD(lr=0.1), te.optim.Adam(lr=0.1), te.optim.RowWiseAdagrad(lr=0.1)]


def make(optimizer, ssd=None, names=("a", "b"), **options):
    tables = [te.TableConfig(n, options.pop("rows", ROWS), DIM, mode="sum") for n in names]
    tiers = te.Tiers(ddr=200 if ssd else "1MiB", ssd=ssd, store="memory" if ssd else "auto")
    return te.TieredEmbeddingBagCollection(tables, tiers=tiers, optimizer=optimizer, **options)


def train(module, seed=0):
    ids = torch.randint(0, ROWS, (4, 2), generator=torch.Generator().manual_seed(seed))
    out = module({name: (ids + i) % ROWS for i, name in enumerate(module.embedding_names)})
    torch.cat(list(out.values())).square().sum().backward()


@pytest.fixture
def saved(tmp_path):
    with make(te.optim.Adagrad(lr=0.5), tmp_path / "ssd") as module:
        for seed in range(3):
            train(module, seed)
        checkpoint.save(module, tmp_path / "steps", step=3, extra={"epoch": 1})
        train(module, 3)
        checkpoint.save_delta(module, tmp_path / "steps", step=4)
        weights = {name: module.rows(range(ROWS), name) for name in ("a", "b")}
        ids = {name: torch.cat(list(module.materialised(name))) for name in ("a", "b")}
    return tmp_path / "steps", weights, ids


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("backed", [True, False])
def test_weights_come_and_state_starts_anew(optimizer, backed, saved, tmp_path):
    path, weights, ids = saved
    with make(optimizer, tmp_path / "other" if backed else None) as module:
        if optimizer != te.optim.Adagrad(lr=0.5):
            with pytest.raises(te.ConfigError, match=r"te.checkpoint.load_weights\(model, path\)"):
                checkpoint.load(module, path)
        assert checkpoint.load_weights(module, path)["step"] == 4
        for name, wanted in weights.items():
            assert torch.equal(module.rows(range(ROWS), name), wanted)
            assert torch.equal(torch.cat(list(module.materialised(name))), ids[name])
            state = module.optimizer_state(range(ROWS), name)
            assert not any(part.any() for part in state.values())
        assert module.stats().steps == 0
        if optimizer is not None:
            train(module)


def test_an_earlier_step_and_its_extra(saved):
    path, weights, _ = saved
    with make(None) as module:
        assert checkpoint.load_weights(module, path, 3) == {"step": 3, "extra": {"epoch": 1}}
        assert not torch.equal(module.rows(range(ROWS), "a"), weights["a"])


def test_some_of_the_tables(saved):
    path, weights, _ = saved
    with make(None, names=("b",)) as module:
        checkpoint.load_weights(module, path)
        assert torch.equal(module.rows(range(ROWS)), weights["b"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ("a", "c")}, r"has 0 tables 'c' .* it holds \['a', 'b'\]"),
        ({"seed": 1}, "seed: saved 0, here 1"),
        ({"dtype": torch.float16}, "dtype: saved float32, here float16"),
        ({"init": te.init.Constant(0.0)}, "init: saved"),
        ({"rows": 20, "names": ("a",)}, "num_embeddings: saved 30, here 20"),
    ],
)
def test_what_differs_otherwise_is_refused(options, message, saved):
    path, _, _ = saved
    with make(te.optim.SGD(lr=0.1), **options) as module:
        digest = module.digest()
        with pytest.raises(te.ConfigError, match=message):
            checkpoint.load_weights(module, path)
        assert module.digest() == digest


def test_a_model_with_rows_is_refused(saved, tmp_path):
    path, _, _ = saved
    with make(te.optim.SGD(lr=0.1)) as module:
        module.load_rows([1], torch.ones(1, DIM), table="a")
        with pytest.raises(te.ConfigError, match="has rows already"):
            checkpoint.load_weights(module, path)
    with pytest.raises(FileNotFoundError), make(None) as module:
        checkpoint.load_weights(module, tmp_path / "nothing")
