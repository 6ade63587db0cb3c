"""What every module stands on: pools, steps, and the autograd function between them.

A *step* is one training forward: its leases hold the rows in their slots until the backward has
updated them, or until its graph is freed. Evaluation leases nothing: it reads copies.

Threading: a module belongs to one thread at a time.
"""

from __future__ import annotations

import hashlib
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ClosedError, ConfigError, NonFiniteError, TieredEmbedError
from ..kernels import Bags, kernel_for
from ..residency import allocate_tiers
from ..spec import EngineOptions, Stats, TableConfig, TierStats, table_hash
from ..store import encode_keys
from ..tiers import PoolLayout
from ..traces import Lookup
from .batch import Batch, PoolBatch, all_weights, join_offsets
from .inputs import FeatureBatch, check_ids, drop_ids
from .phases import Phases
from .pool import Pool
from .rows import Rows
from .scheduler import Lease
from .step import Step
from .updates import PoolGradient, Updates

__all__ = ["Engine"]

I64 = npt.NDArray[np.int64]


class _Lookup(torch.autograd.Function):
    """Pools rows; its backward is the optimizer."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        anchor: torch.Tensor,
        sample_weights: torch.Tensor | None,
        runtime: Engine,
        step: Step,
    ) -> torch.Tensor:
        ctx.runtime, ctx.step = runtime, step  # type: ignore[attr-defined]
        return runtime.lookup(step)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        # Gradients are on where the caller asks for a graph of this backward.
        return _differentiable(ctx, grad) if torch.is_grad_enabled() else _update(ctx, grad)


def _update(
    ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    runtime: Engine = ctx.runtime  # type: ignore[attr-defined]
    weight_grad = runtime.backward(ctx.step, grad, ctx.needs_input_grad[1])  # type: ignore[attr-defined]
    return None, weight_grad, None, None


_differentiable = torch.autograd.function.once_differentiable(_update)


class Engine:
    """The pools of one module and its features. Use through the module classes.

    Args:
        tables: all tables of the module.
        features: (feature name, table index) in output order.
        pooled: bags, or one row per id.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        features: Sequence[tuple[str, int]],
        options: EngineOptions,
        *,
        pooled: bool,
    ) -> None:
        self.tables = list(tables)
        self.features = list(features)
        self.options = options
        self.output_dtype = options.output
        self.device = options.compute_device
        self._pooled = pooled
        self._streaming = False
        self._expected = False  # the loop has been given the stream's oldest batch
        self._used = False  # a forward has read rows since then
        self._closed = False
        self.phases = Phases()
        self._updated_at: float | None = None  # the last backward's end
        # Forwards whose weights' gradient, which is taken at the rows they read, is to come.
        self._waiting: weakref.WeakSet[Step] = weakref.WeakSet()

        self.widths = [tables[t].embedding_dim for _, t in features]
        self._columns = np.cumsum([0, *self.widths])
        self.num_columns = int(self._columns[-1])
        self._place: list[tuple[int, int]] = [(0, 0)] * len(tables)  # (pool, index in pool)
        self._pool_features: list[list[int]]
        _refuse_colliding_names(tables)
        self.pools = self._make_pools()
        self.rows = Rows(self.tables, self.pools, self._place)
        self.updates: Updates | None = None  # None: rows are only read
        self._stored_step = max(pool.stored_step for pool in self.pools)
        if options.optimizer is not None:
            self.updates = Updates(
                options.optimizer,
                by_frequency=options.scale_grad_by_freq,
                on_nonfinite=options.on_nonfinite,
                device=self.device,
            )
            self.updates.steps = self._stored_step

    @property
    def steps(self) -> int:
        """Updates so far, with those before the store was opened."""
        return self._stored_step if self.updates is None else self.updates.steps

    def _make_pools(self) -> list[Pool]:
        options, columns = self.options, self._columns
        self._pool_features = []
        groups: dict[int, list[int]] = {}
        for t, table in enumerate(self.tables):
            groups.setdefault(table.embedding_dim, []).append(t)
        layouts = [
            PoolLayout(
                tuple((self.tables[t].name, self.tables[t].num_embeddings) for t in members),
                dim,
                options.optimizer,
                options.init,
                options.seed,
                options.row_type,
                tuple(self.tables[t].padding_idx for t in members),
            )
            for dim, members in groups.items()
        ]
        slots, lower_slots = allocate_tiers(
            [layout.tables for layout in layouts],
            [layout.record_bytes for layout in layouts],
            options.tiers,
        )
        pools: list[Pool] = []
        try:
            for p, (members, layout) in enumerate(zip(groups.values(), layouts, strict=True)):
                for i, t in enumerate(members):
                    self._place[t] = (p, i)
                mine = [f for f, (_, t) in enumerate(self.features) if t in members]
                self._pool_features.append(mine)
                pools.append(
                    Pool(
                        layout,
                        slots[p],
                        lower_slots[p],
                        options.tiers,
                        [(int(columns[f]), self._pooling(f)) for f in mine],
                        self.num_columns,
                        kernel=kernel_for(options),
                        device=self.device,
                        rounding=options.rounding,
                        policy=options.policy,
                        lookahead=options.lookahead,
                        depth=options.depth,
                        num_threads=options.threads,
                        phases=self.phases,
                    )
                )
        except BaseException:
            for pool in pools:
                pool.finish()
                pool.close()
            raise
        return pools

    def _pooling(self, feature: int) -> str:
        return self.tables[self.features[feature][1]].mode if self._pooled else "sum"

    # --- batches --------------------------------------------------------------------------------

    def batch(self, given: Sequence[FeatureBatch]) -> Batch:
        """One :class:`FeatureBatch` per feature, checked against the tables.

        Raises:
            ConfigError: features with different numbers of bags, or weights on a mean table.
            IdRangeError: an id outside its table.
        """
        num_bags = given[0].num_bags
        if any(feature.num_bags != num_bags for feature in given[1:]):
            sizes = {n: f.num_bags for (n, _), f in zip(self.features, given, strict=True)}
            raise ConfigError(f"features differ in their number of bags: {sizes}")
        checked = [
            self._checked(t, feature) for (_, t), feature in zip(self.features, given, strict=True)
        ]
        weights = all_weights(checked)
        # A copy: the backward reads it too, and the caller may reuse the tensor.
        flat = None if weights is None else weights.detach().clone().cpu().numpy()
        pools = []
        for pool, mine in zip(self.pools, self._pool_features, strict=True):
            segments = [(self._place[self.features[f][1]][1], checked[f].ids) for f in mine]
            part = None
            if flat is not None:
                starts = np.cumsum([0] + [len(feature.ids) for feature in checked])
                part = np.concatenate([flat[starts[f] : starts[f + 1]] for f in mine])
            rows = num_bags if self._pooled else len(checked[0].ids)
            winners = None
            if any(self._pooling(f) == "max" for f in mine):
                winners = np.empty((len(mine) * rows, pool.layout.dim), np.int32)
            offsets = join_offsets([checked[f].offsets for f in mine])
            pools.append(PoolBatch(segments, Bags(pool.bag_layout, offsets, part, rows, winners)))
        if self._pooled:
            return Batch(pools, num_bags, weights, None)
        return Batch(pools, len(checked[0].ids), weights, checked[0].kept)

    def _checked(self, t: int, feature: FeatureBatch) -> FeatureBatch:
        table, bounds_check = self.tables[t], self.options.bounds_check
        if feature.sample_weights is not None and self._pooled and table.mode != "sum":
            raise ConfigError(
                f"table {table.name!r}: per_sample_weights need mode='sum', not {table.mode!r}"
            )
        ids = check_ids(table.name, feature.ids, table.num_embeddings, bounds_check)
        if ids is not feature.ids:
            feature = feature._replace(ids=ids)
        if bounds_check != "ignore" and table.padding_idx is None:
            return feature
        return drop_ids(feature, table.num_embeddings, table.padding_idx)

    def lookups(self, batch: Batch) -> list[Lookup]:
        """Per feature, pool after pool: (table, its rows, ids (N,), bag starts or None)."""
        out: list[Lookup] = []
        for part, mine in zip(batch.pools, self._pool_features, strict=True):
            for k, (f, (_, ids)) in enumerate(zip(mine, part.segments, strict=True)):
                table = self.tables[self.features[f][1]]
                starts = part.bags.offsets
                if starts is not None:
                    starts = starts[k * batch.rows : (k + 1) * batch.rows + 1]
                    starts = starts - starts[0]
                out.append((table.name, table.num_embeddings, ids, starts))
        return out

    def forward(self, batch: Batch, *, training: bool) -> torch.Tensor:
        """(rows, num_columns) of the output dtype; rows are updated when it is differentiated."""
        training = training and torch.is_grad_enabled()
        if self.updates is None:
            out = self._read(batch, differentiable=torch.is_grad_enabled())
        elif training:
            step = Step(self.pools, batch, self._acquire(batch))
            if batch.sample_weights is not None and batch.sample_weights.requires_grad:
                self._waiting.add(step)
            out = _Lookup.apply(self.updates.anchor, batch.sample_weights, self, step)  # type: ignore[no-untyped-call]
        else:
            out = self._evaluate(batch)
        return out if out.dtype == self.output_dtype else out.to(self.output_dtype)

    def _read(self, batch: Batch, *, differentiable: bool) -> torch.Tensor:
        """Of rows that are never trained: staged as in training, released at once."""
        step = Step(self.pools, batch, self._acquire(batch))
        weights = batch.sample_weights
        if differentiable and weights is not None and weights.requires_grad:
            return _Lookup.apply(None, weights, self, step)  # type: ignore[no-any-return,no-untyped-call]
        out = self.lookup(step)
        step.release(updated=False)
        return out

    def lookup(self, step: Step) -> torch.Tensor:
        out = torch.empty(step.batch.rows, self.num_columns, device=self.device)
        with self.phases.time("lookup"):
            if self.options.max_norm is None:
                self._look_up(step, out)
            else:
                with self._renormalised(step):
                    self._look_up(step, out)
        return out

    def _look_up(self, step: Step, out: torch.Tensor) -> None:
        optimizer = None if self.updates is None else self.updates.optimizer
        for pool, part, lease in zip(self.pools, step.batch.pools, step.leases, strict=True):
            values = pool.kernel.values(out)
            pool.kernel.lookup(lease.plan, part.bags, values, self.steps + 1, optimizer)

    @contextmanager
    def _renormalised(self, step: Step) -> Iterator[None]:
        """The step's rows are as ``max_norm`` has them: for good, or meanwhile if only read."""
        max_norm = self.options.max_norm
        if max_norm is None:
            yield
            return
        step.changed = self.updates is not None
        own = None if step.changed else step.records()
        for pool, lease in zip(self.pools, step.leases, strict=True):
            pool.kernel.renormalise(lease.plan, max_norm, self.options.norm_type)
        try:
            yield
        finally:
            if own is not None:
                step.put(own)

    def backward(
        self, step: Step, grad: torch.Tensor, needs_weight_grad: bool
    ) -> torch.Tensor | None:
        """Updates the rows of ``step``; returns the weights' gradient if asked.

        Raises:
            NonFiniteError: and no row has changed.
        """
        if step.done:
            raise RuntimeError(
                "the rows of this forward were updated already: a fused optimizer runs once per "
                "backward; call forward again"
            )
        if step.pools is not self.pools:
            raise ClosedError(
                "the rows of this forward were replaced by a checkpoint's; call forward again"
            )
        for pool in self.pools:
            pool.scheduler.check()
        if grad.layout is not torch.strided:
            raise ConfigError(f"the output's gradient has layout {grad.layout}; pass a dense one")
        if grad.dtype != torch.float32 or not grad.is_contiguous():
            grad = grad.to(torch.float32).contiguous()
        weight_grad = None
        if self.updates is None:
            if needs_weight_grad:
                with self._renormalised(step):
                    weight_grad = self._weight_gradient(step, grad)
            step.release(updated=False)
            return weight_grad
        if needs_weight_grad:
            with step.as_read():
                weight_grad = self._weight_gradient(step, grad)
        if self._waiting:
            self._waiting.discard(step)
            for other in list(self._waiting):
                other.keep()
        parts = [
            PoolGradient(pool, lease, part.bags, pool.kernel.values(grad))
            for pool, part, lease in zip(self.pools, step.batch.pools, step.leases, strict=True)
        ]
        updated = True  # whatever interrupts the next line, rows may have changed
        try:
            with self.phases.time("update"):
                updated = self.updates.run(parts)
        except (ConfigError, NonFiniteError):
            updated = False
            raise
        finally:
            step.release(updated=updated)
        now = time.perf_counter()
        if self._updated_at is not None:
            self.phases.add("step", now - self._updated_at)
        self._updated_at = now
        return weight_grad

    def _weight_gradient(self, step: Step, grad: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty(0)] * len(self.features)
        for pool, part, lease, mine in zip(
            self.pools, step.batch.pools, step.leases, self._pool_features, strict=True
        ):
            values = pool.kernel.values(grad)
            flat = pool.kernel.sample_weight_gradient(lease.plan, part.bags, values)
            start = 0
            for f, (_, ids) in zip(mine, part.segments, strict=True):
                parts[f] = flat[start : start + len(ids)]
                start += len(ids)
        assert step.batch.sample_weights is not None
        return torch.cat(parts).to(step.batch.sample_weights.device)

    def _acquire(self, batch: Batch) -> list[Lease]:
        """The batch's leases, once its rows are in their slots."""
        with self.phases.time("wait"):
            leases = self._lease(batch)
        self._used = True
        return leases

    def _lease(self, batch: Batch) -> list[Lease]:
        """Streamed ones when the loop trains on what it prefetched, else fresh ones."""
        if self._expected:
            # Every pool waits before any is taken.
            plans = [pool.scheduler.peek() for pool in self.pools]
            if all(
                plan.matches(part.segments) for plan, part in zip(plans, batch.pools, strict=True)
            ):
                self._expected = False
                return [pool.scheduler.take() for pool in self.pools]
        leases: list[Lease] = []
        try:
            for pool, part in zip(self.pools, batch.pools, strict=True):
                leases.append(pool.scheduler.stage(part.segments))
        except BaseException:
            for lease in leases:
                lease.drop()
            raise
        return leases

    def _evaluate(self, batch: Batch) -> torch.Tensor:
        """Looks rows up without staging: residency and trained bytes stay as they are."""
        out = torch.empty(batch.rows, self.num_columns, device=self.device)
        for pool, part in zip(self.pools, batch.pools, strict=True):
            pool.evaluate(
                part.segments,
                part.bags,
                pool.kernel.values(out),
                self.options.max_norm,
                self.options.norm_type,
            )
        return out

    # --- the stream: te.prefetch's calls ----------------------------------------------------------

    @property
    def streaming(self) -> bool:
        return self._streaming

    @property
    def used(self) -> bool:
        """Whether a forward has read rows since the loop was given its batch."""
        return self._used

    def open_stream(self) -> None:
        if self._streaming:
            raise ConfigError(
                "this module is already fed by a te.prefetch loop; finish that one first"
            )
        for pool in self.pools:
            pool.scheduler.cancel()  # what an interrupted close_stream may have left
        self._streaming = True

    def push(self, batch: Batch) -> None:
        for pool, part in zip(self.pools, batch.pools, strict=True):
            pool.scheduler.push(part.segments)

    def end_stream(self) -> None:
        for pool in self.pools:
            pool.scheduler.end()

    def expect(self) -> None:
        """The loop is about to get the stream's oldest batch."""
        self._expected = True
        self._used = False

    def settle(self) -> None:
        """The loop is done with its batch; one that no forward used is let go."""
        if self._expected:
            self._expected = False
            for pool in self.pools:
                pool.scheduler.take().release(updated=False)

    def close_stream(self) -> None:
        self._expected = False
        self._streaming = False
        if not self._closed:
            for pool in self.pools:
                pool.scheduler.cancel()

    # --- the whole ------------------------------------------------------------------------------

    def digest(self) -> str:
        self.flush()
        sha = hashlib.sha256()
        order = []
        for t in range(len(self.tables)):
            p, i = self._place[t]
            order.append((self.pools[p].layout.table_hashes[i].tobytes(), p, i))
        for key, p, i in sorted(order):
            for rows, records in self.pools[p].materialised(i):
                keys = encode_keys(key, rows)
                sha.update(np.concatenate([keys, records], axis=1).tobytes())
        return sha.hexdigest()

    def stats(self) -> Stats:
        given = self.options.tiers
        budgets = {"HBM": given.hbm, "DDR": given.ddr, "SSD": None if given.ssd is None else 0}
        tiers = {
            name: TierStats(budget_bytes=budget)
            for name, budget in budgets.items()
            if budget is not None
        }
        per_table = [pool.table_counts() for pool in self.pools]
        for pool in self.pools:
            for name, part in pool.memory_stats().items():
                _add(tiers[name], part)
            if pool.scheduler.ssd is not None:
                _add(tiers["SSD"], pool.scheduler.ssd.stats())
        tables = {
            table.name: per_table[p][i]
            for table, (p, i) in zip(self.tables, self._place, strict=True)
        }
        skipped = 0 if self.updates is None else self.updates.skipped
        depth = max(pool.scheduler.depth for pool in self.pools)
        return Stats(self.steps, tiers, tables, skipped, self.phases.times(), depth)

    def flush(self) -> None:
        if len(self.pools) > 1:
            # Ended halfway, some stores would be of this step and others of an earlier one.
            for pool in self.pools:
                pool.scheduler.check()
            for pool in self.pools:
                pool.mark_training()
        for pool in self.pools:
            pool.flush()
        for pool in self.pools:
            pool.mark_finished(self.steps)

    def check_idle(self, what: str) -> None:
        """Raises unless rows may be replaced or saved now: by this process, between two steps.

        Raises:
            ClosedError: closed, or of another process. ConfigError: gradients are accumulated.
        """
        if self._closed:
            raise ClosedError(f"the module was closed; make a new one to {what}")
        for pool in self.pools:
            pool.scheduler.check_process()
        if self.updates is not None and self.updates.accumulating:
            raise ConfigError(f"gradients are being accumulated; {what} after te.accumulate")

    def discard(self, why: TieredEmbedError) -> None:
        """Lets go of every row, file and thread; every call raises ``why`` until :meth:`reopen`.

        REQUIRES: idle, and no te.prefetch loop.
        """
        for pool in self.pools:
            pool.discard(why)

    def refuse(self, why: TieredEmbedError) -> None:
        """Every call raises ``why`` until :meth:`reopen`."""
        for pool in self.pools:
            pool.scheduler.refuse(why)

    def reopen(self) -> None:
        """After :meth:`discard`: the rows are what the SSD tier's directory holds by now."""
        for step in list(self._waiting):
            step.release(updated=False)
        self._waiting.clear()
        self._updated_at = None
        version = self.rows.version
        self.pools = self._make_pools()
        self.rows = Rows(self.tables, self.pools, self._place)
        self.rows.version = version + 1
        self.set_steps(max(pool.stored_step for pool in self.pools))

    def set_steps(self, steps: int) -> None:
        """The number of updates behind the rows: Adam's bias correction and rounding need it."""
        self._stored_step = steps
        if self.updates is not None:
            self.updates.steps = steps

    def close(self) -> None:
        """Flushes and lets go of files and threads; idempotent.

        Raises:
            StoreError: rows could not be written; the other pools were.
        """
        if self._closed:
            return
        self._closed = True
        self._expected = False
        errors: list[BaseException] = []

        def attempt(call: Callable[[], object]) -> object:
            try:
                return call()
            except BaseException as error:
                errors.append(error)
                return None

        if len(self.pools) > 1 and all(pool.scheduler.usable for pool in self.pools):
            for pool in self.pools:
                attempt(pool.mark_training)
        finished = [attempt(pool.finish) for pool in self.pools]
        if all(finished) and not errors:
            for pool in self.pools:
                attempt(lambda pool=pool: pool.mark_finished(self.steps))  # type: ignore[misc]
        for pool in self.pools:
            attempt(pool.close)
        if errors:
            raise errors[0]


def _refuse_colliding_names(tables: Sequence[TableConfig]) -> None:
    seen: dict[bytes, str] = {}
    for table in tables:
        other = seen.setdefault(table_hash(table.name), table.name)
        if other != table.name:
            raise ConfigError(
                f"tables {other!r} and {table.name!r} have the same 4-byte identity "
                f"{table_hash(table.name).hex()}; rename one of them"
            )


def _add(total: TierStats, part: TierStats) -> None:
    total.add(part)
    total.slot_bytes += part.slot_bytes
    total.overhead_bytes += part.overhead_bytes
    total.resident += part.resident
