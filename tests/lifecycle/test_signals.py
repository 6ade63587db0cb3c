"""Signals at any moment: a process ends, or goes on, and the loop that is started again comes to
the same rows."""

import random
import signal

import pytest

from children import Children

# The loop of the README, with a background save; signals itself after a time.
SOURCE = """
import os, signal, sys, threading, time
import torch
import tiered_embed as te
from tiered_embed import checkpoint

root, store, ddr, number, how, delay = sys.argv[1:]
torch.set_num_threads(1)
number = int(number)

class Stop(Exception):
    pass

def handle(*_):
    if how == "exit":
        sys.exit(7)
    if how == "raise":
        raise Stop
    if how == "close":
        te.close_all()
        os._exit(7)

if how != "default":
    signal.signal(number, handle)
if number:
    parent = os.getpid()
    def send():
        time.sleep(float(delay))
        os.kill(parent, number)
        if number == signal.SIGSTOP:
            os._exit(1)
    if number == signal.SIGSTOP:  # another process lets it go on
        if os.fork() == 0:
            time.sleep(float(delay))
            for _ in range(3):
                os.kill(parent, signal.SIGSTOP)
                time.sleep(0.05)
                os.kill(parent, signal.SIGCONT)
                time.sleep(0.05)
            os._exit(0)
    else:
        threading.Thread(target=send, daemon=True).start()

def ids_of(step):
    return torch.randint(0, 400, (60,), generator=torch.Generator().manual_seed(step))

def main():
    emb = te.TieredEmbedding(
        400, 4, tiers=te.Tiers(ddr=ddr, ssd=root + "/ssd", store=store), num_threads=2,
        optimizer=te.optim.Adam(lr=0.1))
    state = checkpoint.load(emb, root + "/steps", missing="start")
    batches = range(state["step"] + 1, 41)
    for step in te.prefetch(batches, emb, ids=lambda n: {emb: ids_of(n)}):
        emb(ids_of(step)).sum().backward()
        if step % 4 == 0:
            checkpoint.save(emb, root + "/steps", step=step, background=step % 8 == 0)
    print(emb.digest(), flush=True)

try:
    main()
except Stop:
    sys.exit(8)
"""
ENDS = {"exit": 7, "raise": 8, "close": 7}
SIGNALS = (
    [(number, "default") for number in ("SIGINT", "SIGTERM", "SIGHUP", "SIGKILL", "SIGQUIT")]
    + [(number, "default") for number in ("SIGSTOP", "SIGCHLD", "SIGWINCH", "SIGPIPE", "SIGXFSZ")]
    + [("SIGTERM", how) for how in ("exit", "raise", "close")]
    + [("SIGUSR1", how) for how in ("exit", "raise", "nothing")]
    + [("SIGINT", "nothing"), ("SIGALRM", "nothing")]
)
SHORT = {("SIGINT", "default", "rocksdb"), ("SIGTERM", "exit", "rocksdb")}


@pytest.fixture(scope="module")
def whole(children: Children, tmp_path_factory: pytest.TempPathFactory) -> str:
    ended = children.run(
        SOURCE, tmp_path_factory.mktemp("whole"), "memory", "1MiB", 0, "default", 0
    )
    assert ended.status == 0, ended
    return ended.last


def expected(number: str, how: str) -> set[int]:
    if how in ENDS:
        return {0, ENDS[how]}  # 0: it came after the end
    if how == "nothing" or number in ("SIGSTOP", "SIGCHLD", "SIGWINCH", "SIGPIPE", "SIGXFSZ"):
        return {0}
    return {0, -getattr(signal, number)}


@pytest.mark.parametrize(
    ("number", "how", "store"),
    [
        pytest.param(*case, store, marks=[] if (*case, store) in SHORT else pytest.mark.long)
        for case in SIGNALS
        for store in ("rocksdb", "rocksdb_py")
    ],
)
def test_a_signal_at_any_moment(
    number: str, how: str, store: str, children: Children, whole: str, stores, tmp_path
) -> None:
    if store not in stores:
        pytest.skip(f"{store} is not built")
    seed = f"{number} {how} {store}"
    draw = random.Random(seed)
    short = (number, how, store) in SHORT
    times = 2 if short else 4
    for ddr in ["3KiB", "1MiB"][: 1 if short else 2]:
        root = tmp_path / ddr
        root.mkdir()
        for _ in range(times):
            delay = draw.choice([draw.uniform(0, 0.1), draw.uniform(0, 0.6)])
            value = int(getattr(signal, number))
            ended = children.run(SOURCE, root, store, ddr, value, how, delay)
            assert ended.status in expected(number, how), (delay, ended)
            if ended.status == 0:
                break
        ended = children.run(SOURCE, root, store, ddr, 0, "default", 0)
        assert ended.status == 0, ended
        assert ended.last == whole, (ddr, ended)
