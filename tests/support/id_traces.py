"""Short traces of every kind of data, and a training run over one: for the simulator's tests."""

import functools
from typing import Any

import numpy as np
import torch

import streams
import tiered_embed as te
from tiered_embed import traces
from tiered_embed.simulate.records import Records
from tiered_embed.traces.chunk import TraceChunk, TraceTable
from tiered_embed.traces.trace import Trace

OPTIMIZER = te.optim.RowWiseAdagrad(lr=0.02)
NUM_BATCHES = 90


def from_batches(tables: dict[str, int | None], batches: list[list[np.ndarray]]) -> Trace:
    """Batches of one ids array per table, in chunks of 40 batches."""

    def chunks():
        for start in range(0, len(batches), 40):
            part = batches[start : start + 40]
            columns = list(zip(*part, strict=True))
            yield TraceChunk(
                tuple(
                    (
                        np.cumsum([0, *map(len, column)]).astype(np.int64),
                        np.concatenate(column).astype(np.int64),
                    )
                    for column in columns
                )
            )

    return Trace([TraceTable(name, rows) for name, rows in tables.items()], chunks)


def columns(named: dict[str, np.ndarray], rows: dict[str, int | None], batch: int) -> Trace:
    batches = [
        [ids[start : start + batch] for ids in named.values()]
        for start in range(0, batch * NUM_BATCHES, batch)
    ]
    return from_batches({name: rows.get(name) for name in named}, batches)


def scarab(data_file) -> tuple[Trace, Records]:
    ids = traces.read_raw(data_file("scarab_recs.i64be.xz"))[: 24 * NUM_BATCHES]
    return Trace.from_ids(ids, batch=24, name="scarab"), Records(4, OPTIMIZER)


def checkins(data_file, city: str) -> tuple[Trace, Records]:
    """Three pools, one of them with two tables."""
    log = traces.read_checkins(data_file(f"lbsn_checkins_{city}.tsv.xz"))
    dims = {"user": 4, "hour": 8, "venue": 4, "category": 2}
    return columns(log.tables(), {"hour": 169}, 9), Records(dims, OPTIMIZER)


def criteo(data_file) -> tuple[Trace, Records]:
    """26 tables in one pool."""
    options = traces.CriteoOptions(batch_size=8, max_lines=8 * NUM_BATCHES)
    reader = traces.CriteoReader(data_file("criteo_kaggle_10k.tsv.xz"), options)
    batches = [list(batch.ids) for batch in reader]
    tables = {f"c{t}": traces.NUM_RAW_IDS for t in range(26)}
    return from_batches(tables, batches), Records(3, OPTIMIZER)


def ten_tables(data_file=None) -> tuple[Trace, Records]:
    """Tables of 5 to any number of rows in three pools; batches without ids for some of them."""
    draw = streams.Draw(10)
    sizes = [5, 20, 60, 200, 600, 2000, 5000, None, 300, None]
    tables = {f"t{t}": rows for t, rows in enumerate(sizes)}
    dims = {f"t{t}": (4, 4, 8)[t % 3] if t != 9 else 6 for t in range(10)}
    batches = []
    for b in range(NUM_BATCHES):
        row = []
        for t, rows in enumerate(sizes):
            ids = draw.skewed(rows or 3000, 0 if (b + t) % 17 == 0 else 2 + (b * t) % 9)
            row.append(ids * -7919 if rows is None else ids)
        batches.append(row)
    return from_batches(tables, batches), Records(dims, OPTIMIZER)


SOURCES = {
    "scarab": functools.cache(scarab),
    "nyc": functools.cache(functools.partial(checkins, city="nyc")),
    "saopaulo": functools.cache(functools.partial(checkins, city="saopaulo")),
    "criteo": functools.cache(criteo),
    "ten_tables": functools.cache(ten_tables),
}


def make_collection(
    trace: Trace, records: Records, tiers: te.Tiers, **options: Any
) -> te.TieredEmbeddingBagCollection:
    tables = [
        te.TableConfig(table.name, table.num_rows, records.dim_of(table.name))
        for table in trace.tables
    ]
    return te.TieredEmbeddingBagCollection(
        tables,
        tiers=tiers,
        optimizer=records.optimizer,
        num_threads=1,
        **({"device": "cpu", "kernel": "native"} if tiers.hbm else {}),
        **options,
    )


def train(trace: Trace, module: te.TieredEmbeddingBagCollection) -> None:
    """One bag per table and batch; every row that a batch names is updated."""
    names = [table.name for table in trace.tables]
    start = torch.zeros(1, dtype=torch.int64)
    args = [
        {n: (torch.from_numpy(ids.copy()), start) for n, ids in zip(names, batch, strict=True)}
        for batch in trace
    ]
    for batch in te.prefetch(args, module, ids=lambda batch: {module: batch}):
        out = list(module(batch).values())
        torch.autograd.backward(out, [torch.ones_like(part) for part in out])
