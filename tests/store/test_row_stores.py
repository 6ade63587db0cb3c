"""The ``RowStore`` contract, held against every backend, and the directory around it."""

import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiered_embed import store as te_store
from tiered_embed.errors import ClosedError, ConfigError, CorruptionError, StoreError
from tiered_embed.spec import table_hash
from tiered_embed.store import open_store, opening
from tiered_embed.store import rocksdb as rocksdb_backend
from tiered_embed.store.base import RowStore
from tiered_embed.store.directory import read_description, write_description
from tiered_embed.store.keys import decode_rows, encode_keys

RECORD_BYTES = 24
LAYOUT = {"dim": 4, "dtype": "float32", "optimizer": "rowwise_adagrad"}
TABLE = table_hash("user")


@pytest.fixture(params=["rocksdb", "rocksdb_py", "memory"])
def backend(request):
    if request.param == "rocksdb" and not rocksdb_backend.available():
        if os.environ.get("CI"):
            pytest.fail("CI must test the native RocksDB extension, but it is not built")
        pytest.skip("built without RocksDB")
    return request.param


@pytest.fixture
def open_it(backend, tmp_path):
    """Opens stores of the backend below tmp_path, and closes them."""
    opened = []

    def open_it(name="store", mode="auto", record_bytes=RECORD_BYTES, layout=LAYOUT, **options):
        store = open_store(backend, tmp_path / name, record_bytes, layout, mode, **options)
        opened.append(store)
        return store

    yield open_it
    for store in opened:
        store.close()


@pytest.fixture
def store(open_it):
    return open_it()


def keys_of(*rows: int, table: bytes = TABLE) -> np.ndarray:
    return encode_keys(table, np.array(rows, np.int64))


def records_of(*values: int, record_bytes: int = RECORD_BYTES) -> np.ndarray:
    """Records that differ in every byte position between two values."""
    return np.stack(
        [np.random.default_rng(v).integers(0, 256, record_bytes, np.uint8) for v in values]
    )


def read(store: RowStore, keys: np.ndarray) -> list[bytes | None]:
    out = np.full((len(keys), store.record_bytes), 0xEE, np.uint8)
    found = store.get(keys, out)
    assert (out[~found] == 0xEE).all(), "rows that were not found must be left alone"
    return [row.tobytes() if hit else None for row, hit in zip(out, found, strict=True)]


def contents(store: RowStore, **bounds) -> dict[bytes, bytes]:
    rows: dict[bytes, bytes] = {}
    for keys, records in store.scan(**bounds):
        assert len(keys) == len(records) > 0
        rows.update(zip(map(bytes, keys), map(bytes, records), strict=True))
    assert list(rows) == sorted(rows)
    return rows


# Keys


def test_keys_round_trip_and_sort_unsigned():
    rows = np.array([0, 1, 255, 256, 2**40, 2**63 - 1, -(2**63), -1], np.int64)
    keys = encode_keys(TABLE, rows)
    assert keys.shape == (8, 12)
    assert [bytes(k) for k in keys] == sorted(bytes(k) for k in keys)
    np.testing.assert_array_equal(decode_rows(keys), rows)
    assert bytes(keys[3]) == TABLE + bytes([0, 0, 0, 0, 0, 0, 1, 0])


def test_keys_take_a_table_per_row():
    tables = np.frombuffer(table_hash("a") + table_hash("b"), np.uint8).reshape(2, 4)
    keys = encode_keys(tables, np.array([7, 7], np.int64))
    assert [bytes(k[:4]) for k in keys] == [table_hash("a"), table_hash("b")]


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        (b"abc", np.zeros(1, np.int64)),
        (b"abcd", np.zeros(1, np.int32)),
        (b"abcd", np.zeros((1, 1), np.int64)),
        (np.zeros((2, 4), np.uint8), np.zeros(1, np.int64)),
    ],
)
def test_keys_refuse_wrong_shapes(table, rows):
    with pytest.raises(ConfigError):
        encode_keys(table, rows)


def test_the_key_of_a_table_is_sha256():
    assert len(table_hash("table")) == 4
    assert table_hash("").hex() == "e3b0c442"


