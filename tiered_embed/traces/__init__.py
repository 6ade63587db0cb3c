"""Id streams: one streamed form, readers of public formats, a file format, seeded generators.

A ``Trace`` is what everything here reads into and makes: tables, and batches of ids in bounded
chunks. ``open_trace`` tells a file's format and calls its reader; ``tet`` is our own format,
``recorder`` captures a running model, ``stream`` and ``calibration`` generate. ``criteo``,
``movielens``, ``checkins`` and ``raw`` also read into plain arrays. ``data_root`` says where real
data lies. Nothing here starts a thread; numba, pyarrow and zstandard (the extra ``sim``) are
imported where they are used first.
"""

from tiered_embed.traces.calibration import Calibration, calibrate
from tiered_embed.traces.checkins import CheckIns, read_checkins
from tiered_embed.traces.chunk import TraceBags, TraceChunk, TraceTable
from tiered_embed.traces.columns import csv_trace, parquet_trace
from tiered_embed.traces.criteo import (
    MISSING_ID,
    NUM_CATEGORIES,
    NUM_INTEGERS,
    NUM_RAW_IDS,
    CriteoBatch,
    CriteoOptions,
    CriteoReader,
)
from tiered_embed.traces.fbgemm import fbgemm_trace
from tiered_embed.traces.generate import IdBatch, IdStream
from tiered_embed.traces.generate_criteo import CriteoGenerator
from tiered_embed.traces.libcachesim import csv_requests_trace, oracle_general_trace
from tiered_embed.traces.movielens import Ratings, read_ratings
from tiered_embed.traces.opening import TraceOptions, find_format, open_trace
from tiered_embed.traces.popularity import Pooling, Steps, Zipf
from tiered_embed.traces.raw import raw_trace, read_raw
from tiered_embed.traces.recorder import Recorder, record, record_first
from tiered_embed.traces.reuse import ReuseHistogram, count_rows, read_locality
from tiered_embed.traces.root import DATA_VARIABLE, data_root
from tiered_embed.traces.samples import checkins_trace, criteo_trace, movielens_trace
from tiered_embed.traces.selection import head, sample
from tiered_embed.traces.stream import GeneratedStream, GeneratedTable, WorkingSet
from tiered_embed.traces.tet import TraceWriter, read_tet, write_tet
from tiered_embed.traces.trace import Trace

__all__ = [
    "DATA_VARIABLE",
    "MISSING_ID",
    "NUM_CATEGORIES",
    "NUM_INTEGERS",
    "NUM_RAW_IDS",
    "Calibration",
    "CheckIns",
    "CriteoBatch",
    "CriteoGenerator",
    "CriteoOptions",
    "CriteoReader",
    "GeneratedStream",
    "GeneratedTable",
    "IdBatch",
    "IdStream",
    "Pooling",
    "Ratings",
    "Recorder",
    "ReuseHistogram",
    "Steps",
    "Trace",
    "TraceBags",
    "TraceChunk",
    "TraceOptions",
    "TraceTable",
    "TraceWriter",
    "WorkingSet",
    "Zipf",
    "calibrate",
    "checkins_trace",
    "count_rows",
    "criteo_trace",
    "csv_requests_trace",
    "csv_trace",
    "data_root",
    "fbgemm_trace",
    "find_format",
    "head",
    "movielens_trace",
    "open_trace",
    "oracle_general_trace",
    "parquet_trace",
    "raw_trace",
    "read_checkins",
    "read_locality",
    "read_ratings",
    "read_raw",
    "read_tet",
    "record",
    "record_first",
    "sample",
    "write_tet",
]
