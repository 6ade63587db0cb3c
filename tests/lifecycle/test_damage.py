"""A store's files that are moved, removed, replaced or damaged while it is open: a typed error, at
the latest when it is closed, or the right rows; never other rows."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tiered_embed as te

ROWS = 2000


def make(ssd: Path, store: str) -> te.TieredEmbedding:
    return te.TieredEmbedding(
        ROWS, 8, tiers=te.Tiers(ddr="8KiB", ssd=ssd, store=store), optimizer=te.optim.SGD(lr=0.1)
    )


def train(emb: te.TieredEmbedding, first: int, last: int) -> None:
    for step in range(first, last):
        ids = torch.randint(0, ROWS, (300,), generator=torch.Generator().manual_seed(step))
        emb(ids).sum().backward()


def folder(ssd: Path) -> Path:
    (found,) = ssd.glob("pool-*")
    return found


def sst(ssd: Path) -> Path:
    return max(folder(ssd).glob("db/*.sst"), key=lambda file: file.stat().st_size)


def cut(file: Path, size: int) -> None:
    with open(file, "r+b") as opened:
        opened.truncate(size)


def replace_by_copy(path: Path) -> None:
    """As a restore from a backup or an rsync does."""
    copy = path.with_name(path.name + ".copy")
    shutil.copytree(path, copy)
    shutil.rmtree(path)
    copy.rename(path)


def swap(a: Path, b: Path) -> None:
    aside = a.with_name("aside")
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


def other(ssd: Path) -> Path:
    """Another store's directory, with other rows."""
    path = ssd.with_name("other")
    if not path.exists():
        with make(path, "auto") as emb:
            train(emb, 50, 55)
    return path


DAMAGES: dict[str, Callable[[Path], object]] = {
    "directory removed": shutil.rmtree,
    "directory moved": lambda ssd: ssd.rename(ssd.with_name("moved")),
    "directory moved, an empty one made": lambda ssd: (
        ssd.rename(ssd.with_name("moved")),
        ssd.mkdir(),
    ),
    "directory replaced by a copy": replace_by_copy,
    "directory swapped with another": lambda ssd: swap(ssd, other(ssd)),
    "store removed": lambda ssd: shutil.rmtree(folder(ssd)),
    "store replaced by a copy": lambda ssd: replace_by_copy(folder(ssd)),
    "store swapped with another": lambda ssd: swap(folder(ssd), folder(other(ssd))),
    "db removed": lambda ssd: shutil.rmtree(folder(ssd) / "db"),
    "db replaced by a copy": lambda ssd: replace_by_copy(folder(ssd) / "db"),
    "table file removed": lambda ssd: sst(ssd).unlink(),
    "table file cut": lambda ssd: cut(sst(ssd), 100),
    "table file swapped": lambda ssd: swap(sst(ssd), sst(other(ssd))),
    "every table file removed": lambda ssd: [f.unlink() for f in folder(ssd).glob("db/*.sst")],
    "MANIFEST removed": lambda ssd: [f.unlink() for f in folder(ssd).glob("db/MANIFEST*")],
    "CURRENT removed": lambda ssd: (folder(ssd) / "db" / "CURRENT").unlink(),
    "LOCK removed": lambda ssd: (folder(ssd) / "LOCK").unlink(),
    "layout.json removed": lambda ssd: (folder(ssd) / "layout.json").unlink(),
    "meta.json removed": lambda ssd: (folder(ssd) / "meta.json").unlink(),
    "meta.json emptied": lambda ssd: cut(folder(ssd) / "meta.json", 0),
}
STAGES = ("flushed", "training", "saved")


@pytest.fixture(scope="module")
def digests(tmp_path_factory) -> dict[int, str]:
    """The digest after each number of steps."""
    out = {}
    with te.TieredEmbedding(
        ROWS, 8, tiers=te.Tiers(ddr="1MiB"), optimizer=te.optim.SGD(lr=0.1)
    ) as emb:
        for step in range(12):
            out[step] = emb.digest()
            train(emb, step, step + 1)
    return out


SHORT = {"directory replaced by a copy", "table file removed", "db replaced by a copy"}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("store", ["rocksdb", "rocksdb_py"])
@pytest.mark.parametrize(
    "damage",
    [d if d in SHORT else pytest.param(d, marks=pytest.mark.long) for d in DAMAGES],
)
def test_damage_of_an_open_store_is_told_or_does_no_harm(
    damage: str, store: str, stage: str, stores, digests, tmp_path
) -> None:
    if store not in stores:
        pytest.skip(f"{store} is not built")
    ssd = tmp_path / "ssd"
    emb = make(ssd, store)
    train(emb, 0, 4)
    emb.flush()
    if stage == "training":
        train(emb, 4, 5)
    if stage == "saved":
        te.checkpoint.save(emb, tmp_path / "steps", step=4)
    reached = 5 if stage == "training" else 4
    DAMAGES[damage](ssd)
    told = False
    try:
        train(emb, reached, 8)
        reached = 8
        digest = emb.digest()
        assert digest == digests[8]
    except te.StoreError:
        told = True
    try:
        emb.close()
    except te.TieredEmbedError:
        told = True
    if not told:  # then the directory holds every row
        with make(ssd, store) as again:
            assert again.digest() == digests[8]
        return
    # Who opens what is there now gets the rows of one step, or is told.
    if stage == "saved":
        with make(tmp_path / "new", store) as fresh:
            if damage == "table file cut":  # the step has a link to the same file
                with pytest.raises(te.CorruptionError):
                    te.checkpoint.load(fresh, tmp_path / "steps")
            else:
                assert te.checkpoint.load(fresh, tmp_path / "steps")["step"] == 4
                assert fresh.digest() == digests[4]
    try:
        with make(ssd, store) as again:
            found = again.digest()
    except te.TieredEmbedError:
        return
    lost = {"directory removed", "directory moved", "directory moved, an empty one made"}
    lost |= {"store removed", "directory swapped with another", "store swapped with another"}
    assert found in digests.values() or damage in lost, (damage, store, stage)
