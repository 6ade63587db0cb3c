"""What version 0.1 wrote opens, trains on and restores, with the same bits.

Every test works in a copy: opening a store writes into its directory.
"""

import hashlib
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
from tiered_embed.checkpoint.manifest import Manifest

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


@pytest.mark.parametrize("store", BACKENDS)
def test_a_table_with_fewer_rows_than_its_ids_is_refused(store, golden):
    """Version 0.1 recorded no number of rows, so the ids in the store decide."""
    ssd = golden / store / "ssd"
    options = {"optimizer": te.optim.Adam(lr=0.1), "seed": 7, "name": "single", "padding_idx": 3}
    tiers = te.Tiers(ddr=600, ssd=ssd, store=store)
    with single(ssd, store) as module:
        ids = [int(i) for ids, _ in module.engine.pools[0].materialised(0) for i in ids]
    layouts = {p: p.read_bytes() for p in ssd.rglob("layout.json")}
    for rows in (max(ids), 40, 4):
        least = min(i for i in ids if i >= rows)
        with pytest.raises(te.ConfigError, match=rf"with id {least}, and num_embeddings is {rows}"):
            te.TieredEmbedding(rows, 4, tiers=tiers, **options)
    with te.TieredEmbedding(max(ids) + 1, 4, tiers=tiers, **options) as module:
        assert module.stats().steps == EXPECTED[store]["steps"]
    with single(ssd, store) as module:
        assert module.digest() == EXPECTED[store]["digest"]
    assert {p: p.read_bytes() for p in ssd.rglob("layout.json")} == layouts


def test_ids_of_an_unbounded_table_are_refused_by_a_table_with_bounds(golden):
    ssd = golden / "collection" / "ssd"
    tables = [te.TableConfig("tag", 50, 8)]
    options = {"optimizer": te.optim.RowWiseAdagrad(lr=0.05), "seed": 11}
    with pytest.raises(te.ConfigError, match=r"'tag' was stored in .* with id .* is 50"):
        te.TieredEmbeddingBagCollection(tables, tiers=te.Tiers(ddr=1500, ssd=ssd), **options)
    with collection(ssd) as module:
        assert module.digest() == EXPECTED["collection"]["digest"]


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


# --- manifests of format 1 ------------------------------------------------------------------------


def rewritten(folder: Path, change) -> None:
    """The manifest of a step after ``change(content)``, with the digest that belongs to it."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())["content"]
    change(content)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    document = {"content": content, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}
    path.write_text(json.dumps(document, indent=1) + "\n")


def test_a_manifest_of_format_1_is_one_rank_with_whole_tables(golden):
    folder = golden / "collection" / "checkpoints" / "step-5"
    assert json.loads((folder / "manifest.json").read_text())["content"]["version"] == 1
    manifest = Manifest.read(folder)
    assert (manifest.version, manifest.ranks) == (2, 1)
    assert [pool.shards for pool in manifest.pools] == [["whole", "whole"], ["whole"]]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda content: content.update(ranks=2), te.CorruptionError),
        (lambda content: content["pools"][0].update(shards=["rows 0-5"]), te.CorruptionError),
        (lambda content: content.update(pools=7), te.CorruptionError),
        (lambda content: content["pools"].append(None), te.CorruptionError),
        (lambda content: content["pools"][0]["layout"].update(tables="ab"), te.CorruptionError),
        (lambda content: content.update(version=True), te.CorruptionError),
        (lambda content: content.update(version=2), te.CorruptionError),
        (lambda content: content.update(version=3), te.StoreError),
        (lambda content: content.update(version=0), te.StoreError),
    ],
)
def test_what_no_version_wrote_is_refused(change, error, golden):
    checkpoints = golden / "rocksdb" / "checkpoints"
    rewritten(checkpoints / "step-6", change)
    with pytest.raises(error) as caught:
        te.checkpoint.verify(checkpoints)
    assert caught.type is error


def test_a_part_of_a_table_is_not_restored_as_the_whole(golden):
    checkpoints = golden / "rocksdb" / "checkpoints"

    def change(content):
        content.update(version=2, ranks=2)
        content["pools"][0]["shards"] = ["rows 0-40"]

    rewritten(checkpoints / "step-6", change)
    with single(golden / "rocksdb" / "ssd") as module:
        with pytest.raises(te.ConfigError, match=r"holds the shards \['rows 0-40'\]"):
            te.checkpoint.load(module, checkpoints)
        assert module.digest() == EXPECTED["rocksdb"]["digest"]


# --- what a newer version does to an older directory ----------------------------------------------


def test_a_directory_keeps_format_1_until_a_table_is_added(golden):
    root = golden / "collection" / "ssd"
    before = {p.parent.name: p.read_bytes() for p in root.glob("*/layout.json")}
    with collection(root) as module:
        train_collection(module, 9, 10)
    assert {p.parent.name: p.read_bytes() for p in root.glob("*/layout.json")} == before
    for meta in root.glob("*/meta.json"):
        content = json.loads(meta.read_text())["content"]
        assert (content["step"], content["settled"]) == (10, True)
    with collection(root, "user") as module:
        assert module.stats().steps == 10
    assert {p.parent.name: p.read_bytes() for p in root.glob("*/layout.json")} == before
    te.TieredEmbeddingBagCollection(
        [te.TableConfig("item", 70, 4), te.TableConfig("added", 30, 4)],
        tiers=te.Tiers(ddr=1500, ssd=root),
        optimizer=te.optim.RowWiseAdagrad(lr=0.05),
        seed=11,
    ).close()
    after = {p.parent.name: p.read_bytes() for p in root.glob("*/layout.json")}
    (changed,) = (name for name in after if after[name] != before[name])
    assert json.loads(after[changed])["content"]["format_version"] == 2
    with collection(root) as module:
        assert module.stats().steps == 10


def test_a_table_of_version_0_1_is_dropped(golden):
    root = golden / "collection" / "ssd"
    with collection(root) as module:
        wanted = module.rows(range(70), "item")
    assert te.drop_table(root, "user") >= 0
    with collection(root) as module:
        assert torch.equal(module.rows(range(70), "item"), wanted)
        assert module.stats().steps == 9
