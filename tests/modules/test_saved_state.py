"""The step count travels with rows and their state; a state_dict without its rows says so."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import tiered_embed as te

ROWS, DIM = 12, 4
EVERY = range(ROWS)
ALL = torch.arange(ROWS)
TIERS = te.Tiers(ddr="1MiB")
COUNTING = [
    te.optim.Adam(lr=0.1),
    te.optim.AdamW(lr=0.1, weight_decay=0.1),
    te.optim.PartialRowWiseAdam(lr=0.1),
    te.optim.LAMB(lr=0.1),
    te.optim.PartialRowWiseLAMB(lr=0.1),
]


def make(optimizer: Any = COUNTING[0], tiers: te.Tiers = TIERS, **options: Any) -> Any:
    return te.TieredEmbedding(ROWS, DIM, tiers=tiers, optimizer=optimizer, **options)


def step(module: nn.Module, ids: torch.Tensor = ALL) -> None:
    ((module(ids) - torch.arange(float(DIM))) ** 2).sum().backward()


def trained(steps: int, **options: Any) -> Any:
    module = make(**options)
    for _ in range(steps):
        step(module)
    return module


def same_from_here(a: Any, b: Any) -> None:
    for _ in range(3):
        step(a)
        step(b)
    assert torch.equal(a.weight, b.weight)
    assert a.stats().steps == b.stats().steps


# --- the row API ----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", COUNTING, ids=lambda o: type(o).__name__)
def test_rows_and_state_take_their_step_count_along(optimizer):
    with trained(10, optimizer=optimizer) as a, make(optimizer) as b:
        assert a.optimizer_state(EVERY).steps == 10
        b.load_rows(EVERY, a.weight, a.optimizer_state(EVERY))
        same_from_here(a, b)


def test_a_plain_mapping_takes_steps(tmp_path):
    with trained(10) as a, make() as b, make() as c, make() as d:
        state = pickle.loads(pickle.dumps(a.optimizer_state(EVERY)))
        assert type(state) is dict
        with pytest.warns(UserWarning, match="first updates will be too large; pass steps="):
            b.load_rows(EVERY, a.weight, state)
        c.load_rows(EVERY, a.weight, state, steps=10)
        zeros = {name: torch.zeros_like(part) for name, part in state.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            d.load_rows(EVERY, a.weight, zeros)
            d.load_rows(EVERY, a.weight, state, steps=0)
        same_from_here(a, c)
        assert b.stats().steps == 0


def test_an_import_takes_it_along(tmp_path):
    tiers = te.Tiers(ddr=400, ssd=tmp_path, store="memory")
    with trained(10) as a, make(tiers=tiers) as b:
        halves = [range(6), range(6, 12)]
        b.import_rows((ids, a.rows(ids), a.optimizer_state(ids)) for ids in halves)
        same_from_here(a, b)
    with make(tiers=tiers) as b:
        assert b.stats().steps == 13


def test_a_module_that_has_trained_keeps_its_count():
    with trained(10) as a, trained(4) as b:
        kept = b.optimizer_state(EVERY)
        step(b)
        b.load_rows(EVERY, b.weight, kept)  # its own rows of an earlier step
        assert b.stats().steps == 5
        with pytest.raises(te.ConfigError, match=r"10 updates, but .* had 5.*pass steps=5 to keep"):
            b.load_rows(EVERY, a.weight, a.optimizer_state(EVERY))
        b.load_rows(EVERY, a.weight, a.optimizer_state(EVERY), steps=10)
        same_from_here(a, b)


def test_optimizers_without_a_count_are_not_bothered():
    sgd = te.optim.Adagrad(lr=0.1)
    with trained(3, optimizer=sgd) as a, trained(5, optimizer=sgd) as b, make(sgd) as c:
        for module in (b, c):
            module.load_rows(EVERY, a.weight, a.optimizer_state(EVERY))
            module.load_rows(EVERY, a.weight, dict(a.optimizer_state(EVERY)))
        assert b.stats().steps == 5
        assert torch.equal(b.weight, a.weight)


@pytest.mark.parametrize("steps", [-1, 1.0, True, "10", 2**62])
def test_a_bad_count_is_refused(steps):
    with make() as module, pytest.raises(te.ConfigError, match="must be an integer, 0 or more"):
        module.load_rows([1], torch.zeros(1, DIM), steps=steps)


# --- torch's optimizers ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
@pytest.mark.parametrize(
    ("theirs", "ours", "sparse"),
    [
        (torch.optim.Adam, te.optim.Adam(lr=0.1), False),
        (torch.optim.AdamW, te.optim.AdamW(lr=0.1, weight_decay=0.01), False),
        (torch.optim.SparseAdam, te.optim.Adam(lr=0.1), True),
        (torch.optim.Adagrad, te.optim.Adagrad(lr=0.1, eps=1e-10), False),
        (torch.optim.Adagrad, te.optim.Adagrad(lr=0.1, eps=1e-10), True),
        (torch.optim.SGD, te.optim.MomentumSGD(lr=0.1, momentum=0.9), False),
    ],
)
def test_training_goes_on_from_torchs_state(theirs, ours, sparse):
    dense = nn.Embedding(ROWS, DIM, sparse=sparse)
    extra = {"momentum": 0.9} if theirs is torch.optim.SGD else {}
    optimizer = theirs(dense.parameters(), lr=0.1, **extra)

    def torch_step(ids: torch.Tensor) -> None:
        optimizer.zero_grad()
        step(dense, ids)
        optimizer.step()

    some = ALL[:7] if sparse else ALL
    for _ in range(6):
        torch_step(some)
    model = nn.Sequential(copy.deepcopy(dense))
    model[0].sparse = False
    te.swap(model, tiers=TIERS, optimizer=ours)
    with model[0] as module:
        digest = module.optimizer_state(EVERY)
        assert not any(part.any() for part in digest.values())
        module.load_optimizer_state(optimizer.state[dense.weight])
        assert torch.equal(module.weight, dense.weight.detach())
        for _ in range(4):
            torch_step(some)
            step(module, some)
        torch.testing.assert_close(module.weight, dense.weight.detach(), rtol=1e-4, atol=1e-5)


def test_state_that_is_not_ours_is_refused():
    weight = nn.Parameter(torch.ones(ROWS, DIM))
    weight.grad = torch.ones(ROWS, DIM)
    with make() as module, make(te.optim.SGD(lr=0.1)) as sgd:
        digest = module.digest()
        for optimizer, message in (
            (torch.optim.Adam([weight], amsgrad=True), r"\['exp_avg', .*'max_exp_avg_sq'\]"),
            (torch.optim.Adagrad([weight]), r"the arrays \['sum'\], but .* \['exp_avg'"),
            (torch.optim.RMSprop([weight]), "square_avg"),
        ):
            optimizer.step()
            with pytest.raises(te.ConfigError, match=message):
                module.load_optimizer_state(optimizer.state[weight])
            with pytest.raises(te.ConfigError, match=r"keeps \[\]"):
                sgd.load_optimizer_state(optimizer.state[weight])
        other = {"step": 3, "exp_avg": torch.ones(3, DIM), "exp_avg_sq": torch.ones(3, DIM)}
        with pytest.raises(te.ConfigError, match=r"exp_avg is \(3, 4\); pass shape \(12, 4\)"):
            module.load_optimizer_state(other)
        with pytest.raises(te.ConfigError, match=r"pass optimizer.state\[weight\]"):
            module.load_optimizer_state(None)
        assert module.digest() == digest
        assert module.stats().steps == 0


# --- state_dict -----------------------------------------------------------------------------------

TOLD = "are not those of this state_dict"


def told(module: Any, state: Any) -> bool:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        module.load_state_dict(state)
    return any(TOLD in str(warning.message) for warning in seen)


def test_rows_that_came_by_load_rows_get_their_step_count():
    with trained(10) as a, make() as b:
        b.load_rows(EVERY, a.weight, dict(a.optimizer_state(EVERY)), steps=0)
        assert not told(b, a.state_dict())
        same_from_here(a, b)


def test_rows_that_are_not_here_are_missed():
    with trained(3) as a, make() as fresh, trained(3, seed=5) as other:
        state = a.state_dict()
        for module in (fresh, other):
            digest, steps = module.digest(), module.stats().steps
            assert told(module, state)
            assert (module.digest(), module.stats().steps) == (digest, steps)
        assert not told(a, state)


def test_an_earlier_state_of_the_same_module_is_missed():
    """As torch would have brought the best weights back."""
    with trained(3) as module:
        best = module.state_dict()
        step(module)
        assert told(module, best)


def test_rows_that_only_differ_in_the_last_batch_are_missed():
    with trained(3) as a, make() as b:
        b.load_rows(EVERY, a.weight, a.optimizer_state(EVERY))
        step(a, torch.tensor([7]))
        assert told(b, a.state_dict())


def test_a_directory_that_is_opened_again_has_them(tmp_path):
    tiers = te.Tiers(ddr=400, ssd=tmp_path / "ssd", store="memory")
    with trained(3, tiers=tiers) as a:
        state = a.state_dict()
        te.checkpoint.save(a, tmp_path / "steps", step=3)
        step(a)
        later = a.state_dict()
    with make(tiers=tiers) as b:
        assert not told(b, later)
        assert told(b, state)
        te.checkpoint.load(b, tmp_path / "steps")
        assert not told(b, state)
        assert not told(b, b.state_dict())
    with make() as memory:
        te.checkpoint.load(memory, tmp_path / "steps")
        assert not told(memory, state)
        assert not told(memory, memory.state_dict())


def test_untrained_modules_have_nothing_to_miss():
    with make() as a, make() as b, trained(1) as c:
        assert not told(b, a.state_dict())
        assert told(c, a.state_dict())


def test_rows_that_are_only_read_are_missed():
    weights = torch.rand(ROWS, DIM)
    make_one = te.TieredEmbedding.from_pretrained
    with make_one(weights, tiers=TIERS) as a, make_one(weights, tiers=TIERS) as b:
        assert not told(b, a.state_dict())
    with make_one(weights, tiers=TIERS) as a, make_one(weights + 1, tiers=TIERS) as b:
        assert told(b, a.state_dict())


def test_a_state_of_version_0_1_and_of_closed_modules_is_taken():
    with trained(2) as a:
        state = a.state_dict()
    assert set(a.state_dict()) == set(state)
    with make() as b:
        old = b'{"rows": "in memory", "steps": 2, "tables": {"table": [12, 4]}}'
        assert not told(b, {"_extra_state": torch.tensor(list(old), dtype=torch.uint8)})
