"""Files with named columns: drawn files against an independent reader, and what is refused.

A test that fails names its seed: ``_check(tmp_path, kind, seed)`` draws the same file again.
"""

import bz2
import gzip
import lzma

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from column_files import draw_parquet, draw_text
from tiered_embed import traces
from tiered_embed.errors import ConfigError, IdRangeError, TieredEmbedError
from tiered_embed.traces import TraceOptions, columns, delimited
from tiered_embed.traces.arrow_columns import column_ids
from trace_samples import bags, batches

COMPRESSORS = (bytes, bytes, gzip.compress, lzma.compress, bz2.compress)
KINDS = ("parquet", "csv", "tsv")


def _check(tmp_path, monkeypatch, kind, seed):
    path = tmp_path / f"drawn.{kind}"
    monkeypatch.setattr(columns, "CHUNK_IDS", (1 << 20, 4, 64)[seed % 3])
    monkeypatch.setattr(delimited, "BLOCK_BYTES", (1 << 20, 4096, 400)[seed % 3])
    if kind == "parquet":
        drawn = draw_parquet(seed, path)
    else:
        separator = "," if kind == "csv" else "\t"
        drawn = draw_text(seed, path, separator, COMPRESSORS[seed % 5])
    options = TraceOptions(1 + seed % 9, columns=drawn.wanted, missing=drawn.missing)
    got = error = None
    try:
        got = bags(traces.open_trace(path, kind, options))
    except TieredEmbedError as found:
        error = found
    try:
        drawn.judge(got, error)
    except AssertionError as wrong:
        raise AssertionError(f"{kind}, seed {seed}: {wrong}") from wrong
    return error is None


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_files_have_all_their_ids_or_a_named_row(tmp_path, monkeypatch, kind):
    read = [_check(tmp_path, monkeypatch, kind, seed) for seed in range(100)]
    assert 25 < sum(read) < 92  # files of both kinds were drawn


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_many_drawn_files_have_all_their_ids_or_a_named_row(tmp_path, monkeypatch, kind):
    for seed in range(100, 1100):
        _check(tmp_path, monkeypatch, kind, seed)


# --- Parquet ------------------------------------------------------------------------------------


def _parquet(tmp_path, **arrays):
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(arrays), path, row_group_size=2)
    return path


def test_lists_of_lists_are_flattened_and_a_null_is_told_by_its_row(tmp_path):
    deep = [[[1, 2], [3]], None, [[], None, [4]], [], [[5, None]]]
    path = _parquet(tmp_path, deep=pa.array(deep), user=[1, 2, 3, 4, 5])
    options = TraceOptions(columns=["deep", "user"], missing=-1)
    assert [each[0] for each in bags(traces.open_trace(path, options=options))] == [
        [1, 2, 3],
        [],
        [4],
        [],
        [5, -1],
    ]
    with pytest.raises(ConfigError, match="row 5: column 'deep' has an empty place in its list"):
        bags(traces.open_trace(path, columns=["user", "deep"]))
    path = _parquet(
        tmp_path, big=pa.array([[[1]], [[2], [2**63]]], pa.list_(pa.list_(pa.uint64())))
    )
    for missing in (None, -1):
        with pytest.raises(ConfigError, match=r"row 2: column 'big' holds id 9223372036854775808"):
            bags(traces.open_trace(path, options=TraceOptions(columns=["big"], missing=missing)))


def test_an_array_in_memory_may_be_sliced_or_encoded():
    nested = pa.array([[[1], None], None, [[2, 3], [4]], [[5]]])
    ids, starts = column_ids("f", "a", nested.slice(1, 2), 0, None)
    assert (ids.tolist(), starts.tolist()) == ([2, 3, 4], [0, 0, 3])
    coded = pa.array([7, None, 7, 9]).dictionary_encode().slice(1)
    assert column_ids("f", "a", coded, 0, -1)[0].tolist() == [-1, 7, 9]
    inside = pa.ListArray.from_arrays([0, 2, 3], pa.array([8, 8, 9]).dictionary_encode())
    assert column_ids("f", "a", inside.slice(1), 0, None)[0].tolist() == [9]
    with pytest.raises(ConfigError, match="f, row 12: column 'a' is empty"):
        column_ids("f", "a", coded, 11, None)


def test_a_column_without_any_value_has_no_ids(tmp_path):
    path = _parquet(tmp_path, none=pa.array([[], [], None]), null=pa.array([None] * 3))
    options = TraceOptions(columns=["none", "null"], missing=5)
    assert bags(traces.open_trace(path, options=options)) == [[[], [5]]] * 3


