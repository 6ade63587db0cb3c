"""``te.checkpoint``: what is saved is what was trained, and comes back into any tiers."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import streams
import tiered_embed as te
from running import OPTIMIZERS, Prepared, make_module, record_bytes
from tiered_embed import checkpoint
from tiered_embed.checkpoint.manifest import Manifest

NUM = 40  # batches of the stream


@pytest.fixture(scope="module")
def stream():
    return streams.generated(num_batches=NUM)


@pytest.fixture(scope="module")
def prepared(stream):
    return Prepared(stream)


def tiers(stream, optimizer, share, ssd, store="rocksdb"):
    """``share`` of the bytes that the touched rows take, or memory alone."""
    if ssd is None:
        return te.Tiers(ddr="64MiB")
    size = sum(
        len({int(i) for b in stream.batches for f in t.feature_names for i in b[f].ids})
        * record_bytes(t, optimizer)
        for t in stream.tables
    )
    return te.Tiers(ddr=max(1, int(share * size)), ssd=ssd, store=store)


def module(stream, ssd, *, kind="adam", share=0.2, store="rocksdb", **options):
    optimizer = OPTIMIZERS[kind]
    return make_module(
        stream.tables, tiers(stream, optimizer, share, ssd, store), optimizer, **options
    )


def train(prepared, m, begin, end):
    for i in range(begin, end):
        prepared.step(m, i, {})


@pytest.fixture(scope="module")
def digests(stream, prepared):
    """After every batch, of a module in memory."""
    out = {}
    for kind in ("adam", "rowwise_adagrad"):
        with module(stream, None, kind=kind) as m:
            out[kind] = [m.digest()]
            for i in range(NUM):
                prepared.step(m, i, {})
                out[kind].append(m.digest())
    return out


PLACES = [None, "rocksdb", "rocksdb_py", "memory"]


@pytest.mark.parametrize("into", PLACES)
@pytest.mark.parametrize("source", PLACES)
def test_a_step_comes_back_into_any_tiers_and_training_goes_on(
    source, into, stream, prepared, digests, tmp_path
):
    def place(name, store):
        return None if store is None else tmp_path / name

    extra = {"anything": [1, "two"]}
    with module(stream, place("a", source), store=source or "auto") as m:
        train(prepared, m, 0, 17)
        saved = checkpoint.save(m, tmp_path / "c", step=17, extra=extra)
        assert saved.path == tmp_path / "c" / "step-17"
        train(prepared, m, 17, NUM)
        assert m.digest() == digests["adam"][NUM], "saving changed what is trained"
    assert checkpoint.list(tmp_path / "c") == [17]
    assert checkpoint.verify(tmp_path / "c") > 0
    other = module(
        stream,
        place("b", into),
        share=0.07,
        store=into or "auto",
        policy="s3fifo",
        depth=0,
        lookahead=4,
    )
    with other as m:
        train(prepared, m, 0, 5)  # what the step does not have is gone
        assert checkpoint.load(m, tmp_path / "c") == {"step": 17, "extra": extra}
        assert m.stats().steps == 17
        assert m.digest() == digests["adam"][17]
        train(prepared, m, 17, NUM)
        assert m.digest() == digests["adam"][NUM]
    assert checkpoint.verify(tmp_path / "c") > 0, "restoring touched the step"


def test_saves_in_the_background_are_cut_at_their_step(stream, prepared, digests, tmp_path):
    saves = []
    with module(stream, tmp_path / "a", kind="rowwise_adagrad", depth=2, lookahead=6) as m:
        batches = te.prefetch(range(NUM), m, ids=lambda i: {m: prepared.args[i]})
        for i in batches:
            prepared.step(m, i, {})
            if i % 6 == 0:
                save = checkpoint.save_delta if saves and i % 12 else checkpoint.save
                cursor = batches.state_dict()
                assert cursor == {"epochs": 0, "batches": i + 1}
                saves.append(save(m, tmp_path / "c", step=i + 1, extra=cursor, background=True))
        assert m.digest() == digests["rowwise_adagrad"][NUM]
    assert all(saved.done for saved in saves)
    steps = checkpoint.list(tmp_path / "c")
    assert steps == [saved.step for saved in saves]
    assert sum(Manifest.read(saved.path).base is not None for saved in saves) == 3
    for step in steps:
        with module(stream, tmp_path / f"b{step}", kind="rowwise_adagrad") as m:
            state = checkpoint.load(m, tmp_path / "c", step)
            assert m.digest() == digests["rowwise_adagrad"][step], step
            batches = te.prefetch(range(NUM), m, ids=lambda i: {m: prepared.args[i]})
            batches.load_state_dict(state["extra"])
            assert batches.state_dict() == state["extra"]
            for i in batches:
                prepared.step(m, i, {})
            assert m.digest() == digests["rowwise_adagrad"][NUM], step
            assert batches.state_dict() == {"epochs": 1, "batches": 0}


def test_a_batch_that_no_forward_used_is_not_counted(stream, prepared, tmp_path):
    with module(stream, None) as m:
        batches = te.prefetch(range(NUM), m, ids=lambda i: {m: prepared.args[i]})
        for i in batches:
            assert batches.state_dict()["batches"] == i
            prepared.step(m, i, {})
            assert batches.state_dict()["batches"] == i + 1
            if i == 3:
                break
        with pytest.raises(te.ConfigError, match="is not a cursor of te"):
            batches.load_state_dict({"batches": -1, "epochs": 0})


# --- deltas ---------------------------------------------------------------------------------------


def chain(stream, prepared, path, ssd):
    """Steps 10 (whole), 14 and 20 (deltas)."""
    with module(stream, ssd) as m:
        train(prepared, m, 0, 10)
        checkpoint.save(m, path, step=10)
        train(prepared, m, 10, 14)
        checkpoint.save_delta(m, path, step=14)
        train(prepared, m, 14, 20)
        checkpoint.save_delta(m, path, step=20, extra={"x": torch.arange(3)})


def test_a_delta_holds_the_changed_rows_and_can_be_made_whole(stream, prepared, digests, tmp_path):
    path = tmp_path / "c"
    chain(stream, prepared, path, tmp_path / "a")
    changed = {
        (t.name, int(row))
        for t in stream.tables
        for batch in stream.batches[10:14]
        for f in t.feature_names
        for row in batch[f].ids
    }
    manifest = Manifest.read(path / "step-14")
    keys = [np.load(path / "step-14" / pool.folder / "keys.npy") for pool in manifest.pools]
    assert sum(map(len, keys)) == len(changed)
    differences = checkpoint.diff(path, 10, 14)
    assert sum(d.added + d.changed for d in differences) <= len(changed)
    assert sum(d.removed for d in differences) == 0

    def restored(step):
        with module(stream, tmp_path / "b", share=0.5) as m:
            extra = checkpoint.load(m, path, step)["extra"]
            return m.digest(), extra

    with pytest.raises(te.ConfigError, match="keep is 0"):
        checkpoint.prune(path, keep=0)
    assert checkpoint.prune(path, keep=1) == [], "20 stands on 14, and that on 10"
    assert restored(20)[0] == digests["adam"][20]
    assert checkpoint.compact(path) == 20
    assert checkpoint.compact(path) == 20, "whole already"
    assert checkpoint.prune(path, keep=1) == [14, 10][::-1]
    assert checkpoint.list(path) == [20]
    digest, extra = restored(None)
    assert digest == digests["adam"][20]
    assert extra["x"].tolist() == [0, 1, 2]
    assert checkpoint.verify(path) > 0


def test_a_delta_goes_on_after_a_restore(stream, prepared, digests, tmp_path):
    path = tmp_path / "c"
    chain(stream, prepared, path, tmp_path / "a")
    with module(stream, tmp_path / "b") as m:
        with pytest.raises(te.ConfigError, match="newest save or restore"):
            checkpoint.save_delta(m, path, step=30)
        checkpoint.load(m, path, 14)
        train(prepared, m, 14, 30)
        with pytest.raises(te.ConfigError, match="does not come after step 14"):
            checkpoint.save_delta(m, path, step=14)
        checkpoint.save_delta(m, path, step=30)
    with module(stream, None) as m:
        checkpoint.load(m, path, 30)
        assert m.digest() == digests["adam"][30]
    shutil.rmtree(path / "step-14")
    for step in (20, 30):
        with pytest.raises(te.CorruptionError, match="stands on step 14"):
            checkpoint.verify(path, step)


def test_deltas_need_an_ssd_tier(stream, prepared, tmp_path):
    with module(stream, None) as m:
        checkpoint.save(m, tmp_path, step=0)
        with pytest.raises(te.ConfigError, match="no SSD tier"):
            checkpoint.save_delta(m, tmp_path, step=1)
    assert checkpoint.list(tmp_path) == [0]


# --- a process that ended -------------------------------------------------------------------------


def test_a_store_that_was_left_amid_training_is_refused_until_restored(tmp_path):
    script = """
        import os, sys, torch, tiered_embed as te
        from tiered_embed import checkpoint
        emb = te.TieredEmbeddingBag(1000, 8, tiers=te.Tiers(ddr=4000, ssd=sys.argv[1] + "/ssd"),
                                    optimizer=te.optim.Adam(lr=0.1))
        def steps(begin, end):
            for i in range(begin, end):
                emb(torch.randint(0, 1000, (64,), generator=torch.Generator().manual_seed(i)),
                    torch.tensor([0])).sum().backward()
        steps(0, 10)
        print(emb.digest(), flush=True)
        checkpoint.save(emb, sys.argv[1] + "/c", step=10)
        steps(10, 20)
        emb.engine.pools[0].scheduler.quiesce()
        os._exit(9)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 9, done.stderr

    def make(ddr):
        return te.TieredEmbeddingBag(
            1000,
            8,
            tiers=te.Tiers(ddr=ddr, ssd=tmp_path / "ssd"),
            optimizer=te.optim.Adam(lr=0.1),
        )

    with make(4000) as emb:
        for use in (
            lambda: emb(torch.tensor([1]), torch.tensor([0])),
            emb.digest,
            emb.flush,
            lambda: emb.rows([1]),
            lambda: checkpoint.save(emb, tmp_path / "c", step=11),
        ):
            with pytest.raises(
                te.StoreError, match=r"come from different training steps.*te.checkpoint.load"
            ):
                use()
    with make(9000) as emb:  # closing it has not made it whole
        with pytest.raises(te.StoreError, match="come from different training steps"):
            emb.digest()
        assert checkpoint.load(emb, tmp_path / "c")["step"] == 10
        assert emb.digest() == done.stdout.strip()
    with make(4000) as emb:
        assert emb.digest() == done.stdout.strip()


