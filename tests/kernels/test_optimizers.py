"""The kernels of every optimizer: the references' bits, and near float64 over many steps."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import tiered_embed as te
from covering import Choice, covering, parts, possible
from optimizers import CLIPS, DECAYS, SPECS, spec
from plain_optim import PlainTable
from reference import Bags, Stream, Table
from running import Prepared, Recipe, make_module
from streams import Draw
from tiered_embed import _native
from tiered_embed.optim.base import Optimizer

STORAGES = (
    ("float32", "nearest"),
    ("float16", "nearest"),
    ("float16", "stochastic"),
    ("bfloat16", "nearest"),
    ("bfloat16", "stochastic"),
)
DIMS = (1, 5, 16, 32, 64, 100, 128, 256, 300)  # some widths have code of their own
VALUES = (
    tuple(SPECS),
    tuple(DECAYS),
    tuple(CLIPS),
    DIMS,
    STORAGES,
    tuple(_native.available_isas()),
    (1, 2),  # threads
    (False, True),  # by_frequency
)
SELECTION = covering(VALUES, 1)


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    before = _native.current_isa()
    _native.select_isa(name)
    try:
        yield
    finally:
        _native.select_isa(before)


# --- the references' bits -------------------------------------------------------------------------


def stream(dim: int, *, num_steps: int, seed: int) -> Stream:
    """Rows several times in a batch, some of them a few hundred times in one."""
    draw = Draw(seed)
    tables = (Table("kernels", dim, num_embeddings=60),)
    batches, gradients = [], []
    for b in range(num_steps):
        ids = draw.integers(0, 60, 40)
        if b == 2:
            ids = np.concatenate([ids, np.repeat(ids[:2], 300)])
        bags = Bags(ids, draw.offsets(30, len(ids)), draw.floats(len(ids)) if b % 2 else None)
        batches.append({"kernels": bags})
        gradients.append({"kernels": draw.floats(30, dim)})
    return Stream(tables, tuple(batches), tuple(gradients))


def check_bits(choice: Choice) -> None:
    name, decay, clip, dim, (storage, rounding), isa, threads, by_frequency = choice
    recipe = Recipe(spec(name, decay, clip), storage, rounding, by_frequency)
    given = stream(dim, num_steps=6, seed=dim)
    trainer = recipe.trainer(given.tables)
    prepared = Prepared(given)
    tiers = te.Tiers(ddr="1MiB")
    with (
        instruction_set(isa),
        make_module(
            given.tables, tiers, recipe.optimizer, num_threads=threads, **recipe.options()
        ) as module,
    ):
        for i, (batch, gradients) in enumerate(zip(given.batches, given.gradients, strict=True)):
            prepared.step(module, i, trainer.forward(batch))
            trainer.backward(batch, gradients)
        (table,) = given.tables
        rows = trainer.rows(table)
        wanted = trainer.records(table, rows)
        state = module.optimizer_state(rows)
        got = torch.cat([module.rows(rows).to(torch.float32), *state.values()], 1).numpy()
        assert np.isfinite(got).all()
        np.testing.assert_array_equal(got.view(np.int32), wanted.view(np.int32))
        assert module.digest() == trainer.digest()


@pytest.mark.parametrize("name", SPECS)
def test_kernels_give_the_reference_bits(name: str) -> None:
    for choice in SELECTION:
        if choice[0] == name:
            try:
                check_bits(choice)
            except AssertionError as error:
                raise AssertionError(f"{choice}: {error}") from error


def test_the_selection_covers_every_pair() -> None:
    seen = set().union(*(parts(choice, 2) for choice in SELECTION))
    assert seen == possible(VALUES)
    assert len(SELECTION) < 200


@functools.cache
def every_triple() -> list[Choice]:
    return covering(VALUES, 2, strength=3)


@pytest.mark.long
@pytest.mark.parametrize("name", SPECS)
def test_kernels_give_the_reference_bits_with_every_triple(name: str) -> None:
    for choice in every_triple():
        if choice[0] == name:
            check_bits(choice)


# --- float64 --------------------------------------------------------------------------------------


def error(got: np.ndarray, exact: np.ndarray, scale: np.ndarray) -> float:
    """The largest difference over (U, n), relative to its row's ``scale`` (U,)."""
    return float((np.abs(got - exact).max(axis=1) / scale).max())


def scale_of(exact: np.ndarray) -> np.ndarray:
    """(U,): a row's largest magnitude."""
    return np.abs(exact).max(axis=1)


class Rows:
    """A module whose rows all train at every step, and the same rows in float64."""

    def __init__(self, optimizer: Optimizer, dim: int, num_rows: int, **options: object) -> None:
        self.ids = torch.arange(num_rows)
        self.module = te.TieredEmbedding(
            num_rows,
            dim,
            tiers=te.Tiers(ddr="1MiB"),
            optimizer=optimizer,
            init=te.init.Uniform(-1.0, 1.0),
            num_threads=1,
            **options,  # type: ignore[arg-type]
        )
        self.rng = np.random.default_rng(dim)

    def gradient(self) -> np.ndarray:
        """(U, D) float32, rows of many sizes."""
        shape = (len(self.ids), self.module.embedding_dim)
        sizes = 10.0 ** self.rng.uniform(-2, 0.5, (shape[0], 1))
        return (self.rng.standard_normal(shape) * sizes).astype(np.float32)

    def step(self, grad: np.ndarray) -> None:
        out = self.module(self.ids)
        out.backward(torch.from_numpy(grad).to(out.dtype))

    def weights(self) -> np.ndarray:
        return self.module.rows(self.ids).to(torch.float64).numpy()

    def state(self) -> dict[str, np.ndarray]:
        return {n: a.numpy() for n, a in self.module.optimizer_state(self.ids).items()}


