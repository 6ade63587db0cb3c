"""Promise 1: the trained bytes do not depend on tiers, policy, window, depth, threads or store.

Every run's forwards and digest are compared bit for bit with ``reference.py``. The ordinary suite
runs a selection in which every pair of settings occurs; ``pytest -m long`` runs them all.
"""

import functools
import itertools
import json
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pytest

import streams
import tiered_embed as te
from covering import Choice, covering, parts, possible
from golden_runs import KINDS as GOLDEN_KINDS
from golden_runs import STREAMS as GOLDEN_STREAMS
from reference import Arrays, Bags, DenseTrainer, Stream
from running import (
    INIT,
    OPTIMIZERS,
    RECIPES,
    SEED,
    Prepared,
    Recipe,
    budget,
    make_module,
    reference,
)
from tiered_embed import _native

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "digests.json").read_text())
GOLDEN_CASES = [(name, kind) for name, kinds in GOLDEN_KINDS.items() for kind in kinds]

# Dims differ per recipe, so that whole and partial vectors and one column occur with each.
DIMS = {kind: (130, 24, 1, 7)[i % 4] for i, kind in enumerate(RECIPES)}
DUPLICATE_DIMS = {kind: (1, 130, 7, 24)[i % 4] for i, kind in enumerate(RECIPES)}

# Those beyond float32 and the formula alone.
OTHERS = [kind for kind in RECIPES if kind not in OPTIMIZERS]


@dataclass(frozen=True)
class Setting:
    ddr_percent: int
    policy: str
    lookahead: int
    depth: int | str
    threads: int
    store: str
    update: str = "backward"

    def __str__(self) -> str:
        return "-".join(map(str, astuple(self)))


VALUES = (
    (2, 10, 50, 100),
    ("lru", "lfu", "s3fifo", "lookahead"),
    (1, 8, 64),
    (0, 1, 4, "auto"),
    (1, 2, 4),
    ("rocksdb", "rocksdb_py", "memory"),
    ("backward", "step"),
)
STORES = VALUES[5]


def can_be(choice: Choice) -> bool:
    return fits(Setting(*choice[-7:]))


def can_be_in_memory(choice: Choice) -> bool:
    return fits(Setting(*choice[:5], "memory"))


def fits(setting: Setting) -> bool:
    return setting.depth == "auto" or setting.depth <= setting.lookahead


def every_setting() -> list[Setting]:
    every = [Setting(*values) for values in itertools.product(*VALUES[:6])]
    return [s for s in every if fits(s)]


def covering_settings(seed: int) -> list[Setting]:
    return [Setting(*choice) for choice in covering(VALUES, seed, allowed=can_be)]


@functools.cache
def recipe_settings(seed: int) -> list[tuple[str, Setting]]:
    """Every recipe with every value of every setting, and every pair of these."""
    chosen = covering((OTHERS, *VALUES), seed, allowed=can_be)
    return [(kind, Setting(*choice)) for kind, *choice in chosen]


def test_the_selections_cover_every_pair():
    assert len(every_setting()) == 1584
    chosen = covering_settings(7)
    assert len(chosen) < 24
    assert {s.update for s in chosen} == {"backward", "step"}
    seen = set().union(*(parts(astuple(s), 2) for s in chosen))
    assert seen == possible(VALUES, allowed=can_be)
    chosen = recipe_settings(7)
    assert len(chosen) < 5 * len(OTHERS)
    seen = set().union(*(parts((kind, *astuple(s)), 2) for kind, s in chosen))
    assert seen == possible((OTHERS, *VALUES), allowed=can_be)


@dataclass(frozen=True)
class Truth:
    """What a stream and an optimizer must give."""

    prepared: Prepared
    outputs: tuple[Arrays, ...]
    digest: str
    trainer: DenseTrainer


def truth_of(stream: Stream, recipe: Recipe) -> Truth:
    digest, outputs, trainer = reference(stream, recipe)
    return Truth(Prepared(stream), outputs, digest, trainer)


@functools.cache
def stream_of(name: str, dim: int, path: Path | None) -> Stream:
    if name == "scarab":
        assert path is not None
        return streams.scarab(path, dim)
    if name == "checkins":
        assert path is not None
        return streams.checkins(path)
    if name == "duplicates":
        return streams.duplicates(dim)
    return GOLDEN_STREAMS[name]()


@functools.cache
def cached_truth(name: str, dim: int, path: Path | None, kind: str) -> Truth:
    return truth_of(stream_of(name, dim, path), RECIPES[kind])


@pytest.fixture
def truth(request, data_file):
    """Of the parameters ``name`` and ``kind``."""
    name, kind = request.getfixturevalue("name"), request.getfixturevalue("kind")
    files = {"scarab": "scarab_recs.i64be.xz", "checkins": "lbsn_checkins_nyc.tsv.xz"}
    path = data_file(files[name]) if name in files else None
    dim = {"scarab": DIMS, "duplicates": DUPLICATE_DIMS}.get(name, {}).get(kind, 0)
    return cached_truth(name, dim, path, kind)


