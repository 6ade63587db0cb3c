"""Readers of foreign formats into traces: values, streaming, and malformed input."""

import bz2
import gzip
import itertools
import lzma
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tiered_embed import traces
from tiered_embed.errors import ConfigError, CorruptionError
from tiered_embed.traces import CriteoGenerator, CriteoOptions, CriteoReader, TraceOptions
from trace_samples import bags, batches

COMPRESSORS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
}


def flat(trace, table=0):
    return np.concatenate([np.empty(0, np.int64), *(parts[table] for parts in trace)]).tolist()


# --- raw integers, and compression --------------------------------------------------------------


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize(
    ("layout", "dtype"), [("i64be", ">i8"), ("i64le", "<i8"), ("u32be", ">u4"), ("u32le", "<u4")]
)
def test_raw_is_streamed_in_batches(tmp_path, suffix, layout, dtype):
    ids = np.array([0, 1, 2**31, 2**32 - 1, 5], dtype)
    path = tmp_path / f"trace.{layout}{suffix}"
    path.write_bytes(COMPRESSORS[suffix](ids.tobytes()))
    trace = traces.open_trace(path, batch=2)
    assert batches(trace) == batches(trace) == [[[0, 1]], [[2**31, 2**32 - 1]], [[5]]]


def test_raw_across_blocks(tmp_path):
    ids = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 400_001)
    path = tmp_path / "trace.i64le.zst"
    path.write_bytes(COMPRESSORS[".zst"](ids[:300_000].tobytes()))
    with path.open("ab") as file:  # zstd files may hold several frames
        file.write(COMPRESSORS[".zst"](ids[300_000:].tobytes()))
    trace = traces.raw_trace(path, batch=1000)
    assert flat(trace) == ids.tolist()
    np.testing.assert_array_equal(traces.read_raw(path), ids)


def test_a_cut_id_is_named_by_its_byte(tmp_path):
    path = tmp_path / "trace.u32le"
    path.write_bytes(bytes(10))
    with pytest.raises(ConfigError, match=r"not a multiple of 4 .* starts at byte 8"):
        list(traces.raw_trace(path).chunks())
    with pytest.raises(ConfigError, match="does not say how integers are stored"):
        traces.raw_trace(tmp_path / "a.bin")
    path.write_bytes(b"")
    assert batches(traces.raw_trace(path)) == []


def test_every_cut_of_a_zstd_file_is_named(tmp_path):
    path = tmp_path / "trace.i64le"
    data = COMPRESSORS[".zst"](np.random.default_rng(0).bytes(400))
    for cut in range(4, len(data)):
        path.write_bytes(data[:cut])
        with pytest.raises(ConfigError, match=r"cut off or damaged near byte \d+ of the file"):
            list(traces.raw_trace(path).chunks())
    path.write_bytes(data + b"rest")
    with pytest.raises(ConfigError, match="cut off or damaged"):
        list(traces.raw_trace(path).chunks())


# --- columns ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("separator", [",", "\t"])
def test_csv_columns(tmp_path, suffix, separator):
    text = 'user,"what, else",item\n1,a,-5\n9223372036854775807,"b ""x""",6\n3,,7\n'
    if separator == "\t":
        text = text.replace('"what, else"', "what").replace(",", "\t")
    path = tmp_path / f"log.{'csv' if separator == ',' else 'tsv'}{suffix}"
    path.write_bytes(COMPRESSORS[suffix](text.encode()))
    trace = traces.open_trace(path, columns={"i": "item", "u": "user"}, batch=2)
    assert [table.name for table in trace.tables] == ["i", "u"]
    expected = [[[-5, 6], [1, 2**63 - 1]], [[7], [3]]]
    assert batches(trace) == batches(trace) == expected


def test_csv_over_many_blocks(tmp_path):
    rows = 200_000
    path = tmp_path / "log.csv"
    path.write_text("a,b\n" + "".join(f"{i},{i * 1_000_003}\n" for i in range(rows)))
    trace = traces.open_trace(path, columns=["b"], batch=777)
    assert flat(trace) == [i * 1_000_003 for i in range(rows)]
    sizes = list(itertools.chain(*(np.diff(c.table_ids[0][0]).tolist() for c in trace.chunks())))
    assert set(sizes[:-1]) == {777}