# Reading and writing


def test_round_trip_in_any_order_with_missing_and_repeated_keys(store):
    store.put(keys_of(5, -1, 2**40), records_of(1, 2, 3))
    one, two, three = (r.tobytes() for r in records_of(1, 2, 3))
    assert read(store, keys_of(2**40, 7, 5, 5, -1, 8, 2**40)) == [
        *(three, None, one, one, two, None, three)
    ]


def test_overwrite_and_last_of_repeated_keys_wins(store):
    store.put(keys_of(1, 2, 1), records_of(10, 11, 12))
    assert read(store, keys_of(1))[0] == records_of(12)[0].tobytes()
    store.put(keys_of(1), records_of(13))
    assert read(store, keys_of(1, 2)) == [r.tobytes() for r in records_of(13, 11)]
    assert store.verify() == 2


def test_delete(store):
    store.put(keys_of(1, 2), records_of(1, 2))
    store.delete(keys_of(2, 3))
    assert read(store, keys_of(1, 2)) == [records_of(1)[0].tobytes(), None]
    store.put(keys_of(2), records_of(4))
    assert read(store, keys_of(2)) == [records_of(4)[0].tobytes()]


def test_empty_batches(store):
    empty_keys = np.empty((0, 12), np.uint8)
    empty = np.empty((0, RECORD_BYTES), np.uint8)
    assert store.get(empty_keys, empty).shape == (0,)
    store.put(empty_keys, empty)
    store.delete(empty_keys)
    assert store.verify() == 0
    assert contents(store) == {}


def test_large_batches_cross_every_internal_chunk(open_it):
    store = open_it(record_bytes=516, write_buffer_bytes=1 << 20)
    rng = np.random.default_rng(0)
    rows = rng.permutation(20_000).astype(np.int64)
    records = rng.integers(0, 256, (len(rows), 516), np.uint8)
    store.put(encode_keys(TABLE, rows), records)
    store.flush()
    order = rng.permutation(len(rows))
    out = np.zeros((len(rows), 516), np.uint8)
    assert store.get(encode_keys(TABLE, rows[order]), out).all()
    np.testing.assert_array_equal(out, records[order])
    assert store.verify() == len(rows)


def test_tables_do_not_mix(store):
    other = table_hash("item")
    store.put(keys_of(1), records_of(1))
    store.put(keys_of(1, table=other), records_of(2))
    assert read(store, keys_of(1)) == [records_of(1)[0].tobytes()]
    assert read(store, keys_of(1, table=other)) == [records_of(2)[0].tobytes()]


@pytest.mark.parametrize("chunk_rows", [1, 3, 4096])
def test_scan_is_in_unsigned_key_order_with_bounds(store, chunk_rows):
    rows = (-1, 3, 2**40, 0, -(2**63), 2**63 - 1)
    store.put(keys_of(*rows), records_of(*range(6)))
    got = [decode_rows(keys) for keys, _ in store.scan(chunk_rows=chunk_rows)]
    assert all(len(part) <= chunk_rows for part in got)
    assert np.concatenate(got).tolist() == [0, 3, 2**40, 2**63 - 1, -(2**63), -1]
    start, stop = (bytes(keys_of(row)[0]) for row in (3, -(2**63)))
    bounded = contents(store, start=start, stop=stop, chunk_rows=chunk_rows)
    assert list(bounded) == [bytes(k) for k in keys_of(3, 2**40, 2**63 - 1)]
    assert contents(store, start=stop, stop=start) == {}
    assert len(contents(store, start=bytes(keys_of(4)[0]))) == 4


def test_scan_may_be_left_early(store):
    store.put(keys_of(*range(10)), records_of(*range(10)))
    scan = store.scan(chunk_rows=2)
    next(scan)
    store.close()
    with pytest.raises(ClosedError):
        next(scan)


GOOD_KEYS, GOOD_RECORDS = keys_of(1, 2), records_of(1, 2)


