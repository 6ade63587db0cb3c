"""Working directories: tables come and go, and a store is replaced whole or not at all."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import tiered_embed as te
from tiered_embed import checkpoint
from tiered_embed.spec import table_hash
from tiered_embed.store import (
    Mark,
    Replacement,
    StoreDirectory,
    StoreLayout,
    encode_keys,
    mark_finished,
    mark_training,
    open_pool_store,
    open_store,
    read_description,
    read_marks,
    table_range,
    write_meta,
)

BACKENDS = ["rocksdb", "rocksdb_py", "memory"]
DIM, ROWS = 4, 60


def build(ssd, *names, store="memory", rows=ROWS, ddr=500, padding=None, **options):
    tables = [te.TableConfig(name, rows, DIM, padding_idx=padding) for name in names]
    options = {"optimizer": te.optim.Adam(lr=0.1), **options}
    return te.TieredEmbeddingBagCollection(
        tables, tiers=te.Tiers(ddr=ddr, ssd=ssd, store=store), **options
    )


def train(module, begin, end):
    offsets = torch.arange(0, 12, 3)
    for step in range(begin, end):
        ids = (torch.arange(12) * 5 + 7 * step) % ROWS
        out = module(dict.fromkeys(module.embedding_names, (ids, offsets)))
        torch.cat(list(out.values())).square().sum().backward()


def records(module, name):
    """Every record of a table, state and all."""
    module.flush()
    pool = module.engine.pools[0]
    t = [table for table, _ in pool.layout.tables].index(name)
    return {
        int(row): record.tobytes()
        for rows, part in pool.materialised(t)
        for row, record in zip(rows, part, strict=True)
    }


def folders(root):
    return sorted(p.name for p in root.iterdir())


# --- tables come and go ---------------------------------------------------------------------------


@pytest.mark.parametrize("store", BACKENDS)
def test_a_table_is_added_and_left_out(store, tmp_path):
    with build(tmp_path, "a", "b", store=store) as module:
        train(module, 0, 4)
        a, b = records(module, "a"), records(module, "b")
        (folder,) = folders(tmp_path)
    with build(tmp_path, "a", "b", "c", store=store) as module:
        assert records(module, "a") == a
        assert records(module, "c") == {}
        assert module.stats().steps == 4
        train(module, 4, 6)
        b, c = records(module, "b"), records(module, "c")
    with build(tmp_path, "a", store=store) as module:
        assert module.stats().steps == 6
        train(module, 6, 8)
        a = records(module, "a")
    with build(tmp_path, "c", "b", "a", store=store) as module:
        assert (records(module, "a"), records(module, "b"), records(module, "c")) == (a, b, c)
        assert module.stats().steps == 8
    assert folders(tmp_path) == [folder]


def test_the_bits_do_not_depend_on_which_tables_share_a_directory(tmp_path):
    with build(tmp_path / "both", "a", "b") as module:
        train(module, 0, 3)
    with build(tmp_path / "both", "a") as module:
        train(module, 3, 6)
        together = records(module, "a")
    with build(tmp_path / "alone", "a") as module:
        train(module, 0, 6)
        assert records(module, "a") == together


def test_modules_with_one_layout_and_one_directory_keep_their_own_stores(tmp_path):
    one, two = build(tmp_path, "a"), build(tmp_path, "b")
    train(one, 0, 2)
    train(two, 0, 3)
    wanted = one.digest(), two.digest()
    one.close()
    two.close()
    assert len(folders(tmp_path)) == 2
    with build(tmp_path, "b") as two, build(tmp_path, "a") as one:
        assert (one.digest(), two.digest()) == wanted
        assert (one.stats().steps, two.stats().steps) == (2, 3)
    with pytest.raises(te.ConfigError, match=r"'a' is stored in .* and table 'b' in .*drop_table"):
        build(tmp_path, "a", "b")
    assert te.drop_table(tmp_path, "b") > 0
    with build(tmp_path, "b", "a") as both:
        assert records(both, "b") == {}
        assert both.engine.pools[0].store.path.name == folders(tmp_path)[0]


def test_a_collection_is_not_open_twice(tmp_path):
    with build(tmp_path, "a", "b"):
        with pytest.raises(te.StoreError, match="already open, by pid"):
            build(tmp_path, "a", "b")
        with pytest.raises(te.StoreError, match=r"already open, .* in one module with \['b'\]"):
            build(tmp_path, "a")


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c")])
def test_version_0_1_refuses_a_newer_directory(names, tmp_path):
    """By the rule of that version, which does not look at the format of other stores."""
    build(tmp_path, "a", "b").close()
    (folder,) = tmp_path.iterdir()
    content = json.loads((folder / "layout.json").read_text())["content"]
    assert content["format_version"] == 2
    stored = content["layout"].get("tables", [])
    assert set(stored) & set(names)
    assert sorted(stored) != sorted(names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": te.optim.SGD(lr=0.1)}, "optimizer: stored 'Adam', wanted 'SGD'"),
        ({"seed": 5}, "table 'a' was stored.*seed: stored 0, wanted 5"),
        ({"init": te.init.Uniform(-1, 1)}, r"table 'a'.*init: stored \[.*, wanted \[-1.0, 1.0\]"),
        ({"padding": 3}, "table 'a'.*padding: stored None, wanted 3"),
        ({"rows": ROWS - 1}, "with 60 rows, and num_embeddings is 59; raise num_embeddings"),
        ({"dtype": torch.float16}, "dtype: stored 'float32', wanted 'float16'"),
    ],
)
def test_a_table_that_was_stored_otherwise_is_refused(options, message, tmp_path):
    with build(tmp_path, "a") as module:
        train(module, 0, 2)
        wanted = module.digest()
    with pytest.raises(te.ConfigError, match=message):
        build(tmp_path, "a", "b", **options)
    with build(tmp_path, "a") as module:
        assert module.digest() == wanted


def test_a_table_may_grow_but_not_shrink_afterwards(tmp_path):
    build(tmp_path, "a").close()
    build(tmp_path, "a", rows=2 * ROWS).close()
    with pytest.raises(te.ConfigError, match="with 120 rows, and num_embeddings is 60"):
        build(tmp_path, "a")
    build(tmp_path, "a", rows=None).close()
    with pytest.raises(
        te.ConfigError, match=r"any number of rows.* is 120; pass num_embeddings=None"
    ):
        build(tmp_path, "a", rows=2 * ROWS)


def test_a_new_table_has_its_own_seed(tmp_path):
    """What defines absent rows belongs to each table, not to the store."""
    build(tmp_path, "a", seed=1).close()
    (folder,) = tmp_path.iterdir()
    with open_store("auto", folder, *_record(folder), tables={"b": {"seed": 2, "shard": "whole"}}):
        stored = read_description(folder)
    assert (stored.tables["a"]["seed"], stored.tables["b"]["seed"]) == (1, 2)


def _record(folder):
    stored = read_description(folder)
    return stored.record_bytes, stored.record


def colliding() -> tuple[str, str]:
    seen: dict[bytes, str] = {}
    for number in range(1_000_000):
        name = f"t{number}"
        other = seen.setdefault(table_hash(name), name)
        if other != name:
            return other, name
    raise AssertionError


def test_two_names_with_one_identity_are_refused_across_openings(tmp_path):
    one, two = colliding()
    build(tmp_path, "a", one).close()
    with pytest.raises(te.ConfigError, match=f"{two}.*{one}.*same 4-byte identity"):
        build(tmp_path, "a", two)
    te.drop_table(tmp_path, one)
    build(tmp_path, "a", two).close()


def test_shards_of_a_table_do_not_share_a_store(tmp_path):
    def layout(shard):
        facts = {"rows": 10, "padding": None, "seed": 0, "init": [0.0, 1.0], "shard": shard}
        return StoreLayout({"dim": DIM}, 16, {"a": facts})

    paths = []
    for _ in range(2):
        with (
            open_pool_store(tmp_path, layout("rows 0-5"), "memory", {}) as first,
            open_pool_store(tmp_path, layout("rows 5-10"), "memory", {}) as second,
        ):
            assert first.path != second.path
            paths.append((first.path, second.path))
    assert paths[0] == paths[1], "whatever order they are opened in"


def test_a_store_without_its_description_is_never_taken_for_absent(tmp_path):
    with build(tmp_path, "a") as module:
        train(module, 0, 2)
    (folder,) = tmp_path.iterdir()
    (folder / "layout.json").rename(tmp_path / "kept")
    with pytest.raises(te.StoreError, match=r"layout\.json' is missing; restore the file"):
        build(tmp_path, "a")
    (tmp_path / "kept").rename(folder / "layout.json")
    build(tmp_path, "a").close()


def test_a_creation_that_was_killed_is_repeated(tmp_path):
    build(tmp_path, "a").close()
    (folder,) = tmp_path.iterdir()
    (folder / "layout.json").unlink()
    (folder / "CREATING").touch()
    build(tmp_path, "a").close()
    assert list(tmp_path.iterdir()) == [folder]


def _train_in_child(root, name, done):
    with build(Path(root), name) as module:
        train(module, 0, 2)
    done.put(name)


def test_processes_that_begin_at_once_get_different_stores(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    done = spawn.Queue()
    children = [
        spawn.Process(target=_train_in_child, args=(str(tmp_path), name, done)) for name in "abc"
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert sorted(done.get() for _ in children) == ["a", "b", "c"]
    assert len(list(tmp_path.glob("pool-*"))) == 3


# --- marks ----------------------------------------------------------------------------------------


def killed(root, *names):
    """A process that trained the tables and ended without closing."""
    script = f"""
        import os, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from {Path(__file__).stem} import build, train
        module = build(Path({str(root)!r}), *{names!r}, store="rocksdb")
        train(module, 0, 4)
        module.engine.pools[0].scheduler.quiesce()  # rows have reached the store
        os._exit(9)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr


def test_a_kill_harms_the_tables_that_were_trained_and_no_others(tmp_path):
    with build(tmp_path / "ssd", "a", "b", store="rocksdb") as module:
        train(module, 0, 4)
        checkpoint.save(module, tmp_path / "c", step=4)
        b, both = records(module, "b"), module.digest()
    killed(tmp_path / "ssd", "a")
    torn = r"\['a'\].* come from different training steps"
    for names in (("a",), ("a", "b")):
        with (
            build(tmp_path / "ssd", *names, store="rocksdb") as module,
            pytest.raises(te.StoreError, match=torn),
        ):
            train(module, 4, 5)
    with build(tmp_path / "ssd", "b", store="rocksdb") as module:
        assert records(module, "b") == b
        assert module.stats().steps == 4
        train(module, 4, 5)
    with build(tmp_path / "ssd", "a", "b", store="rocksdb") as module:
        with pytest.raises(te.StoreError, match=torn):
            train(module, 4, 5)
        checkpoint.load(module, tmp_path / "c")
        assert module.digest() == both


def test_marks_are_kept_per_table(tmp_path):
    names = ("a", "b")
    tables = {name: {"shard": "whole"} for name in names}
    open_store("memory", tmp_path, 8, {}, tables=tables).close()
    assert read_marks(tmp_path) == {"a": Mark(0, True), "b": Mark(0, True)}
    mark_training(tmp_path, ["a"])
    assert read_marks(tmp_path) == {"a": Mark(0, False), "b": Mark(0, True)}
    mark_finished(tmp_path, ["a"], 3)
    mark_finished(tmp_path, ["b"], 2)
    assert read_marks(tmp_path) == {"a": Mark(3, True), "b": Mark(2, True)}
    content = json.loads((tmp_path / "meta.json").read_text())["content"]
    assert (content["step"], content["settled"]) == (3, True), "as version 0.1 reads it"
    mark_training(tmp_path, ["b"])
    content = json.loads((tmp_path / "meta.json").read_text())["content"]
    assert content["settled"] is False


