"""Every command over real and damaged inputs: exit codes, numbers, widths, pipes.

A number that a command prints is compared with its JSON, and its JSON with a count in plain Python.
"""

import collections
import csv
import json
import lzma
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tiered_embed as te
from shell import WIDE, shape, shell
from tiered_embed import traces

TESTS = next(folder for folder in Path(__file__).resolve().parents if folder.name == "tests")
FROZEN = TESTS / "golden" / "command_json.json"
NAMES = ("tables", "tiers", "rows", "by_table", "reuse", "phases", "bounds")
SMALL = (
    *("--rows", 900, "--tables", 2, "--dim", 4, "--batch-size", 16, "--pooling", 3),
    *("--warm-steps", 3, "--steps", 7, "--ddr", "12KiB"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One of everything that commands read."""
    root = tmp_path_factory.mktemp("inputs")
    traces.CriteoGenerator(900, 0).write(root / "log.tsv")
    (root / "a.csv").write_text("user,item\n1,2\n3,4\n1,9\n")
    (root / "bare.tsv").write_text("1\t2\n3\t4\n1\t9\n")
    (root / "one.csv").write_text("item\n5\n\n7\n")
    (root / "empty").write_text("")
    (root / "nothing").mkdir()
    (root / "short.tsv").write_text("".join((root / "log.tsv").read_text().splitlines(True)[:4]))
    ids = np.random.default_rng(0).zipf(1.3, 6000) % 500
    (root / "ids.i64le").write_bytes(ids.astype("<i8").tobytes())
    return root


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Checkpoints: 1 is whole, 2 and 3 stand on it, 4 is whole, 5 stands on it."""
    root = tmp_path_factory.mktemp("checkpoints")
    tiers = te.Tiers(ddr=40 * 20, ssd=root / "store")
    with te.TieredEmbedding(None, 4, tiers=tiers, optimizer=te.optim.Adagrad(lr=0.1)) as emb:
        for step in range(1, 6):
            emb(torch.arange(10 * step, 10 * step + 8)).sum().backward()
            save = te.checkpoint.save if step in (1, 4) else te.checkpoint.save_delta
            save(emb, root / "steps", step=step)
    return root / "steps"


def copied(steps, tmp_path):
    subprocess.run(["cp", "-r", steps, tmp_path / "copy"], check=True)
    return tmp_path / "copy"


def own_bytes(steps, step):
    """Bytes of a step's files but for its manifest, which lists them."""
    files = [f for f in (steps / f"step-{step}").rglob("*") if f.is_file()]
    return sum(f.stat().st_size for f in files if f.name != "manifest.json")


def flip(path, place=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


def largest(steps, step):
    files = [f for f in (steps / f"step-{step}").rglob("*") if f.is_file()]
    return max((f for f in files if f.name != "manifest.json"), key=lambda f: f.stat().st_size)


# --- exit codes ---------------------------------------------------------------------------------

CODES = [
    (0, "trace info a.csv --columns user", "csv: 1 batches, 3 accesses"),
    (0, "trace info a.csv --columns u=user,v=user,item", ""),
    (2, "trace info a.csv", "pass --columns with the names of the columns"),
    (2, "trace info a.csv --columns nosuch", "there is no column 'nosuch'"),
    (2, "trace info a.csv --columns u=user,u=item", "names table 'u' twice"),
    (2, "trace info a.csv --columns user,", "pass names as user,item"),
    (2, "trace info a.csv --columns =user", "pass names as user,item"),
    (2, "trace info a.csv --columns user --layout u32le", "--layout does not concern"),
    (2, "trace info ids.i64le --columns nosuch", "--columns does not concern"),
    (2, "trace info ids.i64le --missing -1", "--missing does not concern"),
    (2, "trace info a.csv --format nosuch", "format must be one of"),
    (2, "trace info log.tsv --columns user", "--columns does not concern"),
    (2, "trace info one.csv --columns item", "row 2: column 'item' is empty; pass --missing with"),
    (0, "trace info one.csv --columns item --missing -1", "3 accesses"),
    (0, "trace info bare.tsv --header user,item --columns item", "3 accesses"),
    (2, "trace info bare.tsv --columns item", "there is no column 'item'"),
    (2, "trace info empty", "format cannot be recognised"),
    (2, "trace info nothing", "is a directory; pass a file"),
    (2, "trace info absent", "there is no file absent"),
    (2, "trace convert a.csv no/out.tet --columns user", "No such file or directory"),
    (2, "trace sample ids.i64le out.tet --rate 0", "rate must be in (0, 1]"),
    (2, "trace head ids.i64le --batches 0", "batches"),
    (2, "trace generate no/out.tet --accesses 9", "No such file or directory"),
    (2, "trace record out.tet absent.py", "there is no script absent.py"),
    (2, "trace record out.tet train absent", "there is no file absent"),
    (2, "simulate absent", "there is no file absent"),
    (2, "simulate nothing", "is a directory"),
    (2, "simulate empty", "format cannot be recognised"),
    (2, "simulate a.csv", "pass --columns with"),
    (2, "simulate ids.i64le --sizes 1.5", "a whole number of rows"),
    (2, "simulate ids.i64le --policies nosuch", "policy is 'nosuch'; choose one of lru"),
    (2, "simulate ids.i64le --plot no/a.png", "there is no folder no"),
    (2, "simulate ids.i64le --html nothing", "is a directory; pass the name of a file"),
    (2, "simulate ids.i64le --ddr 8G --policies lru", "write 8GiB for units of 1024"),
    (2, "bench --trace a.csv", "pass --columns with"),
    (2, "bench --columns user", "there is no --trace; leave it out"),
    (2, "bench --trace ids.i64le --rows 5", "--rows describes ids that are drawn"),
    (2, "bench --trace a.csv --columns user --pooling 3", "--pooling is for raw ids"),
    (2, "bench --distribution uniform --exponent 2", "--exponent is of the zipf law"),
    (2, "simulate ids.i64le --ddr 1MiB --html x.html", "--html describes a study"),
    (2, "simulate ids.i64le --ddr 1MiB --policies lru,lfu", "pass one policy, not 'lru,lfu'"),
    (2, "trace generate out.tet --accesses 9 --window 99999", "--window is the window of"),
    (2, "trace head ids.i64le --codec none", "--codec is of the file that --out names"),
    (2, "bench --trace absent", "there is no file absent"),
    (2, "bench --picture no/a.png", "there is no folder no"),
    (2, "bench --picture a.xyz", "a.xyz must end in .png or .svg or .pdf"),
    (2, "simulate ids.i64le --plot picture", "picture must end in .png"),
    (2, "bench --ddr much", "ddr is 'much'"),
    (2, "bench --depth 9 --lookahead 2", "depth is 9 but lookahead is 2"),
    (2, "bench --ssd a.csv --steps 1", "cannot create the store directory"),
    (2, "train absent", "there is no file absent"),
    (2, "train nothing", "is a directory"),
    (2, "train empty", "the log has too few lines"),
    (2, "train short.tsv", "the log has too few lines"),
    (2, "train a.csv", "40 fields are expected"),
    (2, "train log.tsv --ddr 64KiB", "raise ddr or add an ssd tier"),
    (2, "train log.tsv --ssd log.tsv", "cannot create the store directory"),
    (2, "checkpoint inspect absent", "there is no directory 'absent'"),
    (2, "checkpoint inspect a.csv", "'a.csv' is a file"),
    (2, "checkpoint inspect nothing", "there is no committed step in 'nothing'"),
    (2, "checkpoint verify absent", "there is no directory 'absent'"),
    (2, "checkpoint verify nothing", "there is no committed step"),
    (2, "checkpoint prune nothing --keep 1", "there is no committed step"),
    (2, "checkpoint prune a.csv --keep 1", "'a.csv' is a file"),
    (2, "checkpoint diff absent 1 2", "there is no directory 'absent'"),
    (2, "checkpoint compact nothing", "there is no committed step"),
    (2, "checkpoint export nothing out", "there is no committed step"),
    (2, "nosuch", "No such command"),
]


@pytest.mark.parametrize(("code", "line", "words"), CODES, ids=str)
def test_exit_codes_and_what_is_told(folder, monkeypatch, code, line, words):
    monkeypatch.chdir(folder)
    ran = shell(*line.split())
    assert ran.code == code, ran.err
    told = " ".join(re.sub(r"[│╭╮╰╯─]", " ", ran.out + ran.err).split())
    assert words in told
    assert "Traceback" not in told
    assert not list(folder.glob("out*")), "something was left half done"


def test_messages_name_options_and_leave_the_users_words_alone(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "batch_size").mkdir()
    (folder / "batch_size" / "missing=.csv").write_text("object_column\n1\n")
    ran = shell("trace", "info", "batch_size/missing=.csv", "--columns", "batch_size")
    assert ran.err == (
        "tiered-embed: batch_size/missing=.csv: there is no column 'batch_size'; the columns are"
        " ['object_column']\n"
    )
    ran = shell("bench", "--trace", "ids.i64le", "--batch-size", "9000")
    assert "; lower --batch-size or pooling" in ran.err


def test_train_refuses_a_store_that_was_trained(folder, tmp_path):
    words = ("train", folder / "log.tsv", "--ddr", "64KiB", "--ssd", tmp_path / "ssd", "--json")
    assert shell(*words).code == 0
    before = sorted((f, f.stat().st_mtime_ns) for f in (tmp_path / "ssd").rglob("*"))
    again = shell(*words)
    assert again.code == 2
    assert "is not empty" in again.err
    assert sorted((f, f.stat().st_mtime_ns) for f in (tmp_path / "ssd").rglob("*")) == before


# --- checkpoints --------------------------------------------------------------------------------


def test_a_delta_on_a_damaged_step_is_damaged(steps, tmp_path):
    path = copied(steps, tmp_path)
    assert [r["step"] for r in shell("checkpoint", "verify", path, "--json").json] == [
        1,
        2,
        3,
        4,
        5,
    ]
    flip(largest(path, 1))
    ran = shell("checkpoint", "verify", path, "--json")
    assert ran.code == 1
    errors = {r["step"]: r.get("error") for r in ran.json}
    assert [step for step, error in errors.items() if error] == [1, 2, 3]
    assert "its own files are intact, but it stands on step 1" in errors[3]
    for step, error in errors.items():
        alone = shell("checkpoint", "verify", path, "--step", step)
        assert alone.code == (1 if error else 0)
    # A delta in between that is damaged, and a manifest.
    (tmp_path / "second").mkdir()
    path = copied(steps, tmp_path / "second")
    flip(largest(path, 2))
    flip(path / "step-4" / "manifest.json")
    broken = {r["step"] for r in shell("checkpoint", "verify", path, "--json").json if "error" in r}
    assert broken == {2, 3, 4, 5}
    listed = shell("checkpoint", "inspect", path, "--json")
    assert listed.code == 1
    assert [s["step"] for s in listed.json if "error" in s] == [4, 5]
    with pytest.raises(te.CorruptionError):
        te.checkpoint.verify(path)


def test_checkpoint_numbers(steps):
    for columns in (60, WIDE):
        text = shell("checkpoint", "inspect", steps, columns=columns).out
        listed = shell("checkpoint", "inspect", steps, "--json").json
        for each in listed:
            assert each["bytes"] == own_bytes(steps, each["step"])
            assert f"{each['bytes']:,}" in text
        verified = shell("checkpoint", "verify", steps, columns=columns).out
        for each in shell("checkpoint", "verify", steps, "--json").json:
            assert each["bytes"] == own_bytes(steps, each["step"])
            assert f"step {each['step']}: intact, {each['bytes']:,} bytes" in verified
    assert [each["base"] for each in listed] == [None, 1, 2, None, 4]
    assert [each["pools"][0]["updates"] for each in listed] == [1, 2, 3, 4, 5]
    (told,) = shell("checkpoint", "diff", steps, 1, 3, "--json").json
    assert (told["added"], told["removed"], told["same"]) == (16, 0, 8)
    assert "16 rows added, 0 removed, 0 changed, 8 unchanged" in (
        shell("checkpoint", "diff", steps, 1, 3).out
    )


def test_no_command_reads_a_damaged_delta(steps, tmp_path):
    path = copied(steps, tmp_path)
    words = ("checkpoint", "diff", path, 1, 3)
    whole = shell(*words)
    files = [f for f in (path / "step-2" / "delta").rglob("*") if f.is_file()]
    chance = random.Random(0)
    for file in files:
        data = file.read_bytes()
        for _ in range(5):
            flip(file, chance.random())
            for line in (words, ("checkpoint", "export", path, tmp_path / "out", "--step", 3)):
                ran = shell(*line)
                assert (ran.code, file.name in ran.err) == (2, True), ran.out
            assert not (tmp_path / "out").exists()
            file.write_bytes(data)
    assert shell(*words) == whole


def test_a_step_is_not_the_directory(steps):
    ran = shell("checkpoint", "inspect", steps / "step-1")
    assert ran.code == 2
    assert "is one step; pass the directory that it is in" in ran.err
    ran = shell("checkpoint", "verify", steps, "--step", 9)
    assert (ran.code, "step 9 is not committed" in ran.err) == (2, True)


# --- numbers ------------------------------------------------------------------------------------


def read_columns(path):
    """The id columns of a real log, by the csv module alone."""
    with lzma.open(path, "rt") as file:
        rows = list(csv.reader(file, delimiter="\t" if ".tsv" in path.name else ","))
    if rows[0][0] == "userId":
        return {"user": [r[0] for r in rows[1:]], "movie": [r[1] for r in rows[1:]]}
    if rows[0][0] == "user":
        names = ("user", "hour", "venue", "category")
        return {name: [r[i] for r in rows[1:]] for i, name in enumerate(names)}
    return {f"C{i + 1}": [int(r[14 + i] or "100000000", 16) for r in rows] for i in range(26)}


@pytest.mark.parametrize(
    "name",
    ["movielens_small_ratings.csv.xz", "lbsn_checkins_nyc.tsv.xz", "criteo_kaggle_10k.tsv.xz"],
)
def test_trace_info_counts_what_is_there(data_file, name):
    path = data_file(name)
    truth = read_columns(path)
    told = shell("trace", "info", path, "--json").json
    texts = [shell("trace", "info", path, columns=columns).out for columns in (60, WIDE)]
    num = sum(map(len, truth.values()))
    assert told["accesses"] == num
    assert told["file_bytes"] == path.stat().st_size
    assert set(told["tables"]) == set(truth)
    for table, ids in truth.items():
        own = told["tables"][table]
        uses = collections.Counter(map(int, ids))
        assert own["accesses"] == len(ids)
        assert own["unique"] == len(uses)
        assert (own["least_id"], own["largest_id"]) == (min(uses), max(uses))
        assert own["most_uses"] == max(uses.values())
        assert own["mean_uses"] == pytest.approx(len(ids) / len(uses))
        once = sum(n == 1 for n in uses.values()) / len(uses)
        for text in texts:
            for number in (f"{len(ids):,}", f"{len(uses):,}", f"{once:.1%}", f"{max(uses)}"):
                assert number in text
    assert all(f"{num:,} accesses" in text for text in texts)
    assert all(len(line) <= 60 for line in texts[0].splitlines())


def test_converted_sampled_and_headed(folder, tmp_path):
    out = tmp_path / "out.tet"
    told = shell("trace", "convert", folder / "a.csv", out, "--columns", "user,item", "--json").json
    assert (told["accesses"], told["file_bytes"]) == (6, out.stat().st_size)
    assert f"6 accesses, {out.stat().st_size:,} bytes" in (
        shell("trace", "convert", folder / "a.csv", out, "--columns", "user,item").out
    )
    head = shell("trace", "head", out, "--json").json
    assert head == {"batches": [{"user": [1, 3, 1], "item": [2, 4, 9]}]}
    assert "batch 0 item: 2 4 9" in shell("trace", "head", out, columns=60).out


def test_a_simulated_run_is_a_plain_lru(folder):
    words = ("simulate", folder / "ids.i64le", "--batch", 1, "--ddr", 50 * 20, "--dim", 4)
    words += ("--policies", "lru", "--depth", 0, "--optimizer", "RowWiseAdagrad")
    told = shell(*words, "--json").json
    held: collections.OrderedDict[int, None] = collections.OrderedDict()
    misses = evicted = 0
    for row in np.frombuffer((folder / "ids.i64le").read_bytes(), "<i8").tolist():
        if row in held:
            held.move_to_end(row)
            continue
        misses += 1
        if len(held) == told["slots"]:
            held.popitem(last=False)
            evicted += 1
        held[row] = None
    counts = told["tiers"]["DDR"]
    assert (counts["lookups"], counts["misses"], counts["evicted"]) == (6000, misses, evicted)
    assert counts["hits"] + counts["misses"] == counts["unique"]
    for columns in (60, WIDE):
        text = shell(*words, columns=columns).out
        for tier in told["tiers"].values():
            for name in ("lookups", "unique", "hits", "misses", "cold", "evicted", "written_back"):
                assert f"{tier[name]:,}" in text


def test_bench_prints_what_its_json_has(tmp_path):
    told = shell("bench", *SMALL, "--json").json
    for tier in told["stats"]["tiers"].values():
        assert tier["hits"] + tier["misses"] == tier["unique"]
    assert told["stats"]["tiers"]["DDR"]["lookups"] == 7 * 2 * 16 * 3
    wide = shell("bench", *SMALL).out
    narrow = shell("bench", *SMALL, columns=40).out
    for name in ("lookups", "unique", "hits", "misses", "staged", "evicted", "written_back"):
        counts = [tier[name] for tier in told["stats"]["tiers"].values()]
        row = re.search(rf"│ {name.replace('_', ' ')} +│(.*)│", wide)
        shown = [int(cell.replace(",", "")) for cell in row[1].split("│")]
        assert shown == [count for each in counts for count in (each, each)]  # simulated beside
        for count in counts:
            assert re.search(rf": {count:,}$", narrow, re.M)
    assert f"hit rate {told['hit_rate']:.3f}" in wide


def test_train_prints_what_its_json_has(folder, tmp_path):
    words = ("train", folder / "log.tsv", "--ddr", "64KiB", "--batch-size", 64)
    told = shell(*words, "--ssd", tmp_path / "a", "--json").json
    text = shell(*words, "--ssd", tmp_path / "b", columns=60).out
    lines = (folder / "log.tsv").read_text().count("\n")
    trained = lines - lines // 5
    assert told["stats"]["tiers"]["DDR"]["lookups"] == 26 * trained
    for name, tier in told["stats"]["tiers"].items():
        assert tier["hits"] + tier["misses"] == tier["unique"]
        parts = f"{tier['unique']:,} rows, {tier['hits']:,} hits, {tier['misses']:,} misses"
        assert f"{name}: {tier['lookups']:,} lookups of {parts}" in text
    assert f"AUC {told['auc']:.4f}, log loss {told['log_loss']:.4f}" in text
    assert f"digest {told['digest']}" in text


# --- JSON ---------------------------------------------------------------------------------------


def all_json(folder, steps, tmp_path):
    """The JSON of every command that has some."""
    root = tmp_path
    ids = folder / "ids.i64le"
    copy = copied(steps, tmp_path)
    lines = {
        "train": ["train", folder / "log.tsv", "--ddr", "64KiB", "--ssd", root / "s1"],
        "bench": ["bench", *SMALL],
        "bench --no-compare": ["bench", *SMALL, "--no-compare"],
        "simulate": ["simulate", ids, "--sizes", "20%,50%", "--batch", 8],
        "simulate --ddr": ["simulate", ids, "--ddr", "4KiB", "--policies", "lru", "--batch", 2],
        "trace info": ["trace", "info", folder / "a.csv", "--columns", "user,item"],
        "trace convert": ["trace", "convert", ids, root / "a.tet"],
        "trace head": ["trace", "head", folder / "a.csv", "--columns", "user"],
        "trace head --out": ["trace", "head", ids, "--out", root / "b.tet"],
        "trace sample": ["trace", "sample", ids, root / "c.tet", "--rate", 0.5],
        "trace generate": ["trace", "generate", root / "d.tet", "--accesses", 100],
        "trace record": ["trace", "record", "--json", root / "e.tet", "bench", *SMALL],
        "checkpoint inspect": ["checkpoint", "inspect", copy],
        "checkpoint verify": ["checkpoint", "verify", copy],
        "checkpoint diff": ["checkpoint", "diff", copy, 1, 2],
        "checkpoint export": ["checkpoint", "export", copy, root / "f"],
        "checkpoint compact": ["checkpoint", "compact", copy],
        "checkpoint prune": ["checkpoint", "prune", copy, "--keep", 1],
    }
    found = {}
    for name, words in lines.items():
        ran = shell(*words, *(() if "--json" in words else ("--json",)))
        assert ran.code == 0, ran.err
        found[name] = shape(ran.json, NAMES)
    return found


def test_the_json_is_frozen(folder, steps, tmp_path):
    """Scripts depend on it. A change here is a change for users: edit the file by hand, and say so
    in the changelog."""
    found = all_json(folder, steps, tmp_path)
    assert json.loads(json.dumps(found)) == json.loads(FROZEN.read_text())


# --- damaged inputs, pipes and streams ----------------------------------------------------------


@pytest.mark.parametrize("command", ["info", "simulate", "train"])
def test_damaged_inputs_are_read_whole_or_refused(data_file, tmp_path, command):
    chance = random.Random(command)
    names = ["criteo_kaggle_10k.tsv.xz"]
    if command != "train":
        names += ["movielens_small_ratings.csv.xz", "lbsn_checkins_nyc.tsv.xz"]
    for name in names:
        whole = data_file(name).read_bytes()
        path = tmp_path / name
        for _ in range(2):
            place = chance.randrange(len(whole))
            cut = chance.random() < 0.5
            flipped = bytes([whole[place] ^ (1 << chance.randrange(8))])
            path.write_bytes(whole[:place] if cut else whole[:place] + flipped + whole[place + 1 :])
            words = {
                "info": ("trace", "info", path),
                "simulate": ("simulate", path, "--ddr", "64KiB", "--policies", "lru"),
                "train": ("train", path),
            }[command]
            ran = shell(*words)
            assert ran.code == 2, f"{name}, byte {place}: {ran.out}"
            assert name in ran.err
            assert "Traceback" not in ran.err


def test_standard_input_is_a_file(folder):
    data = (folder / "a.csv").read_bytes()
    words = ("--format", "csv", "--columns", "user", "--json")
    told = shell("trace", "info", "-", *words, stdin=data).json
    assert told["tables"]["user"]["accesses"] == 3
    ran = shell("trace", "info", "-", stdin=data)
    assert ran.code == 2
    assert "standard input: the format cannot be recognised" in ran.err
    raw = (folder / "ids.i64le").read_bytes()
    words = ("--format", "raw", "--layout", "i64le", "--ddr", "4KiB", "--policies", "lru", "--json")
    piped = shell("simulate", "-", *words, "--batch", 2, stdin=raw).json
    assert piped == shell("simulate", folder / "ids.i64le", *words, "--batch", 2).json


def test_a_pipe_is_refused_by_the_library_and_copied_by_the_commands(folder, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = subprocess.Popen(["sh", "-c", f"cat {folder / 'a.csv'} > {pipe}"])
    told = shell("trace", "info", pipe, "--format", "csv", "--columns", "item", "--json").json
    assert writer.wait() == 0
    assert told["tables"]["item"]["largest_id"] == 9
    writer = subprocess.Popen(["sh", "-c", f"cat {folder / 'a.csv'} > {pipe}"])
    with pytest.raises(te.ConfigError, match="can be read only once; write what it gives"):
        traces.open_trace(pipe)
    writer.wait()


@pytest.mark.parametrize("more", [pytest.param([], marks=pytest.mark.long), ["--json"]])
def test_a_closed_pipe_ends_the_command_quietly(folder, more):
    code = "import sys; from tiered_embed.cli import main; main()"
    words = ["trace", "head", str(folder / "ids.i64le"), "--batch", "1", "--batches", "6000", *more]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as left:
        assert left.stdout.read(5)
        left.stdout.close()
        err = left.stderr.read().decode()
    assert "Traceback" not in err
    assert "Error" not in err


def test_what_is_piped_has_no_width(folder):
    code = "import sys; from tiered_embed.cli import main; main()"
    words = [
        "trace",
        "info",
        str(folder / "a.csv"),
        "--columns",
        "a_very_long_name_of_a_table=user",
    ]
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=env, check=True
    )
    assert "a_very_long_name_of_a_table" in done.stdout
    assert "…" not in done.stdout
    assert "\x1b" not in done.stdout
