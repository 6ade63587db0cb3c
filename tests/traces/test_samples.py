"""Readers: small inline files, malformed input, and the known counts of the real data."""

import gzip
import itertools
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiered_embed import traces
from tiered_embed.errors import ConfigError
from tiered_embed.traces import criteo

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gz": gzip.compress,
    "xz": lzma.compress,
}


def line(label="1", integers=(), categories=()):
    """A Criteo line, missing where nothing is given."""
    integers = [*integers, *[""] * (criteo.NUM_INTEGERS - len(integers))]
    categories = [*categories, *[""] * (criteo.NUM_CATEGORIES - len(categories))]
    return "\t".join([label, *integers, *categories]) + "\n"


def numbered(count):
    """Lines whose first integer and first category are their position."""
    return "".join(line("01"[i % 2], [str(i)], [f"{i:x}"]) for i in range(count))


def first_ids(reader):
    return [batch.ids[0].tolist() for batch in reader]


# --- Criteo ---------------------------------------------------------------------------------


def test_criteo_values(tmp_path):
    path = tmp_path / "log"
    path.write_text(line("1", ["3", "-2", "", "65535"], ["68fd1e64", "", "FFFFFFFF", "0"]))
    (batch,) = traces.CriteoReader(path)
    assert batch.dense.shape == (1, 13)
    assert batch.dense.dtype == np.float32
    np.testing.assert_allclose(batch.dense[0, :4], np.log1p([3, 0, 0, 65535]), rtol=1e-6)
    assert batch.ids.shape == (26, 1)
    assert batch.ids.dtype == np.int64
    assert batch.ids.flags.c_contiguous
    missing = traces.MISSING_ID
    assert batch.ids[:5, 0].tolist() == [0x68FD1E64, missing, 0xFFFFFFFF, 0, missing]
    assert missing == traces.NUM_RAW_IDS - 1
    assert batch.labels.tolist() == [1.0]
    assert batch.labels.dtype == np.float32


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
def test_criteo_batches_run_across_compression_blocks_and_files(tmp_path, compress, ending):
    text = numbered(40_000).replace("\n", ending).encode()  # more than one block
    paths = [tmp_path / "day_0", tmp_path / "day_1"]
    cut = text.index(ending.encode(), len(text) // 3) + len(ending)
    paths[0].write_bytes(compress(text[:cut]))
    paths[1].write_bytes(compress(text[cut : -len(ending)]))  # and no line end at the end
    reader = traces.CriteoReader(paths, traces.CriteoOptions(batch_size=999))
    batches = first_ids(reader)
    assert [len(batch) for batch in batches] == [999] * 40 + [40]
    assert list(itertools.chain(*batches)) == list(range(40_000))
    assert first_ids(reader) == batches  # a second pass reads anew


def test_criteo_split_is_by_position(tmp_path):
    path = tmp_path / "log"
    path.write_text(numbered(23))

    def ids(part, **options):
        options = traces.CriteoOptions(batch_size=4, part=part, heldout_every=5, **options)
        return list(itertools.chain(*first_ids(traces.CriteoReader(path, options))))

    assert ids("heldout") == [4, 9, 14, 19]
    assert sorted(ids("train") + ids("heldout")) == ids("all") == list(range(23))
    assert ids("train", drop_last=True) == ids("train")[:16]
    assert ids("heldout", max_lines=11) == [4, 9]
    assert ids("all", max_lines=0) == []


def test_criteo_hashing_is_stable_and_keeps_missing_apart(tmp_path):
    path = tmp_path / "log"
    path.write_text(line("0", [], ["68fd1e64"]) + line("0", [], [""]))
    rows = (1000, *[7] * 25)
    (batch,) = traces.CriteoReader(path, traces.CriteoOptions(num_embeddings=rows))
    assert batch.ids[0].tolist() == [165, 0]
    assert not batch.ids[1:].any()
    values = np.arange(100_000)
    hashed = criteo.hash_ids(values, 7)
    assert hashed.min() == 1
    assert hashed.max() == 6
    assert np.bincount(hashed)[1:].min() > 16_000  # spread evenly
    # https://prng.di.unimi.it/splitmix64.c, state 0: its first output.
    assert traces.hashing.splitmix64(np.array([0]))[0] == 0xE220A8397B1DCDAF


def test_criteo_empty_file(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"")
    assert list(traces.CriteoReader(path)) == []


@pytest.mark.parametrize(
    ("bad", "fact"),
    [
        ("0\t1\n", r"line 4: 2 fields, .*; 40 fields are expected"),
        ("\n", r"line 4: 1 fields,"),
        (line()[:-1] + "\t\n", r"line 4: 41 fields,"),
        (line("0", [], ["68fd1e6g"]), r"line 4: field 15 is '68fd1e6g'; it must be a hex number"),
        (
            line("0", [], ["", "123456789"]),
            r"line 4: field 16 is '123456789'; it must be a hex number",
        ),
        (line("0", ["1.5"]), r"line 4: field 2 is '1\.5'; it must be an integer"),
        (line("0", ["", "-"]), r"line 4: field 3 is '-'; it must be an integer"),
        (line("0", ["1" * 19]), r"line 4: field 2 is '1+'; it must be an integer"),
        (line("2"), r"line 4: the label is 2; it must be 0 or 1"),
        (line(""), r"line 4: field 1 is ''; it must be an integer"),
        (line("\udcff"), r"line 4: field 1 is '.*xff'; it must be an integer"),
    ],
)
def test_criteo_malformed_line_is_named(tmp_path, bad, fact):
    path = tmp_path / "log"
    path.write_text(numbered(3) + bad + numbered(2), errors="surrogateescape")
    with pytest.raises(ConfigError, match=r"log, " + fact):
        list(traces.CriteoReader(path))


def test_criteo_malformed_line_far_into_the_file(tmp_path):
    path = tmp_path / "log"
    path.write_text(numbered(40_000) + "oops\n")
    with pytest.raises(ConfigError, match=r"line 40001: 1 fields"):
        list(traces.CriteoReader(path))


def test_one_endless_line_is_refused_with_bounded_memory(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"\0" * (4 << 20))
    with pytest.raises(ConfigError, match="line 1: no line end within"):
        list(traces.CriteoReader(path))


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"heldout_every": 1}, "heldout_every must be at least 2"),
        ({"part": "test"}, "part must be one of all, train, heldout, got 'test'"),
        ({"max_lines": -1}, "max_lines must not be negative"),
        ({"num_embeddings": 1}, "at least 2 rows"),
        ({"num_embeddings": (10,) * 25}, "26 tables"),
    ],
)
def test_criteo_options_are_checked(options, fact):
    with pytest.raises(ConfigError, match=fact):
        traces.CriteoOptions(**options)


