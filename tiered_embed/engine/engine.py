"""Everything that one process holds of some tables: pools, stream, store, updates.

A module, a shard, a server and a benchmark make an :class:`Engine` alike; there is no ``nn.Module``
in it. A *step* is one training forward: its leases hold the rows in their slots until the backward
has updated them, or until its graph is freed. Evaluation leases nothing: it reads rows where they
are.

Threading: an engine belongs to one thread at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..errors import ClosedError, ConfigError, TieredEmbedError
from ..kernels import Bags
from ..optim import Optimizer
from ..spec import EngineOptions, Lookup, Stats, TableConfig
from .autograd import look_up_and_train
from .bounds import Bounds
from .checking import CheckedBatch, Presented, check
from .evaluation import Evaluation
from .features import Feature, plain
from .group import PoolGroup
from .lease import Lease
from .looking_up import look_up, weight_gradient
from .outputs import empty_output, pool_parts
from .outside import watch
from .passes import Passes
from .phases import Phases
from .plain import plain_evaluation
from .pool import Pool
from .rows import Rows
from .step import Step
from .step_counts import StepCounts
from .stream import Stream, Ticket
from .touched import TouchedRows
from .updates import PoolGradient, Updates
from .wiring import Wiring, wire

__all__ = ["Engine"]

_log = logging.getLogger("tiered_embed")


class Engine:
    """The tables of one owner, and how their rows are looked up, trained, read and written.

    Args:
        tables: all tables.
        features: (feature name, table index) in output order.
        pooled: bags, or one row per id.

    Raises:
        ConfigError: arguments that cannot work, or a store with another record layout.
        StoreError: a store directory that is unwritable or open elsewhere.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        features: Sequence[tuple[str, int]],
        options: EngineOptions,
        *,
        pooled: bool = True,
    ) -> None:
        self.options = options
        self.wiring: Wiring = wire(tables, features, options, pooled=pooled)
        self.output_dtype = options.output_dtype or self.wiring.rows_dtype
        self.device = options.compute_device
        self.phases = Phases()
        self.bounds = Bounds(self.wiring)
        self.stream: Stream | None = None  # of the te.prefetch loop that is running
        self.unmatched = 0  # training forwards that did not use what their loop had prefetched
        self._told_of_unmatched = False
        self._closed = False
        self._group = PoolGroup(self.wiring, options, self.phases)
        self.rows = Rows(self.wiring, self.pools)
        self._trained = 0  # training forwards
        self.evaluation = Evaluation(self.pools, options, self._version)
        self.plain = plain_evaluation(self.wiring, options, self.evaluation)
        self.updates: Updates | None = None  # None: rows are only read
        self.passes: Passes | None = None  # likewise
        self.touched = [
            TouchedRows(pool, self._tables_of_pool(p), self.device) if pool.layout.trains else None
            for p, pool in enumerate(self.pools)
        ]
        self._stored_step = self._group.stored_step
        specs = [layout.optimizer for layout in self.wiring.layouts]
        trained = [spec for spec in dict.fromkeys(specs) if spec is not None]
        if trained:
            self.updates = Updates(
                trained,
                by_frequency=options.scale_grad_by_freq,
                on_nonfinite=options.on_nonfinite,
                device=self.device,
            )
            self.updates.steps = self._stored_step
            self.passes = Passes(
                self.updates,
                self.touched,
                self.phases,
                at_once=options.update == "backward",
                names=self._names,
            )
            watch()

    @property
    def _names(self) -> str:
        """Of the tables, for messages."""
        return ", ".join(repr(table.name) for table in self.tables[:4])

    def _tables_of_pool(self, p: int) -> list[str]:
        places = self.wiring.places
        return [table.name for table, (q, _) in zip(self.tables, places, strict=True) if p == q]

    @property
    def pools(self) -> list[Pool]:
        return self._group.pools

    @property
    def tables(self) -> tuple[TableConfig, ...]:
        return self.wiring.tables

    def tables_of(self, optimizer: Optimizer) -> list[str]:
        """The names of the tables that ``optimizer`` trains, in their order."""
        layouts = self.wiring.layouts
        return [
            table.name
            for table, (p, _) in zip(self.tables, self.wiring.places, strict=True)
            if layouts[p].optimizer == optimizer
        ]

    def check_learning_rates(self) -> None:
        """Raises ConfigError if an update could not use a learning rate as it is now."""
        if self.updates is not None:
            for layout in self.wiring.layouts:
                self.updates.optimizer_of(layout)

    @property
    def steps(self) -> int:
        """Updates so far, with those before the store was opened."""
        return self._stored_step if self.updates is None else self.updates.steps

    # --- batches ----------------------------------------------------------------------------------

    def check(self, given: Sequence[Feature]) -> CheckedBatch:
        """One :class:`Feature` per feature, checked against its table.

        Raises:
            ConfigError: features with different numbers of bags, or weights on a mean table.
            IdRangeError: an id outside its table.
        """
        return check(self.wiring, self.options, given)

    def bags(self, batch: CheckedBatch) -> list[Bags]:
        """Per pool, how the batch's occurrences make bags, as its kernel takes it."""
        return self._group.bags(batch)

    def lookups(self, batch: CheckedBatch) -> list[Lookup]:
        """Per feature, pool after pool: (table, its rows, ids (N,), bag starts or None)."""
        out: list[Lookup] = []
        for mine in self.wiring.pool_features:
            for f in mine:
                table, feature = self.wiring.feature_tables[f], batch.features[f]
                out.append((table.name, table.num_embeddings, feature.ids, feature.offsets))
        return out

    def forward(
        self, presented: Presented, build: Callable[[], CheckedBatch], *, training: bool
    ) -> tuple[torch.Tensor, CheckedBatch]:
        """(bags, columns) of the output dtype, or flat as ``outputs.py`` says where every id has a
        row of its own; rows are updated when it is differentiated.

        Args:
            presented: the tensors that the caller passed.
            build: checks them; not called where the stream knows them already.
            training: rows are updated, unless gradients are off or there is no optimizer.

        Returns:
            The output and the batch that it belongs to.
        """
        if self.stages(training=training):
            if self.passes is not None:
                self.passes.prepare()
            batch, leases = self._acquire(presented, build)
            out = self._differentiable(batch, leases)
        else:
            if training and self.passes is not None:
                self.passes.note_repeatable()
            batch = build()
            out = empty_output(self.wiring, batch, self.device)
            parts = pool_parts(self.wiring, batch, out)
            self.evaluation.look_up(batch, self.bags(batch), parts)
        if batch.outside:
            self.bounds.note(batch)
        return (out if out.dtype == self.output_dtype else out.to(self.output_dtype)), batch

    def _differentiable(self, batch: CheckedBatch, leases: list[Lease]) -> torch.Tensor:
        """Of rows in their slots. They are released at once where no backward can need them."""
        trains = [touched is not None and touched.trains for touched in self.touched]
        step = Step(
            self.pools, batch, self.bags(batch), leases, number=self._trained, trains=trains
        )
        if any(trains) or (step.needs_rows and torch.is_grad_enabled()):
            if self.passes is not None:
                self.passes.add(step)
            anchor = self.updates.anchor if self.updates is not None and any(trains) else None
            return look_up_and_train(anchor, batch.sample_weights, self, step)
        out = self.look_up(step)
        step.release(updated=False)
        return out

    def _acquire(
        self, presented: Presented, build: Callable[[], CheckedBatch]
    ) -> tuple[CheckedBatch, list[Lease]]:
        """The batch, and its leases once its rows are in their slots."""
        self._trained += 1
        stream = self.stream
        if (stream is None or not stream.given) and self.evaluation.note_training():
            self._note_unmatched("the module did not train when te.prefetch pulled this batch")
            stream = None
        if stream is None:
            batch = build()
            with self.phases.time("wait"):
                return batch, self._group.stage(batch)
        known = stream.known(presented)
        batch = build() if known is None else known
        with self.phases.time("wait"):
            leases = stream.take(batch)
            if isinstance(leases, str):
                if known is not None:
                    batch = build()  # its tensors have changed since they were checked
                self._note_unmatched(leases)
                leases = self._group.stage(batch)
        return batch, leases

    def _note_unmatched(self, why: str) -> None:
        self.unmatched += 1
        if not self._told_of_unmatched:
            self._told_of_unmatched = True
            _log.warning(
                "a forward of the module with table %s could not use what te.prefetch had staged: "
                "%s. It trains all the same, but waits for its rows. stats().unmatched counts "
                "such forwards; make ids= return exactly what the forward gets",
                self._names,
                why,
            )

    def look_up(self, step: Step) -> torch.Tensor:
        """The step's pooled rows, (B, columns) float32."""
        with self.phases.time("lookup"):
            return look_up(step, self.wiring, self.options, self.updates)

    # --- backward ---------------------------------------------------------------------------------

    def backward(
        self, step: Step, grad: torch.Tensor, needs_weight_grad: bool, trains: bool
    ) -> torch.Tensor | None:
        """The backward of the forward ``step``; returns the weights' gradient if asked.

        ``trains``: autograd wants the gradient of the rows, too.

        Raises:
            NonFiniteError: and no row has changed.
        """
        self._check_backward(step, grad)
        grad = plain(grad)
        if grad.dtype != torch.float32 or not grad.is_contiguous():
            grad = grad.to(torch.float32).contiguous()
        weight_grad = None
        if needs_weight_grad:
            weight_grad = weight_gradient(step, grad, self.wiring, self.options)
        if self.passes is None:
            step.release(updated=False)
            return weight_grad
        gradients = pool_parts(self.wiring, step.batch, grad)
        parts = []
        known: dict[tuple[type, int], Any] = {}  # pools may have columns of one gradient
        for p, touched in enumerate(self.touched):
            # As torch has it: frozen by now, or when the forward was made.
            step.trains[p] &= trains and touched is not None and touched.trains
            if step.trains[p]:
                pool, bags = self.pools[p], step.bags[p]
                key = type(pool.kernel), id(gradients[p])
                values = known.get(key)
                if values is None:
                    values = known[key] = pool.kernel.values(gradients[p])
                parts.append(PoolGradient(pool, step.leases[p], bags, values, step.looked_up[p]))
        self.passes.take(step, parts)
        return weight_grad

    def _check_backward(self, step: Step, grad: torch.Tensor) -> None:
        if step.pools is not self.pools:
            raise ClosedError(
                "a checkpoint was restored after this forward and replaced its rows; call forward "
                "again"
            )
        if step.done:
            raise RuntimeError(
                "the rows of this forward were updated already, or its graph was freed. Call "
                "forward again; or sum several backwards of it inside te.accumulate(model), or "
                "with update='step', and pass retain_graph=True to all but the last"
            )
        self._group.check()
        if self.passes is not None:
            self.passes.check_scaler(step)
        if grad.layout is not torch.strided:
            raise ConfigError(f"the output's gradient has layout {grad.layout}; pass a dense one")

    # --- the stream: te.prefetch's calls ----------------------------------------------------------

    def open_stream(self) -> Stream:
        """The stream of a new loop; the loop closes it by :meth:`close_stream`.

        Raises:
            ConfigError: another loop feeds this engine.
        """
        if self.stream is not None:
            raise ConfigError(
                "this module is already fed by a te.prefetch loop; finish that one first"
            )
        self.stream = self._group.open_stream()
        return self.stream

    @property
    def in_loop(self) -> bool:
        """A te.prefetch loop feeds this engine."""
        return self.stream is not None or self.evaluation.stream is not None

    def stages(self, *, training: bool) -> bool:
        """Whether a forward now would stage its rows; an evaluation only reads them.

        ``training``: the module is in training mode.
        """
        return self.updates is None or (training and torch.is_grad_enabled())

    def push(self, batch: CheckedBatch, presented: Presented) -> Ticket:
        """Makes a future batch of the open stream known."""
        assert self.stream is not None
        batch.remember(presented)
        return self.stream.push(batch)

    def close_stream(self) -> None:
        """Drops what is left of the stream. Idempotent; to be repeated when interrupted."""
        stream, self.stream = self.stream, None
        if stream is not None and not self._closed:
            stream.close()

    def _version(self) -> tuple[int, ...]:
        """Changes whenever a row may have changed."""
        return self._trained, self.steps, self.rows.version

    # --- the whole --------------------------------------------------------------------------------

    def digest(self) -> str:
        """SHA-256 over (table, row id, record) of every materialised row, in key order."""
        self.flush()
        return self._group.digest()

    def stats(self) -> Stats:
        """Running counts per tier and table.

        Raises:
            ClosedError: in a forked child.
        """
        self._group.check_process()
        return Stats(
            self.steps,
            self._group.tier_stats(self.options),
            self._group.table_counts(),
            0 if self.updates is None else self.updates.skipped,
            self.phases.times(),
            max(pool.scheduler.depth for pool in self.pools),
            self.unmatched,
            replace(self.evaluation.counts),
            self.bounds.counts(),
        )

    def count_steps(self) -> StepCounts:
        """The counts of the next te.prefetch loop, by step. REQUIRES: none is running."""
        return StepCounts([(p.upper.name, p.count_steps()) for p in self.pools], self.wiring)

    def flush(self) -> None:
        """Writes every dirty row back to the SSD tier."""
        self._group.flush(self.steps)

    def check_idle(self, what: str) -> None:
        """Raises unless rows may be replaced or saved now: by this process, between two steps.

        Raises:
            ClosedError: closed, or of another process. ConfigError: gradients are accumulated.
        """
        if self._closed:
            raise ClosedError(f"this module was closed; make a new one to {what}")
        self._group.check_process()
        if self.updates is not None and self.updates.accumulating:
            raise ConfigError(f"te.accumulate is running; {what} after it has ended")

    def discard(self, why: TieredEmbedError) -> None:
        """Gives up every row, file and thread; every call raises ``why`` until :meth:`reopen`.

        REQUIRES: idle, and no te.prefetch loop.
        """
        self._group.discard(why)

    def refuse(self, why: TieredEmbedError) -> None:
        """Every call raises ``why`` until :meth:`reopen`."""
        self._group.refuse(why)

    def reopen(self) -> None:
        """After :meth:`discard`: the rows are what the SSD tier's directory holds by now."""
        version = self.rows.version
        self._group = PoolGroup(self.wiring, self.options, self.phases)
        if self.passes is not None:
            self.passes.reopen(self.pools)
        self.rows = Rows(self.wiring, self.pools)
        self.rows.version = version + 1
        self.evaluation.pools = self.pools
        self.plain = plain_evaluation(self.wiring, self.options, self.evaluation)
        self.set_steps(self._group.stored_step)

    def set_steps(self, steps: int) -> None:
        """The number of updates that made the rows: Adam's bias correction and rounding need it."""
        self._stored_step = steps
        if self.updates is not None:
            self.updates.steps = steps

    def close(self) -> None:
        """Flushes and gives up files and threads; idempotent.

        Raises:
            StoreError: rows could not be written; the other pools were.
        """
        if self._closed:
            return
        self._closed = True
        self.stream = None
        self._group.close(self.steps)