def test_what_a_crash_left_of_a_save_is_swept(stream, tmp_path):
    for name in ("step-3.tmp", "step-9.tmp"):
        (tmp_path / name / "store").mkdir(parents=True)
        (tmp_path / name / "manifest.json").write_text("{}")
    assert checkpoint.list(tmp_path) == []
    with module(stream, None) as m:
        with pytest.raises(FileNotFoundError, match="nothing is committed"):
            checkpoint.load(m, tmp_path)
        checkpoint.save(m, tmp_path, step=3)
    assert sorted(os.listdir(tmp_path)) == [".lock", "step-3"]


def test_a_compaction_that_stopped_between_its_renames_loses_nothing(
    stream, prepared, digests, tmp_path
):
    path = tmp_path / "c"
    chain(stream, prepared, path, tmp_path / "a")
    os.rename(path / "step-20", path / "step-20.replaced")
    assert checkpoint.list(path) == [10, 14, 20]
    with module(stream, tmp_path / "b") as m:
        assert checkpoint.load(m, path)["step"] == 20
        assert m.digest() == digests["adam"][20]
        checkpoint.save(m, path, step=21)
    assert (path / "step-20").is_dir()


# --- what it is asked -----------------------------------------------------------------------------


def test_extra_comes_back_as_it_was(stream, tmp_path):
    dense = torch.nn.Linear(3, 2)
    adam = torch.optim.Adam(dense.parameters())
    dense(torch.ones(3)).sum().backward()
    adam.step()
    rng = checkpoint.rng_state()
    drawn = (torch.rand(3), np.random.random(3))  # noqa: NPY002
    extra = {
        "dense": dense.state_dict(),
        "adam": adam.state_dict(),
        "rng": rng,
        3: (1.5, None, True, "ä", float("inf"), [torch.tensor(7, dtype=torch.bfloat16)]),
        "strided": torch.arange(6).view(2, 3).t(),
    }
    with module(stream, None) as m:
        checkpoint.save(m, tmp_path, step=1, extra=extra)
        got = checkpoint.load(m, tmp_path)["extra"]
    checkpoint.restore_rng(got["rng"])
    assert torch.equal(torch.rand(3), drawn[0])
    np.testing.assert_array_equal(np.random.random(3), drawn[1])  # noqa: NPY002
    dense.load_state_dict(got["dense"])
    adam.load_state_dict(got["adam"])
    assert got["adam"]["state"][0]["exp_avg"].shape == (2, 3)
    assert got[3][:5] == extra[3][:5]
    assert got[3][5][0].dtype == torch.bfloat16
    assert torch.equal(got["strided"], extra["strided"])