def run(truth: Truth, kind: str, setting: Setting, folder: Path, *, prefetch: bool = True) -> None:
    """Trains under ``setting``; raises unless everything equals the truth."""
    recipe = RECIPES[kind]
    stream = truth.prepared.stream
    tiers = te.Tiers(
        ddr=budget(stream, recipe, setting.ddr_percent), ssd=folder, store=setting.store
    )
    with make_module(
        stream.tables,
        tiers,
        recipe.optimizer,
        policy=setting.policy,
        lookahead=setting.lookahead,
        depth=setting.depth,
        num_threads=setting.threads,
        update=setting.update,
        **recipe.options(),
    ) as module:
        truth.prepared.train(module, truth.outputs, prefetch=prefetch)
        assert module.digest() == truth.digest, f"{setting}: another digest"
        assert module.stats().steps == len(stream.batches)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["scarab", "checkins", "duplicates"])
def test_every_pair_of_settings_gives_the_reference_bits(name, kind, truth, stores, tmp_path):
    chosen = [s for s in covering_settings(len(name) + len(kind)) if s.store in stores]
    for setting in chosen:
        run(truth, kind, setting, tmp_path / str(setting))
    print(f"{name}, {kind}: {len(chosen)} settings, one digest {truth.digest[:16]}")


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["scarab", "checkins", "duplicates"])
def test_every_recipe_gives_the_reference_bits(name, kind, truth, stores, tmp_path):
    chosen = [s for k, s in recipe_settings(len(name)) if k == kind and s.store in stores]
    assert {s.ddr_percent for s in chosen} >= ({2, 10, 50, 100} if len(stores) == 3 else set())
    for setting in chosen:
        run(truth, kind, setting, tmp_path / str(setting))
    print(f"{name}, {kind}: {len(chosen)} settings, one digest {truth.digest[:16]}")


@pytest.mark.parametrize("kind", GOLDEN_KINDS["maxima"])
@pytest.mark.parametrize("name", ["maxima"])
def test_maximum_pooling_gives_the_reference_bits(name, kind, truth, tmp_path):
    chosen = covering((*VALUES[:5], VALUES[6]), 3, allowed=can_be_in_memory)
    for i, (*setting, update) in enumerate(chosen):
        run(truth, kind, Setting(*setting, "memory", update), tmp_path / str(i))


@pytest.mark.parametrize("kind", ["adam", "lamb", "adam_bfloat16", "sgd_float16"])
@pytest.mark.parametrize("ddr_percent", [2, 30, 100])
@pytest.mark.parametrize("update", VALUES[6])
def test_accumulated_gradients_give_the_reference_bits(kind, ddr_percent, update, tmp_path):
    stream, recipe = streams.generated(num_batches=12), RECIPES[kind]
    prepared, trainer = Prepared(stream), recipe.trainer(stream.tables)
    tiers = te.Tiers(ddr=budget(stream, recipe, ddr_percent), ssd=tmp_path, store="memory")
    threads = 1 + ddr_percent % 2
    with make_module(
        stream.tables,
        tiers,
        recipe.optimizer,
        num_threads=threads,
        update=update,
        **recipe.options(),
    ) as module:
        rows = te.row_optimizer(module) if update == "step" else None
        for start in range(0, 12, 3):
            part = slice(start, start + 3)
            with te.accumulate(module):
                for i in range(12)[part]:
                    prepared.step(module, i, trainer.forward(stream.batches[i]))
            if rows is not None:
                rows.step()
                rows.zero_grad()
            trainer.accumulated(stream.batches[part], stream.gradients[part])
        assert module.digest() == trainer.digest()
        assert module.stats().steps == 4


@pytest.mark.long
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("ddr_percent", VALUES[0])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["scarab", "checkins", "duplicates"])
def test_every_setting_gives_the_reference_bits(
    name, kind, ddr_percent, store, truth, stores, tmp_path
):
    assert store in stores
    chosen = [s for s in every_setting() if (s.ddr_percent, s.store) == (ddr_percent, store)]
    for setting in chosen:
        run(truth, kind, setting, tmp_path / str(setting))
    print(f"{name}, {kind}, {ddr_percent} %, {store}: {len(chosen)} settings, one digest")


@pytest.mark.long
@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["scarab", "checkins", "duplicates"])
def test_every_triple_of_settings_gives_every_recipes_bits(name, kind, truth, stores, tmp_path):
    chosen = [Setting(*choice) for choice in covering(VALUES, 5, 3, allowed=can_be)]
    assert {s.store for s in chosen} <= set(stores)
    for setting in chosen:
        run(truth, kind, setting, tmp_path / str(setting))
    print(f"{name}, {kind}: {len(chosen)} settings, one digest {truth.digest[:16]}")


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["scarab", "checkins", "duplicates"])
def test_without_prefetch_and_without_a_store(name, kind, truth, tmp_path):
    tight = Setting(2, "lookahead", 8, 1, 2, "memory")
    run(truth, kind, tight, tmp_path / "bare", prefetch=False)
    stream, recipe = truth.prepared.stream, RECIPES[kind]
    # Fair shares between pools are no exact fit: room for every row in every pool.
    tiers = te.Tiers(ddr=4 * budget(stream, recipe, 100))
    with make_module(
        stream.tables, tiers, recipe.optimizer, lookahead=4, depth=2, **recipe.options()
    ) as module:
        truth.prepared.train(module, truth.outputs)
        assert module.digest() == truth.digest


