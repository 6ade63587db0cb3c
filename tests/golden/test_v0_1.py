"""What version 0.1 wrote opens, trains on and restores, with the same bits.

Every test works in a copy: opening a store writes into its directory.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from make_v0_1 import (
    BACKENDS,
    FOLDER,
    collection,
    extra,
    single,
    train_collection,
    train_single,
)

import tiered_embed as te

EXPECTED = json.loads((FOLDER / "expected.json").read_text())


@pytest.fixture
def golden(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "v0.1")
    return tmp_path / "v0.1"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("store", [*BACKENDS, "auto"])
def test_a_working_directory_opens_and_trains_on(store, golden, tmp_path):
    kind = "rocksdb" if store == "auto" else store
    with single(golden / kind / "ssd", store) as module:
        assert module.stats().steps == EXPECTED[kind]["steps"]
        assert module.digest() == EXPECTED[kind]["digest"]
        train_single(module, 9, 12)
        trained = module.digest()
    with single(tmp_path / "new") as module:
        train_single(module, 0, 12)
        assert module.digest() == trained
    with single(golden / kind / "ssd", store) as module:
        assert module.digest() == trained


def test_a_collection_of_two_pools_opens_and_trains_on(golden, tmp_path):
    with collection(golden / "collection" / "ssd") as module:
        assert module.stats().steps == EXPECTED["collection"]["steps"]
        assert module.digest() == EXPECTED["collection"]["digest"]
        train_collection(module, 9, 12)
        trained = module.digest()
    with collection(tmp_path / "new") as module:
        train_collection(module, 0, 12)
        assert module.digest() == trained


@pytest.mark.parametrize("store", BACKENDS)
@pytest.mark.parametrize("into", BACKENDS)
def test_a_checkpoint_restores_into_every_store(store, into, golden, tmp_path):
    checkpoints = golden / store / "checkpoints"
    assert te.checkpoint.list(checkpoints) == [6]
    te.checkpoint.verify(checkpoints)
    with single(tmp_path / "ssd", into) as module:
        assert te.checkpoint.load(module, checkpoints)["step"] == 6
        train_single(module, 6, 9)
        assert module.digest() == EXPECTED[store]["digest"]


def test_a_step_and_its_delta_restore_with_extra(golden, tmp_path):
    checkpoints = golden / "collection" / "checkpoints"
    before = snapshot(checkpoints)
    te.checkpoint.verify(checkpoints)
    with collection(golden / "collection" / "ssd") as module:
        for step in (5, 8):
            found = te.checkpoint.load(module, checkpoints, step)
            assert module.digest() == EXPECTED["collection"][str(step)]
            assert module.stats().steps == step
            assert found["step"] == step
            wanted = extra(step)
            assert torch.equal(found["extra"].pop("dense"), wanted.pop("dense"))
            assert found["extra"] == wanted
        assert snapshot(checkpoints) == before, "a restore only reads"
        train_collection(module, 8, 9)
        assert module.digest() == EXPECTED["collection"]["digest"]
        te.checkpoint.save_delta(module, checkpoints, step=9)
    with collection(tmp_path / "new") as module:
        te.checkpoint.load(module, checkpoints, 9)
        assert module.digest() == EXPECTED["collection"]["digest"]
    assert te.checkpoint.compact(checkpoints, 9) == 9
    te.checkpoint.prune(checkpoints, keep=1)
    with collection(tmp_path / "newer") as module:
        te.checkpoint.load(module, checkpoints)
        assert module.digest() == EXPECTED["collection"]["digest"]


def test_a_store_left_amid_training_is_refused_until_it_is_restored(golden):
    with single(golden / "killed" / "ssd") as module:
        for _ in range(2):
            with pytest.raises(te.StoreError, match=r"ended without close\(\) or flush\(\)"):
                module(torch.arange(3))
        te.checkpoint.load(module, golden / "rocksdb" / "checkpoints")
        train_single(module, 6, 9)
        assert module.digest() == EXPECTED["rocksdb"]["digest"]


def test_a_restore_that_version_0_1_left_halfway_is_refused_until_it_is_repeated(golden):
    """Between its two renames: the replaced store, marked, beside the one to replace it."""
    root = golden / "killed" / "ssd"
    (folder,) = root.iterdir()
    name = folder.name.removeprefix("pool-")
    shutil.copytree(golden / "rocksdb" / "ssd" / folder.name, root / f"restoring-{name}")
    folder.rename(root / f"discarded-{name}")
    with single(root) as module:
        with pytest.raises(te.StoreError, match=r"ended without close\(\) or flush\(\)"):
            module(torch.arange(3))
        te.checkpoint.load(module, golden / "rocksdb" / "checkpoints")
        train_single(module, 6, 9)
        assert module.digest() == EXPECTED["rocksdb"]["digest"]
    assert [p.name for p in root.iterdir() if p.is_dir()] == [folder.name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": te.optim.SGD(lr=0.1)}, "optimizer: stored 'Adam', wanted 'SGD'"),
        ({"seed": 8}, "seed.*stored 7, wanted 8"),
        ({"init": te.init.Uniform(-1, 1)}, "init"),
    ],
)
def test_another_layout_is_refused(options, message, golden):
    with pytest.raises(te.ConfigError, match=message):
        single(golden / "rocksdb" / "ssd", **options)
    with single(golden / "rocksdb" / "ssd") as module:
        assert module.digest() == EXPECTED["rocksdb"]["digest"]


def test_rows_have_their_initial_values(golden):
    """Of rows that were never trained, and of the padding row."""
    with single(golden / "rocksdb" / "ssd") as module:
        assert np.count_nonzero(module.rows([3])) == 0
