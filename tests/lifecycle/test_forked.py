"""A child that is forked at any stage ends as it wants to, at once, and harms nothing."""

import pytest

from children import Children

# Trains ten batches, and forks at every stage. The parent waits for each child, up to a limit.
SOURCE = """
import contextlib, gc, os, signal, sys, threading, time
import torch
import tiered_embed as te
from tiered_embed import checkpoint

root, store, ending, ddr = sys.argv[1:5]
stages = []

def at(stage):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        end(stage)
        sys.exit(5)
    ended = os.waitpid(pid, 0)[1]
    stages.append((stage, os.waitstatus_to_exitcode(ended)))

def end(stage):
    if ending == "exit":
        sys.exit(3)
    if ending == "error":
        raise ArithmeticError(stage)
    if ending == "use":
        for use in (lambda: emb(ids_of(0)), emb.flush, emb.digest, lambda: emb.rows([0]),
                    lambda: checkpoint.save(emb, root + "/child", step=1),
                    lambda: checkpoint.load(emb, root + "/steps"),
                    lambda: out.sum().backward()):
            try:
                use()
            except (te.ClosedError, NameError, RuntimeError):
                pass
            else:
                raise AssertionError(use)
        emb.close()
        te.close_all()
        sys.exit(3)
    if ending == "collect":
        kept = gc.collect, sys.exit
        globals().clear()
        kept[0]()
        kept[1](3)
    if ending == "fork":
        if os.fork() == 0:
            sys.exit(3)
        sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
    if ending == "threads":  # that it starts itself, in Python and in native code
        torch.randn(300, 300) @ torch.randn(300, 300)
        with te.TieredEmbedding(50, 4, tiers=te.Tiers(ddr="64KiB"), num_threads=2,
                                optimizer=te.optim.SGD(lr=0.1)) as own:
            own(torch.arange(50)).sum().backward()
        sys.exit(3)

def ids_of(step):
    return torch.randint(0, 100, (30,), generator=torch.Generator().manual_seed(step))

def ids(step):
    at("loader") if step == 6 else None
    return {emb: ids_of(step)}

torch.set_num_threads(1)
tiers = te.Tiers(ddr=ddr, ssd=None if store == "none" else root + "/ssd",
                 **({} if store == "none" else {"store": store}))
make = lambda: te.TieredEmbedding(100, 4, tiers=tiers, optimizer=te.optim.Adagrad(lr=0.1))
emb = make()
at("opened")
for step in te.prefetch(range(10), emb, ids=ids):
    out = emb(ids_of(step))
    if step == 3:
        at("forward")
    out.sum().backward()
    if step == 5:
        at("loop")
    if step == 7:
        saved = checkpoint.save(emb, root + "/steps", step=step, background=True)
        at("saving")
        saved.wait()
at("trained")
with torch.no_grad():
    emb(torch.arange(100))
at("evaluated")
if store != "none":
    emb.flush()
    rows = emb.engine.pools[0].store.scan()
    next(rows)
    at("scan")
    del rows
print(emb.digest())
emb.close()
at("closed")
if store != "none":
    with make() as emb:
        print(emb.digest())
print(*(f"{stage}={status}" for stage, status in stages))
"""
ENDINGS = {"exit": 3, "error": 1, "use": 3, "collect": 3, "fork": 3, "threads": 3}


@pytest.fixture(scope="module")
def unforked(children: Children, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a run that forks nothing, and has another store."""
    source = "import os\nos.fork = os.getpid\nos.waitpid = lambda pid, flags: (pid, 0)\n" + SOURCE
    ended = children.run(source, tmp_path_factory.mktemp("whole"), "memory", "exit", "1KiB")
    assert ended.status == 0, ended
    return ended.out.split()[0]


SHORT = [("rocksdb", "use", "1KiB")]
EVERY = [
    (store, ending, ddr)
    for store in ("rocksdb", "rocksdb_py", "memory", "none")
    for ending in ENDINGS
    for ddr in ("1KiB", "64KiB")
    if store != "none" or ddr != "1KiB"
]


@pytest.mark.parametrize(
    ("store", "ending", "ddr"),
    [case if case in SHORT else pytest.param(*case, marks=pytest.mark.long) for case in EVERY],
)
def test_a_child_forked_at_any_stage_ends(
    store: str, ending: str, ddr: str, children: Children, stores, unforked: str, tmp_path
) -> None:
    if store not in (*stores, "none"):
        pytest.skip(f"{store} is not built")
    ended = children.run(SOURCE, tmp_path, store, ending, ddr)
    assert ended.status == 0, ended
    *digests, stages = ended.out.splitlines()
    assert set(digests) == {unforked}, ended
    found = dict(stage.split("=") for stage in stages.split())
    assert set(found.values()) == {str(ENDINGS[ending])}, ended
    assert len(found) == 9 - (store == "none")


@pytest.mark.parametrize("store", ["rocksdb", pytest.param("rocksdb_py", marks=pytest.mark.long)])
def test_a_child_that_leaves_what_its_parent_writes_lets_it_be(
    store: str, children: Children, stores, tmp_path
) -> None:
    """Forked by the chunks of an import, and inside a recording: it unwinds its parent's stack."""
    if store not in stores:
        pytest.skip(f"{store} is not built")
    ended = children.run(
        """
        import os, sys
        import torch
        import tiered_embed as te
        from tiered_embed import traces

        def fork():
            pid = os.fork()
            if pid == 0:
                sys.exit(3)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

        root, store = sys.argv[1:]
        with te.TieredEmbedding(
            100, 4, tiers=te.Tiers(ddr="1KiB", ssd=root + "/ssd", store=store),
            optimizer=te.optim.SGD(lr=0.1),
        ) as emb:
            def chunks():
                for start in range(0, 100, 20):
                    fork()
                    yield range(start, start + 20), torch.full((20, 4), float(start))
            print(emb.import_rows(chunks()))
            with traces.record(emb, root + "/ids.tet"):
                for step in range(3):
                    emb(torch.arange(step, step + 9)).sum().backward()
                    fork()
            print(emb.rows(range(100)).sum().item())
        print(traces.open_trace(root + "/ids.tet").num_accesses)
        """,
        *(tmp_path, store),
    )
    assert ended.status == 0, ended
    moved = 27 * 4 * 0.1
    *_, total, accesses = ended.out.split()
    assert ended.out.split()[:-2] == ["3"] * 5 + ["100"] + ["3"] * 3
    assert abs(float(total) - (sum(range(0, 100, 20)) * 80 - moved)) < 0.01
    assert accesses == "27"
