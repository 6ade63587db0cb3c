"""What all tiered modules have in common, apart from their forward.

Rows by id, torch's protocols, and closing; the engine does the work.

Threading: a module belongs to one thread at a time; the garbage collector may close it in any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ..engine import CheckedBatch, Feature, Presented
from ..errors import ConfigError, NotCopyableError
from ..spec import EngineOptions, Lookup, Stats, TableConfig
from .arguments import float_values, row_ids
from .lifetime import close_unattended, open_engine
from .parameters import RowParameters
from .ranks import refuse_unshared_ranks
from .row_state import RowState, load_from_torch, take_steps
from .saved_state import Probes, describe, restore
from .tracing import refuse_tracing, traced_error
from .weight_copy import weight_copy

__all__ = ["TieredModule"]

M = TypeVar("M", bound="TieredModule")

WEIGHT_LIMIT_BYTES = 256 << 20
LOAD_ROWS = 65536  # at a time, from a state_dict
_NOT_COPYABLE = (
    "a {} owns files, threads and rows that may not fit in memory, so it cannot be copied or "
    "pickled; make a second module with its own directory, or save the rows with te.checkpoint"
)


class TieredModule(RowParameters):
    """Base class of the tiered modules; use one of its subclasses.

    Rows are trained by ``backward``: there is no ``.step()``. With ``update="step"`` they are
    trained by the step of ``te.row_optimizer``. Either way ``requires_grad_(False)`` freezes them.
    The module's parameters are the rows that a step touches, (U, D), and have no rows between
    steps. Use a module in one thread at a time. It holds files and threads: close it, or use it in
    ``with``.
    """

    # Where the module that this one replaces has its tables, in a state_dict.
    dense_tables = "embedding_bags"

    def __init__(
        self,
        tables: list[TableConfig],
        features: list[tuple[str, int]],
        options: EngineOptions,
        *,
        pooled: bool = True,
    ) -> None:
        super().__init__()
        refuse_tracing(())
        self.engine = open_engine(tables, features, options, pooled=pooled)
        self._own_parameters()
        self._finalizer = close_unattended(self)
        self._probes = Probes()

    @property
    def device(self) -> torch.device:
        """Where rows are looked up and updated, and where the outputs lie."""
        return self.engine.device

    def present(self, value: Any) -> Presented:
        """The tensors in a forward's argument, unchecked, so that the stream can recognise them.

        Raises:
            ConfigError: features are missing or unknown.
        """
        raise NotImplementedError

    def features(self, presented: Presented) -> list[Feature]:
        """One :class:`Feature` per feature, from the tensors of a forward's argument.

        Raises:
            ConfigError: a wrong type, dtype, device or shape.
        """
        raise NotImplementedError

    def check(self, presented: Presented) -> CheckedBatch:
        """The checked batch of a forward's argument, as ``te.prefetch`` stages it.

        Raises:
            ConfigError, IdRangeError: bad arguments.
        """
        return self.engine.check(self.features(presented))

    def _forward(self, presented: Presented) -> tuple[torch.Tensor, CheckedBatch]:
        refuse_tracing(presented.tensors)
        if self.training and torch.is_grad_enabled():
            refuse_unshared_ranks(self.engine)
        out, batch = self.engine.forward(
            presented, lambda: self.check(presented), training=self.training
        )
        if out.requires_grad:
            self._probes.note(self.engine, batch)
        return out, batch

    def _evaluate_plainly(
        self, indices: torch.Tensor, offsets: torch.Tensor | None, include_last_offset: bool
    ) -> torch.Tensor | None:
        """The output of a forward that only evaluates, where there is a short way to it."""
        engine = self.engine
        if engine.plain is None or engine.stages(training=self.training):
            return None
        refuse_tracing((indices, offsets))
        if engine.output_dtype is not torch.float32:
            return None
        out = engine.plain.look_up(indices, offsets, include_last_offset)
        if out is not None and self.training and engine.passes is not None:
            engine.passes.note_repeatable()
        return out

    def trace_tables(self) -> list[tuple[str, int | None]]:
        """Name and number of rows of every table, for ``traces.record``."""
        return [(table.name, table.num_embeddings) for table in self.engine.tables]

    def lookups(self, *args: Any) -> list[Lookup]:
        """What a forward with these arguments looks up, as its planner sees it.

        Returns:
            Per feature, pool after pool: (table, its rows, ids (N,), bag starts (B + 1,) or None).
        """
        presented = self.present(args if len(args) > 1 else args[0])
        return self.engine.lookups(self.check(presented))

    def rows(self, ids: object, table: str | None = None) -> torch.Tensor:
        """A copy of the current weights of ``ids`` (n,), as (n, D); stages and changes nothing.

        Its dtype is that of the rows, or float32 where they are int8.

        Raises:
            IdRangeError: an id outside its table.
            ConfigError: ids that are not 1-D integers, or an ambiguous ``table``.
        """
        rows = self.engine.rows
        index = rows.table_index(table)
        weights = rows.weights(index, row_ids(ids))
        flat = torch.from_numpy(weights.reshape(-1)).view(rows.dtype(index))
        return flat.view(len(weights), self.engine.tables[index].embedding_dim)

    def optimizer_state(self, ids: object, table: str | None = None) -> RowState:
        """Copies of the state arrays of ``ids`` (n,), each (n, width) float32. Raises as
        :meth:`rows`. Its attribute ``steps`` is the number of updates so far."""
        rows = self.engine.rows
        state = rows.state(rows.table_index(table), row_ids(ids))
        arrays = {name: torch.from_numpy(array) for name, array in state.items()}
        return RowState(arrays, self.engine)

    def load_rows(
        self,
        ids: object,
        weights: torch.Tensor,
        state: Mapping[str, torch.Tensor] | None = None,
        table: str | None = None,
        *,
        steps: int | None = None,
    ) -> None:
        """Writes rows: ``ids`` (n,) without repeats, ``weights`` (n, D) of the rows' dtype.

        float32 weights are rounded to that dtype. ``state`` maps each state array to (n, width)
        float32; zeros when omitted. ``steps`` is the number of updates that made it, by which Adam
        and its like correct their moments; it becomes that of the module. None: that of the module
        which ``state`` comes from, if this one has had no update yet.

        Raises:
            IdRangeError, ConfigError: bad arguments; nothing is written.
        """
        rows = self.engine.rows
        arrays = None
        if state is not None:
            if not isinstance(state, Mapping):
                raise ConfigError(f"state is a {type(state).__name__}; pass a mapping of tensors")
            arrays = {name: float_values(f"state {name!r}", value) for name, value in state.items()}
        index = rows.table_index(table)
        counted = take_steps(self.engine, index, state, steps)
        rows.load(index, row_ids(ids), self._weights(index, weights), arrays)
        self._set_steps(counted)

    def load_optimizer_state(self, state: Mapping[str, Any], table: str | None = None) -> None:
        """Takes over the state that an optimizer of torch has of the weight that a table replaces.

        Rows keep their weights. The step count comes along.

        Args:
            state: ``optimizer.state[weight]`` of Adam, AdamW, SparseAdam, Adagrad, or SGD with
                momentum; each array (num_embeddings, D).
            table: may be omitted where there is one.

        Raises:
            ConfigError: the table's optimizer keeps other arrays; nothing is written.
        """
        rows = self.engine.rows
        steps = load_from_torch(self.engine, rows.table_index(table), state, LOAD_ROWS)
        self._set_steps(self.engine.steps if steps is None else steps)

    def materialised(self, table: str | None = None) -> Iterator[torch.Tensor]:
        """The ids of the rows that were trained or loaded, int64 (n,) at a time; flushes first."""
        self.flush()
        p, i = self.engine.wiring.places[self.engine.rows.table_index(table)]
        for ids, _ in self.engine.pools[p].materialised(i):
            yield torch.from_numpy(ids)

    def _set_steps(self, steps: int) -> None:
        if steps != self.engine.steps:
            self.engine.set_steps(steps)

    def _weights(self, table: int, weights: object) -> npt.NDArray[np.float32]:
        allowed = {torch.float32, self.engine.rows.dtype(table)}
        return float_values("weights", weights, tuple(allowed))

    def import_rows(
        self,
        chunks: Iterable[
            tuple[object, torch.Tensor] | tuple[object, torch.Tensor, Mapping[str, torch.Tensor]]
        ],
        table: str | None = None,
        *,
        steps: int | None = None,
    ) -> int:
        """Bulk import into an empty SSD tier; returns the number of rows.

        Args:
            chunks: (ids (n,), weights (n, D)[, state]) with ids ascending over all chunks.
            steps: as in :meth:`load_rows`.

        Raises:
            ConfigError: ids out of order, a store that holds rows already, or no SSD tier. Nothing
                is imported then.
        """
        rows = self.engine.rows
        index = rows.table_index(table)
        counted = take_steps(self.engine, index, None, steps)

        def arrays() -> Iterable[Any]:
            nonlocal counted
            for ids, weights, *rest in chunks:
                if rest and counted == self.engine.steps:
                    counted = take_steps(self.engine, index, rest[0], steps)
                state = (
                    {k: float_values(f"state {k!r}", v) for k, v in rest[0].items()}
                    if rest
                    else None
                )
                yield row_ids(ids), self._weights(index, weights), state

        imported = rows.import_sorted(index, arrays())
        self._set_steps(counted)
        self.flush()
        return imported

    @property
    def weight(self) -> torch.Tensor:
        """All rows of the only table, (num_embeddings, D): a copy, for small tables.

        The copy refuses to be written, and to be differentiated where the rows train;
        ``weight.detach().clone()`` is a plain tensor.

        Raises:
            ConfigError: the table has no fixed size, or takes more than 256 MiB.
        """
        engine = self.engine
        table = engine.tables[engine.rows.table_index(None)]
        size = engine.rows.dtype(0).itemsize * table.embedding_dim
        if table.num_embeddings is None or table.num_embeddings * size > WEIGHT_LIMIT_BYTES:
            raise ConfigError(
                f"table {table.name!r} has {table.num_embeddings or 'any number of'} rows of "
                f"{size} bytes each, but .weight copies at most {WEIGHT_LIMIT_BYTES} bytes; use "
                "rows(ids) for a part of them"
            )
        return weight_copy(
            self.rows(range(table.num_embeddings)), trains=engine.updates is not None
        )

    # --- nn.Module's protocols --------------------------------------------------------------------

    def _apply(self: M, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> M:
        # model.half() and the like: rows keep their dtype, and the output's dtype follows.
        mine = self.engine.device
        probe = fn(torch.zeros(1, dtype=self.engine.output_dtype, device=mine))
        if probe.device != mine:
            raise ConfigError(
                f"this {type(self).__name__} computes on {mine}, as its tiers decide, and cannot "
                f"move; move the other parts of the model to {probe.device} one by one, and this "
                "module's outputs in the forward"
            )
        self.engine.output_dtype = probe.dtype
        return super()._apply(fn, recurse)

    def get_extra_state(self) -> torch.Tensor:
        """Says where the rows are and which they are, as JSON in a uint8 tensor: a state_dict does
        not hold them."""
        return describe(self.engine, self._probes)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Takes the step count over if the rows that were saved are here, and warns if they are
        not: a state_dict does not hold them.

        Raises:
            ConfigError: it was saved from other tables, or not by a tiered module.
        """
        restore(self.engine, state)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # A state_dict from the module that this one replaced has whole tables.
        tables = self.engine.tables
        # te.swap puts the module's path before a table's name; a key's last part has no dot.
        where = f"{prefix}{self.dense_tables}"
        names = {f"{where}.{t.name.split('.')[-1]}.weight": t for t in tables}
        if len(tables) == 1:
            names[f"{prefix}weight"] = tables[0]
        dense = {name: table for name, table in names.items() if name in state_dict}
        for name, table in dense.items():
            weights = state_dict[name]
            shape = (table.num_embeddings, table.embedding_dim)
            if tuple(weights.shape) != shape:
                error_msgs.append(
                    f"{name} has shape {tuple(weights.shape)}, but its table has shape {shape}"
                )
                continue
            for start in range(0, len(weights), LOAD_ROWS):
                part = weights[start : start + LOAD_ROWS]
                self.load_rows(range(start, start + len(part)), part, table=table.name)
        rest = {name: value for name, value in state_dict.items() if name not in dense}
        missing: list[str] = []
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs
        )
        missing_keys.extend(name for name in missing if not dense)

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise NotCopyableError(_NOT_COPYABLE.format(type(self).__name__))

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise NotCopyableError(_NOT_COPYABLE.format(type(self).__name__))

    def __prepare_scriptable__(self) -> NoReturn:
        raise traced_error("torch.jit.script")

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise NotCopyableError(
            f"nn.DataParallel would copy this {type(self).__name__}, whose rows live in one place; "
            "use it for the other parts of the model alone"
        )

    def stats(self) -> Stats:
        """Running counts per tier and table."""
        return self.engine.stats()

    def digest(self) -> str:
        """SHA-256 over (table, row id, record) of every materialised row, in key order."""
        return self.engine.digest()

    def flush(self) -> None:
        """Writes every dirty row back to the SSD tier."""
        self.engine.flush()

    def close(self) -> None:
        """Flushes, then releases files and threads. Idempotent.

        Raises:
            StoreError: rows could not be written.
        """
        self._finalizer.detach()
        self.engine.close()

    def __enter__(self: M) -> M:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def extra_repr(self) -> str:
        engine = self.engine
        options = engine.options
        tables = ", ".join(
            f"{t.name}: {t.num_embeddings} x {t.embedding_dim}{t.brief_options()}"
            for t in engine.tables
        )
        ssd = "none" if options.tiers.ssd is None else options.tiers.store
        dtype = "" if options.dtype == torch.float32 else f"dtype={options.dtype}, "
        optimizer = "none" if options.optimizer is None else options.optimizer.brief()
        memory = "".join(
            f"{name}={size} bytes, "
            for name, size in (("hbm", options.tiers.hbm), ("ddr", options.tiers.ddr))
            if size is not None
        )
        return f"{tables}; {dtype}{memory}ssd={ssd}, optimizer={optimizer}"


def pretrained_shape(
    embeddings: torch.Tensor, freeze: bool, options: dict[str, Any]
) -> tuple[int, int]:
    """(rows, D) of the ``embeddings`` of ``from_pretrained``; completes the module's ``options``.

    Raises:
        ConfigError: embeddings that are not 2-D, or no optimizer for rows that train.
    """
    if embeddings.dim() != 2:
        raise ConfigError(f"embeddings have shape {tuple(embeddings.shape)}; pass (rows, D)")
    if not freeze and options.get("optimizer") is None:
        raise ConfigError("freeze=False means that the rows train; pass an optimizer")
    options.setdefault("dtype", embeddings.dtype)
    if freeze:
        options["optimizer"] = None
    return embeddings.shape[0], embeddings.shape[1]


def filled(module: M, weights: torch.Tensor) -> M:
    """``module`` with its only table's rows set to ``weights``; closed if that fails."""
    try:
        for start in range(0, len(weights), LOAD_ROWS):
            part = weights[start : start + LOAD_ROWS]
            module.load_rows(range(start, start + len(part)), part)
    except BaseException:
        module.close()
        raise
    return module