@st.composite
def criteo_lines(draw):
    count = draw(st.integers(0, 6))
    integers = st.one_of(st.just(criteo.MISSING_INTEGER), st.integers(-(10**18) + 1, 10**18 - 1))
    categories = st.one_of(st.just(criteo.MISSING_ID), st.integers(0, 2**32 - 1))

    def array(elements, width):
        flat = draw(st.lists(elements, min_size=count * width, max_size=count * width))
        return np.array(flat, dtype=np.int64).reshape(count, width)

    return criteo.CriteoLines(
        array(st.integers(0, 1), 1)[:, 0],
        array(integers, criteo.NUM_INTEGERS),
        array(categories, criteo.NUM_CATEGORIES),
    )


@given(criteo_lines())
def test_criteo_format_round_trip(lines):
    back = criteo.parse_lines(criteo.format_lines(lines))
    np.testing.assert_array_equal(back.labels, lines.labels)
    np.testing.assert_array_equal(back.integers, lines.integers)
    np.testing.assert_array_equal(back.categories, lines.categories)


# --- the other readers ----------------------------------------------------------------------


@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
def test_ratings(tmp_path, compress):
    path = tmp_path / "ratings.csv"
    text = "userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n7,99,4,12\n7,98,0.5,11"
    path.write_bytes(compress(text.encode()))
    ratings = traces.read_ratings(path)
    assert len(ratings) == 3
    assert ratings.users.tolist() == [1, 7, 7]
    assert ratings.ratings.tolist() == [2.5, 4.0, 0.5]
    assert ratings.ratings.dtype == np.float32
    assert ratings.by_time().tables()["movie"].tolist() == [98, 99, 31]
    path.write_bytes(compress(b"userId,movieId,rating,timestamp\n"))
    assert len(traces.read_ratings(path)) == 0


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", "the file is empty; it must begin with the header"),
        ("user,movie\n", "line 1: the header is 'user,movie'; it must be 'userId,"),
        ("userId,movieId,rating,timestamp\n1,2,3\n", "line 2: 3 fields, separated by ','"),
        ("userId,movieId,rating,timestamp\n1,2,3,4\n1,2,x,4\n", "line 3: field 3 is 'x'"),
        ("userId,movieId,rating,timestamp\n1,2,nan,4\n", "line 2: field 3 is 'nan'"),
        (
            "userId,movieId,rating,timestamp\n1,,3,4\n",
            "line 2: field 2 is ''; it must be an integer",
        ),
    ],
)
def test_ratings_malformed(tmp_path, text, fact):
    path = tmp_path / "ratings.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=fact):
        traces.read_ratings(path)


