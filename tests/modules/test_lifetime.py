"""Modules that are made again while the old one has their directory open, as in a notebook."""

import gc
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch

import tiered_embed as te
from tiered_embed.store import OpenHereError, drop_table

ROWS, DIM = 12, 4
IDS = torch.arange(6)
STORES = ["rocksdb", "memory"]

CELL = """
emb = te.TieredEmbedding(
    12, 4, name="user", tiers=te.Tiers(ddr=80, ssd=ssd, store=store), optimizer=te.optim.SGD(lr=1.0)
)
model = torch.nn.Sequential(emb)
model.itself = [model]
loss = model(ids).sum()
loss.backward()
"""


def run(namespace) -> None:
    exec(CELL, namespace)


@pytest.fixture
def notebook(tmp_path, request):
    yield {"te": te, "torch": torch, "ids": IDS, "ssd": tmp_path, "store": "memory"}
    te.close_all()


@pytest.mark.parametrize("store", STORES)
def test_a_cell_that_runs_again_is_told_what_has_the_directory(notebook, store):
    notebook["store"] = store
    run(notebook)
    before = notebook["emb"].weight.clone()
    with pytest.raises(te.StoreError) as told:
        run(notebook)
    for part in (
        "which is this process",
        "te.close_all()",
        "It is the TieredEmbedding of the tables ['user'], which something still refers to",
    ):
        assert part in str(told.value)
    assert torch.equal(notebook["emb"].weight, before), "the old module goes on"
    te.close_all()
    run(notebook)
    before[IDS] -= 1
    assert torch.equal(notebook["emb"].weight, before), "with the rows that the old one trained"


@pytest.mark.parametrize("store", STORES)
def test_a_module_that_nothing_refers_to_is_taken_over(notebook, store):
    """A cycle of references keeps it open until the garbage collector runs."""
    notebook["store"] = store
    gc.disable()
    try:
        run(notebook)
        before = notebook["emb"].weight.clone()
        for name in ("emb", "model", "loss"):
            del notebook[name]
        run(notebook)
    finally:
        gc.enable()
    before[IDS] -= 1
    assert torch.equal(notebook["emb"].weight, before)


def test_other_paths_to_the_directory_are_recognised(notebook, tmp_path):
    notebook["ssd"] = tmp_path / "real"
    run(notebook)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    notebook["ssd"] = tmp_path / "link"
    with pytest.raises(te.StoreError, match=r"which is this process.*It is the TieredEmbedding"):
        run(notebook)


def test_every_way_to_open_says_so(notebook):
    run(notebook)
    ssd = notebook["ssd"]
    tiers = te.Tiers(ddr=80, ssd=ssd, store="memory")
    options = {"tiers": tiers, "optimizer": te.optim.SGD(lr=1.0)}
    here = "which is this process"
    with pytest.raises(te.StoreError, match=here):
        te.TieredEmbeddingBag(ROWS, DIM, name="user", **options)
    with pytest.raises(te.StoreError, match=here):
        te.TieredEmbeddingBagCollection([te.TableConfig("user", ROWS, DIM)], **options)
    with pytest.raises(te.StoreError, match=here):
        drop_table(ssd, "user")
    te.close_all()
    assert drop_table(ssd, "user") > 0


def test_another_process_is_named_by_its_pid(notebook):
    run(notebook)
    script = f"""
        import tiered_embed as te
        tiers = te.Tiers(ddr=80, ssd={str(notebook["ssd"])!r}, store="memory")
        try:
            te.TieredEmbedding(12, 4, name="user", tiers=tiers, optimizer=te.optim.SGD(lr=1.0))
        except te.StoreError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "close it there first" in told
    assert "this process" not in told


def test_close_all_closes_every_module_whatever_happens_to_one(notebook, tmp_path, monkeypatch):
    run(notebook)
    memory = te.TieredEmbedding(
        ROWS, DIM, tiers=te.Tiers(ddr="1MiB"), optimizer=te.optim.SGD(lr=1.0)
    )
    closed = te.TieredEmbedding(ROWS, DIM, tiers=te.Tiers(ddr="1MiB"), optimizer=None)
    closed.close()

    def fails() -> None:
        raise te.StoreError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(notebook["emb"].engine._group.pools[0].store, "close", fails)
        with pytest.raises(te.StoreError, match="no space left"):
            te.close_all()
    with pytest.raises(te.ClosedError):
        memory(IDS)
    te.close_all()
    te.close_all()


def test_the_error_travels_between_processes():
    error = OpenHereError("open")
    assert str(pickle.loads(pickle.dumps(error))) == "open"