@pytest.mark.parametrize(
    ("array", "held"),
    [
        (pa.array([{"x": 1}]), "struct<x: int64>"),
        (pa.array([[(1, 2)]], pa.map_(pa.int64(), pa.int64())), "map<int64, int64"),
        (pa.array([True]), "bool"),
        (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1], pa.int8())), "bool8"),
        (pa.array([["a"]]), "list<element: string>"),
        (pa.array(["a"]).dictionary_encode(), "dictionary<values=string"),
        (pa.array([1.0]), "double"),
    ],
)
def test_what_is_no_integer_is_refused_before_anything_is_read(tmp_path, array, held):
    for own in (array, array.slice(1)):  # also where there is no row
        path = _parquet(tmp_path, a=own)
        with pytest.raises(ConfigError, match=r"column 'a' holds .*ids are integers") as refused:
            bags(traces.open_trace(path, columns=["a"]))
        assert held in str(refused.value)


def test_a_list_of_fixed_size_0_is_refused(tmp_path):
    path = _parquet(tmp_path, a=pa.array([[], []], pa.list_(pa.int64(), 0)))
    with pytest.raises(ConfigError, match="a list of fixed size 0 has no ids"):
        bags(traces.open_trace(path, columns=["a"]))


def test_a_name_that_occurs_twice_is_refused(tmp_path):
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table([[1], [2], [3]], names=["a", "a", "b"]), path)
    with pytest.raises(ConfigError, match="2 columns are called 'a'"):
        bags(traces.open_trace(path, columns=["a"]))
    assert batches(traces.open_trace(path, columns=["b"])) == [[[3]]]
    dotted = pa.table([pa.array([1]), pa.array([{"b": 2}])], names=["a.b", "a"])
    pq.write_table(dotted, path)
    assert batches(traces.open_trace(path, columns=["a.b"])) == [[[1]]]


def test_a_damaged_page_with_a_checksum_is_refused(tmp_path):
    path = tmp_path / "log.parquet"
    ids = np.random.default_rng(0).integers(-(2**62), 2**62, 400)
    pq.write_table(
        pa.table({"a": ids}),
        path,
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
    )
    whole = path.read_bytes()
    refused = 0
    for place in range(40, 3200, 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            read = [each[0][0] for each in bags(traces.open_trace(path, columns=["a"]))]
        except ConfigError:
            refused += 1
        else:
            assert read == ids.tolist(), place
    assert refused > 70


def test_long_lists_are_read_in_small_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "CHUNK_IDS", 4000)
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"a": pa.array([list(range(500))] * 60), "b": range(60)}), path)
    sizes = [c.num_ids for c in traces.open_trace(path, columns=["a", "b"], batch=1).chunks()]
    assert sum(sizes) == 60 * 501
    assert max(sizes) <= 4000


# --- CSV and TSV --------------------------------------------------------------------------------