@pytest.mark.parametrize(
    ("keys", "records"),
    [
        (GOOD_KEYS[:, :11].copy(), GOOD_RECORDS),
        (GOOD_KEYS[0], GOOD_RECORDS),
        (GOOD_KEYS.astype(np.int8), GOOD_RECORDS),
        (GOOD_KEYS, GOOD_RECORDS[:1]),
        (GOOD_KEYS, GOOD_RECORDS[:, :-1].copy()),
        (GOOD_KEYS, GOOD_RECORDS.astype(np.float32)),
        (GOOD_KEYS, np.asfortranarray(GOOD_RECORDS)),
        (np.asfortranarray(GOOD_KEYS), GOOD_RECORDS),
        (GOOD_KEYS, GOOD_RECORDS.tolist()),
    ],
)
def test_wrong_arrays_are_refused_and_change_nothing(store, keys, records):
    store.put(keys_of(9), records_of(9))
    for call in (store.put, store.get, lambda k, r: store.import_sorted([(k, r)])):
        with pytest.raises(ConfigError):
            call(keys, records)
    assert list(contents(store)) == [bytes(keys_of(9)[0])]


def test_get_refuses_a_read_only_output(store):
    out = np.zeros((1, RECORD_BYTES), np.uint8)
    out.flags.writeable = False
    with pytest.raises(ConfigError, match="writeable"):
        store.get(keys_of(1), out)


def test_scan_refuses_bad_arguments(store):
    with pytest.raises(ConfigError):
        store.scan(start=b"short")
    with pytest.raises(ConfigError):
        store.scan(chunk_rows=0)


def test_stats_count_calls_rows_and_bytes(store):
    store.put(keys_of(1, 2), records_of(1, 2))
    read(store, keys_of(1, 3, 4))
    store.delete(keys_of(1))
    store.flush()
    stats = store.stats()
    assert all(isinstance(value, int) for value in stats.values())
    expected = {
        "put_calls": 1,
        "put_rows": 2,
        "put_bytes": 2 * RECORD_BYTES,
        "get_calls": 1,
        "get_rows": 3,
        "get_found": 1,
        "get_bytes": RECORD_BYTES,
        "delete_rows": 1,
    }
    assert {name: stats[name] for name in expected} == expected


# Import


def test_import_sorted(store, open_it):
    rows = np.arange(1000, dtype=np.int64) * 3
    records = records_of(*range(1000))
    keys = encode_keys(TABLE, rows)
    chunks = [(keys[:400], records[:400]), (keys[:0], records[:0]), (keys[400:], records[400:])]
    assert store.import_sorted(chunks) == 1000
    assert store.verify() == 1000
    assert read(store, keys_of(3, 4, 2997)) == [
        *(records[1].tobytes(), None, records[999].tobytes())
    ]
    store.put(keys_of(3), records_of(77))
    assert read(store, keys_of(3)) == [records_of(77)[0].tobytes()]
    store.close()
    assert open_it().verify() == 1000


def test_import_of_nothing(store):
    assert store.import_sorted([]) == 0
    assert store.verify() == 0
    store.put(keys_of(1), records_of(1))


@pytest.mark.parametrize("rows", [(1, 3, 2), (1, 1, 2), (-1, 5, 6)])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_import_refuses_unsorted_or_repeated_keys_and_imports_nothing(store, rows, cut):
    keys, records = keys_of(*rows), records_of(1, 2, 3)
    with pytest.raises(ConfigError, match="ascend"):
        store.import_sorted([(keys[:cut], records[:cut]), (keys[cut:], records[cut:])])
    assert store.verify() == 0
    assert not (store.path / "import.tmp").exists()
    assert store.import_sorted([(keys_of(1, 2, 3), records)]) == 3


def test_import_stops_with_its_source_and_imports_nothing(store):
    def chunks():
        yield keys_of(1), records_of(1)
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        store.import_sorted(chunks())
    assert contents(store) == {}
    assert not (store.path / "import.tmp").exists()


def test_import_needs_an_empty_store(store):
    store.put(keys_of(1), records_of(1))
    with pytest.raises(ConfigError, match="empty"):
        store.import_sorted([(keys_of(2), records_of(2))])
    assert list(contents(store)) == [bytes(keys_of(1)[0])]


# Opening, closing, describing


