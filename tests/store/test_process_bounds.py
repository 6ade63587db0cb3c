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
