"""Promise 1 for collections: tables with options of their own, with and without pooling, in every
form of a batch, with features that are missing and ids outside their tables.

Every run's outputs and digest are compared bit for bit with ``reference.py``, one dense trainer for
each table.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

import tiered_embed as te
from covering import Choice, covering, parts, possible
from reference import Bags, DenseTrainer, Table, digest_of
from tiered_embed.optim.base import Optimizer

pytestmark = pytest.mark.filterwarnings("ignore")  # TorchRec's own

ROWS, BAGS, BATCHES, SEED = 60, 6, 14, 2**50 + 3
ADAM = te.optim.Adam(lr=0.05)
INIT = te.init.Uniform(-0.5, 0.25)


@dataclass(frozen=True)
class Own:
    """A table of the matrix; ``options`` are those of its ``te.TableConfig``."""

    name: str
    dim: int
    mode: str
    features: tuple[str, ...]
    options: Mapping[str, Any]

    def config(self, *, pooled: bool) -> te.TableConfig:
        dim, mode = (self.dim, self.mode) if pooled else (7, "sum")
        return te.TableConfig(self.name, ROWS, dim, self.features, mode, **self.options)

    def trainer(self, *, pooled: bool) -> DenseTrainer:
        dim, mode = (self.dim, self.mode) if pooled else (7, "sum")
        optimizer: Optimizer = self.options.get("optimizer", ADAM)
        return DenseTrainer(
            [Table(self.name, dim, ROWS, mode, self.features)],
            replace(optimizer, lr=optimizer.lr * self.options.get("lr_factor", 1.0)),
            init=self.options.get("init", INIT),
            seed=SEED,
            storage=str(self.options.get("dtype", torch.float32)).removeprefix("torch."),
            rounding="stochastic",
        )

    @property
    def trains(self) -> bool:
        return bool(self.options.get("trainable", True))


TABLES = (
    Own("a", 7, "sum", ("x", "y"), {}),
    Own("b", 7, "mean", ("y", "z"), {"lr_factor": 0.5}),
    Own("c", 4, "max", ("z",), {"optimizer": te.optim.Adagrad(lr=0.1), "dtype": torch.float16}),
    Own("d", 4, "sum", ("w",), {"trainable": False, "init": te.init.Uniform(0, 1)}),
    Own(
        "e",
        1,
        "sum",
        ("w", "x"),
        {
            "optimizer": te.optim.SGD(lr=0.1, clip_global_norm=2.0),
            "dtype": torch.bfloat16,
            "init": te.init.Constant(0.5),
        },
    ),
)
FEATURES = ("x", "y", "z", "w")

FORMS = ("mapping", "batch sizes per key", "unpooled mapping", "unpooled jagged")
VALUES = (
    FORMS,
    ("raise", "clamp", "ignore", "warning"),
    ("raise", "empty"),  # missing features
    (2, 15, 100),  # percent of the rows' bytes in DDR
    ("lru", "s3fifo", "lookahead"),
    (1, 8),  # lookahead
    (0, 1, "auto"),  # depth
    (1, 2),  # threads
    (False, True),  # with HBM, in host memory
    ("rocksdb", "memory"),
)
CHOICES = covering(VALUES, 11)


@dataclass(frozen=True)
class Step:
    """One batch: what its features were given, where they are not missing; which of the bags that
    are given each sample takes; and the gradients of the outputs, (feature, table)."""

    given: Mapping[str, Bags]
    inverse: Mapping[str, np.ndarray]
    gradients: Mapping[tuple[str, str], np.ndarray]


@functools.cache
def steps(form: str, bounds_check: str, missing: str) -> tuple[Step, ...]:
    rng = np.random.default_rng([FORMS.index(form), bounds_check == "raise", missing == "empty"])
    pooled = not form.startswith("unpooled")
    out = []
    for i in range(BATCHES):
        given, inverse = {}, {}
        left_out = {FEATURES[i % 4], FEATURES[i // 4]} if missing == "empty" else set()
        for f in FEATURES:
            num_bags = int(rng.integers(1, BAGS + 3)) if form == "batch sizes per key" else BAGS
            lengths = rng.integers(0, 6, num_bags)
            ids = rng.zipf(1.3, int(lengths.sum())) % ROWS
            if bounds_check != "raise":
                wild = rng.choice([-1, -7, ROWS, ROWS + 5, 2**62], len(ids))
                ids = np.where(rng.random(len(ids)) < 0.2, wild, ids)
            offsets = np.arange(len(ids) + 1)
            if pooled:
                offsets = np.concatenate([[0], np.cumsum(lengths)])
            if f not in left_out:
                given[f] = Bags(ids.astype(np.int64), offsets.astype(np.int64))
                inverse[f] = np.arange(num_bags)
                if form == "batch sizes per key":
                    inverse[f] = rng.integers(0, num_bags, BAGS)
        gradients = {}
        for t in TABLES:
            for f in t.features:
                num = BAGS
                if not pooled:
                    num = len(given[f].ids) if f in given else 0
                shape = (num, t.dim if pooled else 7)
                gradients[f, t.name] = rng.standard_normal(shape).astype(np.float32)
        out.append(Step(given, inverse, gradients))
    return tuple(out)


def placed(bags: Bags, bounds_check: str) -> Bags:
    """The ids that are looked up, by the definition of ``bounds_check``."""
    ids, inside = bags.ids, (bags.ids >= 0) & (bags.ids < ROWS)
    if bounds_check == "clamp":
        return Bags(np.clip(ids, 0, ROWS - 1), bags.offsets)
    if bounds_check == "warning":
        inside |= ids != -1
        ids = np.where((ids < 0) | (ids >= ROWS), 0, ids)
    kept = [ids[a:b][inside[a:b]] for a, b in zip(bags.offsets[:-1], bags.offsets[1:], strict=True)]
    lengths = [len(part) for part in kept]
    return Bags(
        np.concatenate([*kept, ids[:0]]), np.concatenate([[0], np.cumsum(lengths, dtype=int)])
    )


@dataclass(frozen=True)
class Truth:
    outputs: tuple[Mapping[tuple[str, str], np.ndarray], ...]
    digest: str


@functools.cache
def truth(form: str, bounds_check: str, missing: str) -> Truth:
    pooled = not form.startswith("unpooled")
    trainers = {t.name: t.trainer(pooled=pooled) for t in TABLES}
    outputs = []
    for step in steps(form, bounds_check, missing):
        none = np.zeros((BAGS if pooled else 0) + 1, np.int64)
        batch = {f: Bags(np.empty(0, np.int64), none) for f in FEATURES}
        batch |= {f: placed(bags, bounds_check) for f, bags in step.given.items()}
        found = {}
        for t in TABLES:
            trainer, gradients = trainers[t.name], {}
            looked_up = trainer.forward(batch)
            for f in t.features:
                out, grad = looked_up[f], step.gradients[f, t.name]
                if pooled and f in step.inverse:
                    found[f, t.name] = out[step.inverse[f]]
                    gradients[f] = np.zeros_like(out)
                    np.add.at(gradients[f], step.inverse[f], grad)
                else:
                    found[f, t.name] = out
                    gradients[f] = grad
            if t.trains:
                trainer.backward(batch, gradients)
        outputs.append(found)
    return Truth(tuple(outputs), digest_of(list(trainers.values())))


def jagged(torchrec: Any, step: Step, *, pooled: bool) -> Any:
    keys = list(step.given)
    lengths = [np.diff(step.given[f].offsets) for f in keys]
    inverse = None
    if pooled:
        inverse = keys, torch.from_numpy(np.stack([step.inverse[f] for f in keys]))
    return torchrec.KeyedJaggedTensor(
        keys=keys,
        values=torch.from_numpy(np.concatenate([step.given[f].ids for f in keys])),
        lengths=torch.from_numpy(np.concatenate(lengths)),
        stride_per_key_per_rank=[[len(part)] for part in lengths],
        inverse_indices=inverse,
    )


def arguments(imported: Any, form: str, step: Step) -> Any:
    if form == "mapping":
        return {
            f: (torch.from_numpy(b.ids), torch.from_numpy(b.offsets[:-1]))
            for f, b in step.given.items()
        }
    if form == "unpooled mapping":
        return {f: torch.from_numpy(b.ids) for f, b in step.given.items()}
    return jagged(imported("torchrec"), step, pooled=form == "batch sizes per key")


def tensors(form: str, out: Any) -> list[torch.Tensor]:
    if form == "batch sizes per key":
        return list(out.to_dict().values())
    return [part.values() if form == "unpooled jagged" else part for part in out.values()]


def check(choice: Choice, imported: Any, folder: Any, *, prefetch: bool = True) -> None:
    form, bounds_check, missing, percent, policy, lookahead, depth, threads, hbm, store = choice
    pooled = not form.startswith("unpooled")
    kind = te.TieredEmbeddingBagCollection if pooled else te.TieredEmbeddingCollection
    wanted = truth(form, bounds_check, missing)
    budget = max(5 * 100, len(TABLES) * ROWS * 4 * (1 + 2) * 7 * percent // 100)
    tiers = te.Tiers(ddr=budget, ssd=folder, store=store)
    if hbm:
        tiers = te.Tiers(hbm=budget // 3 + 300, ddr=budget, ssd=folder, store=store)
    with kind(
        [t.config(pooled=pooled) for t in TABLES],
        tiers=tiers,
        **({"device": "cpu", "kernel": "native"} if hbm else {}),
        optimizer=ADAM,
        init=INIT,
        seed=SEED,
        rounding="stochastic",
        output_dtype=torch.float32,
        missing_features=missing,
        bounds_check=bounds_check,
        policy=policy,
        lookahead=max(lookahead, 1 if depth == "auto" else depth),
        depth=depth,
        num_threads=threads,
    ) as module:
        order = [(f, t.name) for t in TABLES for f in t.features]
        all_steps = steps(form, bounds_check, missing)
        args = [arguments(imported, form, step) for step in all_steps]
        numbers = range(BATCHES)
        loop = te.prefetch(numbers, module, ids=lambda i: {module: args[i]})
        for i in loop if prefetch else numbers:
            parts = tensors(form, module(args[i]))
            for which, part in zip(order, parts, strict=True):
                expected = wanted.outputs[i][which]
                assert np.array_equal(part.detach().numpy(), expected), f"batch {i}, {which}"
            given = [torch.from_numpy(all_steps[i].gradients[which]) for which in order]
            torch.autograd.backward(parts, given)
        assert module.digest() == wanted.digest
        stats = module.stats()
        assert (stats.steps, stats.unmatched) == (BATCHES, 0)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: "-".join(map(str, c)))
def test_every_pair_of_settings_gives_the_reference_bits(choice, imported, stores, tmp_path):
    if choice[-1] in stores:
        check(choice, imported, tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_without_prefetch(form, imported, tmp_path):
    choice = (form, "warning", "empty", 2, "lookahead", 8, 1, 2, False, "memory")
    check(choice, imported, tmp_path, prefetch=False)


def test_the_selection_covers_every_pair():
    seen = set().union(*(parts(choice, 2) for choice in CHOICES))
    assert seen == possible(VALUES)
    assert len(CHOICES) < 40