@pytest.mark.parametrize(
    ("text", "columns", "fact"),
    [
        ("a,b\n1,2\n", ["c"], r"no column 'c'; the columns are \['a', 'b'\]"),
        ("a,b\n1,2\n3,x\n", ["b"], r"row 2: column 'b' holds 'x'; ids are integers"),
        ("a,b\n1,2\n3,1.5\n", ["b"], r"row 2: column 'b' holds '1.5'"),
        ("a,b\n1,9223372036854775808\n", ["b"], "row 1: column 'b' holds id 9223372036854775808,"),
        ("a,b\n1,2\n3\n", ["b"], "row 2: 1 fields instead of 2: '3'"),
        ("a,b\n1,2\n3,\n", ["b"], r"row 2: column 'b' is empty; pass missing="),
        ("", ["b"], "Empty CSV file"),
        ("a,b\n1,2\n", [], "columns is empty"),
        ("a,b\n1,2\n", "ab", "columns is 'ab'; pass a list"),
        ("a,b\n1,2\n", None, "pass columns= with the names of the columns that hold ids"),
    ],
)
def test_malformed_csv(tmp_path, text, columns, fact):
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=fact):
        list(traces.open_trace(path, columns=columns).chunks())


def test_a_late_bad_row_of_csv_is_named_after_the_good_ones(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("a\n" + "1\n" * 900_000 + "x\n")
    chunks = traces.open_trace(path, columns=["a"]).chunks()
    assert next(chunks).num_ids > 0
    with pytest.raises(ConfigError, match=r"row 900001: column 'a' holds 'x'"):
        list(chunks)


def test_damaged_compression_of_csv_is_named(tmp_path):
    path = tmp_path / "log.csv.gz"
    data = gzip.compress(b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(5000)))
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match=r"cut off or damaged near byte \d+"):
        list(traces.open_trace(path, "csv", columns=["a"]).chunks())


def test_missing_fields_may_have_an_id(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("a,b\n,2\n3,\n")
    options = TraceOptions(columns=["a", "b"], missing=-1, num_rows={"a": None, "b": None})
    assert batches(traces.open_trace(path, options=options)) == [[[-1, 3], [2, -1]]]


def test_parquet_columns_and_lists(tmp_path):
    path = tmp_path / "log.parquet"
    table = pa.table(
        {
            "user": pa.array([1, 2, 3], pa.int32()),
            "items": pa.array([[5, 6], None, [7]], pa.list_(pa.int64())),
            "big": pa.array([[1], [], [2, 3]], pa.large_list(pa.uint16())),
            "text": ["a", "b", "c"],
        }
    )
    pq.write_table(table, path, row_group_size=2)
    trace = traces.open_trace(path, columns=["items", "user", "big"], batch=2)
    assert batches(trace) == [[[5, 6], [1, 2], [1]], [[7], [3], [2, 3]]]
    assert bags(trace) == [[[5, 6], [1], [1]], [[], [2], []], [[7], [3], [2, 3]]]
    with pytest.raises(ConfigError, match="column 'text' holds string; ids are integers"):
        list(traces.open_trace(path, columns=["text"]).chunks())
    with pytest.raises(ConfigError, match="no column 'x'; the columns are"):
        list(traces.open_trace(path, columns=["x"]).chunks())


@given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), max_size=20))
def test_parquet_round_trip(tmp_path_factory, ids):
    path = tmp_path_factory.getbasetemp() / "round.parquet"
    pq.write_table(pa.table({"a": pa.array(ids, pa.int64())}), path)
    options = TraceOptions(columns=["a"], missing=0)
    trace = traces.open_trace(path, options=options)
    assert flat(trace) == [0 if i is None else i for i in ids]


def test_parquet_ids_beyond_int64_and_damage_are_named(tmp_path):
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"a": pa.array([2**63], pa.uint64())}), path)
    with pytest.raises(
        ConfigError,
        match="row 1: column 'a' holds id 9223372036854775808, which is beyond int64",
    ):
        list(traces.open_trace(path, columns=["a"]).chunks())


def test_damaged_parquet_is_named(tmp_path):
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"a": np.arange(1000)}), path)
    data = path.read_bytes()
    named = 0
    for place in range(0, len(data), 37):
        path.write_bytes(data[:place])
        with pytest.raises(ConfigError, match=str(path)):
            list(traces.open_trace(path, "parquet", columns=["a"]).chunks())
        path.write_bytes(data[:place] + bytes(20) + data[place + 20 :])
        try:
            list(traces.open_trace(path, "parquet", columns=["a"]).chunks())
        except ConfigError as error:
            named += str(path) in str(error)
    assert named > 20


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    path.write_text("a\n1\n")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pyarrow is needed .* 'tiered_embed\[sim\]'"):
        traces.open_trace(path, columns=["a"])


# --- FBGEMM -------------------------------------------------------------------------------------


