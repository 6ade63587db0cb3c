"""FBGEMM's benchmark batches: ``(indices, offsets, lengths)`` of all tables, saved by torch.

Format: https://github.com/facebookresearch/dlrm_datasets: ``lengths`` (T, B) of the bags,
``offsets`` (T * B + 1,), ``indices`` (N,) table after table. A file is one batch of ``B`` samples
and is in memory as a whole while it is read. torch's restricted loader reads it: anything that is
not a tensor is refused, and never executed.
"""

from __future__ import annotations

import io
import os
import pickle
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError, CorruptionError
from .chunk import I64, TableIds, TraceBags, TraceChunk, TraceTable
from .files import COMPRESSED_SUFFIXES, StrPath, read_blocks
from .trace import Trace

__all__ = ["fbgemm_trace"]


def fbgemm_trace(
    paths: StrPath | Sequence[StrPath],
    *,
    names: Sequence[str] | None = None,
    num_rows: Sequence[int | None] | None = None,
) -> Trace:
    """Return the trace in one ``.pt`` file, plain or compressed, or in several: a batch each.

    Args:
        names: names of the tables; ``t0``, ``t1``, ... by default.
        num_rows: rows of each table, where known.

    The first file is read immediately, to count its tables.

    Raises:
        CorruptionError: a file that is damaged or holds anything other than tensors.
        ConfigError: tensors that are not a batch, or files with different numbers of tables.
        OSError: a file cannot be read.
    """
    files = (paths,) if isinstance(paths, str | os.PathLike) else tuple(paths)
    if not files:
        raise ConfigError("no file was given; pass at least one .pt")
    first = _read(files[0])
    num_tables = len(first.table_ids)
    for what, given in (("names", names), ("num_rows", num_rows)):
        if given is not None and len(given) != num_tables:
            raise ConfigError(
                f"{os.fspath(files[0])}: {num_tables} tables, but {len(given)} {what} were given;"
                " pass one for each table"
            )
    sizes = [None] * num_tables if num_rows is None else list(num_rows)
    called = [f"t{t}" for t in range(num_tables)] if names is None else list(names)

    def chunks() -> Iterator[TraceChunk]:
        for path in files:
            chunk = _read(path)
            if len(chunk.table_ids) != num_tables:
                raise ConfigError(
                    f"{os.fspath(path)}: there are {len(chunk.table_ids)} tables, but"
                    f" {os.fspath(files[0])} has {num_tables}"
                )
            yield chunk

    tables = [TraceTable(name, size) for name, size in zip(called, sizes, strict=True)]
    num_accesses = first.num_ids if len(files) == 1 else None
    return Trace(tables, chunks, num_batches=len(files), num_accesses=num_accesses)


def _read(path: StrPath) -> TraceChunk:
    given = _load(path)
    if not isinstance(given, (tuple, list)) or len(given) != 3:
        kind = f"{len(given)} values" if isinstance(given, (tuple, list)) else type(given).__name__
        raise ConfigError(
            f"{os.fspath(path)}: the file holds {kind} instead of the three tensors"
            " (indices, offsets, lengths)"
        )
    indices, offsets, lengths = (
        _integers(path, what, value)
        for what, value in zip(("indices", "offsets", "lengths"), given, strict=True)
    )
    if lengths.ndim != 2 or indices.ndim != 1 or 0 in lengths.shape:
        raise ConfigError(
            f"{os.fspath(path)}: lengths have shape {lengths.shape} and indices"
            f" {indices.shape}; they must have shapes (tables, samples) and (ids,), and lengths"
            " must not be empty"
        )
    num_tables, num_samples = lengths.shape
    bounds = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths.reshape(-1), out=bounds[1:])
    if lengths.min() < 0:
        t, b = np.argwhere(lengths < 0)[0]
        raise ConfigError(f"{os.fspath(path)}: the length of table {t}, sample {b} is negative")
    if bounds[-1] != len(indices):
        raise ConfigError(
            f"{os.fspath(path)}: lengths add up to {bounds[-1]}, but there are {len(indices)}"
            " indices"
        )
    if not np.array_equal(offsets, bounds):
        row = int((offsets != bounds).argmax()) if offsets.shape == bounds.shape else 0
        raise ConfigError(
            f"{os.fspath(path)}: offsets {offsets.shape} do not match the running sums of the"
            f" lengths {bounds.shape}; they differ first at position {row}"
        )
    parts: list[TableIds] = []
    starts: list[I64 | None] = []
    for t in range(num_tables):
        own = bounds[t * num_samples : (t + 1) * num_samples + 1]
        ids = indices[own[0] : own[-1]]
        parts.append((np.array([0, len(ids)], np.int64), ids))
        starts.append(own - own[0])
    samples = np.array([0, num_samples], np.int64)
    return TraceChunk(tuple(parts), TraceBags(samples, tuple(starts)))


def _load(path: StrPath) -> Any:
    if Path(path).suffix in COMPRESSED_SUFFIXES:
        source: Any = io.BytesIO(b"".join(read_blocks(path)))
    else:
        source = Path(path).open("rb")  # noqa: SIM115 (closed below)
    with source, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols; their content is refused anyway
        try:
            return torch.load(source, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            fact = str(error).splitlines()[0]
            raise CorruptionError(
                f"{os.fspath(path)}: refused at byte {source.tell()}, as the file is damaged or"
                f" holds something other than tensors ({fact[:200]}); nothing in it was executed"
            ) from error
        except Exception as error:  # torch raises any kind of error on damaged files
            if isinstance(error, OSError) and error.errno is not None:
                raise
            fact = (str(error) or type(error).__name__).splitlines()[0]
            raise CorruptionError(
                f"{os.fspath(path)}: the file was not saved by torch, or it is damaged near byte"
                f" {source.tell()} ({fact[:200]}); get the file again"
            ) from error


def _integers(path: StrPath, what: str, value: object) -> I64:
    if not isinstance(value, torch.Tensor) or value.dtype not in (torch.int64, torch.int32):
        kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise ConfigError(f"{os.fspath(path)}: {what} are {kind}; they must be int64 or int32")
    array: I64 = value.to(torch.int64).contiguous().numpy()
    return array