@pytest.mark.parametrize("settled", [True, False])
def test_marks_of_version_0_1_are_those_of_every_table(settled, tmp_path):
    layout = {"dim": 4, "tables": ["a", "b"], "seed": 0, "init": [0.0, 1.0]}
    open_store("memory", tmp_path, 8, layout).close()
    write_meta(tmp_path, {"step": 7, "settled": settled})
    assert read_marks(tmp_path) == dict.fromkeys("ab", Mark(7, settled))


# --- checkpoints of some of the tables ------------------------------------------------------------


@pytest.mark.parametrize("store", BACKENDS)
@pytest.mark.parametrize("other", [False, True], ids=["same store", "another store"])
def test_a_restore_changes_no_table_that_the_model_lacks(store, other, tmp_path):
    saved = "memory" if other and store != "memory" else "rocksdb" if other else store
    root = tmp_path / "saved" if other else tmp_path / "ssd"
    with build(root, "a", "b", store=saved) as module:
        train(module, 0, 3)
    with build(root, "a", store=saved) as module:
        checkpoint.save(module, tmp_path / "c", step=3)
        a = records(module, "a")
        train(module, 3, 4)
        checkpoint.save_delta(module, tmp_path / "c", step=4)
        newer = records(module, "a")
    with build(tmp_path / "ssd", "a", "b", store=store) as module:
        train(module, 0, 5)
        b = records(module, "b")
    steps = 8 if not other else 5  # the store went on from step 3, or began anew
    with build(tmp_path / "ssd", "a", store=store) as module:
        for step, wanted in ((3, a), (4, newer), (3, a)):
            checkpoint.load(module, tmp_path / "c", step)
            assert records(module, "a") == wanted
            assert module.stats().steps == step
    with build(tmp_path / "ssd", "b", store=store) as module:
        assert records(module, "b") == b
        assert module.stats().steps in (steps, steps + 1)
    assert len(folders(tmp_path / "ssd")) == 1
    checkpoint.verify(tmp_path / "c")
    with build(None, "a", ddr="1MiB", store="auto") as module:  # a step with rows of others
        checkpoint.load(module, tmp_path / "c", 4)
        assert records(module, "a") == newer
    exported = checkpoint.export(tmp_path / "c", tmp_path / "out", step=3)
    assert [e.rows for e in exported] == [len(a)]
    (difference,) = checkpoint.diff(tmp_path / "c", 3, 4)
    assert difference.same + difference.changed == len(a)
    assert checkpoint.compact(tmp_path / "c", 4) == 4
    checkpoint.verify(tmp_path / "c")
    with build(tmp_path / "fresh", "a", store=store) as module:
        checkpoint.load(module, tmp_path / "c", 4)
        assert records(module, "a") == newer
    with build(tmp_path / "fresh", "a", "b", store=store) as module:
        assert records(module, "b") == {}, "another table's rows stay out of the directory"


