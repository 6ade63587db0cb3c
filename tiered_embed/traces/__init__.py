"""Id streams: readers of public logs and seeded generators. Everything returned is plain NumPy.

A ``Trace`` is the one streamed form. ``data_root`` says where real data lies; ``files`` opens plain, gzip and xz alike; the readers
(``criteo``, ``movielens``, ``checkins``, ``raw``) turn one format each into arrays; ``generate``
and ``generate_criteo`` make streams where there is no data. Nothing here starts a thread.
"""

from tiered_embed.traces.checkins import CheckIns, read_checkins
from tiered_embed.traces.chunk import TraceBags, TraceChunk, TraceTable
from tiered_embed.traces.criteo import (
    MISSING_ID,
    NUM_CATEGORIES,
    NUM_INTEGERS,
    NUM_RAW_IDS,
    CriteoBatch,
    CriteoOptions,
    CriteoReader,
)
from tiered_embed.traces.generate import IdBatch, IdStream
from tiered_embed.traces.generate_criteo import CriteoGenerator
from tiered_embed.traces.movielens import Ratings, read_ratings
from tiered_embed.traces.raw import read_raw
from tiered_embed.traces.root import DATA_VARIABLE, data_root
from tiered_embed.traces.trace import Trace

__all__ = [
    "DATA_VARIABLE",
    "MISSING_ID",
    "NUM_CATEGORIES",
    "NUM_INTEGERS",
    "NUM_RAW_IDS",
    "CheckIns",
    "CriteoBatch",
    "CriteoGenerator",
    "CriteoOptions",
    "CriteoReader",
    "IdBatch",
    "IdStream",
    "Ratings",
    "Trace",
    "TraceBags",
    "TraceChunk",
    "TraceTable",
    "data_root",
    "read_checkins",
    "read_ratings",
    "read_raw",
]
