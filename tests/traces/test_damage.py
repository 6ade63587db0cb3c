"""Whatever happens to a file of any format: a typed error that names the file, or ids."""

import itertools
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard

from tiered_embed import traces
from tiered_embed.errors import TieredEmbedError
from tiered_embed.traces import TraceOptions

NUM_DAMAGES = 60


def write_tet(path):
    traces.write_tet(traces.Trace.from_columns({"a": [1, 2], "b": [3, 4]}, 1), path)


def write_criteo(path):
    traces.CriteoGenerator(3, seed=1).write(path)


def write_movielens(path):
    path.write_text("userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n7,99,4,12\n")


def write_checkins(path):
    path.write_text("user\thour_of_week\tvenue\tcategory\n1801\t39\t17807\t70\n5\t168\t8\t3\n")


def write_csv(path):
    path.write_text('a,"b"\n1,2\n3,"4"\n')


def write_tsv(path):
    path.write_text("a\tb\n1\t2\n3\t4\n")


def write_parquet(path):
    table = {"a": np.arange(200), "b": pa.array([[i] * (i % 3) for i in range(200)])}
    pq.write_table(pa.table(table), path)


def write_fbgemm(path):
    torch.save((torch.arange(3), torch.tensor([0, 2, 3]), torch.tensor([[2, 1]])), path)


def write_old_fbgemm(path):
    given = (torch.arange(3), torch.tensor([0, 2, 3]), torch.tensor([[2, 1]]))
    torch.save(given, path, _use_new_zipfile_serialization=False)


def write_requests(path):
    path.write_bytes(np.arange(12, dtype="<u4").tobytes())


def write_requests_csv(path):
    path.write_text("time,id,size,next\n1,2,3,4\n2,3,4,5\n")


def write_raw(path):
    path.write_bytes(zstandard.ZstdCompressor().compress(np.arange(20, dtype="<i8").tobytes()))


FORMATS = {
    "tet": write_tet,
    "criteo": write_criteo,
    "movielens": write_movielens,
    "checkins": write_checkins,
    "csv": write_csv,
    "tsv": write_tsv,
    "parquet": write_parquet,
    "fbgemm": write_fbgemm,
    "fbgemm ": write_old_fbgemm,
    "oracle_general": write_requests,
    "libcachesim_csv": write_requests_csv,
    "raw": write_raw,
}


def damaged(data, chance):
    """``data`` with a piece changed, cut out, put in, or everything behind it gone."""
    first = chance.randrange(len(data))
    last = min(len(data), first + chance.choice((0, 1, 1, 2, 8, 40)))
    kind = chance.randrange(4)
    if kind == 0:
        return data[:first]
    if kind == 1:
        return data[:first] + chance.randbytes(last - first) + data[last:]
    if kind == 2:
        return data[:first] + data[last:]
    return data[:first] + chance.randbytes(chance.randrange(1, 20)) + data[first:]


@pytest.mark.parametrize("name", FORMATS)
def test_damage_ends_in_ids_or_in_a_typed_error(tmp_path, name):
    path = tmp_path / "trace"
    FORMATS[name](path)
    whole = path.read_bytes()
    format = name.strip()
    columns = ["a", "b"] if format in ("csv", "tsv", "parquet") else None
    options = TraceOptions(batch=1, columns=columns, layout="i64le" if format == "raw" else None)

    def read():
        return list(itertools.islice(traces.open_trace(path, format, options), 10**5))

    assert read()
    chance = random.Random(name)
    for _ in range(NUM_DAMAGES):
        path.write_bytes(damaged(whole, chance))
        message = f"{path}"
        try:
            read()
        except TieredEmbedError as error:
            message = str(error)
        assert str(path) in message or "table" in message