def _text(tmp_path, text, name="log.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_column_may_have_several_tables_but_not_one_table_several_columns(tmp_path):
    for path in (_text(tmp_path, "a,b\n1,2\n"), _parquet(tmp_path, a=[1], b=[2])):
        trace = traces.open_trace(path, columns={"u": "a", "v": "a", "w": "b"})
        assert batches(trace) == [[[1], [1], [2]]]
        with pytest.raises(ConfigError, match="columns names 'a' twice"):
            traces.open_trace(path, columns=["a", "b", "a"])
        with pytest.raises(ConfigError, match="columns has the name 3"):
            traces.open_trace(path, columns=["a", 3])


def test_a_blank_line_is_a_row_where_there_is_one_column(tmp_path):
    path = _text(tmp_path, "a\n1\n\n3\n")
    options = TraceOptions(columns=["a"], missing=-1)
    assert batches(traces.open_trace(path, options=options)) == [[[1, -1, 3]]]
    with pytest.raises(ConfigError, match="row 2: column 'a' is empty"):
        batches(traces.open_trace(path, columns=["a"]))
    path = _text(tmp_path, "a,b\r\n1,2\r\n\r\n3,4\r\n")
    assert batches(traces.open_trace(path, options=options)) == [[[1, 3]]]


@pytest.mark.parametrize(
    "text",
    [
        'a,b\n1,"x\n2,y\n3,z\n',
        'a,b\n1,x\n2,"',
        'a\n1\n"2\n',
        '"a,b\n1,2\n',
        'a,b\n1,"x' + "2,y\n" * 400_000,
    ],
)
def test_a_quote_that_is_never_closed_swallows_no_rows(tmp_path, text):
    path = _text(tmp_path, text)
    columns = ["a"] if text[0] == "a" else ["a,b\n1,2\n"]
    with pytest.raises(ConfigError, match=r"quote|column 'a' holds"):
        batches(traces.open_trace(path, columns=columns))


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = _text(tmp_path, "\ufeffa,b\n1,2\n")
    assert batches(traces.open_trace(path, columns=["a"])) == [[[1]]]
    path = _text(tmp_path, "a,b\n1,2\n".encode("utf-16"))
    with pytest.raises(ConfigError, match="UTF-16 or UTF-32; convert it to UTF-8"):
        batches(traces.open_trace(path, columns=["a"]))


def test_a_file_without_a_header_line_is_read_with_names(tmp_path):
    path = _text(tmp_path, "7\t8\n9\tx\n", "log.tsv")
    options = TraceOptions(columns=["item"], header=["item", "user"])
    assert batches(traces.open_trace(path, options=options)) == [[[7, 9]]]
    options = TraceOptions(columns=["user"], header=["item", "user"])
    with pytest.raises(ConfigError, match=r"row 2: column 'user' holds 'x'.*counted from 1\)"):
        batches(traces.open_trace(path, options=options))
    with pytest.raises(ConfigError, match="2 columns are called 'a'"):
        traces.csv_trace(path, ["a"], header=["a", "a"])
    with pytest.raises(ConfigError, match="no column 'b'"):
        traces.csv_trace(path, ["b"], header=["a", "c"])


def test_what_options_cannot_be(tmp_path):
    path = _text(tmp_path, "a,b\n1,2\n")
    for bad, fact in (
        ({"missing": 2**63}, "missing is 9223372036854775808, which is beyond int64"),
        ({"missing": "x"}, "missing is 'x'; it must be an integer"),
        ({"missing": True}, "missing is True"),
        ({"num_rows": {"c": 3}}, r"num_rows names table 'c', which is not one of \['a'\]"),
        ({"separator": "::"}, "separator is '::'; it must be one ASCII character"),
        ({"skip_rows": -1}, "skip_rows must not be negative"),
    ):
        with pytest.raises(ConfigError, match=fact):
            traces.csv_trace(path, ["a"], **bad)
    with pytest.raises(IdRangeError, match="table 'a': id 1 "):
        batches(traces.csv_trace(path, ["a"], num_rows={"a": 1}))


# --- formats that are recognised ----------------------------------------------------------------


def test_options_that_do_not_concern_a_format_are_refused(tmp_path):
    movies = _text(tmp_path, "userId,movieId,rating,timestamp\n1,31,2.5,12\n1,32,2,11\n")
    with pytest.raises(ConfigError, match="read as movielens, which columns= does not concern"):
        traces.open_trace(movies, columns=["movieId"])
    plain = traces.open_trace(movies, "csv", columns=["movieId"])
    assert batches(plain) == [[[31, 32]]]  # in file order, as the message says
    tet = tmp_path / "a.tet"
    traces.write_tet(traces.Trace.from_ids([1, 2]), tet)
    for option in (
        {"columns": ["nosuch"]},
        {"missing": -1},
        {"layout": "u32le"},
        {"header": ["a"]},
    ):
        with pytest.raises(ConfigError, match=r"the file is read as tet, which .*leave it out"):
            traces.open_trace(tet, options=TraceOptions(**option))
    raw = _text(tmp_path, bytes(8), "a.i64le")
    with pytest.raises(ConfigError, match="the only table of a raw trace is called 'table'"):
        traces.open_trace(raw, options=TraceOptions(num_rows={"user": 3}))


def test_double_colons_and_byte_order_marks_are_recognised(tmp_path):
    text = "1::1193::5::978300760\n2::7::3.5::978300759\n"
    expected = [[[2, 1], [7, 1193]]]  # in order of time
    for name, start in (("ratings.dat", ""), ("r", "\ufeff")):
        path = _text(tmp_path, start + text, name)
        assert traces.find_format(path) == "movielens"
        assert batches(traces.open_trace(path)) == expected
    with pytest.raises(ConfigError, match="line 2: 3 fields, separated by '::'; 4 fields"):
        traces.open_trace(_text(tmp_path, text.replace("::3.5", "")))
    path = _text(tmp_path, "\ufeffuserId,movieId,rating,timestamp\r\n1,31,2.5,12\r\n")
    assert batches(traces.open_trace(path)) == [[[1], [31]]]


@pytest.mark.parametrize("compress", [lzma.compress, bz2.compress, gzip.compress])
def test_a_damaged_second_stream_is_no_end(tmp_path, compress):
    first, second = np.arange(50), np.arange(50, 90)
    parts = [compress(each.astype("<i8").tobytes()) for each in (first, second)]
    path = _text(tmp_path, b"".join(parts), "a.i64le")
    assert batches(traces.open_trace(path)) == [[list(range(90))]]
    path.write_bytes(parts[0] + bytes([parts[1][0] ^ 1]) + parts[1][1:])
    with pytest.raises(ConfigError, match="cut off or damaged"):
        batches(traces.open_trace(path))
