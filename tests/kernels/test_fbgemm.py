"""FBGEMM's kernels in the modules, on the CPU: the values of the dense reference and of the native
kernels, and bits that do not depend on the size of a tier."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

import tiered_embed as te
from covering import covering
from reference import Bags, Batch, Stream, Table
from running import Prepared, Recipe, make_module, record_bytes
from streams import Draw, _stream
from tiered_embed.optim.adagrad import Adagrad, RowWiseAdagrad
from tiered_embed.optim.base import Optimizer
from tiered_embed.optim.descent import SGD


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """FBGEMM's threads spin: with other tests running, each would wait for a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- what is trained ------------------------------------------------------------------------------


def mixed(num_batches: int = 15) -> Stream:
    """Two pools with interleaved columns, features that share a table, sums and means, weights,
    duplicates, empty bags, and batches of one bag, of none, and without an id in a pool."""
    draw = Draw(6)
    tables = (
        Table("item", 8, features=("clicked", "seen")),
        Table("wide", 32, num_embeddings=300),
        Table("user", 8, num_embeddings=300, mode="mean"),
        Table("tag", 8, num_embeddings=30, mode="mean"),
    )
    batches: list[Batch] = []
    for b in range(num_batches):
        num_bags = {4: 1, 8: 0}.get(b, 6)
        batch: dict[str, Bags] = {}
        for table in tables:
            for f in table.feature_names:
                n = 0 if num_bags == 0 or (b == 6 and f == "wide") else 4 + b % 9
                ids = draw.skewed(table.num_embeddings or 400, n)
                if b == 9 and f == "seen":
                    ids = np.repeat(ids[:2], 300)  # more than a chunk of 256
                if table.num_embeddings is None:
                    ids = ids * np.int64(-7919)
                offsets = draw.offsets(num_bags, len(ids)) if num_bags else np.zeros(1, np.int64)
                weighted = table.mode == "sum" and b % 2 and f != "clicked"
                batch[f] = Bags(ids, offsets, draw.floats(len(ids)) if weighted else None)
        batches.append(batch)
    return _stream(tables, batches, draw)


STREAM = mixed()


@dataclass(frozen=True)
class Variant:
    """A recipe, and how it is trained.

    options: of the module, beyond the recipe's. micro: batches of one ``te.accumulate``.
    schedule: the learning rate changes at every step, and between a forward and its backward.
    ahead: forwards before the first backward.
    """

    recipe: Recipe
    options: dict[str, Any] = field(default_factory=dict)
    micro: int = 0
    schedule: bool = False
    scale: float | None = None
    ahead: int = 1

    @property
    def plain(self) -> bool:
        """Whether the dense reference can do it."""
        return self == Variant(self.recipe)


PLAIN: dict[str, Optimizer] = {
    "sgd": SGD(lr=0.03),
    "rowwise_adagrad": RowWiseAdagrad(lr=0.05, eps=1e-6),
    "adagrad": Adagrad(lr=0.04, eps=1e-6),
}
CHANGES: dict[str, dict[str, Any]] = {
    "l2": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.2, "weight_decay_mode": "decoupled"},
    "clip_value": {"clip_value": 0.5},
    "clip_row_norm": {"clip_row_norm": 1.0},
    "clip_global_norm": {"clip_global_norm": 3.0},
    "everything": {
        "weight_decay": 0.1,
        "clip_value": 0.7,
        "clip_row_norm": 1.5,
        "clip_global_norm": 4.0,
    },
}
VARIANTS: dict[str, Variant] = {
    **{name: Variant(Recipe(optimizer)) for name, optimizer in PLAIN.items()},
    **{
        f"{name}, {change}": Variant(Recipe(replace(optimizer, **changes)))
        for name, optimizer in PLAIN.items()
        for change, changes in CHANGES.items()
    },
    **{
        f"{name}, by frequency": Variant(Recipe(optimizer, by_frequency=True))
        for name, optimizer in PLAIN.items()
    },
    **{
        f"{name}, float16": Variant(Recipe(optimizer, "float16"))
        for name, optimizer in PLAIN.items()
    },
    "adagrad, float16, everything": Variant(
        Recipe(replace(PLAIN["adagrad"], **CHANGES["everything"]), "float16", by_frequency=True)
    ),
    "accumulated": Variant(Recipe(PLAIN["rowwise_adagrad"]), micro=3),
    "accumulated by frequency": Variant(Recipe(PLAIN["adagrad"], by_frequency=True), micro=4),
    "schedule": Variant(Recipe(PLAIN["adagrad"]), schedule=True),
    "schedule, decoupled": Variant(
        Recipe(replace(PLAIN["sgd"], **CHANGES["decoupled"])), schedule=True
    ),
    "scaler": Variant(Recipe(PLAIN["sgd"]), scale=2.0**10),
    "max_norm": Variant(Recipe(PLAIN["sgd"]), {"max_norm": 0.6}),
    "max_norm, adagrad": Variant(Recipe(PLAIN["adagrad"]), {"max_norm": 0.5, "norm_type": 1.0}),
    "two ahead": Variant(Recipe(PLAIN["rowwise_adagrad"]), ahead=2),
    "three ahead, max_norm": Variant(Recipe(PLAIN["adagrad"]), {"max_norm": 0.9}, ahead=3),
}


