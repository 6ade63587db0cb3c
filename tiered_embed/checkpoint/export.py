"""Quantised export: rows of a committed step as int8 or int4 with scale and bias, for serving.

There is one safetensors file per table: ``ids`` int64 (n,), ``codes`` uint8 (n, D), ``scale`` and
``bias`` float32 (n,). With 4 bits ``codes`` are (n, ceil(D/2)), with the even column in the low
half. A weight is code * scale + bias: the range of each row is divided into 255 or 15 equal steps,
and weights are rounded to the nearest, as in FBGEMM's row-wise quantisation. Optimizer state is
left out.

Threading: any thread; the step is only read.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from ..errors import ConfigError
from ..spec import ITEM_BYTES, absolute_path, table_hash
from ..store import decode_rows, make_directory, os_errors, replace_file
from .chain import open_chain, scan_pool
from .folders import directory

__all__ = ["TableExport", "export"]

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TableExport:
    """What was written for one table, and the error of quantising it."""

    table: str
    file: Path
    rows: int
    bytes: int
    max_error: float
    rms_error: float
    rms_weight: float


def export(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    bits: int = 8,
    step: int | None = None,
) -> list[TableExport]:
    """Writes every table of a step (None: the latest) into ``out``. A table must fit into memory.

    Raises:
        FileNotFoundError: nothing is committed there. CorruptionError: the step is damaged.
        ConfigError: ``bits`` is neither 8 nor 4, or the rows are int8 already.
    """
    if bits not in (8, 4):
        raise ConfigError(f"bits is {bits!r}; it must be 8 or 4")
    chain = open_chain(path, step)
    chain.check()
    target = absolute_path(out, "out")
    with os_errors(f"cannot create '{target}'"):
        make_directory(target)
    exported = []
    for index, entry in enumerate(chain.manifest.pools):
        dtype, dim = entry.layout.dtype, entry.layout.dim
        if dtype == "int8":
            raise ConfigError(
                f"the rows of {entry.layout.tables} are int8 already; they need no export"
            )
        parts: dict[bytes, list[tuple[Any, F32]]] = {}
        for keys, records in scan_pool(chain, index, directory(path)):
            weights = _weights(records, dtype, dim)
            for head in np.unique(np.ascontiguousarray(keys[:, :4]).view("V4").ravel()):
                mine = np.ascontiguousarray(keys[:, :4]).view("V4").ravel() == head
                parts.setdefault(head.tobytes(), []).append(
                    (decode_rows(keys[mine]), weights[mine])
                )
        for name in entry.layout.tables:
            found = parts.get(table_hash(name), [])
            ids = np.concatenate([np.empty(0, np.int64), *(i for i, _ in found)])
            rows = np.concatenate([np.empty((0, dim), np.float32), *(w for _, w in found)])
            exported.append(_write(target, name, ids, rows, bits))
    return exported


def _weights(records: npt.NDArray[np.uint8], dtype: str, dim: int) -> F32:
    raw = np.ascontiguousarray(records[:, : dim * ITEM_BYTES[dtype]])
    if dtype == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw.view(np.float16 if dtype == "float16" else np.float32).astype(np.float32)


def _write(target: Path, name: str, ids: Any, rows: F32, bits: int) -> TableExport:
    order = np.argsort(ids, kind="stable")
    ids, rows = ids[order], rows[order]
    if not np.isfinite(rows).all():
        bad = int(ids[np.argmin(np.isfinite(rows).all(axis=1))])
        raise ConfigError(
            f"row {bad} of table {name!r} has values that are not finite; it cannot be quantised"
        )
    steps = 2**bits - 1
    low = rows.min(axis=1, initial=np.inf)
    with np.errstate(over="ignore"):
        scale = ((rows.max(axis=1, initial=-np.inf) - low) / steps).astype(np.float32)
    if rows.shape[1] and not np.isfinite(scale).all():
        wide = int(np.argmin(np.isfinite(scale)))
        raise ConfigError(
            f"row {int(ids[wide])} of table {name!r} ranges from {rows[wide].min()} to "
            f"{rows[wide].max()}, beyond what float32 can divide into steps; it cannot be quantised"
        )
    safe = np.where(scale > 0, scale, 1).astype(np.float32)
    codes = np.clip(np.rint((rows - low[:, None]) / safe[:, None]), 0, steps).astype(np.uint8)
    error = np.abs(codes * scale[:, None] + low[:, None] - rows)
    if bits == 4:
        even = codes if codes.shape[1] % 2 == 0 else np.pad(codes, ((0, 0), (0, 1)))
        codes = even[:, ::2] | (even[:, 1::2] << 4)
    # A table's name never becomes a path.
    file = (
        target / f"{re.sub('[^A-Za-z0-9_-]', '_', name)[:64]}-{table_hash(name).hex()}.safetensors"
    )
    tensors = {"ids": ids, "codes": codes, "scale": scale, "bias": low.astype(np.float32)}
    packed = safetensors.numpy.save(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()},
        {"table": name, "bits": str(bits), "dim": str(rows.shape[1])},
    )
    replace_file(file, packed)
    size = max(1, error.size)
    return TableExport(
        name,
        file,
        len(ids),
        file.stat().st_size,
        float(error.max(initial=0.0)),
        float(np.sqrt(np.square(error, dtype=np.float64).sum() / size)),
        float(np.sqrt(np.square(rows, dtype=np.float64).sum() / size)),
    )
