"""What a trace is made of: tables, and whole batches of ids.

Legend: ``T`` tables, ``B`` batches of a chunk, ``N`` ids of one table in a chunk, ``S`` samples of
a chunk (each has one bag per table). All arrays are int64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

__all__ = [
    "CHUNK_IDS",
    "I64",
    "TableIds",
    "TraceBags",
    "TraceChunk",
    "TraceTable",
    "as_ids",
    "check_batch",
    "even_offsets",
]

I64 = npt.NDArray[np.int64]

TableIds = tuple[I64, I64]
"""One table's part of a chunk: ``offsets`` (B + 1,) of the batches into ``ids`` (N,)."""

CHUNK_IDS = 1 << 20
"""About how many ids of all tables a chunk has; a larger batch makes a larger chunk."""


@dataclass(frozen=True)
class TraceTable:
    """An embedding table of a trace: its rows are [0, ``num_rows``), or any int64 where None."""

    name: str
    num_rows: int | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("a table of a trace needs a name, which may not be empty")
        if self.num_rows is not None and self.num_rows < 1:
            raise ConfigError(
                f"table {self.name!r}: num_rows must be at least 1 or None, got {self.num_rows!r}"
            )


@dataclass(frozen=True)
class TraceBags:
    """The bags in the batches of a chunk, where they are known.

    samples: (B + 1,), where each batch's samples start; the same for all tables. starts: for each
    table the offsets (S + 1,) of its bags into its ids, or None where every bag is one id.
    """

    samples: I64
    starts: tuple[I64 | None, ...]

    @property
    def num_samples(self) -> int:
        return int(self.samples[-1])


@dataclass(frozen=True)
class TraceChunk:
    """``B`` whole batches: per table ``(offsets (B + 1,), ids (N,))``, in the tables' order.

    A replay does not need ``bags``; ``rebatch`` and training runs do.
    """

    table_ids: tuple[TableIds, ...]
    bags: TraceBags | None = None

    def __post_init__(self) -> None:
        num_batches = self.num_batches
        for t, (offsets, ids) in enumerate(self.table_ids):
            assert len(offsets) == num_batches + 1, f"table {t}: {len(offsets)} offsets"
            assert offsets[0] == 0, f"table {t}: offsets start at {offsets[0]}"
            assert offsets[-1] == len(ids), f"table {t}: {offsets[-1]} of {len(ids)} ids"
        if self.bags is not None:
            assert len(self.bags.samples) == num_batches + 1, f"{len(self.bags.samples)} samples"
            assert len(self.bags.starts) == len(self.table_ids), f"{len(self.bags.starts)} starts"

    @property
    def num_batches(self) -> int:
        return len(self.table_ids[0][0]) - 1

    @property
    def num_ids(self) -> int:
        """Ids of all tables together."""
        return sum(len(ids) for _, ids in self.table_ids)

    def batches(self, first: int, last: int) -> TraceChunk:
        """Return batches ``first`` to ``last - 1`` as views."""
        parts = tuple(
            (offsets[first : last + 1] - offsets[first], ids[offsets[first] : offsets[last]])
            for offsets, ids in self.table_ids
        )
        if self.bags is None:
            return TraceChunk(parts)
        samples = self.bags.samples[first : last + 1]
        starts = tuple(
            None if own is None else own[samples[0] : samples[-1] + 1] - own[samples[0]]
            for own in self.bags.starts
        )
        return TraceChunk(parts, TraceBags(samples - samples[0], starts))


def check_batch(batch: int) -> int:
    """Return ``batch``; raises ConfigError below 1."""
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch!r}")
    return batch


def even_offsets(num_ids: int, batch: int) -> I64:
    """Return the offsets of batches of ``batch`` ids over ``num_ids``; the last may be smaller."""
    return np.append(np.arange(0, num_ids, batch, dtype=np.int64), np.int64(num_ids))


def as_ids(where: str, ids: npt.ArrayLike) -> I64:
    """Return ids as an int64 array (N,), without a copy if they already are one.

    Raises:
        ConfigError: not 1-D, not integers, or beyond int64; the message names the first position.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ConfigError(
            f"{where}: ids are {array.dtype} of shape {array.shape}; pass 1-D integers"
        )
    if array.dtype == np.uint64 and array.size:
        beyond = array > np.uint64(2**63 - 1)
        if beyond.any():
            row = int(beyond.argmax())
            raise ConfigError(
                f"{where}: id {array[row]} at position {row} is beyond int64; hash the ids to 63"
                " bits first"
            )
    return np.ascontiguousarray(array.astype(np.int64, copy=False))