def budget(percent: float, recipe: Recipe) -> int:
    """A share of the bytes that the stream touches, but a record for every pool at least."""
    sizes = {t.name: record_bytes(t, recipe.optimizer, recipe.storage) for t in STREAM.tables}
    total = sum(rows * sizes[name] for name, rows in STREAM.touched().items())
    return max(int(total * percent / 100), 2 * max(sizes.values()))


def built(variant: Variant, tiers: te.Tiers, **options: Any) -> Any:
    recipe = variant.recipe
    options = {"device": "cpu", "kernel": "fbgemm"} | recipe.options() | variant.options | options
    return make_module(STREAM.tables, tiers, recipe.optimizer, **options)


def train(variant: Variant, module: Any, *, prefetch: bool = False) -> list[torch.Tensor]:
    """Every output, features side by side."""
    prepared = Prepared(STREAM)
    scaler = variant.scale and torch.amp.GradScaler("cpu", init_scale=variant.scale)
    if scaler:
        scaler.scale(torch.zeros(()))  # makes its scale; gradients are scaled by hand
    rows = te.lr_optimizer(module, grad_scaler=scaler or None)
    outputs: list[torch.Tensor] = []
    batches = iter(prepared.batches(module, prefetch=prefetch))
    for _ in range(0, len(STREAM.batches), variant.micro or variant.ahead):
        if variant.micro:
            with te.accumulate(module):
                for i in itertools.islice(batches, variant.micro):
                    outputs += forward_backward(variant, prepared, module, [i], rows)
        else:
            ahead = list(itertools.islice(batches, variant.ahead))
            outputs += forward_backward(variant, prepared, module, ahead, rows)
        if scaler:
            scaler.step(rows)
            scaler.update()
    assert list(batches) == []
    return outputs


def forward_backward(
    variant: Variant,
    prepared: Prepared,
    module: Any,
    numbers: Sequence[int],
    rows: torch.optim.Optimizer,
) -> list[torch.Tensor]:
    looked_up = [prepared.call(module, prepared.args[i]) for i in numbers]
    if variant.schedule:
        for group in rows.param_groups:
            group["lr"] *= 0.9
    for i, out in zip(numbers, looked_up, strict=True):
        grads = [prepared.gradients[i][f] * (variant.scale or 1.0) for f in out]
        torch.autograd.backward(list(out.values()), grads)
    return [torch.cat(list(out.values()), 1).detach() for out in looked_up]


def state_of(module: Any) -> dict[str, torch.Tensor]:
    """Rows and state of everything that the stream touches."""
    out = {}
    for t in STREAM.tables:
        ids = np.unique(np.concatenate([b[f].ids for b in STREAM.batches for f in t.feature_names]))
        out[t.name] = module.rows(ids, table=t.name).float()
        for name, values in module.optimizer_state(ids, table=t.name).items():
            out[f"{t.name} {name}"] = values
    return out


def check_near(got: torch.Tensor, wanted: torch.Tensor, storage: str, what: str) -> None:
    """Within 1e-5 of the largest in the row; float16 rows within some of their last places."""
    rtol, floor = (1e-5, 1e-2) if storage == "float32" else (5e-3, 1e-1)
    assert got.shape == wanted.shape, what
    if got.numel():
        scale = wanted.abs().amax(dim=-1, keepdim=True).clamp(min=floor)
        worst = float(((got - wanted).abs() / scale).max())
        assert worst < rtol, f"{what}: off by {worst}"