class Odd:
    pass


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ({"a": [Odd()]}, r"extra\['a'\]\[0\] is a Odd"),
        ({(1, 2): 3}, "has the key"),
        ({"a": torch.eye(3).to_sparse()}, "dense tensor"),
        (b"bytes", "is a bytes"),
    ],
)
def test_an_extra_that_is_no_plain_data_is_refused(extra, match, stream, tmp_path):
    with module(stream, None) as m, pytest.raises(te.ConfigError, match=match):
        checkpoint.save(m, tmp_path / "c", step=1, extra=extra)
    assert not (tmp_path / "c").exists()


def test_refusals_leave_everything_as_it_was(stream, prepared, digests, tmp_path):
    path = tmp_path / "c"
    with module(stream, tmp_path / "a") as m:
        train(prepared, m, 0, 4)
        checkpoint.save(m, path, step=4)
        with pytest.raises(te.ConfigError, match="committed already"):
            checkpoint.save(m, path, step=4)
        for step in (-1, 1.5, True, "4", 2**63):
            with pytest.raises(te.ConfigError, match="step is"):
                checkpoint.save(m, path, step=step)
        with pytest.raises(
            FileNotFoundError, match=r"step 5 is not committed in .*; committed are \[4\]"
        ):
            checkpoint.load(m, path, 5)
        with te.accumulate(m), pytest.raises(te.ConfigError, match=r"te\.accumulate is running"):
            checkpoint.save(m, path, step=5)
        for _ in te.prefetch(range(2), m, ids=lambda i: {m: prepared.args[i]}):
            with pytest.raises(te.ConfigError, match="prefetch loop is running"):
                checkpoint.load(m, path)
        (path / "step-4" / "more").write_text("x")
        with pytest.raises(te.CorruptionError, match=r"more' is not in the manifest"):
            checkpoint.load(m, path)
        (path / "step-4" / "more").unlink()
        assert m.digest() == digests["adam"][4]
    with (
        module(stream, None, kind="rowwise_adagrad") as m,
        pytest.raises(te.ConfigError, match="build the model as it was saved"),
    ):
        checkpoint.load(m, path)
    with pytest.raises(te.ConfigError, match="no tiered module"):
        checkpoint.save(torch.nn.Linear(2, 2), path, step=9)
    assert checkpoint.list(path) == [4]


