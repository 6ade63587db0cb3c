"""What all stores of a process share, and keep bounded however many stores there are."""

import os
import subprocess
import sys
import textwrap

import pytest

from tiered_embed.store import rocksdb as rocksdb_backend

pytestmark = pytest.mark.skipif(
    not rocksdb_backend.available() and not os.environ.get("CI"), reason="built without RocksDB"
)

PRELUDE = """
    import os, sys, threading
    from pathlib import Path
    import numpy as np
    from tiered_embed.spec import table_hash
    from tiered_embed.store import encode_keys, open_store

    ROOT = Path(sys.argv[1])
    TABLE = table_hash("table")
    ROWS = np.arange(3000)

    def records_of(rows):
        return np.ascontiguousarray(np.repeat(rows.astype(np.int64)[:, None], 8, 1)).view(np.uint8)

    def open_filled(name, **options):
        store = open_store("rocksdb", ROOT / name, 64, {}, **options)
        store.put(encode_keys(TABLE, ROWS), records_of(ROWS))
        store.flush()
        return store

    def read(store):
        out = np.zeros((len(ROWS), 64), np.uint8)
        assert store.get(encode_keys(TABLE, ROWS), out).all()
        assert np.array_equal(out, records_of(ROWS))

    def num_readers():
        tasks = Path("/proc/self/task").iterdir()
        return sum((task / "comm").read_text() == "te-reader\\n" for task in tasks)

    def num_handles():
        return len(os.listdir("/proc/self/fd"))
"""


