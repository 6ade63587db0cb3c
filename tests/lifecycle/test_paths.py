"""Paths of every kind, for every call that takes one: the same place for ever, or a typed error."""

import os
import unicodedata
from pathlib import Path

import pytest
import torch

import tiered_embed as te
from children import Children
from tiered_embed import checkpoint, traces
from tiered_embed.store import open_store


def make(ssd, name: str = "table", **options) -> te.TieredEmbedding:
    tiers = te.Tiers(ddr="1KiB", ssd=ssd, store=options.pop("store", "auto"))
    return te.TieredEmbedding(
        100, 4, tiers=tiers, optimizer=te.optim.SGD(lr=0.1), name=name, **options
    )


def train(emb: te.TieredEmbedding) -> str:
    emb(torch.arange(40)).sum().backward()
    return emb.digest()


CALLS = {
    "Tiers": lambda path: te.Tiers(ddr="1KiB", ssd=path),
    "drop_table": lambda path: te.drop_table(path, "table"),
    "open_store": lambda path: open_store("memory", path, 4, {}),
    "list": checkpoint.list,
    "verify": checkpoint.verify,
    "prune": lambda path: checkpoint.prune(path, keep=1),
    "diff": lambda path: checkpoint.diff(path, 1, 2),
    "compact": checkpoint.compact,
    "export": lambda path: checkpoint.export(path, "out"),
    "save": lambda path: checkpoint.save(a_model(), path, step=1),
    "load": lambda path: checkpoint.load(a_model(), path),
    "start": lambda path: checkpoint.load(a_model(), path, missing="start"),
    "load_weights": lambda path: checkpoint.load_weights(a_model(), path),
    "writer": lambda path: traces.TraceWriter(path, []),
}
BAD = {
    "empty": "",
    "bytes": b"folder",
    "number": 3,
    "null": "a\0b",
    "non-UTF-8": os.fsdecode(b"/tmp/\xff\xfe"),
    "surrogate": "/tmp/\ud800",
    "long name": "/tmp/" + "n" * 300,
    "long path": "/tmp/" + "n/" * 3000,
    "no such user": "~nobody-of-that-name/x",
}


def a_model() -> te.TieredEmbedding:
    return te.TieredEmbedding(9, 4, tiers=te.Tiers(ddr="1KiB"), optimizer=te.optim.SGD(lr=0.1))


