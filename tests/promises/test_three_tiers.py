"""Promise 1 with HBM on top: the trained bytes do not depend on the sizes of HBM and DDR.

Under the native kernels every setting gives the dense reference's bits; under FBGEMM's, whose
arithmetic is its own, the bits of a run in which every row stays in HBM.
"""

import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import streams
import tiered_embed as te
from covering import covering
from reference import Arrays, Stream
from running import RECIPES, Prepared, budget, make_module, reference, train

HBM_PERCENT = (1, 5, 20, 100)
DDR_PERCENT = (5, 20, 100)
DEPTHS = (0, 1, 4)
POLICIES = ("lru", "lfu", "s3fifo", "lookahead")
STORES = ("memory", "rocksdb")
MATRIX = list(itertools.product(HBM_PERCENT, DDR_PERCENT, DEPTHS))

NATIVE = ("sgd", "rowwise_adagrad", "adagrad", "lamb")
FBGEMM = ("sgd", "rowwise_adagrad", "adagrad")
DIM = 24


@pytest.fixture(autouse=True)
def one_thread():
    """FBGEMM's spin: beside other tests each of them would wait for a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def stream_of(name: str, path: Path | None) -> Stream:
    if name == "scarab":
        assert path is not None
        return streams.scarab(path, DIM)
    return streams.duplicates(DIM)


@pytest.fixture
def path(request, data_file) -> Path | None:
    """Of the parameter ``name``."""
    scarab = request.getfixturevalue("name") == "scarab"
    return data_file("scarab_recs.i64be.xz") if scarab else None


def check(
    stream: Stream,
    kind: str,
    setting: tuple[int, int, int],
    truth: tuple[str, tuple[Arrays, ...] | None],
    folder: Path,
    *,
    kernel: str,
    at: int,
) -> None:
    """Trains under ``setting``; policy, window and threads follow from its place ``at``."""
    recipe = RECIPES[kind]
    hbm, ddr, depth = setting
    tiers = te.Tiers(
        hbm=budget(stream, recipe, hbm),
        ddr=budget(stream, recipe, ddr),
        ssd=folder,
        store=STORES[at % 7 == 0],
    )
    digest, stats = train(
        stream,
        recipe,
        tiers,
        truth[1],
        kernel=kernel,
        depth=depth,
        policy=POLICIES[at % 4],
        lookahead=(depth, 8, 30)[at % 3] if depth <= 8 else depth,
        num_threads=1 + at % 2,
    )
    assert digest == truth[0], f"HBM {hbm} %, DDR {ddr} %, depth {depth}: another digest"
    assert list(stats.tiers) == ["HBM", "DDR", "SSD"]
    if hbm < 100:
        assert stats.tiers["HBM"].evicted > 0
        assert stats.tiers["DDR"].staged == stats.tiers["HBM"].evicted


@functools.cache
def truth_of(name: str, path: Path | None, kind: str) -> tuple[str, tuple[Arrays, ...]]:
    digest, outputs, _ = reference(stream_of(name, path), RECIPES[kind])
    return digest, outputs


@functools.cache
def all_in_hbm(name: str, path: Path | None, kind: str) -> tuple[str, None]:
    stream = stream_of(name, path)
    recipe = RECIPES[kind]
    tiers = te.Tiers(hbm=4 * budget(stream, recipe, 100))
    return train(stream, recipe, tiers, None, kernel="fbgemm", depth=0)[0], None


@pytest.mark.parametrize("kind", NATIVE)
@pytest.mark.parametrize("name", ["scarab", "duplicates"])
def test_every_size_of_hbm_and_ddr_gives_the_reference_bits(name, kind, path, tmp_path):
    stream, truth = stream_of(name, path), truth_of(name, path, kind)
    for at, setting in enumerate(MATRIX):
        check(stream, kind, setting, truth, tmp_path / str(at), kernel="native", at=at)


@pytest.mark.parametrize("kind", FBGEMM)
@pytest.mark.parametrize("name", ["scarab", "duplicates"])
def test_every_size_of_hbm_and_ddr_gives_fbgemms_bits(name, kind, path, tmp_path):
    stream, truth = stream_of(name, path), all_in_hbm(name, path, kind)
    for at, setting in enumerate(MATRIX):
        check(stream, kind, setting, truth, tmp_path / str(at), kernel="fbgemm", at=at)


@pytest.mark.parametrize("kind", [kind for kind in RECIPES if kind not in NATIVE])
def test_every_recipe_gives_the_reference_bits_over_three_tiers(kind, tmp_path):
    stream = stream_of("duplicates", None)
    truth = truth_of("duplicates", None, kind)
    for at, setting in enumerate(covering((HBM_PERCENT, DDR_PERCENT, DEPTHS), len(kind))):
        check(stream, kind, setting, truth, tmp_path / str(at), kernel="native", at=at)


@pytest.mark.parametrize("kernel", ["native", "fbgemm"])
def test_without_a_store_rows_stay_in_hbm_and_ddr(kernel):
    stream, recipe = stream_of("duplicates", None), RECIPES["rowwise_adagrad"]
    wanted = truth_of if kernel == "native" else all_in_hbm
    truth = wanted("duplicates", None, "rowwise_adagrad")
    tiers = te.Tiers(hbm=budget(stream, recipe, 30), ddr=4 * budget(stream, recipe, 100))
    digest, stats = train(stream, recipe, tiers, truth[1], kernel=kernel, depth=1)
    assert digest == truth[0]
    assert stats.tiers["HBM"].evicted > 0
    assert set(stats.tiers) == {"HBM", "DDR"}
    small = te.Tiers(hbm=budget(stream, recipe, 30), ddr=budget(stream, recipe, 30))
    with pytest.raises(te.CapacityError, match="raise hbm and ddr or add an ssd tier"):
        train(stream, recipe, small, None, kernel=kernel, depth=1)


@pytest.mark.parametrize("kernel", ["native", "fbgemm"])
def test_without_a_store_rows_are_loaded_all_or_none(kernel):
    """More than HBM holds goes through it in parts; more than both hold changes nothing."""
    record = 4 * DIM
    with te.TieredEmbeddingBag(
        None,
        DIM,
        tiers=te.Tiers(hbm=20 * record, ddr=60 * record),
        optimizer=te.optim.SGD(lr=0.1),
        device="cpu",
        kernel=kernel,
    ) as module:
        weights = torch.arange(70.0 * DIM).view(70, DIM)
        module.load_rows(range(70), weights)
        assert module.stats().tiers["HBM"].overflow == 0
        assert torch.equal(module.rows(range(70)), weights)
        before = module.digest()
        with pytest.raises(te.CapacityError, match="raise hbm and ddr or add an ssd tier"):
            module.load_rows(range(60, 90), weights[:30])
        assert module.digest() == before
        module.load_rows(range(60, 80), weights[:20])
        assert torch.equal(module.rows(range(60, 80)), weights[:20])


@pytest.mark.parametrize("kernel", ["native", "fbgemm"])
def test_evaluation_rows_and_checkpoints_see_all_three_tiers(kernel, tmp_path):
    stream, recipe = stream_of("duplicates", None), RECIPES["adagrad"]
    trained: dict[str, torch.Tensor] = {}
    prepared = Prepared(stream)
    half = len(stream.batches) // 2
    for name, hbm, ddr in (("whole", 400, 100), ("parts", 10, 20)):
        tiers = te.Tiers(
            hbm=budget(stream, recipe, hbm), ddr=budget(stream, recipe, ddr), ssd=tmp_path / name
        )
        options = {"device": "cpu", "kernel": kernel}
        with make_module(stream.tables, tiers, recipe.optimizer, **options) as module:
            for i in range(half):
                prepared.step(module, i, {})
            te.checkpoint.save(module, tmp_path / f"saved-{name}", step=half)
            for i in range(half, len(stream.batches)):
                prepared.step(module, i, {})
            digest = module.digest()
            module.eval()
            looked_up = prepared.call(module, prepared.args[0])
            trained |= {f"{name} {f}": t.clone() for f, t in looked_up.items()}
            for table in stream.tables:
                ids = np.unique(
                    np.concatenate([b[table.feature_names[0]].ids for b in stream.batches])
                )
                trained[f"{name} rows {table.name}"] = module.rows(ids, table=table.name)
            module.train()
            te.checkpoint.load(module, tmp_path / f"saved-{name}")
            for i in range(half, len(stream.batches)):
                prepared.step(module, i, {})
            assert module.digest() == digest
        with make_module(stream.tables, tiers, recipe.optimizer, **options) as module:
            assert module.digest() == digest, "another process opens what was flushed"
    for key in [key for key in trained if key.startswith("whole")]:
        assert torch.equal(trained[key], trained[key.replace("whole", "parts", 1)]), key
