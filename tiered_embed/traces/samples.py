"""Public logs that this package reads into arrays, as traces with one id per sample and table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from .checkins import read_checkins
from .chunk import CHUNK_IDS, TraceBags, TraceChunk, TraceTable, even_offsets
from .criteo import NUM_CATEGORIES, NUM_RAW_IDS, CriteoBatch, CriteoOptions, CriteoReader
from .files import StrPath
from .movielens import read_ratings
from .trace import Trace

__all__ = ["checkins_trace", "criteo_trace", "movielens_trace"]


def criteo_trace(paths: StrPath | Sequence[StrPath], options: CriteoOptions | None = None) -> Trace:
    """Return the 26 tables ``C1`` ... ``C26`` of a Criteo log, streamed. Batches and errors are
    those of ``CriteoReader`` with the same options."""
    chosen = CriteoOptions() if options is None else options
    batch = chosen.batch_size
    many = max(1, CHUNK_IDS // NUM_CATEGORIES // batch) * batch
    reader = CriteoReader(paths, replace(chosen, batch_size=many, drop_last=False))

    def chunks() -> Iterator[TraceChunk]:
        for lines in reader:
            num = len(lines) - len(lines) % batch if chosen.drop_last else len(lines)
            if num:
                yield _chunk(lines, num, batch)

    rows = chosen.rows_per_table() or (NUM_RAW_IDS,) * NUM_CATEGORIES
    tables = [TraceTable(f"C{t}", num_rows) for t, num_rows in enumerate(rows, start=1)]
    return Trace(tables, chunks)


def movielens_trace(path: StrPath, batch: int = 1024) -> Trace:
    """Return the tables ``user`` and ``movie`` of ``ratings.csv``, in order of time.

    The whole file is read immediately. Raises as ``read_ratings``.
    """
    return Trace.from_columns(read_ratings(path).by_time().tables(), batch)


def checkins_trace(path: StrPath, batch: int = 1024) -> Trace:
    """Return the tables ``user``, ``hour``, ``venue`` and ``category`` of a check-in log.

    The whole file is read immediately. Raises as ``read_checkins``.
    """
    return Trace.from_columns(read_checkins(path).tables(), batch)


def _chunk(lines: CriteoBatch, num: int, batch: int) -> TraceChunk:
    offsets = even_offsets(num, batch)
    parts = tuple((offsets, np.ascontiguousarray(ids[:num])) for ids in lines.ids)
    return TraceChunk(parts, TraceBags(offsets, (None,) * NUM_CATEGORIES))