def test_reopen_keeps_rows(store, open_it):
    store.put(keys_of(1, -5), records_of(1, 2))
    store.close()
    store.close()
    again = open_it(mode="read_write")
    assert read(again, keys_of(1, -5)) == [r.tobytes() for r in records_of(1, 2)]


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.get(keys_of(1), records_of(1)),
        lambda s: s.put(keys_of(1), records_of(1)),
        lambda s: s.delete(keys_of(1)),
        lambda s: s.scan(),
        lambda s: s.import_sorted([]),
        lambda s: s.flush(),
        lambda s: s.checkpoint("/nowhere"),
        lambda s: s.verify(),
        lambda s: s.stats(),
    ],
)
def test_a_closed_store_refuses_everything(store, use):
    with store:
        pass
    assert store.closed
    with pytest.raises(ClosedError, match="closed"):
        use(store)


def test_other_layout_is_refused_by_name_and_values(store, open_it):
    store.close()
    with pytest.raises(ConfigError, match=r"dim: stored 4, wanted 8.*choose another directory"):
        open_it(layout={**LAYOUT, "dim": 8})
    with pytest.raises(ConfigError, match=r"extra: stored '\(absent\)', wanted \[1\]"):
        open_it(layout={**LAYOUT, "extra": (1,)})
    with pytest.raises(ConfigError, match="record_bytes: stored 24, wanted 28"):
        open_it(record_bytes=28)
    open_it()


def test_other_backend_is_refused_and_auto_takes_the_stored(store, backend, tmp_path):
    store.put(keys_of(1), records_of(1))
    store.close()
    other = "memory" if backend != "memory" else "rocksdb_py"
    with pytest.raises(ConfigError, match=f"backend: stored '{backend}', wanted '{other}'"):
        open_store(other, tmp_path / "store", RECORD_BYTES, LAYOUT)
    with open_store("auto", tmp_path / "store", RECORD_BYTES, LAYOUT) as again:
        assert again.verify() == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"dim": 4', '"dim": 5'),
        lambda text: text.replace("24", "25"),
    ],
)
def test_damaged_layout_is_corruption(store, open_it, damage):
    store.close()
    file = store.path / "layout.json"
    text = file.read_text()
    assert damage(text) != text
    file.write_text(damage(text))
    with pytest.raises(CorruptionError, match=r"layout\.json"):
        open_it()


def test_layout_of_a_newer_format_is_refused(store, open_it):
    store.close()
    newer = dataclasses.replace(read_description(store.path), version=3)
    write_description(store.path, newer)
    with pytest.raises(StoreError, match=r"has format 3, this version .* reads 1 to 2"):
        open_it()


def test_modes(open_it):
    with pytest.raises(StoreError, match="no store"):
        open_it(mode="read_write")
    with pytest.raises(StoreError, match="no store"):
        open_it(mode="read_only")
    store = open_it(mode="create")
    store.put(keys_of(1), records_of(1))
    store.close()
    with pytest.raises(StoreError, match="already holds a store"):
        open_it(mode="create")
    with pytest.raises(ConfigError, match="mode"):
        open_it(mode="append")


def test_read_only_refuses_every_change_and_shares(store, open_it, tmp_path):
    store.put(keys_of(1), records_of(1))
    store.close()
    reader, other = open_it(mode="read_only"), open_it(mode="read_only")
    for change in (
        lambda: reader.put(keys_of(2), records_of(2)),
        lambda: reader.delete(keys_of(1)),
        lambda: reader.import_sorted([]),
        lambda: reader.flush(),
        lambda: reader.checkpoint(tmp_path / "copy"),
    ):
        with pytest.raises(StoreError, match="read_only"):
            change()
    for one in (reader, other):
        assert read(one, keys_of(1, 2)) == [records_of(1)[0].tobytes(), None]
        assert one.verify() == 1
    with pytest.raises(StoreError, match="already open"):
        open_it()


def test_second_opener_in_this_process(store, open_it):
    with pytest.raises(StoreError, match=f"already open, by pid {os.getpid()}"):
        open_it()
    store.close()
    open_it()


