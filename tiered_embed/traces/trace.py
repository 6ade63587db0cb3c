"""The one in-memory form of an id stream: tables, and batches of ids in bounded chunks.

A ``Trace`` does not hold ids: it knows how to read them again, so that a billion accesses need the
memory of one chunk. Readers, generators and the recorder make traces; ``rebatch`` and ``selection``
make one from another. Only here are ids checked against their tables, while they are read. Shapes
by the legend of ``chunk``. Nothing here starts a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, IdRangeError
from .chunk import (
    CHUNK_IDS,
    I64,
    TraceBags,
    TraceChunk,
    TraceTable,
    as_ids,
    check_batch,
    even_offsets,
)
from .rebatch import rebatched

__all__ = ["Trace"]


class Trace:
    """An id stream over one or several tables, which can be read any number of times.

    Args:
        tables: names are unique.
        source: called for every pass; yields chunks, each with one part per table.
        num_batches, num_accesses: batches, and ids of all tables, in the whole trace; None where
            they are not known without reading it.

    Raises:
        ConfigError: no table, or two with the same name.
    """

    def __init__(
        self,
        tables: Sequence[TraceTable],
        source: Callable[[], Iterator[TraceChunk]],
        *,
        num_batches: int | None = None,
        num_accesses: int | None = None,
    ) -> None:
        self.tables = tuple(tables)
        self.num_batches = num_batches
        self.num_accesses = num_accesses
        self._source = source
        names = [table.name for table in self.tables]
        if not names:
            raise ConfigError("a trace needs at least one table")
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"table {name!r} is in the trace twice; names must be unique")

    @classmethod
    def from_ids(
        cls, ids: npt.ArrayLike, batch: int = 1024, name: str = "table", num_rows: int | None = None
    ) -> Trace:
        """Return a trace of one table: ids (N,) of any integer type, ``batch`` of them per batch.

        Raises:
            ConfigError: ids that are not 1-D integers within int64, or a batch below 1.
        """
        array = as_ids(f"table {name!r}", ids)
        num_batches = -(-len(array) // check_batch(batch))
        step = max(1, CHUNK_IDS // batch) * batch

        def chunks() -> Iterator[TraceChunk]:
            for start in range(0, len(array), step):
                part = array[start : start + step]
                yield TraceChunk(((even_offsets(len(part), batch), part),))

        table = TraceTable(name, num_rows)
        return cls([table], chunks, num_batches=num_batches, num_accesses=len(array))

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, npt.ArrayLike],
        batch: int = 1024,
        num_rows: Mapping[str, int | None] | None = None,
    ) -> Trace:
        """Return a trace with one id per sample and table: {table: ids (samples,)}.

        Raises:
            ConfigError: as ``from_ids``, or columns of different lengths.
        """
        arrays = {name: as_ids(f"table {name!r}", ids) for name, ids in columns.items()}
        lengths = {name: len(ids) for name, ids in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ConfigError(f"the columns of a trace must be equally long, got lengths {lengths}")
        num_samples = next(iter(lengths.values()), 0)
        num_batches = -(-num_samples // check_batch(batch))
        step = max(1, CHUNK_IDS // max(1, len(arrays)) // batch) * batch

        def chunks() -> Iterator[TraceChunk]:
            for start in range(0, num_samples, step):
                parts = [ids[start : start + step] for ids in arrays.values()]
                offsets = even_offsets(len(parts[0]), batch)
                bags = TraceBags(offsets, (None,) * len(parts))
                yield TraceChunk(tuple((offsets, part) for part in parts), bags)

        sizes = num_rows or {}
        return cls(
            [TraceTable(name, sizes.get(name)) for name in arrays],
            chunks,
            num_batches=num_batches,
            num_accesses=sum(lengths.values()),
        )

    def chunks(self) -> Iterator[TraceChunk]:
        """Yield the chunks of the trace, from its start; every call reads them again.

        Raises:
            IdRangeError: an id outside its table, with its batch and position.
            ConfigError, CorruptionError, OSError: what the source's file holds instead of ids.
        """
        batches = 0
        positions = [0] * len(self.tables)
        for chunk in self._source():
            assert len(chunk.table_ids) == len(self.tables)
            for t, (offsets, ids) in enumerate(chunk.table_ids):
                _check_range(self.tables[t], offsets, ids, batches, positions[t])
                positions[t] += len(ids)
            batches += chunk.num_batches
            yield chunk

    def __iter__(self) -> Iterator[tuple[I64, ...]]:
        """Yield each batch: its ids, one array per table."""
        for chunk in self.chunks():
            for b in range(chunk.num_batches):
                yield tuple(ids[offsets[b] : offsets[b + 1]] for offsets, ids in chunk.table_ids)

    def rebatch(self, batch: int) -> Trace:
        """Return the same accesses in batches of another size.

        Where bags are known (from readers of samples, and from generators), a batch is ``batch``
        samples of all tables. Without bags, a trace of one table has ``batch`` ids per batch. The
        last batch may be smaller.

        Raises:
            ConfigError: a batch below 1; while reading, several tables without bags.
        """
        check_batch(batch)
        return Trace(
            self.tables, lambda: rebatched(self.chunks(), batch), num_accesses=self.num_accesses
        )

    def __repr__(self) -> str:
        tables = ", ".join(f"{t.name}: {t.num_rows or 'any'} rows" for t in self.tables)
        return f"Trace({tables}; batches={self.num_batches}, accesses={self.num_accesses})"


def _check_range(table: TraceTable, offsets: I64, ids: I64, batches: int, position: int) -> None:
    if table.num_rows is None or len(ids) == 0:
        return
    # As an unsigned number a negative id is large, so that one comparison finds both kinds.
    unsigned = ids.view(np.uint64)
    if unsigned.max() < np.uint64(table.num_rows):
        return
    row = int((unsigned >= np.uint64(table.num_rows)).argmax())
    batch = batches + int(np.searchsorted(offsets, row, side="right")) - 1
    raise IdRangeError(
        f"table {table.name!r}: id {ids[row]} at access {position + row} of the table (batch"
        f" {batch}) is outside [0, {table.num_rows}); raise num_rows, or check that the trace"
        " belongs to this table"
    )
