"""The native store's options: none changes a result, each does what it is there for."""

import os
import threading
import time

import numpy as np
import pytest
import torch

import tiered_embed as te
from tiered_embed.errors import ConfigError, CorruptionError, StoreError
from tiered_embed.spec import table_hash
from tiered_embed.store import open_store
from tiered_embed.store import rocksdb as rocksdb_backend
from tiered_embed.store.base import RowStore
from tiered_embed.store.keys import encode_keys

RECORD_BYTES = 516
TABLE = table_hash("table")
NUM_ROWS = 6000


@pytest.fixture
def open_it(tmp_path):
    """Opens native stores below tmp_path, and closes them."""
    if not rocksdb_backend.available():
        if os.environ.get("CI"):
            pytest.fail("CI must test the native RocksDB extension, but it is not built")
        pytest.skip("built without RocksDB")
    opened = []

    def open_it(name="store", mode="auto", **options):
        store = open_store("rocksdb", tmp_path / name, RECORD_BYTES, {}, mode, **options)
        opened.append(store)
        return store

    yield open_it
    for store in opened:
        store.close()


def records_of(rows: np.ndarray, version: int = 0) -> np.ndarray:
    """Records that name their row and version, and differ in every block."""
    filler = np.random.default_rng(version).integers(0, 256, RECORD_BYTES, np.uint8)
    records = filler ^ rows.astype(np.uint8)[:, None]
    records[:, :8] = rows.astype(np.int64)[:, None].view(np.uint8)
    return np.ascontiguousarray(records)


def fill(store: RowStore, num_rows: int = NUM_ROWS) -> None:
    rows = np.arange(num_rows)
    store.put(encode_keys(TABLE, rows), records_of(rows))
    store.flush()


def assert_rows(store: RowStore, rows: np.ndarray, version: int = 0) -> None:
    """Each row is there as written, in any order, with holes and repetitions."""
    out = np.full((len(rows), RECORD_BYTES), 0xEE, np.uint8)
    found = store.get(encode_keys(TABLE, rows), out)
    np.testing.assert_array_equal(found, rows < NUM_ROWS)
    np.testing.assert_array_equal(out[found], records_of(rows[found], version))
    assert (out[~found] == 0xEE).all()


# Reading