def test_a_checkpoint_of_other_tables_is_refused(tmp_path):
    with build(tmp_path / "ssd", "a", "b") as module:
        train(module, 0, 2)
        checkpoint.save(module, tmp_path / "c", step=2)
        wanted = module.digest()
    for names in (("a",), ("a", "b", "c")):
        with (
            build(tmp_path / "ssd", *names) as module,
            pytest.raises(te.ConfigError, match="holds"),
        ):
            checkpoint.load(module, tmp_path / "c")
    with build(tmp_path / "ssd", "a", "b") as module:
        assert module.digest() == wanted


# --- drop_table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("store", BACKENDS)
def test_a_dropped_table_is_gone_and_the_others_stay(store, tmp_path):
    with build(tmp_path, "a", "b", "c", store=store) as module:
        train(module, 0, 3)
        wanted = {name: records(module, name) for name in "ac"}
    assert te.drop_table(tmp_path, "b") >= 0
    (folder,) = tmp_path.iterdir()
    assert sorted(read_description(folder).tables) == ["a", "c"]
    assert set(read_marks(folder)) == {"a", "c"}
    with build(tmp_path, "a", "b", "c", store=store) as module:
        assert module.stats().steps == 3
        assert {name: records(module, name) for name in "abc"} == {**wanted, "b": {}}