def test_checkins(tmp_path):
    path = tmp_path / "checkins.tsv"
    header = "user\thour_of_week\tvenue\tcategory\n"
    path.write_text(header + "1801\t39\t17807\t70\n105\t168\t5708\t33\n")
    checkins = traces.read_checkins(path)
    assert {name: ids.tolist() for name, ids in checkins.tables().items()} == {
        "user": [1801, 105],
        "hour": [39, 168],
        "venue": [17807, 5708],
        "category": [70, 33],
    }
    path.write_text(header + "1801\t39\t17807\t70\n105\t169\t5708\t33\n")
    with pytest.raises(ConfigError, match=r"line 3: hour of week 169 is outside \[1, 168\]"):
        traces.read_checkins(path)


@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
@pytest.mark.parametrize(
    ("layout", "dtype"), [("i64be", ">i8"), ("i64le", "<i8"), ("u32be", ">u4"), ("u32le", "<u4")]
)
def test_raw(tmp_path, compress, layout, dtype):
    ids = np.array([0, 1, 2**31, 2**32 - 1], dtype=dtype)
    path = tmp_path / f"trace.{layout}.xz"
    path.write_bytes(compress(ids.tobytes()))
    for read in (traces.read_raw(path), traces.read_raw(path, layout)):
        assert read.dtype == np.dtype(np.int64)
        np.testing.assert_array_equal(read, ids.astype(np.int64))


def test_raw_malformed(tmp_path):
    path = tmp_path / "trace.u32le"
    path.write_bytes(bytes(10))
    with pytest.raises(ConfigError, match=r"10 bytes is not a multiple of 4 .* starts at byte 8"):
        traces.read_raw(path)
    with pytest.raises(ConfigError, match=r"layout must be one of i64be, .* got 'f32'"):
        traces.read_raw(path, "f32")
    with pytest.raises(ConfigError, match="does not say how integers are stored"):
        traces.read_raw(tmp_path / "trace.bin")
    with pytest.raises(FileNotFoundError):
        traces.read_raw(tmp_path / "absent.u32le")


@pytest.mark.parametrize("name", ["gz", "xz"])
def test_damaged_compression_is_named_with_its_byte(tmp_path, name):
    path = tmp_path / "trace.i64be"
    data = COMPRESSORS[name](np.random.default_rng(0).bytes(80_000))
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match=r"cut off or damaged near byte \d+ of the file"):
        traces.read_raw(path)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ConfigError, match="cut off or damaged"):
        traces.read_raw(path)


# --- real data ------------------------------------------------------------------------------


def test_data_root_follows_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv(traces.DATA_VARIABLE, str(tmp_path))
    assert traces.data_root() == tmp_path
    monkeypatch.setenv(traces.DATA_VARIABLE, str(tmp_path / "absent"))
    assert traces.data_root() is None


@pytest.fixture(scope="module")
def real() -> Callable[[str], Path]:
    def find(name: str) -> Path:
        root = traces.data_root()
        if root is not None and (root / name).is_file():
            return root / name
        message = f"{name} is not in {traces.DATA_VARIABLE} ({root})"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)

    return find


@pytest.mark.parametrize(
    ("name", "accesses", "num_ids"),
    [("scarab_recs.i64be.xz", 1_245_184, 258_368), ("arc_oltp.u32le.xz", 914_145, 186_880)],
)
def test_real_access_traces(real, name, accesses, num_ids):
    ids = traces.read_raw(real(name))
    assert (len(ids), len(np.unique(ids))) == (accesses, num_ids)


def test_real_criteo(real):
    path = real("criteo_kaggle_10k.tsv.xz")
    batches = list(traces.CriteoReader(path, traces.CriteoOptions(batch_size=100)))
    assert [len(batch) for batch in batches] == [100] * 100
    ids = np.concatenate([batch.ids for batch in batches], axis=1)
    assert sum(len(np.unique(column)) for column in ids) == 43_591
    assert (ids == traces.MISSING_ID).sum() == 29_640
    assert sum(batch.labels.sum() for batch in batches) == 2182
    assert ids[0, 0] == 0x68FD1E64


def test_real_ratings(real):
    ratings = traces.read_ratings(real("movielens_small_ratings.csv.xz"))
    assert len(ratings) == 100_004
    assert len(np.unique(ratings.users)) == 671
    assert (ratings.ratings.min(), ratings.ratings.max()) == (0.5, 5.0)


@pytest.mark.parametrize(("city", "count"), [("nyc", 105_961), ("saopaulo", 249_839)])
def test_real_checkins(real, city, count):
    checkins = traces.read_checkins(real(f"lbsn_checkins_{city}.tsv.xz"))
    assert {len(ids) for ids in checkins.tables().values()} == {count}