@pytest.mark.parametrize("tuning", ["rows", "rocksdb_default"])
@pytest.mark.parametrize("direct_io", [False, True])
@pytest.mark.parametrize("num_read_threads", [None, 0, 1, 7])
def test_any_number_of_readers_reads_the_same(open_it, tuning, direct_io, num_read_threads):
    store = open_it(tuning=tuning, direct_io=direct_io, num_read_threads=num_read_threads)
    fill(store)
    rng = np.random.default_rng(1)
    for n in (1, 2, 7, 8, 9, 33, 64, 65, 1000, 5000):
        assert_rows(store, rng.integers(0, NUM_ROWS * 5 // 4, n))
    assert_rows(store, np.arange(NUM_ROWS))  # neighbours: reads that are merged


@pytest.mark.parametrize("direct_io", [False, True])
def test_reads_look_into_every_file(open_it, direct_io):
    store = open_it(direct_io=direct_io, write_buffer_bytes=64 << 10)
    fill(store)
    rows = np.arange(0, NUM_ROWS, 3)
    store.put(encode_keys(TABLE, rows), records_of(rows, version=1))
    store.flush()
    assert_rows(store, rows, version=1)
    assert_rows(store, np.setdiff1d(np.arange(NUM_ROWS + 500), rows))


def test_two_gets_at_once(open_it):
    store = open_it(direct_io=True)
    fill(store)
    failures = []

    def read(seed):
        try:
            rng = np.random.default_rng(seed)
            for _ in range(20):
                assert_rows(store, rng.integers(0, NUM_ROWS + 100, 700))
        except AssertionError as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("direct_io", [False, True])
def test_a_flipped_bit_is_an_error_on_every_way_of_reading(open_it, direct_io, tmp_path):
    store = open_it(direct_io=direct_io)
    fill(store)
    store.close()
    (table,) = (tmp_path / "store" / "db").glob("*.sst")
    content = bytearray(table.read_bytes())
    content[len(content) // 3] ^= 4
    table.write_bytes(content)
    again = open_it(direct_io=direct_io, mode="read_only")
    with pytest.raises(CorruptionError):
        assert_rows(again, np.arange(NUM_ROWS))


@pytest.mark.parametrize("direct_io", [False, True])
def test_a_truncated_file_is_an_error(open_it, direct_io, tmp_path):
    store = open_it(direct_io=direct_io)
    fill(store)
    (table,) = (tmp_path / "store" / "db").glob("*.sst")
    os.truncate(table, 1 << 20)  # while it is open: its index still points beyond
    with pytest.raises(CorruptionError):
        assert_rows(store, np.arange(NUM_ROWS))
    with pytest.raises(StoreError, match="is gone or was replaced while the store was open"):
        store.close()


# Options


def test_tunings_open_each_others_stores(open_it):
    for tuning in ("rocksdb_default", "rows", "rocksdb_default"):
        store = open_it(tuning=tuning)
        fill(store)
        assert_rows(store, np.arange(0, NUM_ROWS + 10, 7))
        store.close()
    assert open_it(mode="read_only").verify() == NUM_ROWS


def test_options_are_checked(open_it):
    with pytest.raises(ConfigError, match="tuning='fast' must be one of rows, rocksdb_default"):
        open_it(tuning="fast")
    with pytest.raises(ConfigError, match="num_read_threads"):
        open_it(num_read_threads=2000)


# Writing


def drain(store: RowStore) -> None:
    """Polls until nothing is flushing or compacting, nor about to."""
    deadline = time.monotonic() + 60
    quiet = 0
    while quiet < 3:
        stats = store.stats()
        names = ("pending_flushes", "running_flushes", "running_compactions", "compaction_pending")
        quiet = 0 if any(stats[name] for name in names) else quiet + 1
        assert time.monotonic() < deadline, f"the store never rests: {stats}"


def test_write_amplification_stays_low(open_it):
    """In small: a table of 12 MB under memtables of 256 KiB, every row rewritten four times.

    With four files to a merge and a first level of the size of four, as RocksDB has it, this
    pattern wrote more than seven bytes for one.
    """
    num_rows = 24_000
    store = open_it(write_buffer_bytes=256 << 10)
    rows = np.arange(num_rows)
    store.import_sorted([(encode_keys(TABLE, rows), records_of(rows))])
    rng = np.random.default_rng(0)
    versions = np.zeros(num_rows, np.int64)
    for version in range(1, 4 * num_rows // 600 + 1):
        updated = np.sort(rng.choice(num_rows, 600, replace=False))
        versions[updated] = version
        store.put(encode_keys(TABLE, updated), records_of(updated, version))
        drain(store)
    store.flush()
    drain(store)
    stats = store.stats()
    written = stats["flush_bytes_written"] + stats["compaction_bytes_written"]
    assert stats["compaction_bytes_written"] > 0, "nothing was merged: the test measures nothing"
    assert 1 < written / stats["user_bytes_written"] < 5
    assert stats["live_sst_bytes"] < 2.5 * num_rows * RECORD_BYTES
    assert stats["write_stall_micros"] == 0
    out = np.empty((num_rows, RECORD_BYTES), np.uint8)
    assert store.get(encode_keys(TABLE, rows), out).all()
    for version in np.unique(versions)[::20]:
        some = rows[versions == version]
        np.testing.assert_array_equal(out[some], records_of(some, version))


# Space and memory


def stored_bytes(path, record_bytes, num_rows) -> tuple[float, int]:
    """(bytes on disk per byte of records, memory per row), with the records read back."""
    rows = np.arange(num_rows)
    records = np.random.default_rng(record_bytes).integers(
        0, 256, (num_rows, record_bytes), np.uint8
    )
    with open_store("rocksdb", path, record_bytes, {}, "auto") as store:
        store.put(encode_keys(TABLE, rows), records)
        store.flush()
        store.compact()
        out = np.empty_like(records)
        assert store.get(encode_keys(TABLE, rows), out).all()
        assert np.array_equal(out, records)
        stats = store.stats()
        on_disk = stats["live_sst_bytes"] / records.nbytes
        return on_disk, stats["index_and_filter_bytes"] / num_rows


SIZES = [100, 516, 1000, 1024, 1400, 1536, 2044, 2048, 2052, 3000, 3500]
SIZES += [4059, 4060, 4072, 4096, 4100, 5000, 6144, 8100, 8192, 8200, 16384]


@pytest.mark.parametrize("record_bytes", SIZES)
def test_records_of_any_size_take_little_more_than_their_bytes(open_it, tmp_path, record_bytes):
    """Blocks that lie on pages made records of 2 KB, and of a little more than 4, twice as long."""
    on_disk, memory = stored_bytes(tmp_path / "sized", record_bytes, 2_000_000 // record_bytes)
    assert on_disk < 1.40
    assert memory < 60  # of so few rows; the filter alone is 1.25 in a full file


def test_stats_tell_what_a_store_holds_in_memory(open_it, tmp_path):
    store = open_it()
    fill(store)
    stats = store.stats()
    parts = ("index_and_filter_bytes", "memtable_bytes", "block_cache_bytes")
    assert store.memory_bytes() == pytest.approx(sum(stats[p] for p in parts), rel=0.1)
    assert stats["index_and_filter_bytes"] > NUM_ROWS  # ten bits a key, and the index
    store.close()
    assert store.memory_bytes() == 0

    options = {"optimizer": te.optim.SGD(lr=0.1), "num_threads": 1}
    tiers = te.Tiers(ddr=4 * 64 * 100, ssd=tmp_path / "ssd")
    with te.TieredEmbedding(None, 64, tiers=tiers, **options) as emb:
        for first in range(0, 2000, 50):
            emb(torch.arange(first, first + 50)).sum().backward()
        emb.flush()
        ssd = emb.stats().tiers["SSD"]
        assert ssd.store_bytes == emb.engine.pools[0].store.memory_bytes() > 2000
        assert emb.stats().tiers["DDR"].store_bytes == 0
        assert emb.stats().as_dict()["tiers"]["SSD"]["store_bytes"] == ssd.store_bytes
