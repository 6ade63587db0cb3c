"""The ``.tet`` format: round trips, the golden file, and every kind of damage."""

import contextlib
import io
import itertools
import json
import os
import pickle
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trace_samples
from tiered_embed import traces
from tiered_embed.errors import ConfigError, CorruptionError, IdRangeError
from tiered_embed.traces import Trace, TraceTable, read_tet, tet, write_tet
from tiered_embed.traces.tet_columns import Damage, decode_chunk, encode_chunk
from trace_samples import CODECS, bags, batches, small

GOLDEN = Path(__file__).parents[1] / "golden"


@given(trace_samples.traces(), st.sampled_from(CODECS))
def test_round_trip(tmp_path_factory, trace, codec):
    path = tmp_path_factory.getbasetemp() / "round.tet"
    write_tet(trace, path, codec)
    back = read_tet(path)
    assert back.tables == trace.tables
    assert batches(back) == batches(trace)
    assert back.num_batches == len(batches(trace))
    assert back.num_accesses == sum(len(ids) for parts in trace for ids in parts)
    for mine, its in zip(trace.chunks(), back.chunks(), strict=True):
        assert (mine.bags is None) == (its.bags is None)
    if all(chunk.bags is not None for chunk in trace.chunks()):
        assert bags(back) == bags(trace)


@pytest.mark.parametrize("codec", CODECS)
def test_the_golden_file_reads_back(codec):
    trace = read_tet(GOLDEN / f"trace_v1_{codec}.tet")
    assert trace.tables == (TraceTable("user", 1000), TraceTable("item", None))
    assert batches(trace) == batches(small())
    assert [chunk.bags is not None for chunk in trace.chunks()] == [True, False, False]


