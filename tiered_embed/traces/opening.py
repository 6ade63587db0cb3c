"""Opens any supported file as a trace; recognises the format by content first, then by name.

The readers are in modules of their own; this one chooses among them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import ConfigError
from .checkins import HEADER as CHECKINS_HEADER
from .columns import Columns, csv_trace, parquet_trace
from .criteo import NUM_FIELDS as CRITEO_FIELDS
from .criteo import CriteoOptions
from .fbgemm import fbgemm_trace
from .files import BOM, COMPRESSED_SUFFIXES, StrPath, read_blocks
from .libcachesim import csv_requests_trace, oracle_general_trace
from .movielens import HEADER as MOVIELENS_HEADER
from .movielens import is_double_colon
from .raw import Layout, layout_in_name, raw_trace
from .samples import checkins_trace, criteo_trace, movielens_trace
from .tet import MAGIC, read_tet
from .trace import Trace

__all__ = ["Format", "TraceOptions", "find_format", "open_trace"]

Format = Literal[
    "auto",
    "tet",
    "criteo",
    "movielens",
    "checkins",
    "csv",
    "tsv",
    "parquet",
    "fbgemm",
    "oracle_general",
    "libcachesim_csv",
    "raw",
]

_PICKLE_PROTOCOLS = range(2, 6)

_CONCERNS: dict[str, tuple[Format, ...]] = {
    "columns": ("csv", "tsv", "parquet"),
    "missing": ("csv", "tsv", "parquet"),
    "header": ("csv", "tsv"),
    "layout": ("raw",),
    "num_rows": ("csv", "tsv", "parquet", "raw"),
    "hashed_rows": ("criteo",),
    "object_column": ("libcachesim_csv",),
}
"""Which formats an option of ``TraceOptions`` concerns."""


@dataclass(frozen=True)
class TraceOptions:
    """What the formats need besides a path; each uses what concerns it.

    batch: samples in a batch (ids, where a sample is one id); with None, formats that have batches
    (``tet``, ``fbgemm``) keep them, and others take 1024. columns: id columns of csv, tsv and
    parquet. missing: the id that an empty field in them stands for. header: names of all columns,
    of a csv or tsv without a header line. layout: layout of raw integers, where the file's name
    does not say. num_rows: rows per table name, where known (csv, tsv, parquet, raw). hashed_rows:
    rows of every Criteo table; None for raw 32-bit values. object_column: the column of
    libCacheSim's csv that holds ids, counted from 1. An option that does not concern the format of
    the file is refused.
    """

    batch: int | None = None
    columns: Columns | None = None
    missing: int | None = None
    header: Sequence[str] | None = None
    layout: Layout | None = None
    num_rows: Mapping[str, int | None] | None = None
    hashed_rows: int | None = None
    object_column: int = 2

    @property
    def samples(self) -> int:
        return 1024 if self.batch is None else self.batch


def open_trace(
    path: StrPath | Sequence[StrPath],
    format: Format = "auto",
    options: TraceOptions | None = None,
    *,
    batch: int | None = None,
    columns: Columns | None = None,
) -> Trace:
    """Return the trace in ``path``.

    Args:
        path: a file, plain or compressed; or several for ``criteo`` and ``fbgemm``.
        format: the file's format; ``"auto"`` looks at its content and its name.
        options: what a format may need; ``batch`` and ``columns`` set two of them directly.

    Raises:
        ConfigError: an unknown format, a missing option, a pickle, or as the reader raises.
        CorruptionError, IdRangeError: as the reader raises.
        OSError: the file cannot be read.
    """
    chosen = options or TraceOptions()
    if batch is not None:
        chosen = replace(chosen, batch=batch)
    if columns is not None:
        chosen = replace(chosen, columns=columns)
    if format not in get_args(Format):
        raise ConfigError(f"format must be one of {', '.join(get_args(Format))}, got {format!r}")
    paths = (path,) if isinstance(path, str | os.PathLike) else tuple(path)
    if not paths:
        raise ConfigError("no file was given; pass at least one path")
    found = find_format(paths[0]) if format == "auto" else format
    if len(paths) > 1 and found not in ("criteo", "fbgemm"):
        raise ConfigError(
            f"a {found} trace is one file, but {len(paths)} were given; open each alone"
        )
    return _open(paths, found, chosen)


def _check_concerns(path: StrPath, found: Format, options: TraceOptions) -> None:
    for name, formats in _CONCERNS.items():
        if found in formats or getattr(options, name) == getattr(TraceOptions, name):
            continue
        advice = "leave it out"
        if name in ("columns", "missing") and found in ("movielens", "checkins"):
            kind = "csv" if found == "movielens" else "tsv"
            advice += f", or pass format={kind!r} to read it as a plain {kind} file, in file order"
        raise ConfigError(
            f"{os.fspath(path)}: the file is read as {found}, which {name}= does not concern (it is"
            f" for {', '.join(formats)}); {advice}"
        )


def _open(paths: Sequence[StrPath], found: Format, options: TraceOptions) -> Trace:
    path, batch = paths[0], options.samples
    _check_concerns(path, found, options)
    if found in ("tet", "fbgemm"):
        trace = read_tet(path) if found == "tet" else fbgemm_trace(paths)
        return trace if options.batch is None else trace.rebatch(options.batch)
    if found == "criteo":
        return criteo_trace(paths, CriteoOptions(batch, options.hashed_rows))
    if found == "movielens":
        return movielens_trace(path, batch)
    if found == "checkins":
        return checkins_trace(path, batch)
    if found == "oracle_general":
        return oracle_general_trace(path, batch)
    if found == "libcachesim_csv":
        return csv_requests_trace(path, batch, object_column=options.object_column)
    if found == "raw":
        sizes = options.num_rows or {}
        if set(sizes) - {"table"}:
            raise ConfigError(
                f"num_rows names {list(sizes)}, but the only table of a raw trace is called 'table'"
            )
        return raw_trace(path, options.layout, batch, num_rows=sizes.get("table"))
    return _open_columns(path, found, options)


def _open_columns(path: StrPath, found: Format, options: TraceOptions) -> Trace:
    if options.columns is None:
        raise ConfigError(
            f"{os.fspath(path)}: pass columns= with the names of the columns that hold ids, as the"
            f" format {found} does not say it"
        )
    shared: dict[str, Any] = {"missing": options.missing, "num_rows": options.num_rows}
    if found == "parquet":
        return parquet_trace(path, options.columns, options.samples, **shared)
    separator = "\t" if found == "tsv" else ","
    shared["header"] = options.header
    return csv_trace(path, options.columns, options.samples, separator=separator, **shared)


def find_format(path: StrPath) -> Format:
    """Return the format of a file, by its first bytes or else by its name.

    Raises:
        ConfigError: a pickle, or an unknown format.
        OSError: the file cannot be read.
    """
    start = next(read_blocks(path), b"").removeprefix(BOM)
    name = Path(path).name
    for suffix in COMPRESSED_SUFFIXES:
        name = name.removesuffix(suffix)
    suffix = Path(name).suffix.lower()
    if start.startswith(MAGIC) or suffix == ".tet":
        return "tet"
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith(b"PK\x03\x04") and suffix in (".pt", ".pth", ".bin"):
        return "fbgemm"
    if layout_in_name(name) is not None:
        return "raw"
    if "oraclegeneral" in name.lower():
        return "oracle_general"
    if start[:1] == b"\x80" and start[1:2] and start[1] in _PICKLE_PROTOCOLS:
        if suffix in (".pt", ".pth"):
            return "fbgemm"  # torch's old format; its restricted loader refuses what is unsafe
        raise ConfigError(
            f"{os.fspath(path)}: this is a Python pickle (protocol {start[1]}), which can run code"
            " and is not read; save the ids as .tet, Parquet or raw integers"
        )
    return _text_format(path, start, suffix)


def _text_format(path: StrPath, start: bytes, suffix: str) -> Format:
    line = start.partition(b"\n")[0].rstrip(b"\r")
    if line == ",".join(MOVIELENS_HEADER).encode() or is_double_colon(start):
        return "movielens"
    if line == "\t".join(CHECKINS_HEADER).encode():
        return "checkins"
    if line.count(b"\t") == CRITEO_FIELDS - 1 and line[:2] in (b"0\t", b"1\t"):
        return "criteo"
    by_name: dict[str, Format] = {
        ".csv": "csv",
        ".tsv": "tsv",
        ".parquet": "parquet",
        ".pt": "fbgemm",
    }
    if suffix in by_name:
        return by_name[suffix]
    raise ConfigError(
        f"{os.fspath(path)}: the format cannot be recognised by the name or by the first bytes"
        f" {start[:16]!r}; pass format= one of {', '.join(get_args(Format)[1:])}"
    )