def fbgemm_batch(lengths, seed=0, dtype=torch.int64):
    lengths = torch.tensor(lengths, dtype=dtype)
    offsets = torch.cat([torch.zeros(1, dtype=dtype), lengths.reshape(-1).cumsum(0).to(dtype)])
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(0, 1000, (int(lengths.sum()),), dtype=dtype, generator=generator)
    return indices, offsets, lengths


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("old", [False, True])
def test_fbgemm(tmp_path, suffix, dtype, old):
    given = fbgemm_batch([[2, 0, 1], [1, 1, 1]], dtype=dtype)
    path = tmp_path / "batch.pt"
    torch.save(given, path, _use_new_zipfile_serialization=not old)
    named = tmp_path / f"batch.pt{suffix}"
    named.write_bytes(COMPRESSORS[suffix](path.read_bytes()))
    trace = traces.open_trace(named)
    ids = given[0].tolist()
    assert [table.name for table in trace.tables] == ["t0", "t1"]
    assert batches(trace) == [[ids[:3], ids[3:]]]
    assert bags(trace) == [[ids[:2], ids[3:4]], [[], ids[4:5]], [ids[2:3], ids[5:]]]
    assert (trace.num_batches, trace.num_accesses) == (1, 6)
    assert batches(traces.open_trace(named, batch=2)) == [[ids[:2], ids[3:5]], [ids[2:3], ids[5:]]]


def test_fbgemm_files_in_a_row(tmp_path):
    paths = [tmp_path / f"{i}.pt" for i in range(2)]
    for i, path in enumerate(paths):
        torch.save(fbgemm_batch([[1, 2]], i), path)
    trace = traces.fbgemm_trace(paths, names=["user"], num_rows=[1000])
    assert [len(parts[0]) for parts in trace] == [3, 3]
    torch.save(fbgemm_batch([[1, 2], [1, 1]]), paths[1])
    with pytest.raises(ConfigError, match=r"1\.pt: there are 2 tables, but .*0\.pt has 1"):
        list(trace.chunks())
    with pytest.raises(ConfigError, match="1 tables, but 2 names were given"):
        traces.fbgemm_trace(paths[0], names=["a", "b"])


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda i, o, n: (i, o), "holds 2 values instead of"),
        (lambda i, o, n: i, "holds Tensor instead of"),
        (lambda i, o, n: (i.float(), o, n), "indices are torch.float32"),
        (lambda i, o, n: (i, o, "text"), "lengths are str"),
        (lambda i, o, n: (i, o, n[0]), r"lengths have shape \(3,\)"),
        (lambda i, o, n: (i[:-1], o, n), "add up to 6, but there are 5 indices"),
        (
            lambda i, o, n: (i, o + 1, n),
            "do not match the running sums of the lengths .* position 0",
        ),
        (lambda i, o, n: (i, o[:-1], n), "do not match the running sums of the lengths"),
        (lambda i, o, n: (i, o, -n), "length of table 0, sample 0 is negative"),
    ],
)
def test_malformed_fbgemm(tmp_path, change, fact):
    path = tmp_path / "batch.pt"
    torch.save(change(*fbgemm_batch([[2, 0, 1], [1, 1, 1]])), path)
    with pytest.raises(ConfigError, match=fact):
        traces.fbgemm_trace(path)


def test_every_cut_of_an_fbgemm_file_is_refused(tmp_path):
    path = tmp_path / "batch.pt"
    torch.save(fbgemm_batch([[2, 0, 1]]), path)
    data = path.read_bytes()
    for cut in range(0, len(data), 7):
        path.write_bytes(data[:cut])
        with pytest.raises((CorruptionError, ConfigError), match=str(path)):
            traces.fbgemm_trace(path)


# --- libCacheSim --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_oracle_general(tmp_path, suffix):
    requests = [(1, 5, 100, 3), (1, 2**64 - 1, 1, -1), (2, 5, 100, -1)]
    path = tmp_path / f"t.oracleGeneral.bin{suffix}"
    path.write_bytes(COMPRESSORS[suffix](b"".join(struct.pack("<IQIq", *r) for r in requests)))
    assert batches(traces.open_trace(path, batch=2)) == [[[5, -1]], [[5]]]


def test_oracle_general_across_blocks_and_cut(tmp_path):
    requests = np.zeros(100_000, traces.libcachesim.ORACLE_GENERAL)
    requests["object"] = np.arange(100_000) * 7
    path = tmp_path / "t.oracleGeneral"
    path.write_bytes(requests.tobytes())
    assert flat(traces.open_trace(path)) == (np.arange(100_000) * 7).tolist()
    path.write_bytes(requests.tobytes()[:-1])
    with pytest.raises(ConfigError, match=r"request that starts at byte 2399976 is cut off"):
        list(traces.open_trace(path).chunks())