def test_second_opener_in_another_process(store, backend):
    script = (
        "import sys; from tiered_embed.store import open_store; from tiered_embed.errors import *\n"
        "try: open_store(sys.argv[1], sys.argv[2], int(sys.argv[3]), eval(sys.argv[4]))\n"
        "except StoreError as error: print(error)"
    )
    arguments = [backend, str(store.path), str(RECORD_BYTES), repr(LAYOUT)]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    assert f"already open, by pid {os.getpid()}" in done.stdout


def test_unwritable_directory(open_it, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot create"):
        open_it("file/store")
    with pytest.raises(StoreError, match="cannot create"):
        open_it("file")


def test_directory_is_private(store):
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o700


def test_killed_creation_is_repeated_but_foreign_files_are_kept(open_it, tmp_path):
    killed = tmp_path / "killed"
    (killed / "db").mkdir(parents=True)
    (killed / "db" / "000001.sst").write_bytes(b"half")
    with pytest.raises(StoreError, match=r"layout\.json"):
        open_it("killed")
    assert (killed / "db" / "000001.sst").exists()
    (killed / "CREATING").touch()
    assert open_it("killed").verify() == 0
    assert not (killed / "CREATING").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        {"record_bytes": 0},
        {"record_bytes": 1.5},
        {"layout": {"dim": np.int64(3)}},
        {"num_read_threads": -1},
        {"write_buffer_bytes": "64MiB"},
        {"unknown": 1},
    ],
)
def test_open_refuses_bad_arguments(open_it, arguments, tmp_path):
    with pytest.raises(ConfigError):
        open_it(**arguments)
    assert not (tmp_path / "store").exists()


def test_unknown_backend(tmp_path):
    with pytest.raises(ConfigError, match="leveldb"):
        open_store("leveldb", tmp_path, 8, {})


