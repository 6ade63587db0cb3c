"""A process that is killed amid training: its directory does not open as if nothing had happened,
and the documented loop goes on from wherever it was killed."""

import signal

import pytest
import torch

import tiered_embed as te
from children import Children

SMALL, LARGE = "1KiB", "1MiB"  # of 100 rows a few fit, or all

MAKE = """
import os, signal, sys
import torch
import tiered_embed as te
from tiered_embed import checkpoint

def make(root, ddr, store="auto", **options):
    options = {"optimizer": te.optim.Adagrad(lr=0.1), **options}
    return te.TieredEmbedding(
        100, 4, tiers=te.Tiers(ddr=ddr, ssd=root + "/ssd", store=store), num_threads=1, **options)

def train(emb, step):
    ids = torch.randint(0, 100, (20,), generator=torch.Generator().manual_seed(step))
    emb(ids).sum().backward()

def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""

# What changes rows for the first time after an opening, a flush, a restore.
CHANGES = {
    "backward": "train(emb, 2)",
    "load_rows": "emb.load_rows(range(3), torch.ones(3, 4))",
    "state_dict": "emb.load_state_dict({'weight': torch.ones(100, 4)}, strict=False)",
    "accumulate": """
with te.accumulate(emb):
    train(emb, 2)
    train(emb, 3)""",
}


@pytest.mark.parametrize(
    ("store", "change", "ddr"),
    [
        ("rocksdb", "backward", LARGE),
        ("rocksdb_py", "backward", LARGE),
        ("rocksdb", "load_rows", LARGE),
        *(
            pytest.param(store, change, ddr, marks=pytest.mark.long)
            for store in ("rocksdb", "rocksdb_py")
            for change in CHANGES
            for ddr in (SMALL, LARGE)
        ),
    ],
)
def test_a_store_that_was_left_amid_training_is_refused(
    store: str, change: str, ddr: str, children: Children, stores: list[str], tmp_path
) -> None:
    if store not in stores:
        pytest.skip(f"{store} is not built")
    ended = children.run(
        MAKE
        + "emb = make(sys.argv[1], sys.argv[2], sys.argv[3])\ntrain(emb, 1)\nemb.flush()\n"
        + CHANGES[change]
        + "\ndie()",
        *(tmp_path, ddr, store),
    )
    assert ended.status == -signal.SIGKILL, ended
    with (
        te.TieredEmbedding(
            100,
            4,
            tiers=te.Tiers(ddr=ddr, ssd=tmp_path / "ssd"),
            optimizer=te.optim.Adagrad(lr=0.1),
        ) as emb,
        pytest.raises(te.StoreError, match="missing='start'"),
    ):
        emb.rows([0])


@pytest.mark.parametrize(
    ("options", "change"),
    [
        pytest.param(
            "update='step'", "train(emb, 2)\nte.row_optimizer(emb).step()", marks=pytest.mark.long
        ),
        ("max_norm=0.001", "emb(torch.arange(9))"),
        pytest.param(
            "optimizer=None", "emb.load_rows(range(3), torch.ones(3, 4))", marks=pytest.mark.long
        ),
    ],
)
def test_whatever_changes_rows_in_memory_marks_the_store(
    options: str, change: str, children: Children, tmp_path
) -> None:
    ended = children.run(
        MAKE
        + f"emb = make(sys.argv[1], {LARGE!r}, {options})\n{change}\n"
        + "\nif sys.argv[2] == 'flush': emb.flush()\ndie()",
        *(tmp_path, "flush"),
    )
    assert ended.status == -signal.SIGKILL, ended
    reopen = MAKE + f"emb = make(sys.argv[1], {LARGE!r}, {options})\nprint(emb.digest())"
    ended = children.run(reopen, tmp_path)
    assert ended.status == 0, ended  # it was flushed
    ended = children.run(
        MAKE + f"emb = make(sys.argv[1], {LARGE!r}, {options})\n{change}\ndie()", tmp_path
    )
    assert ended.status == -signal.SIGKILL, ended
    ended = children.run(reopen, tmp_path)
    assert ended.status == 1, ended
    assert "StoreError: a process trained ['table']" in ended.err


def test_a_process_that_only_read_leaves_the_store_as_it_was(children: Children, tmp_path) -> None:
    source = (
        MAKE
        + """
emb = make(sys.argv[1], "1MiB")
if sys.argv[2] == "train":
    train(emb, 1)
    print(emb.digest(), flush=True)
else:
    emb.eval()
    emb(torch.arange(100))
    emb.rows(range(100))
    emb.train()
    emb(torch.arange(100))  # no backward comes
    print(emb.digest(), flush=True)
die()
"""
    )
    digests = {children.run(source, tmp_path, what).last for what in ("train", "read", "read")}
    assert len(digests) == 1


def test_an_import_counts_once_it_has_returned(children: Children, tmp_path) -> None:
    source = (
        MAKE
        + """
emb = make(sys.argv[1], "1MiB")
def chunks():
    yield range(50), torch.ones(50, 4)
    if sys.argv[2] == "within":
        die()
    yield range(50, 60), torch.ones(10, 4)