@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_path_is_refused(call: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in BAD.values():
        with pytest.raises(te.ConfigError, match=r"pass|rename|may have|null"):
            CALLS[call](path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("link", [False, True])
def test_a_relative_path_stays_the_same_place(link: bool, tmp_path, monkeypatch) -> None:
    root = tmp_path
    if link:
        (tmp_path / "real").mkdir()
        root = tmp_path / "link"
        root.symlink_to("real")
    monkeypatch.chdir(root)
    other = tmp_path / "other"
    other.mkdir()
    emb = make("ssd/deep")
    first = train(emb)
    writer = traces.TraceWriter("ids.tet", [traces.TraceTable("t", 9)])
    saved = checkpoint.save(emb, "steps", step=1, background=True)
    monkeypatch.chdir(other)
    saved.wait()
    train(emb)
    writer.close()
    checkpoint.load(emb, root / "steps")
    assert emb.digest() == first
    emb.close()
    assert not list(other.iterdir())
    assert sorted(p.name for p in root.iterdir() if p.name not in ("link", "real", "other")) == [
        "ids.tet",
        "ssd",
        "steps",
    ]
    monkeypatch.chdir(root)
    with make(Path("ssd") / "deep") as emb:
        assert emb.digest() == first
    assert te.drop_table("ssd/../ssd/deep", "table") > 0


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with make("~/ssd") as emb:
        digest = train(emb)
        checkpoint.save(emb, "~/steps", step=1)
    assert sorted(p.name for p in (tmp_path / "home").iterdir()) == ["ssd", "steps"]
    assert checkpoint.list(tmp_path / "home" / "steps") == [1]
    with make(tmp_path / "home" / "ssd") as emb:
        assert emb.digest() == digest
    with make("./~") as emb:  # a name like any other
        train(emb)
    assert (tmp_path / "~").is_dir()


@pytest.mark.parametrize(
    "name", ["with space", "ünï", "日本語", "-dash", "a'b\"c", "new\nline", "%s{}"]
)
def test_odd_names(name: str, tmp_path) -> None:
    with make(tmp_path / name) as emb:
        digest = train(emb)
        checkpoint.save(emb, tmp_path / name / "steps", step=1)
        train(emb)
        checkpoint.load(emb, tmp_path / name / "steps")
        assert emb.digest() == digest
    with make(tmp_path / name, name=name) as emb:
        train(emb)


def test_the_working_directory_is_gone(children: Children, tmp_path) -> None:
    ended = children.run(
        """
        import os, sys
        import tiered_embed as te
        os.mkdir(sys.argv[1])
        os.chdir(sys.argv[1])
        os.rmdir(sys.argv[1])
        te.Tiers(ddr="1KiB", ssd="/tmp/x")
        te.Tiers(ddr="1KiB", ssd="x")
        """,
        tmp_path / "gone",
    )
    assert ended.err.endswith("the working directory was removed; pass an absolute path\n")
    assert "ConfigError" in ended.err


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LOCK", "meta.json.tmp", "layout.json.tmp", "CREATING"])
def test_no_file_of_a_store_is_written_through_a_link(name: str, tmp_path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    with make(tmp_path / "ssd") as emb:
        digest = train(emb)
    (folder,) = (tmp_path / "ssd").iterdir()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(victim)
    if name == "LOCK":
        with pytest.raises(te.StoreError, match="LOCK"):
            make(tmp_path / "ssd")
        (folder / name).unlink()
    with make(tmp_path / "ssd") as emb:
        assert emb.digest() == digest
        train(emb)
    assert victim.read_text() == "precious"


def test_a_lock_that_is_no_file_is_refused(tmp_path) -> None:
    make(tmp_path / "ssd").close()
    (folder,) = (tmp_path / "ssd").iterdir()
    (folder / "LOCK").unlink()
    os.mkfifo(folder / "LOCK")
    with pytest.raises(te.StoreError, match="no regular file"):
        make(tmp_path / "ssd")


def test_an_export_is_not_written_through_a_link(tmp_path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    with make(tmp_path / "ssd") as emb:
        train(emb)
        checkpoint.save(emb, tmp_path / "steps", step=1)
    (first,) = checkpoint.export(tmp_path / "steps", tmp_path / "out")
    first.file.with_name(first.file.name + ".tmp").symlink_to(victim)
    checkpoint.export(tmp_path / "steps", tmp_path / "out")
    assert victim.read_text() == "precious"


# --- directories that cannot be used --------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give up root")
def test_directories_of_another_user(children: Children) -> None:
    """Every call says that it may not, by a StoreError or what ``open`` would raise."""
    ended = children.run(
        """
        import os, sys, tempfile
        import torch
        import tiered_embed as te
        from tiered_embed import checkpoint

        def make(ssd):
            return te.TieredEmbedding(50, 4, tiers=te.Tiers(ddr="1KiB", ssd=ssd),
                                      optimizer=te.optim.SGD(lr=0.1))

        root = tempfile.mkdtemp()
        os.chmod(root, 0o755)
        with make(root + "/ssd") as emb:
            checkpoint.save(emb, root + "/steps", step=1)
        os.mkdir(root + "/readable")
        os.mkdir(root + "/open")
        os.chmod(root + "/open", 0o777)
        os.setgid(65534); os.setuid(65534)
        for name in ("/ssd", "/ssd/x", "/readable", "/readable/x"):
            for call in (lambda: make(root + name), lambda: te.drop_table(root + name, "table")):
                try:
                    call()
                except (te.StoreError, te.ConfigError) as error:
                    print(type(error).__name__)
        emb = te.TieredEmbedding(50, 4, tiers=te.Tiers(ddr="1KiB"), optimizer=te.optim.SGD(lr=0.1))
        for name in ("/steps", "/steps/x", "/readable"):
            for call in (lambda: checkpoint.list(root + name),
                         lambda: checkpoint.save(emb, root + name, step=2),
                         lambda: checkpoint.load(emb, root + name),
                         lambda: checkpoint.verify(root + name)):
                try:
                    call()
                    print("ok")
                except (te.StoreError, FileNotFoundError) as error:
                    print(type(error).__name__)
        with make(root + "/open") as emb:  # theirs, and we may write
            emb(torch.arange(9)).sum().backward()
        print("end")
        """
    )
    assert ended.status == 0, ended
    assert ended.last == "end"


def test_places_that_are_no_directory(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "file/below", "loop", "loop/below"):
        with pytest.raises(te.StoreError):
            make(tmp_path / name)
        with pytest.raises((te.ConfigError, te.StoreError)):
            te.drop_table(tmp_path / name, "table")
        with a_model() as model:
            with pytest.raises((te.StoreError, FileNotFoundError)):
                checkpoint.load(model, tmp_path / name)
            with pytest.raises(te.StoreError):
                checkpoint.save(model, tmp_path / name, step=1)
    assert (tmp_path / "file").read_text() == ""


# --- names of tables ------------------------------------------------------------------------------

COMPOSED = "caf\u00e9"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


@pytest.mark.parametrize(("first", "second"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_name_in_another_normal_form_is_no_second_table(first, second, tmp_path) -> None:
    with make(tmp_path / "ssd", first) as emb:
        digest = train(emb)
        with pytest.raises(te.ConfigError, match="normal form"):
            make(tmp_path / "ssd", second)
    for options in ({}, {"dtype": torch.float16}):  # of another pool, too
        with pytest.raises(te.ConfigError, match="normal form"):
            make(tmp_path / "ssd", second, **options)
    with pytest.raises(te.ConfigError, match="normal form"):
        te.drop_table(tmp_path / "ssd", second)
    with make(tmp_path / "ssd", first) as emb:
        assert emb.digest() == digest
    with pytest.raises(te.ConfigError, match="normal form"):
        te.TieredEmbeddingBagCollection(
            [te.TableConfig(first, 9, 4), te.TableConfig(second, 9, 4)],
            tiers=te.Tiers(ddr="1KiB"),
            optimizer=te.optim.SGD(lr=0.1),
        )