def test_rows_that_do_not_fit_memory_are_refused_before_anything_is_lost(tmp_path):
    def make(rows, ddr, ssd=None):
        return te.TieredEmbeddingBag(
            rows, 4, tiers=te.Tiers(ddr=ddr, ssd=ssd), optimizer=te.optim.SGD(lr=0.1)
        )

    ids = torch.arange(40)
    with make(1000, 640, tmp_path / "a") as emb:
        emb(ids, torch.tensor([0])).sum().backward()
        checkpoint.save(emb, tmp_path / "c", step=1)
    with make(1000, 160) as emb:
        emb(ids[:3], torch.tensor([0])).sum().backward()
        before = emb.digest()
        with pytest.raises(te.CapacityError, match=r"40 rows .* 10 slots"):
            checkpoint.load(emb, tmp_path / "c")
        assert emb.digest() == before
    with make(39, 6400) as emb, pytest.raises(te.ConfigError, match="raise num_embeddings"):
        checkpoint.load(emb, tmp_path / "c")


def test_a_forward_before_a_restore_cannot_be_differentiated_after_it(stream, prepared, tmp_path):
    with module(stream, tmp_path / "a") as m:
        checkpoint.save(m, tmp_path / "c", step=0)
        out = prepared.call(m, prepared.args[0])
        checkpoint.load(m, tmp_path / "c")
        before = m.digest()
        with pytest.raises(
            te.ClosedError, match="restored after this forward and replaced its rows"
        ):
            next(iter(out.values())).sum().backward()
        assert m.digest() == before