print(emb.import_rows(chunks(), steps=7))
die()
"""
    )
    for place in ("within", "after"):
        ended = children.run(source, tmp_path / place, place)
        assert ended.status == -signal.SIGKILL, ended
    ended = children.run(MAKE + "print(make(sys.argv[1], '1MiB').digest())", tmp_path / "within")
    assert "missing='start'" in ended.err
    ended = children.run(
        MAKE + "emb = make(sys.argv[1], '1MiB')\nprint(emb.stats().steps, emb.rows([59])[0, 0])",
        tmp_path / "after",
    )
    assert ended.out.split() == ["7", "tensor(1.)"]


# --- the loop of the README -----------------------------------------------------------------------

LOOP = (
    MAKE
    + """
root, ddr, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
emb = make(root, ddr, optimizer=te.optim.Adam(lr=0.1), update=sys.argv[4])
rows = te.row_optimizer(emb) if sys.argv[4] == "step" else None
state = checkpoint.load(emb, root + "/steps", missing="start")
for step in range(state["step"] + 1, 9):
    train(emb, step)
    if rows is not None:
        rows.step()
        rows.zero_grad()
    if step % 3 == 0:
        checkpoint.save(emb, root + "/steps", step=step)
    if step == kill_at:
        die()
    if -step == kill_at:
        sys.exit(0)
print(emb.digest())
"""
)


@pytest.mark.parametrize(
    ("ddr", "update"),
    [
        (SMALL, "backward"),
        pytest.param(LARGE, "backward", marks=pytest.mark.long),
        pytest.param(SMALL, "step", marks=pytest.mark.long),
        pytest.param(LARGE, "step", marks=pytest.mark.long),
    ],
)
def test_the_documented_loop_ends_with_the_same_rows_wherever_it_was_killed(
    ddr: str, update: str, children: Children, tmp_path
) -> None:
    """Also before its first checkpoint, and also where it ended in good order there."""
    whole = children.run(LOOP, tmp_path / "whole", ddr, 99, update)
    assert whole.status == 0, whole
    for kill_at in (1, -2, 4, 6):
        ended = children.run(LOOP, tmp_path / "killed", ddr, kill_at, update)
        assert ended.status == (-signal.SIGKILL if kill_at > 0 else 0), ended
    ended = children.run(LOOP, tmp_path / "killed", ddr, 99, update)
    assert ended.last == whole.last, ended


def make(root, tables=(("a", 50), ("b", 60)), **tiers) -> te.TieredEmbeddingBagCollection:
    return te.TieredEmbeddingBagCollection(
        [te.TableConfig(name, rows, 4) for name, rows in tables],
        tiers=te.Tiers(**{"ddr": "1KiB", "ssd": root} | tiers),
        optimizer=te.optim.SGD(lr=0.1),
    )


def trained(module: te.TieredEmbeddingBagCollection) -> str:
    ids = {t.name: (torch.arange(40), torch.tensor([0])) for t in module.engine.tables}
    module(ids)
    te.joined(module(ids)).sum().backward()
    return module.digest()


def test_a_start_keeps_tables_that_the_model_does_not_have(tmp_path, caplog) -> None:
    with make(tmp_path / "ssd", [("a", 50)]) as module:
        alone = trained(module)
    with make(tmp_path / "ssd") as module:
        initial = te.checkpoint.load(module, tmp_path / "none", missing="start")
        assert initial == {"step": 0, "extra": None}
        assert "nothing is committed" in caplog.text
        both = trained(module)
    with make(tmp_path / "ssd", [("b", 60)]) as module:
        of_b = module.digest()
        te.checkpoint.load(module, tmp_path / "none", missing="start")
        assert module.stats().steps == 0
        assert trained(module) == of_b
    with make(tmp_path / "ssd", [("a", 50)]) as module:
        assert module.digest() == alone
    with make(tmp_path / "ssd") as module:
        assert module.digest() == both


@pytest.mark.parametrize("ssd", [None, "ssd"])
def test_a_start_of_a_model_that_has_trained(ssd, tmp_path, caplog) -> None:
    tiers = {"ddr": "64KiB", "ssd": None if ssd is None else tmp_path / ssd}
    with make(None, **tiers) as module:
        te.checkpoint.load(module, tmp_path / "none", missing="start")
        assert not caplog.text  # nothing was lost
        empty = module.digest()
        once = trained(module)
        trained(module)
        te.checkpoint.load(module, tmp_path / "none", missing="start")
        assert module.digest() == empty
        assert trained(module) == once
        te.checkpoint.save(module, tmp_path / "some", step=1)
        trained(module)
        assert te.checkpoint.load(module, tmp_path / "some", missing="start")["step"] == 1
        assert module.digest() == once


def test_what_a_start_refuses(tmp_path) -> None:
    with make(tmp_path / "ssd") as module:
        before = trained(module)
        with pytest.raises(te.ConfigError, match="choose 'raise' or 'start'"):
            te.checkpoint.load(module, tmp_path / "none", missing="anew")
        with pytest.raises(te.ConfigError, match="leave step=3 out"):
            te.checkpoint.load(module, tmp_path / "none", 3, missing="start")
        with pytest.raises(FileNotFoundError, match="missing='start'"):
            te.checkpoint.load(module, tmp_path / "none")
        (tmp_path / "file").write_text("")
        te.checkpoint.save(module, tmp_path / "some", step=1)
        (tmp_path / "some" / "step-1" / "manifest.json").write_text("{}")
        with pytest.raises(te.CorruptionError):
            te.checkpoint.load(module, tmp_path / "some", missing="start")
        assert module.digest() == before
        with pytest.raises(te.ConfigError, match="is running"), te.accumulate(module):
            te.checkpoint.load(module, tmp_path / "none", missing="start")