def run(body, path, *, prefix=()):
    """Runs a program in a process of its own, and returns what it printed."""
    program = textwrap.dedent(PRELUDE) + textwrap.dedent(body)
    done = subprocess.run(
        [*prefix, sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_all_stores_share_a_few_readers(tmp_path):
    run(
        """
        stores = [open_filled(str(i), direct_io=i % 2 == 0) for i in range(12)]
        assert num_readers() == 0, "threads are there before there is work for them"
        threads = [threading.Thread(target=read, args=(store,)) for store in stores * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 0 < num_readers() <= max(10, min(32, os.cpu_count())), num_readers()
        """,
        tmp_path,
    )


def test_a_store_may_read_without_the_readers(tmp_path):
    run(
        """
        read(open_filled("store", num_read_threads=0))
        assert num_readers() == 0
        """,
        tmp_path,
    )


def test_a_forked_child_has_readers_of_its_own(tmp_path):
    out = run(
        """
        open_filled("store").close()
        store = open_store("rocksdb", ROOT / "store", 64, {}, "read_only")
        read(store)
        assert num_readers() > 0
        pid = os.fork()
        if pid == 0:
            assert num_readers() == 0
            read(open_store("rocksdb", ROOT / "store", 64, {}, "read_only"))
            print(num_readers(), "in the child", flush=True)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        read(store)
        """,
        tmp_path,
    )
    assert int(out.split()[0]) > 0


@pytest.mark.parametrize("backend", ["rocksdb", "rocksdb_py"])
@pytest.mark.parametrize("closed", [False, True])
def test_a_forked_child_may_not_write_with_a_library_that_its_parent_has_used(
    backend, closed, tmp_path
):
    """RocksDB's background threads stay with the parent: a flush would wait for them for ever."""
    out = run(
        f"""
        from tiered_embed.errors import StoreError
        store = open_store({backend!r}, ROOT / "parents", 64, {{}})
        if {closed}:
            store.close()
        pid = os.fork()
        if pid == 0:
            try:
                open_store({backend!r}, ROOT / "childs", 64, {{}})
            except StoreError as error:
                print(error, flush=True)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        open_store({backend!r}, ROOT / "parents 2", 64, {{}}).close()
        """,
        tmp_path,
    )
    assert "by spawn" in out
    assert not (tmp_path / "childs" / "db").exists()


def test_reads_work_where_no_thread_can_be_had(tmp_path):
    run(
        """
        import resource
        store = open_filled("store")
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        os.setuid(65534)  # the limit does not hold for root
        read(store)
        assert num_readers() == 0
        """
        if os.getuid() == 0
        else "read(open_filled('store'))",
        tmp_path,
    )


# Open files


def test_small_files_of_all_stores_have_few_handles(tmp_path):
    """Every flush makes a file, and a read looks into each."""
    run(
        """
        from tiered_embed.store.rocksdb import num_read_handles
        stores = [open_filled(str(i)) for i in range(8)]
        before = num_handles()
        for version in range(10):
            for store in stores:
                part = ROWS[version::10]
                store.put(encode_keys(TABLE, part), records_of(part))
                store.flush()
                read(store)
        assert len(list(ROOT.glob("*/db/*.sst"))) > 60
        assert num_handles() - before <= 16, (before, num_handles())
        assert num_read_handles() == 16
        for store in stores:
            store.close()
        assert num_read_handles() == 0
        """,
        tmp_path,
    )


@pytest.mark.parametrize("direct_io", [False, True])
def test_handles_of_large_files_follow_from_the_limit(direct_io, tmp_path):
    """Files are closed and opened again under the hands of threads that read."""
    run(
        f"""
        import resource
        from tiered_embed.store.rocksdb import num_read_handles
        resource.setrlimit(resource.RLIMIT_NOFILE, (80, resource.getrlimit(7)[1]))
        rng = np.random.default_rng(0)
        keys, payload = np.arange(5000), 1024
        truth = rng.integers(0, 256, (4, len(keys), payload), np.uint8)
        stores = []
        for i in range(7):
            store = open_store("rocksdb", ROOT / str(i), payload, {{}}, direct_io={direct_io})
            for version in range(4):
                store.put(encode_keys(TABLE, keys[version:]), truth[version, version:])
                store.flush()
            stores.append(store)
        assert sum(f.stat().st_size > 4 << 20 for f in ROOT.glob("*/db/*.sst")) == 28
        wrong = []

        def read_some(seed):
            rng = np.random.default_rng(seed)
            out = np.zeros((64, payload), np.uint8)
            for _ in range(60):
                store = stores[rng.integers(len(stores))]
                some = rng.integers(0, len(keys), 64)
                found = store.get(encode_keys(TABLE, some), out)
                if not found.all() or (out != truth[np.minimum(some, 3), some]).any():
                    wrong.append(seed)

        threads = [threading.Thread(target=read_some, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        # The large files' share is a quarter of the limit. A thread that reads may keep one more.
        assert 10 < num_read_handles() <= 20, num_read_handles()
        assert num_handles() < 80
        """,
        tmp_path,
    )


def test_files_that_are_read_give_way_where_no_handle_is_left(tmp_path):
    run(
        """
        import resource
        from tiered_embed.store.rocksdb import num_read_handles
        store = open_filled("store")
        for version in range(8):
            store.put(encode_keys(TABLE, ROWS[version:]), records_of(ROWS[version:]))
            store.flush()
        read(store)
        held = num_read_handles()
        assert held > 4
        taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (num_handles() + 4, resource.getrlimit(7)[1]))
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        for _ in range(4):
            store.put(encode_keys(TABLE, ROWS), records_of(ROWS))
            store.flush()
            read(store)
        assert num_read_handles() < held
        """,
        tmp_path,
    )


def test_a_file_that_was_exchanged_is_no_file_of_the_store(tmp_path):
    """It was closed meanwhile, and another lies in its place: an error, never its rows."""
    out = run(
        """
        import shutil
        from tiered_embed.errors import StoreError
        from tiered_embed.store.rocksdb import num_read_handles
        stores = [open_filled(str(i)) for i in range(40)]
        for store in stores[::-1]:
            read(store)
        assert num_read_handles() == 16
        (table,) = (ROOT / "39" / "db").glob("*.sst")
        shutil.copy(table, ROOT / "copy")
        os.replace(ROOT / "copy", table)
        try:
            read(stores[39])
        except StoreError as error:
            print(error)
        """,
        tmp_path,
    )
    assert "cannot open" in out
    assert "Stale" in out


def test_a_limit_that_is_too_low_is_told_before_it_hurts(tmp_path):
    out = run(
        """
        import logging, resource
        from tiered_embed.errors import StoreError
        logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(7)[1]))
        stores = []
        try:
            for i in range(100):
                stores.append(open_filled(str(i)))
        except StoreError as error:
            print("ERROR", error)
        print("OPEN", len(stores))
        # Those that are open go on.
        for store in stores:
            store.put(encode_keys(TABLE, ROWS), records_of(ROWS))
            store.flush()
            read(store)
        resource.setrlimit(resource.RLIMIT_NOFILE, (800, resource.getrlimit(7)[1]))
        open_filled("one more")
        """,
        tmp_path,
    )
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["WARNING", "ERROR", "OPEN"]
    assert "may have 200 files open" in lines[0]
    assert "ulimit -n 4096" in lines[0]
    assert "a store needs up to 16" in lines[1]
    assert "ulimit -n 4096" in lines[1]
    assert int(lines[2].split()[1]) > 30


# A model of many modules


def test_many_modules_take_few_threads_and_saves_take_no_handles(tmp_path):
    out = run(
        """
        import torch
        import tiered_embed as te
        torch.set_num_threads(2)

        def num_threads():
            return len(os.listdir("/proc/self/task"))

        torch.ones(1000, 1000) @ torch.ones(1000, 1000)
        torchs = num_threads()
        model = torch.nn.ModuleList(torch.nn.EmbeddingBag(50, 8, mode="sum") for _ in range(40))
        te.swap(model, tiers=te.Tiers(ddr="1MiB", ssd=ROOT / "ssd"),
                optimizer=te.optim.SGD(lr=0.1), min_bytes=0)
        ids = torch.randint(0, 50, (16, 3))
        handles = []
        for step in range(4):
            for module in model:
                module(ids).sum().backward()
            te.checkpoint.save(model, ROOT / "saved", step=step)
            handles.append(num_handles())
        print(num_threads() - torchs, *handles)
        """,
        tmp_path,
    )
    threads, first, *later = map(int, out.split())
    assert threads <= 24
    assert first <= 160
    assert max(later) <= first


def test_a_collection_of_eight_dims_takes_few_threads(tmp_path):
    out = run(
        """
        import torch
        import tiered_embed as te
        torch.set_num_threads(2)

        def num_threads():
            return len(os.listdir("/proc/self/task"))

        torch.ones(1000, 1000) @ torch.ones(1000, 1000)
        torchs = num_threads()
        tables = [te.TableConfig(f"t{d}", 20_000, d, [f"f{d}"]) for d in range(8, 72, 8)]
        emb = te.TieredEmbeddingBagCollection(
            tables=tables, tiers=te.Tiers(ddr="2MiB", ssd=ROOT / "ssd"), depth=4, lookahead=8,
            optimizer=te.optim.RowWiseAdagrad(lr=0.1))
        rng = np.random.default_rng(0)
        offsets = torch.arange(0, 4096, 4)

        def batches():
            for _ in range(40):
                yield {f"f{d}": (torch.from_numpy(rng.integers(0, 20_000, 4096)), offsets)
                       for d in range(8, 72, 8)}

        most = 0
        for batch in te.prefetch(batches(), emb, ids=lambda batch: {emb: batch}):
            out = emb(batch)
            sum(o.sum() for o in out.values()).backward()
            most = max(most, num_threads() - torchs)
        assert emb.stats().tiers["SSD"].hits > 0
        te.checkpoint.save(emb, ROOT / "saved", step=1)
        print(most, num_threads() - torchs)
        """,
        tmp_path,
    )
    assert max(map(int, out.split())) <= 24


def test_a_store_is_found_again_when_another_process_has_changed_its_list(tmp_path):
    """Descriptions are remembered, and read again once they have changed."""
    out = run(
        """
        import subprocess, time
        import torch
        import tiered_embed as te

        MAKE = (
            "import sys, tiered_embed as te; "
            "te.TieredEmbeddingBagCollection(tables=[te.TableConfig(n, 9, 4, [n]) for n in "
            "sys.argv[2:]], tiers=te.Tiers(ddr='1MiB', ssd=sys.argv[1]), "
            "optimizer=te.optim.SGD(lr=1.0)).close()"
        )

        def make(*names):
            te.TieredEmbeddingBagCollection(
                tables=[te.TableConfig(n, 9, 4, [n]) for n in names],
                tiers=te.Tiers(ddr="1MiB", ssd=ROOT), optimizer=te.optim.SGD(lr=1.0)).close()

        make("a")
        time.sleep(0.2)
        make("a")
        make("a")  # remembered by now
        subprocess.run([sys.executable, "-c", MAKE, str(ROOT), "a", "b"], check=True)
        make("b")
        print(len(list(ROOT.glob("pool-*"))))
        """,
        tmp_path,
    )
    assert out.split() == ["1"]