def test_a_model_of_several_modules(tmp_path):
    def build(root):
        model = torch.nn.Module()
        for name, dim in (("user", 4), ("item", 4), ("word", 6)):
            emb = te.TieredEmbedding(
                50,
                dim,
                tiers=te.Tiers(ddr=400, ssd=root / name),
                optimizer=te.optim.Adam(lr=0.1),
                name="table" if name != "word" else name,
            )
            setattr(model, name, emb)
        return model

    def close(model):
        for m in model.children():
            m.close()

    model = build(tmp_path / "a")
    for k, m in enumerate(model.children()):
        for i in range(3 + k):
            m(torch.arange(i, 20 + i)).sum().backward()
    digests = [m.digest() for m in model.children()]
    checkpoint.save(model, tmp_path / "c", step=1)
    close(model)
    model = build(tmp_path / "b")
    checkpoint.load(model, tmp_path / "c")
    assert [m.digest() for m in model.children()] == digests
    assert [m.stats().steps for m in model.children()] == [3, 4, 5]
    close(model)


# --- export, DCP, command line --------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_exports_tell_their_error(bits, stream, prepared, tmp_path):
    from safetensors.torch import load_file

    chain(stream, prepared, tmp_path / "c", tmp_path / "a")
    exported = checkpoint.export(tmp_path / "c", tmp_path / "out", bits=bits)
    assert sorted(t.table for t in exported) == sorted(t.name for t in stream.tables)
    with module(stream, None) as m:
        checkpoint.load(m, tmp_path / "c")
        for t in exported:
            parts = load_file(t.file)
            table = None if len(stream.tables) == 1 else t.table
            rows = m.rows(parts["ids"], table=table)
            codes = parts["codes"]
            if bits == 4:
                codes = torch.stack([codes & 15, codes >> 4], 2).flatten(1)[:, : rows.shape[1]]
            values = codes * parts["scale"][:, None] + parts["bias"][:, None]
            worst = float((values - rows).abs().max())
            assert worst == pytest.approx(t.max_error, rel=1e-3, abs=1e-7)
            step = float(parts["scale"].max())
            assert worst <= 0.51 * step
            assert t.rms_error <= t.max_error
            assert (t.rms_error > 0) == (rows.shape[1] > 1)


@pytest.mark.parametrize(
    ("row", "why"),
    [([1.0, float("nan")], "not finite"), ([-3e38, 3e38], "beyond what float32 can divide")],
)
def test_rows_that_cannot_be_quantised_are_named(row, why, tmp_path):
    with te.TieredEmbedding(
        9, 2, tiers=te.Tiers(ddr=4096), optimizer=te.optim.SGD(lr=0.1), name="wide"
    ) as m:
        m.load_rows([3, 7], torch.tensor([[1.0, 2.0], row]))
        checkpoint.save(m, tmp_path / "c", step=1)
    with pytest.raises(te.ConfigError, match=f"row 7 of table 'wide' .*{why}"):
        checkpoint.export(tmp_path / "c", tmp_path / "out")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_distributed_checkpoints_take_the_rows(stream, prepared, digests, tmp_path):
    from torch.distributed import checkpoint as dcp

    with module(stream, tmp_path / "a") as m:
        train(prepared, m, 0, 9)
        state = {"model": m.state_dict(), "rows": checkpoint.RowsState(m)}
        dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
        train(prepared, m, 9, 12)
    with module(stream, tmp_path / "b") as m:
        with pytest.raises(te.ConfigError, match="holds nothing called 'no'"):
            checkpoint.RowsState(m).load(tmp_path / "dcp", "no")
        checkpoint.RowsState(m).load(tmp_path / "dcp")
        assert m.digest() == digests["adam"][9]
        train(prepared, m, 9, 12)
        assert m.digest() == digests["adam"][12]