def test_auto_falls_back_to_the_wheel_with_one_notice(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(rocksdb_backend, "_native", None)
    opening._notice_fallback.cache_clear()
    for name in ("a", "b"):
        with open_store("auto", tmp_path / name, 8, {}) as store:
            assert type(store).__name__ == "RocksDbPyRowStore"
    assert [r.levelname for r in caplog.records if r.name == "tiered_embed"] == ["WARNING"]
    with pytest.raises(StoreError, match="rocksdb_py"):
        open_store("rocksdb", tmp_path / "c", 8, {})


def test_meta(store, tmp_path):
    assert te_store.read_meta(store.path) == {}
    te_store.write_meta(store.path, {"step": 3})
    te_store.write_meta(store.path, {"step": 4, "names": ["a"]})
    assert te_store.read_meta(store.path) == {"step": 4, "names": ["a"]}
    with pytest.raises(ConfigError, match="JSON"):
        te_store.write_meta(store.path, {"step": object()})
    assert te_store.read_meta(store.path)["step"] == 4
    store.checkpoint(tmp_path / "copy")
    assert te_store.read_meta(tmp_path / "copy")["step"] == 4
    document = json.loads((store.path / "meta.json").read_text())
    document["content"]["step"] = 5
    (store.path / "meta.json").write_text(json.dumps(document))
    with pytest.raises(CorruptionError):
        te_store.read_meta(store.path)


# Failures, checkpoints, corruption, processes, threads


def test_after_a_failed_write_everything_fails_naming_it(store, open_it, tmp_path):
    store.put(keys_of(1), records_of(1))
    store.checkpoint(tmp_path / "copy")
    store.put(keys_of(2), records_of(2))
    shutil.rmtree(store.path / "db")
    with pytest.raises(StoreError) as first:
        store.flush()
    cause = str(first.value).split(":")[0]
    for use in (
        lambda: read(store, keys_of(1)),
        lambda: store.put(keys_of(3), records_of(3)),
        lambda: list(store.scan()),
        lambda: store.checkpoint(tmp_path / "other"),
        store.stats,
        store.verify,
    ):
        with pytest.raises(StoreError, match="failed earlier") as later:
            use()
        assert cause in str(later.value)
    store.close()
    assert open_it("copy").verify() == 1


def test_checkpoint_is_a_store_as_of_that_moment(store, open_it, tmp_path):
    store.put(keys_of(*range(100)), records_of(*range(100)))
    before = contents(store)
    store.checkpoint(tmp_path / "copy")
    store.put(keys_of(5, 200), records_of(500, 501))
    store.delete(keys_of(7))
    copy = open_it("copy", mode="read_write")
    assert contents(copy) == before
    copy.put(keys_of(6), records_of(600))
    assert read(store, keys_of(5, 6, 7, 200)) == [
        *(records_of(500)[0].tobytes(), before[bytes(keys_of(6)[0])]),
        *(None, records_of(501)[0].tobytes()),
    ]
    with pytest.raises(ConfigError, match="exists already"):
        store.checkpoint(tmp_path / "copy")
    with pytest.raises(StoreError, match="checkpoint"):
        store.checkpoint(tmp_path / "missing" / "copy")
    assert store.verify() == 100


def test_checkpoint_survives_its_original(store, open_it, tmp_path):
    store.put(keys_of(1), records_of(1))
    store.checkpoint(tmp_path / "copy")
    for value in range(2, 6):
        store.put(keys_of(1), records_of(value))
        store.flush()
    store.close()
    assert read(open_it("copy"), keys_of(1)) == [records_of(1)[0].tobytes()]


def test_flipped_bit_is_an_error_never_a_value(backend, open_it):
    if backend == "memory":
        pytest.skip("keeps no checksums")
    store = open_it(record_bytes=128)
    keys, records = keys_of(*range(400)), records_of(*range(400), record_bytes=128)
    store.put(keys, records)
    store.close()
    (file,) = store.path.glob("db/*.sst")
    intact = file.read_bytes()
    wrong = errors = 0
    for position in np.random.default_rng(1).integers(0, len(intact), 60):
        damaged = bytearray(intact)
        damaged[position] ^= 1 << int(position % 8)
        file.write_bytes(damaged)
        try:
            with open_it(record_bytes=128, mode="read_only") as again:
                out = np.zeros_like(records)
                found = again.get(keys, out)
                # A block holds what it held, or the read fails; a row is never lost or changed.
                wrong += not (found.all() and (out == records).all())
                again.verify()
        except StoreError:
            errors += 1
    file.write_bytes(intact)
    assert wrong == 0
    assert errors > 40


def test_record_of_wrong_length_is_corruption(backend, open_it, tmp_path):
    if backend == "memory":
        pytest.skip("cannot hold one")
    with open_it() as store:
        store.put(keys_of(1), records_of(1))
    # Another record size below the same description.
    with open_it("longer", record_bytes=RECORD_BYTES + 1) as longer:
        longer.put(keys_of(1), records_of(1, record_bytes=RECORD_BYTES + 1))
    (tmp_path / "store" / "db").rename(tmp_path / "aside")
    (tmp_path / "longer" / "db").rename(tmp_path / "store" / "db")
    again = open_it()
    with pytest.raises(CorruptionError, match="25 bytes, not 24"):
        read(again, keys_of(1))
    with pytest.raises(CorruptionError):
        contents(again)
    with pytest.raises(CorruptionError):
        again.verify()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_use_after_fork_raises_closed_error(store, open_it):
    store.put(keys_of(1), records_of(1))
    scan = store.scan()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for use in (
                lambda: read(store, keys_of(1)),
                lambda: store.put(keys_of(2), records_of(2)),
                lambda: next(scan),
                lambda: store.verify(),
            ):
                with pytest.raises(ClosedError):
                    use()
            del scan
            store.close()  # neither flushes nor unlocks the parent's
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    with pytest.raises(StoreError, match="already open"):
        open_it()
    assert read(store, keys_of(1, 2)) == [records_of(1)[0].tobytes(), None]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_lock_is_free_after_close_though_a_forked_child_lives(store, open_it):
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    store.close()
    open_it()
    os.write(done[1], b"x")
    os.waitpid(pid, 0)
    for fd in (*ready, *done):
        os.close(fd)


def test_unflushed_store_is_closed_at_exit(backend, tmp_path):
    script = (
        "import sys, numpy as np; from tiered_embed.store import *\n"
        "s = open_store(sys.argv[1], sys.argv[2], 4, {})\n"
        "s.put(encode_keys(b'abcd', np.arange(3)), np.ones((3, 4), np.uint8))\n"
        "scan = s.scan(chunk_rows=1); next(scan)"
    )
    arguments = [backend, str(tmp_path / "store")]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    with open_store(backend, tmp_path / "store", 4, {}) as store:
        assert store.verify() == 3


def test_get_and_put_from_several_threads(open_it):
    store = open_it(record_bytes=64, write_buffer_bytes=64 << 10)
    num_rows, num_rounds = 512, 20
    keys = keys_of(*range(num_rows))
    store.put(keys, np.zeros((num_rows, 64), np.uint8))
    barrier = threading.Barrier(4)
    failures: list[object] = []

    def guarded(work):
        def run():
            try:
                barrier.wait()
                work()
            except BaseException as error:
                failures.append(error)

        return threading.Thread(target=run)

    def write():
        for value in range(1, num_rounds + 1):
            store.put(keys, np.full((num_rows, 64), value, np.uint8))
            if value % 5 == 0:
                store.flush()

    def read_all():
        last = np.zeros(num_rows, np.uint8)
        for _ in range(num_rounds):
            out = np.full((num_rows, 64), 255, np.uint8)
            assert store.get(keys, out).all()
            assert (out == out[:, :1]).all(), "a record is torn"
            assert (out[:, 0] >= last).all(), "a record went back in time"
            last = out[:, 0]

    threads = [guarded(write), guarded(read_all), guarded(read_all), guarded(store.stats)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(contents(store).values()) == {bytes([num_rounds]) * 64}


def test_close_waits_for_calls_in_progress(open_it):
    store = open_it(record_bytes=64)
    keys = keys_of(*range(2000))
    store.put(keys, np.ones((2000, 64), np.uint8))
    started = threading.Event()
    outcome: list[object] = []

    def read_until_closed():
        out = np.empty((2000, 64), np.uint8)
        try:
            while True:
                assert store.get(keys, out).all()
                assert (out == 1).all()
                started.set()
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=read_until_closed)
    thread.start()
    started.wait()
    store.close()
    thread.join()
    assert [type(error) for error in outcome] == [ClosedError]


# Random operations against a dict

ROWS = st.lists(
    st.sampled_from([0, 1, 2, 3, 255, 256, 2**40, 2**63 - 1, -(2**63), -2, -1]), max_size=8
)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), ROWS),
        st.tuples(st.just("delete"), ROWS),
        st.tuples(st.just("get"), ROWS),
        st.tuples(st.sampled_from(["scan", "flush", "reopen", "checkpoint", "verify"]), st.none()),
    ),
    max_size=25,
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(operations=OPERATIONS)
def test_random_operations_match_a_dict(backend, tmp_path_factory, operations):
    root: Path = tmp_path_factory.mktemp("random")
    model: dict[bytes, bytes] = {}
    store = open_store(backend, root / "0", RECORD_BYTES, LAYOUT)
    try:
        for step, (name, rows) in enumerate(operations):
            keys = keys_of(*rows) if rows else np.empty((0, 12), np.uint8)
            if name == "put":
                records = np.empty((len(keys), RECORD_BYTES), np.uint8)
                records[:] = np.arange(len(keys), dtype=np.uint8)[:, None] + 10 * step % 251
                store.put(keys, records)
                model.update(zip(map(bytes, keys), map(bytes, records), strict=True))
            elif name == "delete":
                store.delete(keys)
                for key in map(bytes, keys):
                    model.pop(key, None)
            elif name == "get":
                assert read(store, keys) == [model.get(bytes(key)) for key in keys]
            elif name == "scan":
                assert contents(store, chunk_rows=2) == model
            elif name == "flush":
                store.flush()
            elif name == "verify":
                assert store.verify() == len(model)
            else:
                path = store.path
                if name == "checkpoint":
                    path = root / str(step + 1)
                    store.checkpoint(path)
                store.close()
                store = open_store(backend, path, RECORD_BYTES, LAYOUT, "read_write")
        assert contents(store) == model
    finally:
        store.close()