@functools.cache
def native(name: str) -> tuple[str, list[torch.Tensor], dict[str, torch.Tensor]]:
    variant = VARIANTS[name]
    tiers = te.Tiers(ddr=budget(400, variant.recipe))
    with built(variant, tiers, kernel="native") as module:
        outputs = train(variant, module)
        return module.digest(), outputs, state_of(module)


@functools.cache
def all_in_hbm(name: str) -> tuple[str, list[torch.Tensor], dict[str, torch.Tensor]]:
    variant = VARIANTS[name]
    with built(variant, te.Tiers(hbm=budget(400, variant.recipe)), depth=0) as module:
        outputs = train(variant, module)
        return module.digest(), outputs, state_of(module)


@pytest.mark.parametrize("name", VARIANTS)
def test_training_agrees_with_the_native_kernels(name: str) -> None:
    variant = VARIANTS[name]
    _, outputs, rows = all_in_hbm(name)
    _, wanted_outputs, wanted_rows = native(name)
    storage = variant.recipe.storage
    for i, (got, wanted) in enumerate(zip(outputs, wanted_outputs, strict=True)):
        check_near(got, wanted, storage, f"output {i}")
    for key, wanted in wanted_rows.items():
        check_near(rows[key], wanted, storage, key)


@pytest.mark.parametrize("name", [name for name, v in VARIANTS.items() if v.plain])
def test_training_agrees_with_the_dense_reference(name: str) -> None:
    recipe = VARIANTS[name].recipe
    trainer = recipe.trainer(STREAM.tables)
    _, outputs, rows = all_in_hbm(name)
    for i, (batch, gradients) in enumerate(zip(STREAM.batches, STREAM.gradients, strict=True)):
        wanted = np.concatenate(list(trainer.forward(batch).values()), 1)
        check_near(outputs[i], torch.from_numpy(wanted), recipe.storage, f"output {i}")
        trainer.backward(batch, gradients)
    for t in STREAM.tables:
        ids = np.unique(np.concatenate([b[f].ids for b in STREAM.batches for f in t.feature_names]))
        wanted = torch.from_numpy(trainer.records(t, ids))
        check_near(rows[t.name], wanted[:, : t.dim], recipe.storage, t.name)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_tiers_size_changes_a_bit(name: str, tmp_path) -> None:
    variant = VARIANTS[name]
    digest, outputs, _ = all_in_hbm(name)
    every = ((2, 25, 100), (5, 40), (0, 1, 4), (False, True), ("lru", "lookahead"))
    settings = covering(every, len(name))
    for at, (hbm, ddr, depth, prefetch, policy) in enumerate(settings):
        tiers = te.Tiers(
            hbm=budget(hbm, variant.recipe),
            ddr=budget(ddr, variant.recipe) if at % 4 else None,
            ssd=tmp_path / str(at),
            store="memory",
        )
        with built(variant, tiers, depth=depth, policy=policy, lookahead=8) as module:
            got = train(variant, module, prefetch=prefetch and variant.ahead == 1)
            assert module.digest() == digest, settings[at]
            for a, b in zip(got, outputs, strict=True):
                assert torch.equal(a, b)
            if hbm == 2:
                assert module.stats().tiers["HBM"].evicted > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_the_native_kernels_give_their_own_bits_over_hbm(name: str, tmp_path) -> None:
    variant = VARIANTS[name]
    digest, outputs, _ = native(name)
    sizes = {"hbm": budget(15, variant.recipe), "ddr": budget(20, variant.recipe)}
    tiers = te.Tiers(**sizes, ssd=tmp_path, store="memory")
    with built(variant, tiers, kernel="native", depth=1) as module:
        got = train(variant, module, prefetch=variant.ahead == 1)
        assert module.digest() == digest
        assert all(torch.equal(a, b) for a, b in zip(got, outputs, strict=True))


def test_evaluation_gives_the_training_forwards_values() -> None:
    with built(
        VARIANTS["adagrad"], te.Tiers(hbm=budget(10, Recipe(PLAIN["adagrad"])), ddr="1MiB")
    ) as module:
        prepared = Prepared(STREAM)
        for i in range(len(prepared.args)):
            trained = prepared.call(module.train(), prepared.args[i])
            evaluated = prepared.call(module.eval(), prepared.args[i])
            for name, out in trained.items():
                assert not evaluated[name].requires_grad
                torch.testing.assert_close(evaluated[name], out.detach(), rtol=1e-6, atol=1e-6)
            torch.autograd.backward(
                list(trained.values()), [prepared.gradients[i][f] for f in trained]
            )