def test_the_command_line(stream, prepared, tmp_path):
    from typer.testing import CliRunner

    from tiered_embed.cli import app

    path = str(tmp_path / "c")
    chain(stream, prepared, tmp_path / "c", tmp_path / "a")

    def run(*args, code=0):
        result = CliRunner().invoke(app, ["checkpoint", *args])
        assert result.exit_code == code, result.output
        return result.stdout

    steps = json.loads(run("inspect", path, "--json"))
    assert [(s["step"], s["base"]) for s in steps] == [(10, None), (14, 10), (20, 14)]
    assert "based on" in run("inspect", path)
    assert run("verify", path).count("intact") == 3
    assert "rows added" in run("diff", path, "10", "14")
    assert json.loads(run("export", path, str(tmp_path / "out"), "--json"))[0]["rows"] > 0
    assert "step 20 is a full step now" in run("compact", path)
    assert json.loads(run("prune", path, "--keep", "1", "--json")) == {"removed": [10, 14]}
    victim = next(Path(path).rglob("*.sst"))
    flipped = bytearray(victim.read_bytes())
    flipped[len(flipped) // 2] ^= 4
    victim.chmod(0o600)
    victim.write_bytes(flipped)
    assert "SHA-256" in run("verify", path, code=1)


# --- mixed steps, unknown writes, halves ----------------------------------------------------------


def test_a_write_that_was_posted_before_a_cut_takes_nothing_from_behind_it(
    stream, prepared, digests, tmp_path
):
    """The writer is held while training goes on, then everything that was posted runs."""
    with module(stream, tmp_path / "a", kind="rowwise_adagrad", share=0.05) as m:
        train(prepared, m, 0, 8)
        gate = threading.Event()
        for pool in m.engine.pools:
            pool.scheduler._mover._executors.writing.submit(gate.wait)
        train(prepared, m, 8, 10)
        saved = checkpoint.save(m, tmp_path / "c", step=10, background=True)
        train(prepared, m, 10, 20)
        gate.set()
        saved.wait()
        assert m.digest() == digests["rowwise_adagrad"][20]
    with module(stream, tmp_path / "b", kind="rowwise_adagrad") as m:
        checkpoint.load(m, tmp_path / "c")
        assert m.digest() == digests["rowwise_adagrad"][10]


def test_a_delta_is_refused_where_writes_may_be_unknown(
    stream, prepared, digests, tmp_path, monkeypatch
):
    path = tmp_path / "c"
    refused = pytest.raises(te.ConfigError, match="newest save or restore")
    with module(stream, tmp_path / "a") as m:
        train(prepared, m, 0, 3)
        checkpoint.save(m, path, step=3)
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules["tiered_embed.checkpoint.save"], "commit", _no_space)
            train(prepared, m, 3, 5)
            with pytest.raises(te.StoreError, match="no space"):
                checkpoint.save(m, path, step=5)
        with refused:
            checkpoint.save_delta(m, path, step=7)
        checkpoint.save(m, path, step=8)
        wrapper = torch.nn.ModuleList([m])
        checkpoint.save(wrapper, tmp_path / "other", step=9)
        with refused:
            checkpoint.save_delta(m, path, step=9)
        checkpoint.save(m, path, step=10)
        shutil.rmtree(path / "step-10")
        shutil.copytree(path / "step-8", path / "step-10")
        manifest = json.loads((path / "step-10" / "manifest.json").read_text())["content"]
        manifest["step"] = 10
        (path / "step-10" / "manifest.json").unlink()
        Manifest.model_validate(manifest).write(path / "step-10")
        with refused:  # another step of that number
            checkpoint.save_delta(m, path, step=11)
    assert checkpoint.list(path) == [3, 8, 10]


def _no_space(folder):
    raise te.StoreError("no space")


