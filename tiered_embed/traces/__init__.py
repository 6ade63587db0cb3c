"""Id streams: one streamed form, readers of public formats, a file format, seeded generators.

Everything here makes or reads a ``Trace``: tables, and batches of ids in chunks of bounded size.
``open_trace`` recognises a file's format and calls its reader; ``tet`` is our own format,
``recorder`` captures a running model, ``stream`` and ``calibration`` generate. ``criteo``,
``movielens``, ``checkins`` and ``raw`` also read into plain arrays. ``data_root`` says where real
data is. Nothing here starts a thread. numba, pyarrow and zstandard (the extra ``sim``) are imported
only when they are needed.
"""

from .calibration import Calibration, calibrate
from .checkins import CheckIns, read_checkins
from .chunk import TraceBags, TraceChunk, TraceTable
from .columns import csv_trace, parquet_trace
from .criteo import (
    MISSING_ID,
    NUM_CATEGORIES,
    NUM_INTEGERS,
    NUM_RAW_IDS,
    CriteoBatch,
    CriteoOptions,
    CriteoReader,
)
from .fbgemm import fbgemm_trace
from .generate import Distribution, IdBatch, IdStream
from .generate_criteo import CriteoGenerator
from .libcachesim import ORACLE_GENERAL, csv_requests_trace, oracle_general_trace
from .movielens import Ratings, read_ratings
from .opening import Format, TraceOptions, find_format, open_trace
from .popularity import Pooling, Steps, Zipf
from .raw import Layout, raw_trace, read_raw
from .recorder import Recorder, record, record_first
from .reuse import ReuseHistogram, TableCounts, count_rows, read_locality
from .root import DATA_VARIABLE, data_root
from .samples import checkins_trace, criteo_trace, movielens_trace
from .selection import head, sample
from .stream import GeneratedStream, GeneratedTable, WorkingSet
from .tet import TraceWriter, read_tet, write_tet
from .trace import Trace

__all__ = [
    "DATA_VARIABLE",
    "MISSING_ID",
    "NUM_CATEGORIES",
    "NUM_INTEGERS",
    "NUM_RAW_IDS",
    "ORACLE_GENERAL",
    "Calibration",
    "CheckIns",
    "CriteoBatch",
    "CriteoGenerator",
    "CriteoOptions",
    "CriteoReader",
    "Distribution",
    "Format",
    "GeneratedStream",
    "GeneratedTable",
    "IdBatch",
    "IdStream",
    "Layout",
    "Pooling",
    "Ratings",
    "Recorder",
    "ReuseHistogram",
    "Steps",
    "TableCounts",
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
