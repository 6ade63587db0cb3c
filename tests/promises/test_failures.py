"""A module after its store has failed: it refuses, says so, and comes back by a restore."""

import os
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import torch

import tiered_embed as te
from tiered_embed import checkpoint

ROWS, DIM = 4000, 8


def make(root: Path, **options) -> te.TieredEmbeddingBag:
    tiers = te.Tiers(ddr=40 * 500, ssd=root / "ssd", store=options.pop("store", "rocksdb"))
    return te.TieredEmbeddingBag(
        ROWS, DIM, tiers=tiers, optimizer=te.optim.RowWiseAdagrad(lr=0.1), **options
    )


def train(emb: te.TieredEmbeddingBag, begin: int, end: int) -> None:
    for i in range(begin, end):
        ids = torch.randint(0, ROWS, (200,), generator=torch.Generator().manual_seed(i))
        emb(ids, torch.tensor([0])).sum().backward()


def uninterrupted(tmp_path: Path, steps: int) -> str:
    with make(tmp_path / "whole") as emb:
        train(emb, 0, steps)
        return emb.digest()


@pytest.mark.parametrize("store", ["rocksdb", "memory"])
def test_after_a_store_error_training_is_refused_until_restored(store, tmp_path, monkeypatch):
    wanted = uninterrupted(tmp_path, 20)
    with make(tmp_path, store=store) as emb:
        train(emb, 0, 12)
        checkpoint.save(emb, tmp_path / "c", step=12)
        backend = type(emb.engine.pools[0].store)

        def broken(self, keys, records):
            raise te.StoreError("the disk is gone")

        with monkeypatch.context() as patch:
            patch.setattr(backend, "_put", broken)
            with pytest.raises(te.StoreError, match="the disk is gone"):
                train(emb, 12, 40)
        for use in (
            lambda: train(emb, 0, 1),
            emb.flush,
            emb.digest,
            lambda: checkpoint.save(emb, tmp_path / "c", step=13),
        ):
            with pytest.raises(te.StoreError, match="the disk is gone"):
                use()
        assert checkpoint.list(tmp_path / "c") == [12]
        assert checkpoint.load(emb, tmp_path / "c")["step"] == 12
        train(emb, 12, 20)
        assert emb.digest() == wanted


def test_a_save_that_fails_in_the_background_is_told_and_training_goes_on(tmp_path, monkeypatch):
    wanted = uninterrupted(tmp_path, 20)
    with make(tmp_path) as emb:
        train(emb, 0, 5)
        checkpoint.save(emb, tmp_path / "c", step=5)
        backend = type(emb.engine.pools[0].store)

        def broken(self, path):
            raise te.StoreError("no space left")

        with monkeypatch.context() as patch:
            patch.setattr(backend, "_checkpoint", broken)
            first = checkpoint.save(emb, tmp_path / "c", step=6, background=True)
            with pytest.raises(te.StoreError, match="no space left"):
                first.wait()
            checkpoint.save(emb, tmp_path / "c", step=7, background=True)
            with pytest.raises(te.StoreError, match="no space left"):
                checkpoint.save(emb, tmp_path / "c", step=8)  # nobody has waited for step 7
            with pytest.raises(te.StoreError, match="no space left"):
                checkpoint.save(emb, tmp_path / "c", step=9)  # its own
        assert sorted(os.listdir(tmp_path / "c")) == [".lock", "step-5"]
        with pytest.raises(te.ConfigError, match="newest save or restore"):
            checkpoint.save_delta(emb, tmp_path / "c", step=10)
        train(emb, 5, 20)
        checkpoint.save(emb, tmp_path / "c", step=20)
        checkpoint.save_delta(emb, tmp_path / "c", step=21)
        assert emb.digest() == wanted


@pytest.fixture
def open_path():
    """A directory that other users may enter, as pytest's are not."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give up root")
def test_directories_that_are_not_writable(open_path):
    """Root may write anywhere, so the child gives its rights away."""
    sealed, own = open_path / "sealed", open_path / "own"
    sealed.mkdir(mode=0o755)
    own.mkdir()
    os.chown(own, 65534, 65534)
    script = """
        import os, sys, torch, tiered_embed as te
        os.setgid(65534); os.setuid(65534)
        sealed, own = sys.argv[1:]
        def make(ssd):
            return te.TieredEmbedding(50, 4, tiers=te.Tiers(ddr=800, ssd=ssd),
                                      optimizer=te.optim.SGD(lr=0.1))
        for what in (lambda: make(sealed + "/ssd"),
                     lambda: te.checkpoint.save(make(own + "/ssd"), sealed + "/c", step=1)):
            try:
                what()
            except te.StoreError as error:
                assert sealed in str(error), error
                print("refused")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(sealed), str(own)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "refused\nrefused\n", done.stdout + done.stderr


def test_directories_are_closed_to_others(tmp_path):
    with make(tmp_path) as emb:
        train(emb, 0, 3)
        checkpoint.save(emb, tmp_path / "c", step=3)
    for root in (tmp_path / "c", tmp_path / "c" / "step-3"):
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
    for store in (tmp_path / "ssd").glob("pool-*"):
        assert stat.S_IMODE(store.stat().st_mode) == 0o700


def test_two_processes_do_not_share_a_directory(tmp_path):
    with make(tmp_path) as emb:
        train(emb, 0, 3)
        checkpoint.save(emb, tmp_path / "c", step=3)
        with pytest.raises(te.StoreError, match="already open, by pid"):
            make(tmp_path)
        with make(tmp_path / "reader") as reader:  # readers use committed checkpoints
            checkpoint.load(reader, tmp_path / "c")
            assert reader.digest() == emb.digest()


def test_a_forked_child_refuses_and_its_parent_goes_on(tmp_path):
    with make(tmp_path) as emb:
        train(emb, 0, 3)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                checkpoint.save(emb, tmp_path / "c", step=3)
            except te.ClosedError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        checkpoint.save(emb, tmp_path / "c", step=3)
    assert checkpoint.list(tmp_path / "c") == [3]


def test_a_directory_whose_lock_cannot_be_written_is_let_go(tmp_path, monkeypatch):
    def broken(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", broken)
        with pytest.raises(te.StoreError, match="No space left"):
            make(tmp_path)
    make(tmp_path).close()
