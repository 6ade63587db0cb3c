"""Promise 1: the trained bytes do not depend on tiers, policy, window, depth, threads or store.

Every run's forwards and digest are compared bit for bit with ``reference.py``. The ordinary suite
runs a selection in which every pair of settings occurs; ``pytest -m long`` runs them all.
"""

import functools
import itertools
import json
import math
import random
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pytest

import streams
import tiered_embed as te
from golden.make import STREAMS as GOLDEN_STREAMS
from reference import Arrays, Bags, DenseTrainer, Stream
from running import INIT, OPTIMIZERS, SEED, Prepared, make_module, record_bytes
from tiered_embed import _native

GOLDEN = json.loads((Path(__file__).parent / "golden" / "digests.json").read_text())

# Dims differ per optimizer, so that whole and partial vectors and one column occur with each.
DIMS = {"sgd": 130, "rowwise_adagrad": 24, "adagrad": 1, "adam": 7}
DUPLICATE_DIMS = {"sgd": 1, "rowwise_adagrad": 130, "adagrad": 7, "adam": 24}


@dataclass(frozen=True)
class Setting:
    ddr_percent: int
    policy: str
    lookahead: int
    depth: int
    threads: int
    store: str

    def __str__(self) -> str:
        return "-".join(map(str, astuple(self)))


VALUES = (
    (2, 10, 50, 100),
    ("lru", "lookahead"),
    (1, 8, 64),
    (0, 1, 4),
    (1, 2, 4),
    ("rocksdb", "rocksdb_py", "memory"),
)


def every_setting() -> list[Setting]:
    every = [Setting(*values) for values in itertools.product(*VALUES)]
    return [s for s in every if s.depth <= s.lookahead]


def covering_settings(seed: int) -> list[Setting]:
    """A greedy, seeded selection in which every possible pair of two settings' values occurs."""
    every = every_setting()
    random.Random(seed).shuffle(every)

    def pairs(setting: Setting) -> set[tuple[tuple[int, object], ...]]:
        return set(itertools.combinations(enumerate(astuple(setting)), 2))

    pairs_of = {s: pairs(s) for s in every}
    missing = set().union(*pairs_of.values())
    chosen = []
    while missing:
        best = max(every, key=lambda s: len(pairs_of[s] & missing))
        chosen.append(best)
        missing -= pairs_of[best]
    return chosen


def test_the_selection_covers_every_pair():
    assert len(every_setting()) == 576
    chosen = covering_settings(7)
    assert len(chosen) < 24
    for a, b in itertools.combinations(range(len(VALUES)), 2):
        seen = {(astuple(s)[a], astuple(s)[b]) for s in chosen}
        possible = {(astuple(s)[a], astuple(s)[b]) for s in every_setting()}
        assert seen == possible


@dataclass(frozen=True)
class Truth:
    """What a stream and an optimizer must give."""

    prepared: Prepared
    outputs: tuple[Arrays, ...]
    digest: str
    trainer: DenseTrainer


def truth_of(stream: Stream, optimizer: te.optim.Optimizer) -> Truth:
    trainer = DenseTrainer(stream.tables, optimizer, init=INIT, seed=SEED)
    outputs = []
    for batch, gradients in zip(stream.batches, stream.gradients, strict=True):
        outputs.append(trainer.forward(batch))
        trainer.backward(batch, gradients)
    return Truth(Prepared(stream), tuple(outputs), trainer.digest(), trainer)


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
    return truth_of(stream_of(name, dim, path), OPTIMIZERS[kind])


@pytest.fixture
def truth(request, data_file):
    """Of the parameters ``name`` and ``kind``."""
    name, kind = request.getfixturevalue("name"), request.getfixturevalue("kind")
    files = {"scarab": "scarab_recs.i64be.xz", "checkins": "lbsn_checkins_nyc.tsv.xz"}
    path = data_file(files[name]) if name in files else None
    dim = {"scarab": DIMS, "duplicates": DUPLICATE_DIMS}.get(name, {}).get(kind, 0)
    return cached_truth(name, dim, path, kind)


def ddr_bytes(stream: Stream, optimizer: te.optim.Optimizer, percent: int) -> int:
    """A share of the bytes that the stream touches, but a record for every pool at least."""
    touched = stream.touched()
    sizes = [record_bytes(t, optimizer) for t in stream.tables]
    total = sum(touched[t.name] * size for t, size in zip(stream.tables, sizes, strict=True))
    pools = len({t.dim for t in stream.tables})
    return max(math.ceil(total * percent / 100), pools * max(sizes))


def run(truth: Truth, kind: str, setting: Setting, folder: Path, *, prefetch: bool = True) -> None:
    """Trains under ``setting``; raises unless everything equals the truth."""
    optimizer = OPTIMIZERS[kind]
    stream = truth.prepared.stream
    tiers = te.Tiers(
        ddr=ddr_bytes(stream, optimizer, setting.ddr_percent), ssd=folder, store=setting.store
    )
    with make_module(
        stream.tables,
        tiers,
        optimizer,
        policy=setting.policy,
        lookahead=setting.lookahead,
        depth=setting.depth,
        num_threads=setting.threads,
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


@pytest.mark.long
@pytest.mark.parametrize("store", VALUES[5])
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


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["scarab", "checkins", "duplicates"])
def test_without_prefetch_and_without_a_store(name, kind, truth, tmp_path):
    tight = Setting(2, "lookahead", 8, 1, 2, "memory")
    run(truth, kind, tight, tmp_path / "bare", prefetch=False)
    stream, optimizer = truth.prepared.stream, OPTIMIZERS[kind]
    # Fair shares between pools are no exact fit: room for every row in every pool.
    tiers = te.Tiers(ddr=4 * ddr_bytes(stream, optimizer, 100))
    with make_module(stream.tables, tiers, optimizer, lookahead=4, depth=2) as module:
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


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["scarab", "checkins", "duplicates"])
def test_rows_agree_with_float64(name, kind, truth, tmp_path):
    optimizer = OPTIMIZERS[kind]
    stream = truth.prepared.stream
    if name == "duplicates":
        stream = positive(stream)
    exact = DenseTrainer(stream.tables, optimizer, init=INIT, seed=SEED, dtype=np.float64)
    exact.train(stream)
    tiers = te.Tiers(ddr=ddr_bytes(stream, optimizer, 10), ssd=tmp_path, store="memory")
    with make_module(stream.tables, tiers, optimizer) as module:
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


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", GOLDEN_STREAMS)
def test_the_reference_gives_the_golden_digest(name, kind, truth):
    assert truth.digest == GOLDEN[name][kind]


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", GOLDEN_STREAMS)
def test_every_instruction_set_gives_the_golden_digest(name, kind, isa, truth, tmp_path):
    if isa not in _native.available_isas():
        pytest.skip(f"this processor has no {isa}")
    before = _native.current_isa()
    _native.select_isa(isa)
    try:
        assert _native.current_isa() == isa
        for threads in (1, 2):
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