@pytest.mark.parametrize("store", ["rocksdb", "rocksdb_py"])
def test_a_drop_gives_the_disk_space_back(store, tmp_path):
    with build(tmp_path, "a", "b", store=store, rows=5000, ddr="1MiB") as module:
        ids = torch.arange(5000)
        module.load_rows(ids[:100], torch.randn(100, DIM), table="a")
        module.load_rows(ids, torch.randn(5000, DIM), table="b")
    weights = 5000 * 4 * DIM  # which do not compress
    assert te.drop_table(tmp_path, "b") > weights
    assert sum(p.stat().st_size for p in tmp_path.rglob("*.sst")) < weights / 4


def test_the_last_table_of_a_store_takes_the_store_with_it(tmp_path):
    with build(tmp_path, "a") as module:
        train(module, 0, 2)
    size = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
    assert te.drop_table(str(tmp_path), "a") == size
    assert folders(tmp_path) == []
    with pytest.raises(te.ConfigError, match=r"holds no table 'a'; it holds \[\]"):
        te.drop_table(tmp_path, "a")


def test_drop_table_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(te.ConfigError, match=r"no directory.*Tiers\(ssd"):
        te.drop_table(tmp_path / "none", "a")
    with pytest.raises(te.ConfigError, match="directory is None"):
        te.drop_table(None, "a")
    with build(tmp_path, "a", "b") as module:
        train(module, 0, 2)
        wanted = module.digest()
        with pytest.raises(te.ConfigError, match=r"no table 'c'; it holds \['a', 'b'\]"):
            te.drop_table(tmp_path, "c")
        for name in "ab":
            with pytest.raises(te.StoreError, match="already open, by pid"):
                te.drop_table(tmp_path, name)
        assert module.digest() == wanted
    with build(tmp_path, "d"), pytest.raises(te.StoreError, match="already open, by pid"):
        te.drop_table(tmp_path, "d")
    folder = module.engine.pools[0].store.path
    with (
        open_store("auto", folder, *_record(folder), "read_only", tables={}),
        pytest.raises(te.StoreError, match="already open, by pid"),
    ):
        te.drop_table(tmp_path, "a")


def test_a_restore_that_cannot_keep_another_tables_rows_changes_nothing(tmp_path, monkeypatch):
    with build(tmp_path / "ssd", "a", "b") as module:
        train(module, 0, 2)
    with build(tmp_path / "ssd", "a") as module:
        checkpoint.save(module, tmp_path / "c", step=2)
        train(module, 2, 3)
        wanted = records(module, "a")

        def fails(*args):
            raise te.StoreError("no")

        with monkeypatch.context() as patch:
            patch.setattr(module.engine.pools[0].store, "scan", fails)
            with pytest.raises(
                te.StoreError, match=r"cannot copy the tables \['b'\].*make it again"
            ):
                checkpoint.load(module, tmp_path / "c")
        assert records(module, "a") == wanted
    assert len(folders(tmp_path / "ssd")) == 1


def test_a_drop_of_a_table_left_amid_training_needs_no_restore(tmp_path):
    with build(tmp_path, "a", "b", store="rocksdb") as module:
        train(module, 0, 4)
        b = records(module, "b")
    killed(tmp_path, "a")
    te.drop_table(tmp_path, "a")
    with build(tmp_path, "a", "b", store="rocksdb") as module:
        assert (records(module, "a"), records(module, "b")) == ({}, b)