def test_libcachesim_reads_the_same(tmp_path):
    ids = np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64)
    requests = np.zeros(1000, traces.libcachesim.ORACLE_GENERAL)
    requests["object"], requests["size"], requests["next_access"] = ids, 1, -1
    path = tmp_path / "t.oracleGeneral.bin"
    path.write_bytes(requests.tobytes())
    lcs = pytest.importorskip("libcachesim")
    reader = lcs.TraceReader(trace=str(path), trace_type=lcs.TraceType.ORACLE_GENERAL_TRACE)
    theirs = np.array([request.obj_id for request in reader], np.uint64)
    assert flat(traces.open_trace(path)) == theirs.view(np.int64).tolist()


def test_libcachesim_csv(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("0,17,1,2\n1,18,1,-2\n2,17,1,-2\n")
    assert flat(traces.open_trace(path, "libcachesim_csv")) == [17, 18, 17]
    path.write_text("id,time\n17,0\n18,0\n")
    options = TraceOptions(object_column=1)
    assert flat(traces.open_trace(path, "libcachesim_csv", options)) == [17, 18]
    path.write_text('0,"17"\n1,"18"\n')  # the first line is no header, though quoted
    assert flat(traces.open_trace(path, "libcachesim_csv")) == [17, 18]
    path.write_text("")
    with pytest.raises(ConfigError, match="the first line is empty"):
        traces.open_trace(path, "libcachesim_csv")
    path.write_text("0,x\n1,18\n")  # nor if its id is no integer
    with pytest.raises(ConfigError, match="row 1: column '2' holds 'x'"):
        flat(traces.open_trace(path, "libcachesim_csv"))
    with pytest.raises(ConfigError, match=r"object_column must be in \[1, 2\], the columns of"):
        traces.csv_requests_trace(path, object_column=5)


# --- the public logs ----------------------------------------------------------------------------


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("num_embeddings", [None, 50])
def test_criteo_is_what_its_reader_reads(tmp_path, drop_last, num_embeddings):
    CriteoGenerator(1000, seed=2).write(tmp_path / "log")
    options = CriteoOptions(64, num_embeddings, "train", drop_last=drop_last)
    trace = traces.criteo_trace(tmp_path / "log", options)
    expected = [batch.ids.tolist() for batch in CriteoReader(tmp_path / "log", options)]
    assert batches(trace) == expected
    assert trace.tables[25].name == "C26"
    assert trace.tables[0].num_rows == (num_embeddings or traces.NUM_RAW_IDS)


def test_real_logs_are_told_apart(data_file):
    sizes = {
        "scarab_recs.i64be.xz": ("raw", 1, 1_245_184),
        "arc_oltp.u32le.xz": ("raw", 1, 914_145),
        "criteo_kaggle_10k.tsv.xz": ("criteo", 26, 260_000),
        "movielens_small_ratings.csv.xz": ("movielens", 2, 200_008),
        "lbsn_checkins_nyc.tsv.xz": ("checkins", 4, 4 * 105_961),
    }
    for name, (format, num_tables, accesses) in sizes.items():
        path = data_file(name)
        assert traces.find_format(path) == format
        trace = traces.open_trace(path)
        assert len(trace.tables) == num_tables
        assert sum(chunk.num_ids for chunk in trace.chunks()) == accesses


def test_real_ids_are_kept(data_file):
    path = data_file("scarab_recs.i64be.xz")
    assert flat(traces.open_trace(path)) == traces.read_raw(path).tolist()


# --- open_trace ---------------------------------------------------------------------------------


def test_formats_that_cannot_be_told(tmp_path):
    path = tmp_path / "trace.bin"
    path.write_bytes(b"\x01\x02\x03")
    with pytest.raises(ConfigError, match=r"first bytes b'\\x01\\x02\\x03'; pass format= one of"):
        traces.open_trace(path)
    with pytest.raises(ConfigError, match=r"format must be one of .* got 'x'"):
        traces.open_trace(path, "x")
    with pytest.raises(ConfigError, match="a raw trace is one file, but 2 were given"):
        traces.open_trace([path, path], "raw")
    with pytest.raises(ConfigError, match="no file was given"):
        traces.open_trace([])
    with pytest.raises(FileNotFoundError):
        traces.open_trace(tmp_path / "absent.csv")


def test_a_tet_file_keeps_its_batches_unless_asked(tmp_path):
    path = tmp_path / "a.tet"
    traces.write_tet(traces.Trace.from_ids(range(5), 3), path)
    assert batches(traces.open_trace(path)) == [[[0, 1, 2]], [[3, 4]]]
    assert batches(traces.open_trace(path, batch=4)) == [[[0, 1, 2, 3]], [[4]]]
