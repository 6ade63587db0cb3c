"""Captures the ids that a running model looks up, as a trace.

Forward hooks on the model's embeddings note the ids of every training forward; modules and results
do not change. A batch is one forward of the model. Plain ``nn.Embedding`` and ``nn.EmbeddingBag``
(also those inside TorchRec's collections) are tables named by their place in the model. Tiered
modules are ``Observable``: they name their own tables, and report the ids that their planner sees.

Legend as in ``chunk``. One thread at a time; hooks run in the thread of the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from ..errors import ConfigError
from ..spec import Lookup
from .chunk import CHUNK_IDS, I64, TraceBags, TraceChunk, TraceTable
from .files import StrPath
from .tet import Codec, TraceWriter

__all__ = ["Observable", "Recorder", "record", "record_first"]


@runtime_checkable
class Observable(Protocol):
    """A module that can report what a forward looks up."""

    def trace_tables(self) -> list[tuple[str, int | None]]:
        """Return (name, rows) of its tables."""
        ...

    def lookups(self, *args: Any) -> list[Lookup]:
        """Return what a forward with these arguments looks up, without a side effect."""
        ...


class Recorder:
    """Writes what passes through a model's embeddings; made by ``record``.

    Args:
        evaluation: also record forwards without gradients, which move no rows between tiers.
        running: whether a forward of the model is running now, whose end is to end a batch.

    Raises:
        ConfigError: a model without embeddings.
        OSError: the file cannot be written.
    """

    def __init__(
        self,
        model: nn.Module,
        path: StrPath,
        *,
        codec: Codec = "auto",
        evaluation: bool = False,
        running: bool = False,
    ) -> None:
        sources = _sources(model)
        if not sources:
            raise ConfigError(
                f"a {type(model).__name__} has no embeddings to record; pass a model with an"
                " nn.Embedding, an nn.EmbeddingBag or a tiered module"
            )
        tables = [TraceTable(*each) for _, own, _ in sources for each in own]
        self._table = {table.name: t for t, table in enumerate(tables)}
        if len(self._table) < len(tables):
            raise ConfigError(
                f"two tables have one name: {[table.name for table in tables]}; rename one"
            )
        self._evaluation = evaluation
        self._inside = int(running)  # forwards of the model that are running
        self._batch: list[list[tuple[I64, I64 | None]]] = [[] for _ in tables]
        self._batches: list[list[list[tuple[I64, I64 | None]]]] = []
        self._num_waiting = 0
        self._writer = TraceWriter(path, tables, codec)
        self._handles = [
            module.register_forward_hook(self._hook(lookups), with_kwargs=True)
            for module, _, lookups in sources
        ]
        self._handles.append(model.register_forward_pre_hook(self._begin))
        self._handles.append(model.register_forward_hook(self._end, always_call=True))

    @property
    def num_batches(self) -> int:
        """Batches so far."""
        return self._writer.num_batches + len(self._batches)

    @property
    def num_accesses(self) -> int:
        """Ids so far."""
        return self._writer.num_accesses + self._num_waiting

    def close(self) -> None:
        """Remove the hooks and finish the file; idempotent. In a forked child the file stays as it
        is: the parent goes on with it."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._writer.of_parent:
            return
        self._end_batch()
        self._write()
        self._writer.close()

    def _begin(self, module: nn.Module, args: Any) -> None:
        if self._inside == 0:
            self._end_batch()
        self._inside += 1

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside -= 1
        if self._inside == 0:
            self._end_batch()

    def _hook(self, lookups: Callable[..., list[Lookup]]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not self._evaluation and not (module.training and torch.is_grad_enabled()):
                return
            bound = inspect.signature(module.forward).bind(*args, **kwargs)
            bound.apply_defaults()
            found = lookups(*bound.args)
            # Outside the model's own forward, a table that is used again begins the next batch.
            if self._inside == 0 and any(self._batch[self._table[each[0]]] for each in found):
                self._end_batch()
            for name, _, ids, starts in found:
                self._batch[self._table[name]].append(
                    (ids.copy(), None if starts is None else starts.copy())
                )

        return hook

    def _end_batch(self) -> None:
        """End the batch, if anything was looked up in it."""
        if not any(self._batch):
            return
        self._batches.append(self._batch)
        self._num_waiting += sum(len(ids) for own in self._batch for ids, _ in own)
        self._batch = [[] for _ in self._batch]
        if self._num_waiting >= CHUNK_IDS:
            self._write()

    def _write(self) -> None:
        if self._batches:
            self._writer.write(_chunk(self._batches, len(self._batch)))
        self._batches, self._num_waiting = [], 0


@contextmanager
def record(
    model: nn.Module, path: StrPath, *, codec: Codec = "auto", evaluation: bool = False
) -> Iterator[Recorder]:
    """Record the ids that ``model`` looks up in this context to ``path``, a ``.tet`` file.

    What was recorded is kept if the context ends with an error. Arguments and errors as of
    ``Recorder``.
    """
    recorder = Recorder(model, path, codec=codec, evaluation=evaluation)
    try:
        yield recorder
    finally:
        recorder.close()


@contextmanager
def record_first(
    path: StrPath, *, codec: Codec = "auto", evaluation: bool = False
) -> Iterator[list[Recorder]]:
    """Record the first module with embeddings whose forward runs in this context.

    For programs that do not hand out their model. Yields a list, which gets the recorder as soon as
    there is one. Errors as of ``Recorder``.
    """
    recorders: list[Recorder] = []

    def found(module: nn.Module, args: Any) -> None:
        if recorders or not _sources(module):
            return
        # This forward has begun: the recorder's hook for that comes too late.
        recorders.append(Recorder(module, path, codec=codec, evaluation=evaluation, running=True))

    handle = nn.modules.module.register_module_forward_pre_hook(found)
    try:
        yield recorders
    finally:
        handle.remove()
        for recorder in recorders:
            recorder.close()


_Source = tuple[Any, list[tuple[str, int | None]], Callable[..., list[Lookup]]]


def _sources(model: nn.Module) -> list[_Source]:
    """The model's embeddings, each once: (module, its tables, its lookups)."""
    out: list[_Source] = []
    for name, module in model.named_modules():
        if isinstance(module, Observable):
            out.append((module, module.trace_tables(), module.lookups))
        elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
            table = (name or "table", module.num_embeddings)
            of = _embedding if isinstance(module, nn.Embedding) else _bag
            out.append((module, [table], _plain(of, module, table)))
    return out


def _plain(
    of: Callable[..., tuple[I64, I64 | None]], module: nn.Module, table: tuple[str, int | None]
) -> Callable[..., list[Lookup]]:
    def lookups(*args: Any) -> list[Lookup]:
        ids, starts = of(module, *args)
        padding = module.padding_idx
        if isinstance(padding, int) and (ids == padding).any():
            kept = np.zeros(len(ids) + 1, np.int64)
            np.cumsum(ids != padding, out=kept[1:])
            starts = kept if starts is None else kept[starts]
            ids = ids[ids != padding]
        return [(*table, ids, starts)]

    return lookups


def _array(tensor: torch.Tensor) -> I64:
    array: I64 = tensor.detach().to("cpu", torch.int64).contiguous().view(-1).numpy()
    return array


def _embedding(module: nn.Module, input: torch.Tensor) -> tuple[I64, I64 | None]:
    ids = _array(input)
    per_sample = ids.size // max(1, len(input)) if input.dim() > 1 else 1
    return ids, None if per_sample == 1 else np.arange(0, ids.size + 1, max(1, per_sample))


def _bag(
    module: nn.EmbeddingBag,
    input: torch.Tensor,
    offsets: torch.Tensor | None = None,
    per_sample_weights: torch.Tensor | None = None,
) -> tuple[I64, I64 | None]:
    ids = _array(input)
    if offsets is None:
        return _embedding(module, input)
    starts = _array(offsets)
    return ids, starts if module.include_last_offset else np.append(starts, len(ids))


def _chunk(batches: Sequence[list[list[tuple[I64, I64 | None]]]], num_tables: int) -> TraceChunk:
    parts = []
    empty = np.empty(0, np.int64)
    for t in range(num_tables):
        lengths = [sum(len(ids) for ids, _ in batch[t]) for batch in batches]
        ids = np.concatenate([empty, *(ids for batch in batches for ids, _ in batch[t])])
        parts.append((np.cumsum([0, *lengths], dtype=np.int64), ids))
    return TraceChunk(tuple(parts), _bags(batches, num_tables))


def _bags(
    batches: Sequence[list[list[tuple[I64, I64 | None]]]], num_tables: int
) -> TraceBags | None:
    """The bags, if each table is read once per batch, and all have the same number of bags."""
    nums = []
    for batch in batches:
        sizes = {len(ids) if own is None else len(own) - 1 for lone in batch for ids, own in lone}
        if len(sizes) != 1 or any(len(lone) != 1 for lone in batch):
            return None
        nums.append(sizes.pop())
    starts: list[I64 | None] = []
    for t in range(num_tables):
        if all(batch[t][0][1] is None for batch in batches):
            starts.append(None)
            continue
        pieces, base = [np.zeros(1, np.int64)], 0
        for batch in batches:
            ids, own = batch[t][0]
            bounds = np.arange(len(ids) + 1, dtype=np.int64) if own is None else own
            pieces.append(bounds[1:] + base)
            base += len(ids)
        starts.append(np.concatenate(pieces))
    return TraceBags(np.cumsum([0, *nums], dtype=np.int64), tuple(starts))