@pytest.mark.parametrize("renames", [1, 2])
def test_a_drop_that_is_interrupted_is_done_or_not(renames, tmp_path, monkeypatch):
    with build(tmp_path, "a", "b") as module:
        train(module, 0, 2)
        a, b = records(module, "a"), records(module, "b")

    def stop(source, target, count=[0]):  # noqa: B006
        count[0] += 1
        if count[0] == renames:
            raise KeyboardInterrupt
        real(source, target)

    real = os.rename
    monkeypatch.setattr(os, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        te.drop_table(tmp_path, "a")
    monkeypatch.undo()
    with build(tmp_path, "a", "b") as module:
        assert (records(module, "a"), records(module, "b")) == (a, b)
    assert len(folders(tmp_path)) == 1
    te.drop_table(tmp_path, "a")
    with build(tmp_path, "a", "b") as module:
        assert (records(module, "a"), records(module, "b")) == ({}, b)


def test_what_an_interrupted_drop_left_is_swept(tmp_path):
    build(tmp_path, "a").close()
    (folder,) = tmp_path.iterdir()
    folder.rename(tmp_path / "dropped-x")
    build(tmp_path, "b").close()
    assert not (tmp_path / "dropped-x").exists()


# --- replacing a store, state by state ------------------------------------------------------------

TABLES = {name: {"seed": 0, "shard": "whole"} for name in "ab"}
LAYOUT = StoreLayout({"dim": DIM}, 8, TABLES)


def write(store, name, value):
    keys = encode_keys(table_hash(name), np.arange(3))
    store.put(keys, np.full((3, 8), value, np.uint8))


def values(root):
    """Opens the directory as a process would; the value of each table, and the marks."""
    with open_pool_store(root, LAYOUT, "memory", {}) as store:
        found = {}
        for name in TABLES:
            chunks = [part for _, part in store.scan(*table_range(name))]
            found[name] = int(chunks[0][0, 0]) if chunks else None
        return found, read_marks(store.path)


def replacement(root):
    with open_pool_store(root, LAYOUT, "memory", {}) as store:
        write(store, "a", 1)
        write(store, "b", 2)
        working = store.path
    mark_finished(working, "ab", 5)
    return Replacement(working, ["a"])


def fill(new):
    new.prepare()
    with open_store(
        "memory", new.restoring, 8, LAYOUT.record, "create", tables=LAYOUT.tables
    ) as store:
        write(store, "a", 7)
        write(store, "b", 2)


OLD = {"a": 1, "b": 2}, {"a": Mark(5), "b": Mark(5)}
MARKED = OLD[0], {"a": Mark(5, False), "b": Mark(5)}
UNFINISHED = {"a": 7, "b": 2}, {"a": Mark(3, False), "b": Mark(5)}
NEW = {"a": 7, "b": 2}, {"a": Mark(3), "b": Mark(5)}
STEPS = {
    "preparing": (lambda new: (new.restoring.mkdir(), (new.restoring / "half").touch()), OLD),
    "prepared": (lambda new: (fill(new), new.seal(3)), OLD),
    "marked": (lambda new: new.mark(), MARKED),
    "exchanged": (lambda new: new.exchange(), UNFINISHED),
    "finished": (lambda new: new.finish(3), NEW),
}


@pytest.mark.parametrize("last", list(STEPS))
def test_a_crash_after_every_step_of_a_replacement(last, tmp_path):
    new = replacement(tmp_path)
    names = list(STEPS)
    for name in names[: names.index(last) + 1]:
        act, expected = STEPS[name]
        act(new)
    assert values(tmp_path) == expected
    assert folders(tmp_path) == [new.working.name], "an opening sweeps what a crash left"
    assert values(tmp_path) == expected


def test_a_crash_between_the_two_renames(tmp_path):
    new = replacement(tmp_path)
    fill(new)
    new.seal(3)
    new.mark()
    new.working.rename(new.discarded)
    assert values(tmp_path) == MARKED
    assert folders(tmp_path) == [new.working.name]


def test_a_crash_before_the_replaced_store_is_removed(tmp_path):
    new = replacement(tmp_path)
    fill(new)
    new.seal(3)
    new.mark()
    shutil.copytree(new.working, tmp_path / "copy")
    new.exchange()
    (tmp_path / "copy").rename(new.discarded)
    assert values(tmp_path) == UNFINISHED
    assert folders(tmp_path) == [new.working.name]


def test_a_replacement_that_cannot_be_put_in_place_changes_nothing(tmp_path, monkeypatch):
    new = replacement(tmp_path)
    fill(new)
    new.seal(3)
    real = os.rename

    def refuse(source, target):
        if Path(target) == new.working and Path(source) == new.restoring:
            raise OSError("no")
        real(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(te.StoreError, match="cannot replace"):
        new.exchange()
    new.abandon()
    monkeypatch.undo()
    assert values(tmp_path) == OLD


def test_an_abandoned_replacement_leaves_nothing(tmp_path):
    new = replacement(tmp_path)
    fill(new)
    new.abandon()
    assert folders(tmp_path) == [new.working.name]
    assert values(tmp_path) == OLD


def test_a_second_replacement_sweeps_the_first(tmp_path):
    new = replacement(tmp_path)
    STEPS["preparing"][0](new)
    fill(new)
    new.seal(3)
    new.exchange()
    assert not (new.working / "half").exists()
    assert values(tmp_path) == UNFINISHED


def test_a_leftover_of_another_store_stays(tmp_path):
    """It may be under way in another process."""
    new = replacement(tmp_path)
    fill(new)
    with open_pool_store(tmp_path, StoreLayout({"dim": 9}, 8, {"z": {}}), "memory", {}):
        assert new.restoring.exists()
    assert StoreDirectory.exists(new.restoring)


# --- tables are grouped otherwise -----------------------------------------------------------------


def grouped(ssd, **own):
    """Tables "a" and "b", of which "b" has options of its own."""
    tables = [te.TableConfig("a", ROWS, DIM), te.TableConfig("b", ROWS, DIM, **own)]
    return te.TieredEmbeddingBagCollection(
        tables, tiers=te.Tiers(ddr=4096, ssd=ssd, store="memory"), optimizer=te.optim.Adam(lr=0.1)
    )


def test_tables_that_no_longer_share_a_pool_are_told_so(tmp_path):
    with grouped(tmp_path) as module:
        train(module, 0, 2)
        digest = module.digest()
    message = (
        r"the tables \['a'\] and \['b'\] lie in one store, .* Now their options differ.*; give them"
        r" equal options again.*te\.drop_table"
    )
    for own in ({"lr_factor": 0.5}, {"optimizer": te.optim.Adam(lr=0.2)}):
        with pytest.raises(te.ConfigError, match=message):
            grouped(tmp_path, **own)
    # A reason that equal options would not mend comes first.
    with pytest.raises(te.ConfigError, match="another record layout"):
        grouped(tmp_path, optimizer=te.optim.SGD(lr=0.1))
    with pytest.raises(te.ConfigError, match=r"table 'b' was stored in .* with other values"):
        grouped(tmp_path, init=te.init.Constant(0.5))
    with grouped(tmp_path) as module:
        assert module.digest() == digest
    te.drop_table(tmp_path, "b")
    with grouped(tmp_path, lr_factor=0.5) as module:
        train(module, 2, 3)


def test_tables_that_now_share_a_pool_are_told_so(tmp_path):
    with grouped(tmp_path, lr_factor=0.5) as module:
        train(module, 0, 2)
    with pytest.raises(te.ConfigError, match=r"or had different options, when they were trained"):
        grouped(tmp_path)