def test_the_golden_file_is_written_byte_for_byte(tmp_path):
    write_tet(small(), tmp_path / "a.tet", "none")
    assert (tmp_path / "a.tet").read_bytes() == (GOLDEN / "trace_v1_none.tet").read_bytes()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file of two small chunks."""
    path = tmp_path_factory.mktemp("tet") / "small.tet"
    whole = Trace.from_columns({"user": [7, 999, 0], "item": [-(2**63), 2**63 - 1, -1]}, 2)
    write_tet(Trace(whole.tables, lambda: itertools.chain(whole.chunks(), whole.chunks())), path)
    return path.read_bytes()


def refused(path, data):
    """Whether reading all of ``data`` is refused by a CorruptionError that names a byte."""
    path.write_bytes(data)
    try:
        list(read_tet(path).chunks())
    except CorruptionError as error:
        return re.search(r"at byte \d+", str(error)) is not None
    return False


def test_cut_off_at_every_byte(tmp_path, written):
    path = tmp_path / "cut.tet"
    assert [n for n in range(len(written)) if not refused(path, written[:n])] == []


def test_every_flipped_bit_is_detected(tmp_path, written):
    path = tmp_path / "flip.tet"
    missed = []
    for place in range(len(written)):
        for bit in range(8):
            flipped = bytearray(written)
            flipped[place] ^= 1 << bit
            if not refused(path, bytes(flipped)):
                missed.append((place, bit))
    assert missed == []


@settings(max_examples=200)
@given(st.data())
def test_any_damage_is_detected(tmp_path_factory, data):
    written = (GOLDEN / "trace_v1_zstd.tet").read_bytes()
    path = tmp_path_factory.getbasetemp() / "damage.tet"
    first = data.draw(st.integers(0, len(written) - 1))
    last = data.draw(st.integers(first, min(len(written), first + 64)))
    new = data.draw(st.binary(max_size=64))
    damaged = written[:first] + new + written[last:]
    if damaged != written:
        assert refused(path, damaged)


@given(st.binary(max_size=200))
def test_columns_of_garbage_are_refused_by_damage_alone(data):
    """What a checksum lets through (a crafted file) still fails in one way, or is a chunk."""
    try:
        chunk = decode_chunk(data, 2)
    except Damage:
        return
    assert len(chunk.table_ids) == 2


@given(st.data())
def test_crafted_columns_are_refused_by_damage_alone(data):
    columns = bytearray(encode_chunk(next(small().chunks())))
    for _ in range(data.draw(st.integers(1, 3))):
        columns[data.draw(st.integers(0, len(columns) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Damage):
        decode_chunk(bytes(columns), 2)


def test_distinct_values_must_be_there():
    columns = bytearray(encode_chunk(next(traces.Trace.from_ids([10**18, 1] * 9, 18).chunks())))
    assert columns[18] == 2
    for place, value in ((18 + 18, 2), (18 + 10, 1), (-2, 2)):
        damaged = columns.copy()
        damaged[place] = value
        with pytest.raises(Damage, match="a column of"):
            decode_chunk(bytes(damaged), 1)


def test_a_column_cannot_claim_endless_memory():
    with pytest.raises(Damage, match="a column of"):
        decode_chunk(struct.pack("<BBQq", 0, 0, 1 << 40, 0), 1)


def test_wrong_magic_and_later_versions_are_named(tmp_path):
    path = tmp_path / "a.tet"
    path.write_bytes(b"user,item\n1,2\n")
    with pytest.raises(CorruptionError, match=r"at byte 0: starts with b'user,ite' and not with"):
        read_tet(path)
    header = struct.pack("<8sII", tet.MAGIC, 9, 2) + b"{}"
    path.write_bytes(header + struct.pack("<I", zlib.crc32(header)) + bytes(100))
    with pytest.raises(
        ConfigError, match="version 9 of the format, and this release reads version 1; upgrade"
    ):
        read_tet(path)
    with pytest.raises(FileNotFoundError):
        read_tet(tmp_path / "absent.tet")


@pytest.mark.parametrize(
    "text", ["{}", '{"tables": [{"name": "a"}]}', '{"tables": 3}', "[", "[" * 5]
)
def test_crafted_tables_are_refused(tmp_path, text):
    path = tmp_path / "a.tet"
    header = struct.pack("<8sII", tet.MAGIC, 1, len(text)) + text.encode()
    path.write_bytes(header + struct.pack("<I", zlib.crc32(header)) + bytes(100))
    with pytest.raises(CorruptionError, match="the tables cannot be read"):
        read_tet(path)


def test_ids_out_of_range_are_named_when_read(tmp_path):
    inner = Trace.from_ids([1, 2, 30], 2, "user")
    with traces.TraceWriter(tmp_path / "a.tet", [TraceTable("user", 10)]) as writer:
        for chunk in inner.chunks():
            writer.write(chunk)
    with pytest.raises(IdRangeError, match=r"id 30 at access 2 of the table \(batch 1\)"):
        list(read_tet(tmp_path / "a.tet").chunks())


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.tet"
    write_tet(small(), path)
    before = path.read_bytes()

    def failing():
        yield next(small().chunks())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_tet(Trace(small().tables, failing), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.tet"]


def test_a_codec_must_be_known(tmp_path):
    with pytest.raises(ConfigError, match="codec must be one of auto, none, zlib, zstd, got 'lz4'"):
        write_tet(small(), tmp_path / "a.tet", "lz4")
    assert os.listdir(tmp_path) == []


def test_without_zstandard_zlib_is_written_and_zstd_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    write_tet(small(), tmp_path / "a.tet")
    assert batches(read_tet(tmp_path / "a.tet")) == batches(small())
    with pytest.raises(
        ConfigError, match=r"zstandard is needed .* pip install 'tiered_embed\[sim\]'"
    ):
        write_tet(small(), tmp_path / "b.tet", "zstd")
    with pytest.raises(ConfigError, match=r"pip install 'tiered_embed\[sim\]'"):
        list(read_tet(GOLDEN / "trace_v1_zstd.tet").chunks())


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["a.tet", "a.pt", "a.bin", "a"])
def test_a_pickle_is_refused_and_never_executed(tmp_path, protocol, name):
    mark, path = tmp_path / "executed", tmp_path / name
    path.write_bytes(pickle.dumps(Bomb(mark), protocol))
    for read in (traces.open_trace, read_tet, traces.fbgemm_trace):
        with pytest.raises((ConfigError, CorruptionError), match=str(path)):
            list(read(path).chunks())
    assert not mark.exists()
    buffer = io.BytesIO()
    pickle.Pickler(buffer, protocol).dump(Bomb(mark))  # the bomb itself works
    pickle.loads(buffer.getvalue()).close()
    assert mark.exists()


def test_numbers_take_as_few_bytes_as_they_need():
    ids = np.arange(1000)
    sizes = {}
    for name, values in {
        "constant": np.full(1000, 5),
        "small": ids % 200 + 10**12,
        "ordered": ids * 3 + 10**12,
        "repeated": (ids * 7919 % 13) * 10**17,
        "any": np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 1000),
    }.items():
        (chunk,) = Trace.from_ids(values, 1000).chunks()
        sizes[name] = len(encode_chunk(chunk)) - 18 - 18 - 1
    assert sizes == {
        "constant": 0,
        "small": 1000,
        "ordered": 1000,
        "repeated": 1000 + 18 + 13 * 8,
        "any": 8000,
    }


def test_the_header_is_readable_json(written):
    size = struct.unpack_from("<I", written, 12)[0]
    assert json.loads(written[16 : 16 + size]) == {
        "tables": [{"name": "user", "num_rows": None}, {"name": "item", "num_rows": None}]
    }