def positive(stream: Stream) -> Stream:
    """Without signs: where thousands of gradients cancel, no float32 sum is near the true one."""
    batches = [
        {
            f: Bags(b.ids, b.offsets, None if b.weights is None else np.abs(b.weights))
            for f, b in batch.items()
        }
        for batch in stream.batches
    ]
    gradients = [{f: np.abs(g) for f, g in grads.items()} for grads in stream.gradients]
    return Stream(stream.tables, tuple(batches), tuple(gradients))


@pytest.mark.parametrize("kind", [k for k, r in RECIPES.items() if r.storage == "float32"])
@pytest.mark.parametrize("name", ["scarab", "checkins", "duplicates"])
def test_rows_agree_with_float64(name, kind, truth, tmp_path):
    recipe = RECIPES[kind]
    stream, optimizer = truth.prepared.stream, recipe.optimizer
    if name == "duplicates":
        stream = positive(stream)
    exact = recipe.trainer(stream.tables, np.float64)
    exact.train(stream)
    tiers = te.Tiers(ddr=budget(stream, recipe, 10), ssd=tmp_path, store="memory")
    with make_module(stream.tables, tiers, optimizer, **recipe.options()) as module:
        Prepared(stream).train(module)
        for table in stream.tables:
            ids = exact.rows(table)
            assert len(ids) == stream.touched()[table.name]
            wanted = exact.records(table, ids)
            state = module.optimizer_state(ids, table.name)
            assert list(state) == list(optimizer.state_layout(table.dim))
            arrays = [module.rows(ids, table.name), *state.values()]
            ends = np.cumsum([a.shape[1] for a in arrays])
            for array, part in zip(arrays, np.split(wanted, ends[:-1], axis=1), strict=True):
                scale = np.abs(part).mean()
                np.testing.assert_allclose(array.numpy(), part, rtol=1e-5, atol=1e-5 * scale)


# --- golden -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), GOLDEN_CASES)
def test_the_reference_gives_the_golden_digest(name, kind, truth):
    assert truth.digest == GOLDEN[name][kind]


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
@pytest.mark.parametrize(("name", "kind"), GOLDEN_CASES)
def test_every_instruction_set_gives_the_golden_digest(name, kind, isa, truth, tmp_path):
    if isa not in _native.available_isas():
        pytest.skip(f"this processor has no {isa}")
    before = _native.current_isa()
    _native.select_isa(isa)
    try:
        assert _native.current_isa() == isa
        for threads in (1, 2) if kind in OPTIMIZERS else (2,):
            setting = Setting(10, "lookahead", 8, 1, threads, "memory")
            run(truth, kind, setting, tmp_path / str(threads))
    finally:
        _native.select_isa(before)


def test_the_baseline_runs_everywhere():
    assert "baseline" in _native.available_isas()
    with pytest.raises(ValueError, match="sse9"):
        _native.select_isa("sse9")


# --- the streams bite -------------------------------------------------------------------------


def test_the_order_of_duplicates_shows_in_the_bits():
    stream = streams.duplicates(7)
    reverse = []
    for batch, gradients in zip(stream.batches, stream.gradients, strict=True):
        trainer = DenseTrainer(stream.tables, OPTIMIZERS["sgd"], init=INIT, seed=SEED)
        trainer.backward(batch, gradients)
        backwards = DenseTrainer(stream.tables, OPTIMIZERS["sgd"], init=INIT, seed=SEED)
        bags = batch["hot"]
        flipped = {
            "hot": Bags(
                bags.ids[::-1].copy(),
                (len(bags.ids) - bags.offsets)[::-1].copy(),
                None if bags.weights is None else bags.weights[::-1].copy(),
            )
        }
        backwards.backward(flipped, {"hot": gradients["hot"][::-1].copy()})
        reverse.append(trainer.digest() != backwards.digest())
    assert sum(reverse) > len(reverse) / 2


def test_the_streams_are_what_they_are_for(data_file):
    scarab = streams.scarab(data_file("scarab_recs.i64be.xz"), 1)
    ids = np.concatenate([b["scarab"].ids for b in scarab.batches])
    assert 0.2 < (ids < 0).mean() < 0.8
    assert len(np.unique(ids)) < len(ids)
    _, counts = np.unique(streams.duplicates(1).batches[3]["hot"].ids, return_counts=True)
    assert {9001, 256, 257} <= set(counts.tolist())
    checkins = streams.checkins(data_file("lbsn_checkins_nyc.tsv.xz"))
    assert len(checkins.tables) == 4
