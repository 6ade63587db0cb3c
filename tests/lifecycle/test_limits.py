"""Limits of the process, on threads, files, memory and the size of files: the right rows, or a
typed error. A process that hits one never crashes, hangs, or goes on with wrong rows."""

import os

import pytest

from children import Children

# Trains, saves, restores; prints the digest of every stage it reaches, or the typed error.
SOURCE = """
import os, resource, sys
import torch
import tiered_embed as te
from tiered_embed import checkpoint

root, store, ddr, what, value, when = sys.argv[1:]
torch.set_num_threads(1)

def limit():
    if what == "NPROC":  # it does not hold for root
        uid = 100_000 + os.getpid()
        for path in (root, *(os.path.join(a, b) for a, bs, cs in os.walk(root) for b in bs + cs)):
            os.chown(path, uid, uid)
        os.setgid(uid)
        os.setuid(uid)
    most = int(value)
    if what == "NOFILE":
        most += len(os.listdir("/proc/self/fd"))
    if what == "AS":
        most = (most << 20) + 4096 * int(open("/proc/self/statm").read().split()[0])
    kind = getattr(resource, "RLIMIT_" + what)
    resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))

def ids_of(step):
    return torch.randint(0, 3000, (200,), generator=torch.Generator().manual_seed(step))

def main():
    tables = [te.TableConfig(name, 3000, 8) for name in "ab"]
    with te.TieredEmbeddingBagCollection(
        tables, tiers=te.Tiers(ddr=ddr, ssd=root + "/ssd", store=store),
        optimizer=te.optim.Adagrad(lr=0.1), num_threads=3,
    ) as emb:
        if when == "open":
            limit()
        args = lambda n: {t: (ids_of(n + k), torch.tensor([0])) for k, t in enumerate("ab")}
        for n in te.prefetch(range(6), emb, ids=lambda n: {emb: args(n)}):
            te.joined(emb(args(n))).sum().backward()
        print(emb.digest(), flush=True)
        checkpoint.save(emb, root + "/steps", step=6)
        te.joined(emb(args(7))).sum().backward()
        checkpoint.load(emb, root + "/steps")
        print(emb.digest(), flush=True)

try:
    if when == "start":
        limit()
    main()
except (te.TieredEmbedError, MemoryError) as error:
    print(type(error).__name__, str(error).replace(chr(10), " "))
    sys.exit(4)
"""


def run(children: Children, folder, *args: object):
    ended = children.run(SOURCE, folder, *args)
    lines = ended.out.splitlines()
    if ended.status == 4:
        name, _, text = lines.pop().partition(" ")
        assert text or name == "MemoryError", ended
    else:
        assert ended.status == 0, ended
    return ended, lines


@pytest.fixture(scope="module")
def whole(children: Children, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a run without limits, and with another store."""
    folder = tmp_path_factory.mktemp("whole")
    ended, lines = run(children, folder, "memory", "1MiB", "NOFILE", 900, "never")
    assert ended.status == 0, ended
    assert len(set(lines)) == 1
    return lines[0]


ROOT = os.geteuid() == 0
LIMITS = {
    "NPROC": range(1, 16) if ROOT else (),
    "NOFILE": (0, 3, 8, 14, 16, 17, 20, 24, 30, 40, 60),
    "AS": (8, 64, 128, 256, 512, 1024),
    "FSIZE": (4096, 20_000, 100_000, 1_000_000),  # what a child prints goes to a file, too
}
SHORT = {
    ("rocksdb", "NPROC", 1, "start"),
    ("rocksdb", "FSIZE", 4096, "open"),
}
EVERY = [
    (store, what, value, when)
    for store in ("rocksdb", "rocksdb_py")
    for what, values in LIMITS.items()
    for value in values
    for when in ("start", "open")
    # The wheel starts its threads with its first flush, whatever we do, and ends the process where
    # it has no thread for them, or no memory for their stacks.
    if (store, when) != ("rocksdb_py", "open") or what not in ("NPROC", "AS")
]


@pytest.mark.parametrize(
    ("store", "what", "value", "when"),
    [case if case in SHORT else pytest.param(*case, marks=pytest.mark.long) for case in EVERY],
)
def test_a_limit_gives_the_right_rows_or_a_typed_error(
    store, what, value, when, children: Children, whole: str, stores, tmp_path
) -> None:
    if store not in stores:
        pytest.skip(f"{store} is not built")
    ddr = "30KiB" if value != 4 else "1MiB"
    ended, lines = run(children, tmp_path, store, ddr, what, value, when)
    assert set(lines) <= {whole}, ended
    assert ended.status != 0 or len(lines) == 2
    # Without the limit, what was left behind is restored, or starts anew, to the same rows.
    again = SOURCE.replace(
        "        if when",
        "        checkpoint.load(emb, root + '/none', missing='start')\n        if when",
    )
    ended = children.run(again, tmp_path, store, ddr, what, value, "never")
    assert ended.status in (0, 4), ended
    if ended.status == 4:  # the step was committed before
        assert "is committed already" in ended.out
    assert ended.out.split()[0] == whole
