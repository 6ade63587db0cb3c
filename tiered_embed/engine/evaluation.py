"""Lookups that train nothing: rows that are in memory are read where they are, the others are read
into scratch memory. Nothing is staged, pinned or evicted, so training finds everything as it was.

``te.prefetch`` pushes the batches of an evaluation into an :class:`EvaluationStream`, which reads
the rows of the next ones into scratch while the loop is busy. What it read is used only if no row
may have changed since; otherwise the forward reads again.

Threading: as the engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch

from .. import _native
from ..errors import ConfigError
from ..kernels import Bags, CpuKernel
from ..residency import Segments
from ..spec import EngineOptions, EvaluationCounts, renormalised
from .checking import CheckedBatch
from .pool import Below, Found, Pool

__all__ = ["Evaluation", "EvaluationStream", "EvaluationTicket"]

Version = tuple[int, ...]


class EvaluationTicket:
    """A batch's place in an evaluation's stream.

    answered: a forward came while the batch was with the loop.
    """

    __slots__ = ("answered", "reads", "segments", "version")

    def __init__(self, batch: CheckedBatch) -> None:
        # Copies: the loader may reuse its buffers before the rows are read.
        self.segments = [part.copy() for part in batch.segments]
        self.reads: list[Future[Future[Below]]] = []  # per pool, once they have been started
        self.version: Version = ()  # of the rows, when the reads were started
        self.answered = False


class EvaluationStream:
    """The batches ahead of one evaluation loop, oldest first.

    Args:
        version: changes whenever a row may have changed.
    """

    def __init__(self, pools: Sequence[Pool], version: Callable[[], Version]) -> None:
        self._pools = pools
        self._version = version
        self._tickets: deque[EvaluationTicket] = deque()
        self._given: EvaluationTicket | None = None  # with the loop now

    def push(self, batch: CheckedBatch) -> EvaluationTicket:
        """Makes a future batch known. REQUIRES: it was checked."""
        ticket = EvaluationTicket(batch)
        self._tickets.append(ticket)
        self._advance()
        return ticket

    def give(self, ticket: EvaluationTicket) -> None:
        """The loop hands out the ticket's batch. REQUIRES: it is the oldest."""
        self._given = ticket
        self._advance()

    def finish(self, ticket: EvaluationTicket) -> None:
        """The loop is done with the ticket's batch."""
        self._given = None
        self._tickets.popleft()
        self._advance()

    def close(self) -> None:
        """Drops the batches ahead. Reads that have begun end by themselves."""
        self._given = None
        self._tickets.clear()

    def answer(self) -> EvaluationTicket | None:
        """A forward came: the ticket of the batch with the loop, if there is one."""
        if self._given is not None:
            self._given.answered = True
        return self._given

    def take(self) -> list[Below] | None:
        """Per pool, the rows that were read ahead for the batch with the loop.

        None where there is no such batch, or where rows may have changed since.

        Raises:
            StoreError: they could not be read.
        """
        ticket = self.answer()
        if ticket is None or not ticket.reads or ticket.version != self._version():
            return None
        return [started.result().result() for started in ticket.reads]

    def _advance(self) -> None:
        """Starts reading for the batch with the loop and for ``depth`` batches after it."""
        depth = max(pool.scheduler.depth for pool in self._pools)
        for i, ticket in enumerate(self._tickets):
            if i > depth:
                return
            if not ticket.reads:
                ticket.version = self._version()
                ticket.reads = [
                    pool.read_ahead(segments)
                    for pool, segments in zip(self._pools, ticket.segments, strict=True)
                ]


class Evaluation:
    """The lookups of one engine that train nothing, and their counts.

    Args:
        version: changes whenever a row may have changed.
    """

    def __init__(
        self, pools: Sequence[Pool], options: EngineOptions, version: Callable[[], Version]
    ) -> None:
        self.counts = EvaluationCounts()
        self.stream: EvaluationStream | None = None  # of the te.prefetch loop that is running
        self.pools = pools
        self._options = options
        self._version = version

    def open_stream(self) -> EvaluationStream:
        """The stream of a new loop. A loop that trains may be running.

        Raises:
            ConfigError: another loop evaluates this engine.
        """
        if self.stream is not None:
            raise ConfigError(
                "a te.prefetch loop already evaluates this module; finish that one first"
            )
        self.stream = EvaluationStream(self.pools, self._version)
        return self.stream

    def close_stream(self) -> None:
        """Drops what is left of the stream. Idempotent."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.close()

    def note_training(self) -> bool:
        """A forward trains; returns whether it got a batch that was pulled for evaluation."""
        return self.stream is not None and self.stream.answer() is not None

    def look_up(
        self, batch: CheckedBatch, bags: Sequence[Bags], outputs: Sequence[torch.Tensor]
    ) -> None:
        """Writes every pool's rows into its output, as training would."""
        for pool in self.pools:
            pool.scheduler.condition.check_process()
        ahead = None if self.stream is None else self.stream.take()
        self.counts.forwards += 1
        for p, pool in enumerate(self.pools):
            segments = batch.segments[p]
            values = pool.kernel.values(outputs[p])
            kernel = self._reads_in_place(pool)
            if kernel is not None and pool.holds_for_good(segments):
                self.counts.lookups += segments.num_ids
                kernel.lookup_whole(pool.first_slots, segments, bags[p], values)
                continue
            found = self._find(pool, segments, None if ahead is None else ahead[p])
            if kernel is None:
                self._look_up_copies(pool, found, bags[p], values)
                continue
            memory = pool.memory
            kernel.lookup_in_place(
                found.slots,
                None if memory.lower is None else memory.lower.records,
                pool.planner.first_lower_slot,
                None if found.below is None else found.below.records,
                bags[p],
                values,
            )

    def _reads_in_place(self, pool: Pool) -> CpuKernel | None:
        """The pool's kernel, if it can read rows where they are."""
        # The scale and bias of int8 rows are not in the records.
        if self._options.max_norm is not None or pool.layout.dtype == "int8":
            return None
        return pool.kernel if isinstance(pool.kernel, CpuKernel) else None

    def _find(self, pool: Pool, segments: Segments, ahead: Below | None) -> Found:
        found = pool.find(segments)
        self.counts.lookups += len(found.slots)
        if len(found.keys) == 0:
            return found
        self.counts.misses += int(np.count_nonzero(found.slots < 0))
        self.counts.read += len(found.keys)
        if ahead is not None and ahead.is_of(found):
            self.counts.read_ahead += len(found.keys)
            return found._replace(below=ahead)
        return found._replace(below=pool.read_below(found.tables, found.keys))

    def _look_up_copies(self, pool: Pool, found: Found, bags: Bags, out: Any) -> None:
        """As the kernel's lookup in place, through a copy of every row that occurs."""
        slots, inverse = np.unique(found.slots, return_inverse=True)
        records = np.empty((len(slots), pool.layout.record_bytes), np.uint8)
        num_below = int(np.searchsorted(slots, 0))
        if found.below is not None:
            records[:num_below] = found.below.records[-1 - slots[:num_below]]
        records[num_below:] = pool.memory.gather(np.ascontiguousarray(slots[num_below:]))
        weights = pool.layout.values(records)
        options = self._options
        if options.max_norm is not None:
            dtype = pool.layout.dtype
            with _native.StandardFloats():
                weights = renormalised(weights, options.max_norm, options.norm_type, dtype)
        pool.kernel.lookup_rows(weights, inverse.reshape(-1).astype(np.int32), bags, out)