def test_a_delta_after_an_import_is_refused(tmp_path):
    tiers = te.Tiers(ddr="1MiB", ssd=tmp_path / "a")
    with te.TieredEmbeddingBag(100, 4, tiers=tiers, optimizer=te.optim.SGD(lr=0.1)) as emb:
        checkpoint.save(emb, tmp_path / "c", step=0)
        emb.import_rows([(np.arange(9), torch.ones(9, 4))])
        with pytest.raises(te.ConfigError, match="all writes since then"):
            checkpoint.save_delta(emb, tmp_path / "c", step=1)


def test_a_base_of_another_run_is_found(stream, prepared, tmp_path):
    chain(stream, prepared, tmp_path / "c", tmp_path / "a")
    chain(stream, prepared, tmp_path / "d", tmp_path / "b")
    shutil.rmtree(tmp_path / "c" / "step-10")
    shutil.copytree(tmp_path / "d" / "step-10", tmp_path / "c" / "step-10")
    for step in (14, 20):
        with pytest.raises(te.CorruptionError, match="stands on another step 10"):
            checkpoint.verify(tmp_path / "c", step)


def small(root, name="table", rows=50, **options):
    return te.TieredEmbedding(
        rows,
        4,
        tiers=te.Tiers(ddr=400, ssd=root and root / name),
        optimizer=te.optim.Adam(lr=0.1),
        **options,
    )