@pytest.mark.parametrize("name", SPECS)
def test_float32_is_within_1e5_of_float64_over_200_steps(name: str) -> None:
    """Relative to the largest magnitude that the row, or its array of state, has had: a weight
    may pass through zero."""
    worst = 0.0
    for _, decay, clip, dim in covering(((name,), tuple(DECAYS), tuple(CLIPS), (1, 16, 33)), 3):
        optimizer = spec(name, decay, clip)
        rows = Rows(optimizer, dim, 6)
        plain = PlainTable(optimizer, rows.weights())
        arrays = list(optimizer.state_layout(dim))
        scales = [scale_of(x) for x in (plain.weights, *map(plain.array, arrays))]
        for _ in range(200):
            grad = rows.gradient()
            rows.step(grad)
            plain.step(grad)
            exact = [plain.weights, *map(plain.array, arrays)]
            scales = [np.maximum(s, scale_of(x)) for s, x in zip(scales, exact, strict=True)]
        got = [rows.weights(), *rows.state().values()]
        found = max(error(*parts) for parts in zip(got, exact, scales, strict=True))
        assert found < 1e-5, (optimizer, dim)
        worst = max(worst, found)
        rows.module.close()
    print(f"{name}: at most {worst:.1e} of a row's scale")


# Largest step from a number to the next of a type, relative to the number, and its smallest.
ULP = {"float16": (2.0**-10, 2.0**-24), "bfloat16": (2.0**-7, 2.0**-133)}


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", SPECS)
def test_rounding_explains_the_steps_of_16_bits(name: str, storage: str, rounding: str) -> None:
    """Every step from what is stored: half a place off float64 to nearest, one stochastically."""
    relative, least = ULP[storage]
    places = 0.5 if rounding == "nearest" else 1.0
    for decay, clip in (("no decay", "no clip"), ("l2", "all"), ("decoupled", "row")):
        optimizer = spec(name, decay, clip)
        rows = Rows(
            optimizer,
            7,
            6,
            dtype=getattr(torch, storage),
            output_dtype=torch.float32,
            rounding=rounding,
        )
        plain = PlainTable(optimizer, rows.weights())
        for _ in range(25):
            before = rows.state()
            plain.rows = list(rows.weights())
            plain.state = [
                {n: a[u].astype(np.float64) for n, a in before.items()} for u in range(6)
            ]
            grad = rows.gradient()
            rows.step(grad)
            plain.step(grad)
            exact = plain.weights
            place = np.maximum(2.0 ** np.floor(np.log2(np.abs(exact) + 1e-30)) * relative, least)
            computed = 1e-5 * scale_of(exact)[:, None]  # the float32 before the rounding
            assert (np.abs(rows.weights() - exact) <= places * place + computed).all(), optimizer
            for array, got in rows.state().items():
                wanted = plain.array(array)
                assert error(got, wanted, np.maximum(scale_of(wanted), 1e-12)) < 1e-5, array
        rows.module.close()


# --- ends of the range ----------------------------------------------------------------------------


def trained_once(optimizer: Optimizer, grad: np.ndarray, isa: str) -> np.ndarray:
    """Rows that start at 0.5 after one step with ``grad`` (U, D), of which anything is allowed."""
    with (
        instruction_set(isa),
        te.TieredEmbedding(
            *grad.shape,
            tiers=te.Tiers(ddr="1MiB"),
            optimizer=optimizer,
            init=te.init.Constant(0.5),
            on_nonfinite="allow",
        ) as emb,
    ):
        emb(torch.arange(len(grad))).backward(torch.from_numpy(grad))
        return emb.rows(np.arange(len(grad))).numpy()


def reference_once(optimizer: Optimizer, grad: np.ndarray) -> np.ndarray:
    weights = np.full(grad.shape, 0.5, np.float32)
    state = np.zeros((len(grad), optimizer.state_floats(grad.shape[1])), np.float32)
    optimizer.update(weights, state, grad, 1)
    return weights


@pytest.mark.parametrize("isa", VALUES[5])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_ftrl_stays_finite_where_squares_vanish(beta: float, isa: str) -> None:
    optimizer = te.optim.FTRL(lr=0.1, beta=beta)
    grad = np.array([[0.0, 1e-45, -1e-30, 1e-23, -1e-22, 1e-20, 1e-10, -1.0] * 3], np.float32)
    got = trained_once(optimizer, grad, isa)
    assert np.isfinite(got).all()
    assert (np.abs(got) <= 0.7).all()
    np.testing.assert_array_equal(got, reference_once(optimizer, grad))


@pytest.mark.parametrize("isa", VALUES[5])
def test_a_norm_that_is_no_number_is_the_whole_rows(isa: str) -> None:
    optimizer = te.optim.SGD(lr=1.0, clip_row_norm=1.0)
    grad = np.ones((3, 20), np.float32)
    grad[0, 3], grad[1, 18] = np.nan, 1e25  # squares beyond float32 clip to nothing, as in torch
    got = trained_once(optimizer, grad, isa)
    assert np.isnan(got[0]).all()
    np.testing.assert_array_equal(got[1], np.float32(0.5))
    assert np.isfinite(got[2]).all()
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got, reference_once(optimizer, grad))