@pytest.mark.parametrize("stops_at", [1, 2])
def test_a_restore_that_stops_between_its_renames_is_refused_later(stops_at, tmp_path, monkeypatch):
    ids = torch.arange(30)
    with small(tmp_path) as emb:
        emb(ids).sum().backward()
        checkpoint.save(emb, tmp_path / "c", step=1)
        wanted = emb.digest()
    script = f"""
        import os, torch, sys, tiered_embed as te
        from pathlib import Path
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(streams.__file__).parent)]!r}
        from test_checkpoint import small, checkpoint
        root = Path({str(tmp_path)!r})
        emb = small(root)
        emb(torch.arange(3)).sum().backward()
        emb.flush()
        rename, count = os.rename, [0]
        def stop(a, b):
            count[0] += 1
            if count[0] == {stops_at}:
                os._exit(9)
            rename(a, b)
        os.rename = stop
        checkpoint.load(emb, root / "c")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 9, done.stderr
    with small(tmp_path) as emb:
        with pytest.raises(te.StoreError, match="come from different training steps"):
            emb(ids)
        checkpoint.load(emb, tmp_path / "c")
        assert emb.digest() == wanted
    assert sorted(p.name[:5] for p in (tmp_path / "table").iterdir()) == ["pool-"]


def test_a_restore_that_fails_midway_leaves_a_module_that_refuses(tmp_path, monkeypatch):
    ids = torch.arange(30)
    tiers = te.Tiers(ddr="1MiB")
    with te.TieredEmbedding(50, 4, tiers=tiers, optimizer=te.optim.Adam(lr=0.1)) as emb:
        emb(ids).sum().backward()
        checkpoint.save(emb, tmp_path / "c", step=1)
        wanted = emb.digest()
        with monkeypatch.context() as patch:
            patch.setattr("tiered_embed.engine.pool.Pool.write", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                checkpoint.load(emb, tmp_path / "c")
        with pytest.raises(te.StoreError, match="failed midway"):
            emb(ids)
        with pytest.raises(te.StoreError, match="failed midway"):
            emb.digest()
        checkpoint.load(emb, tmp_path / "c")
        assert emb.digest() == wanted


def _interrupt(*args):
    raise KeyboardInterrupt


def test_alike_modules_are_told_apart_by_their_names(tmp_path):
    def build(root, *names):
        return torch.nn.ModuleDict({name: small(root, name) for name in names})

    model = build(tmp_path / "1", "a", "b")
    model["a"](torch.arange(10)).sum().backward()
    model["b"](torch.arange(20)).sum().backward()
    wanted = {name: m.digest() for name, m in model.items()}
    checkpoint.save(model, tmp_path / "c", step=1)
    other = build(tmp_path / "2", "b", "a")
    checkpoint.load(other, tmp_path / "c")
    assert {name: m.digest() for name, m in other.items()} == wanted
    renamed = build(tmp_path / "3", "x", "y")
    with pytest.raises(
        te.ConfigError, match=r"'x' may be any of \['a', 'b'\], whose tables are equal"
    ):
        checkpoint.load(renamed, tmp_path / "c")
    other["a"].close()
    with pytest.raises(te.ClosedError, match="make a new one to restore into"):
        checkpoint.load(other, tmp_path / "c")
    assert other["b"].digest() == wanted["b"], "the other module keeps its rows"
    for m in (*model.values(), *renamed.values(), other["b"]):
        m.close()


def test_a_cursor_counts_what_was_trained(tmp_path):
    ids = [torch.tensor([i]) for i in range(8)]
    with small(None) as emb, small(None) as unused:
        loader = te.prefetch(range(8), emb, ids=lambda i: {emb: ids[i], unused: ids[i]})
        for i in loader:
            if i == 3:
                break
            emb(ids[i] if i != 1 else ids[7]).sum().backward()  # once with others than promised
            assert loader.state_dict()["batches"] == i + 1
        assert loader.state_dict()["batches"] == 3
        seen = []
        again = te.prefetch(range(8), emb, ids=lambda i: {emb: ids[i]})
        again.load_state_dict(loader.state_dict())
        for i in again:
            emb(ids[i]).sum().backward()
            seen.append(i)
        assert seen == [3, 4, 5, 6, 7]
        for bad in (5, {}, {"epochs": 0, "batches": 2**70}, {"epochs": True, "batches": 1}):
            with pytest.raises(te.ConfigError, match="is not a cursor of te"):
                again.load_state_dict(bad)


@pytest.mark.parametrize("path", [None, 7, "", "a\0b", b"bytes"])
def test_what_is_no_path_is_refused(path, tmp_path):
    for call in (checkpoint.list, checkpoint.verify, lambda p: checkpoint.prune(p, keep=1)):
        with pytest.raises(te.ConfigError, match="path of the checkpoints"):
            call(path)


def test_a_relative_path_means_the_directory_of_the_call(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with small(tmp_path) as emb:
        saved = checkpoint.save(emb, "c", step=1, background=True)
        os.chdir(tmp_path / "elsewhere")
        assert saved.wait().path == tmp_path / "c" / "step-1"
    assert checkpoint.list(tmp_path / "c") == [1]


def test_folders_that_no_file_needs_are_found(tmp_path):
    with small(tmp_path) as emb:
        checkpoint.save(emb, tmp_path / "c", step=1)
    extra = tmp_path / "c" / "step-1" / "store" / "7"
    extra.mkdir()
    with pytest.raises(te.CorruptionError, match="is not in the manifest"):
        checkpoint.verify(tmp_path / "c")
    extra.rmdir()
    deep = tmp_path / "c" / "step-1" / "store" / "0" / "db" / "deeper"
    deep.mkdir()
    with pytest.raises(te.CorruptionError, match="does not belong to a step"):
        checkpoint.verify(tmp_path / "c")


def test_a_smaller_table_or_another_padding_row_is_refused(tmp_path):
    with small(tmp_path) as emb:
        checkpoint.save(emb, tmp_path / "c", step=1)
    with small(tmp_path, "b", rows=49) as emb, pytest.raises(te.ConfigError, match="had 50 rows"):
        checkpoint.load(emb, tmp_path / "c")
    with (
        small(tmp_path, "d", padding_idx=3) as emb,
        pytest.raises(te.ConfigError, match="padding_idx"),
    ):
        checkpoint.load(emb, tmp_path / "c")
    with small(tmp_path, "e", rows=70) as emb:
        checkpoint.load(emb, tmp_path / "c")


def test_a_child_neither_saves_nor_restores(tmp_path):
    with small(tmp_path) as emb:
        emb(torch.arange(9)).sum().backward()
        saved = checkpoint.save(emb, tmp_path / "c", step=1, background=True)
        pid = os.fork()
        if pid == 0:
            code = 0
            for call in (
                lambda: checkpoint.load(emb, tmp_path / "c"),
                lambda: checkpoint.save(emb, tmp_path / "c", step=2),
                saved.wait,
            ):
                try:
                    call()
                    code = 1
                except te.ClosedError:
                    pass
                except BaseException:
                    code = 2
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        saved.wait()
        before = emb.digest()
    with small(tmp_path) as emb:
        assert emb.digest() == before
