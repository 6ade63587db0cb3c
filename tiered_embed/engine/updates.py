"""From gradients to updated rows: learning rate, gradient scaling, accumulation, and the decision
whether a step happens at all, which is made before any row changes.

The arithmetic is the kernels'. Threading: as the engine.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .. import _native
from ..errors import ConfigError, NonFiniteError, StoreError
from ..kernels import Bags, LookedUp, UpdateOptions
from ..optim import Optimizer
from ..tiers import PoolLayout
from .lease import Lease
from .pool import Pool

__all__ = ["PoolGradient", "Updates", "divide_by_counts"]

F32 = npt.NDArray[np.float32]
Place = tuple[int, int]

FLOAT32_MAX = float(np.finfo(np.float32).max)
_log = logging.getLogger("tiered_embed")


class PoolGradient(NamedTuple):
    """The part that one pool, whose rows train, has in a backward.

    bags: of its plan. grad: shaped like what its lookup wrote into. looked_up: what the forward's
    lookup left for this update; None where there was no forward.
    """

    pool: Pool
    lease: Lease
    bags: Bags
    grad: Any
    looked_up: LookedUp | None = None


class Updates:
    """The optimizers of one engine, over all its pools.

    Args:
        optimizers: the specs, each once. :meth:`follow` has the ``lr`` of one set from outside.
        by_frequency: ``scale_grad_by_freq``.
        on_nonfinite: what an infinite or NaN row gradient does.
        device: of the outputs.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        *,
        by_frequency: bool,
        on_nonfinite: str,
        device: torch.device,
    ) -> None:
        self.steps = 0
        self.skipped = 0
        self.grad_scaler: torch.amp.GradScaler | None = None
        # Stands for the rows where torch needs a leaf. A gradient scaler reads from its gradient
        # whether the rows' gradients were finite.
        self.anchor = torch.zeros(1, dtype=torch.float32, device=device, requires_grad=True)
        self._lost_at: float | None = None  # the scale under which a gradient was not finite
        self.optimizers = tuple(optimizers)
        self._learning_rates: dict[Optimizer, Callable[[], object]] = {}
        # With the newest learning rate, by spec and factor; the same object while that stays.
        self._scheduled: dict[tuple[Optimizer, float], Optimizer] = {}
        self.by_frequency = by_frequency
        self._on_nonfinite = on_nonfinite
        # Per forward: (its place in the order, per pool its sums).
        self._accumulated: list[tuple[Place, dict[Pool, PoolRows]]] | None = None

    def follow(self, optimizer: Optimizer, learning_rate: Callable[[], object]) -> None:
        """From now on every backward asks ``learning_rate`` for the lr of this spec: a number, or a
        tensor of one."""
        self._learning_rates[optimizer] = learning_rate

    def optimizer_of(self, layout: PoolLayout) -> Optimizer | None:
        """The spec of a pool with the pool's current learning rate; None: it is only read.

        Raises:
            ConfigError: the learning rate is no number that an update can use.
        """
        spec = layout.optimizer
        if spec is None:
            return None
        schedule = self._learning_rates.get(spec)
        lr = spec.lr if schedule is None else _number(schedule(), layout)
        if layout.lr_factor != 1.0:
            lr *= layout.lr_factor
        key = spec, layout.lr_factor
        known = self._scheduled.get(key, spec)
        if lr != known.lr:
            known = self._scheduled[key] = replace(spec, lr=lr)
        return known

    def run(self, parts: Sequence[PoolGradient]) -> bool:
        """One backward pass of one forward: updates the rows.

        Returns whether rows were changed.

        Raises:
            NonFiniteError, StoreError: and no row has changed.
        """
        return self._update(parts, by_frequency=self.by_frequency)

    # --- accumulation ---------------------------------------------------------------------------

    def run_joined(self, forwards: Sequence[Sequence[PoolGradient]]) -> bool:
        """One backward pass of several forwards: one update with the sum of their row gradients.

        Those of a row are added in the order of the forwards. Returns and raises as :meth:`run`.
        REQUIRES: their leases pin the rows.
        """
        sums: dict[Pool, list[PoolRows]] = {}
        for parts in forwards:
            for part in parts:
                sums.setdefault(part.pool, []).append(self._sum(part))
        return self._apply_sums(sums, used=False)

    def apply_rows(self, parts: Sequence[tuple[Pool, Lease, Any]]) -> bool:
        """One update with summed row gradients: per pool its lease and, in that lease's order, the
        values (U, D), which are overwritten. Returns and raises as :meth:`run`."""
        gradients = [
            PoolGradient(pool, lease, Bags(pool.row_layout, None, None, len(rows)), rows)
            for pool, lease, rows in parts
        ]
        optimizers = [self._optimizer_of(part) for part in gradients]
        if not self._finite(gradients, [rows for _, _, rows in parts]) and not self._goes_on():
            self.skipped += 1
            return False
        self._mark_training(pool for pool, _, _ in parts)
        self.steps += 1
        options = UpdateOptions(self.steps)
        self._apply(gradients, [rows for _, _, rows in parts], optimizers, options)
        return True

    @property
    def accumulating(self) -> bool:
        return self._accumulated is not None

    def accumulate(self) -> None:
        """From now on, backwards only add up row gradients."""
        if self._accumulated is not None:
            raise ConfigError(
                "gradients of this module are being accumulated already; leave the outer "
                "te.accumulate first"
            )
        self._accumulated = []

    def drop_accumulated(self) -> None:
        self._accumulated = None

    def accumulate_parts(self, parts: Sequence[PoolGradient], place: Place) -> None:
        """Notes what one forward got in a backward pass. place: (pass, forward), for the order in
        which gradients of a row are added. REQUIRES: accumulating."""
        assert self._accumulated is not None
        self._accumulated.append((place, {part.pool: self._sum(part) for part in parts}))

    def apply_accumulated(self, pools: Sequence[Pool]) -> None:
        """One update with the sum of all backwards since :meth:`accumulate`. ``pools``: all of the
        engine."""
        noted, self._accumulated = self._accumulated or [], None
        noted.sort(key=lambda entry: entry[0])
        sums = {pool: [s[pool] for _, s in noted if pool in s] for pool in pools}
        if noted:
            self._apply_sums({pool: mine for pool, mine in sums.items() if mine}, used=True)

    def _apply_sums(self, sums: Mapping[Pool, Sequence[PoolRows]], *, used: bool) -> bool:
        """One update with the sums of several forwards. used: staging the rows counts as a lookup.

        Returns whether rows were changed.
        """
        leases: list[Lease] = []
        changed = False
        try:
            parts = []
            for pool, mine in sums.items():
                segments, grad = _join(mine)
                leases.append(pool.scheduler.stage(segments))
                bags = Bags(pool.row_layout, None, None, len(grad))
                values = pool.kernel.values(torch.from_numpy(grad))
                parts.append(PoolGradient(pool, leases[-1], bags, values))
            changed = True  # whatever interrupts the next line, rows may have changed
            changed = self._update(parts, by_frequency=False)
        except (ConfigError, NonFiniteError, StoreError):
            changed = False
            raise
        finally:
            for lease in leases:
                lease.release(updated=changed, used=used)
        return changed

    def _sum(self, part: PoolGradient) -> PoolRows:
        plan = part.lease.plan
        kernel = part.pool.kernel
        rows = kernel.to_host(kernel.row_gradients(plan, part.bags, part.grad))
        if self.by_frequency:
            divide_by_counts(rows, plan.group_start)
        return PoolRows(plan.tables.copy(), plan.keys.copy(), rows)

    # --- one step -------------------------------------------------------------------------------

    def _update(self, parts: Sequence[PoolGradient], *, by_frequency: bool) -> bool:
        scaler = self.grad_scaler
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        optimizers = [self._optimizer_of(part) for part in parts]
        rows: list[Any] | None = None
        global_norm = any(o.clip_global_norm is not None for o in optimizers)
        if global_norm or not self._surely_finite(parts):
            rows = [p.pool.kernel.row_gradients(p.lease.plan, p.bags, p.grad) for p in parts]
            finite = self._finite(parts, rows)
            if scaler is not None:
                self._tell_scaler(finite, scale)
            if not finite and not self._goes_on():
                self.skipped += 1
                return False
        elif scaler is not None:
            self._tell_scaler(True, scale)
        self._mark_training(p.pool for p in parts)
        self.steps += 1
        options = UpdateOptions(self.steps, 1.0 / scale, by_frequency)
        if rows is None:
            for p, optimizer in zip(parts, optimizers, strict=True):
                kernel = p.pool.kernel
                kernel.update(p.lease.plan, p.bags, p.grad, optimizer, options, p.looked_up)
            return True
        self._apply(parts, rows, optimizers, options)
        return True

    def _apply(
        self,
        parts: Sequence[PoolGradient],
        rows: Sequence[Any],
        optimizers: Sequence[Optimizer],
        options: UpdateOptions,
    ) -> None:
        """The update with the row gradients of every pool, which are overwritten."""
        squares: dict[Optimizer | None, float] = {}  # by spec: each has a norm of its own
        for p, part, optimizer in zip(parts, rows, optimizers, strict=True):
            if not (optimizer.clips or options.scale != 1.0 or options.by_frequency):
                continue  # a pass over all gradients that would change none
            spec = p.pool.layout.optimizer
            of_part = p.pool.kernel.condition(p.lease.plan, part, optimizer, options)
            squares[spec] = squares.get(spec, 0.0) + of_part
        for p, part, optimizer in zip(parts, rows, optimizers, strict=True):
            factor = optimizer.global_factor(squares.get(p.pool.layout.optimizer, 0.0))
            p.pool.kernel.apply(p.lease.plan, part, optimizer, options.step, factor)

    def _mark_training(self, pools: Iterable[Pool]) -> None:
        """Rows are about to change."""
        for pool in pools:
            pool.mark_training()

    def _optimizer_of(self, part: PoolGradient) -> Optimizer:
        optimizer = self.optimizer_of(part.pool.layout)
        assert optimizer is not None  # the others have no part in an update
        return optimizer

    def _surely_finite(self, parts: Sequence[PoolGradient]) -> bool:
        """Whether the output's gradient alone shows that no row's sum can overflow."""
        if self._on_nonfinite == "allow" and self.grad_scaler is None:
            return True
        largest: dict[int, float] = {}  # pools may have columns of one gradient
        for p in parts:
            known = largest.get(id(p.grad))
            if known is None:
                known = largest[id(p.grad)] = p.pool.kernel.largest_magnitude(p.grad)
            bound = known * p.lease.plan.num_ids
            if p.bags.sample_weights is not None:
                bound *= p.pool.kernel.largest_magnitude(p.bags.sample_weights[None, :])
            if not bound < FLOAT32_MAX:
                return False
        return True

    def _finite(self, parts: Sequence[PoolGradient], rows: Sequence[Any]) -> bool:
        if self._on_nonfinite == "allow" and self.grad_scaler is None:
            return True
        return all(
            p.pool.kernel.largest_magnitude(part) <= FLOAT32_MAX
            for p, part in zip(parts, rows, strict=True)
        )

    def _goes_on(self) -> bool:
        if self.grad_scaler is not None:
            return False
        if self._on_nonfinite == "raise":
            raise NonFiniteError(
                f"in step {self.steps + 1} the gradient of a row is infinite or NaN; no row was "
                "changed. Pass on_nonfinite='skip' to skip such steps, or 'allow' to apply them"
            )
        if self.skipped == 0:
            _log.warning(
                "step %d: the gradient of a row is infinite or NaN; this step is skipped, and so "
                "is every later one like it: stats().skipped counts them",
                self.steps + 1,
            )
        return False

    def _tell_scaler(self, finite: bool, scale: float) -> None:
        # A finite backward must not erase what an earlier one of the same step has reported. That
        # step is over once the scale has changed: the scaler lowers it after a report.
        if not finite:
            self._lost_at = scale
        elif self.anchor.grad is None or self._lost_at != scale:
            self._lost_at = None
        lost = 0.0 if self._lost_at is None else float("inf")
        self.anchor.grad = torch.full_like(self.anchor, lost, requires_grad=False)


@dataclass(frozen=True)
class PoolRows:
    """Summed gradients: ``tables`` (U,), ``keys`` (U,), ``rows`` (U, D)."""

    tables: npt.NDArray[np.uint16]
    keys: npt.NDArray[np.int64]
    rows: F32


def _number(lr: object, layout: PoolLayout) -> float:
    """A scheduled learning rate.

    Raises:
        ConfigError: it is no number.
    """
    if isinstance(lr, (torch.Tensor, np.ndarray)) and lr.ndim <= 1 and len(lr.reshape(-1)) == 1:
        lr = lr.item()
    if isinstance(lr, np.generic):
        lr = lr.item()
    if isinstance(lr, bool) or not isinstance(lr, (int, float)):
        names = ", ".join(repr(name) for name, _ in layout.tables[:4])
        raise ConfigError(
            f"the learning rate of table {names} is {lr!r}; set the lr of its param_group to a "
            "number"
        )
    return float(min(lr, sys.float_info.max))  # an int may be larger than any float


def divide_by_counts(rows: F32, group_start: npt.NDArray[np.int32]) -> None:
    """Divides each row's gradient (U, D) by the number of its occurrences, in place."""
    with _native.StandardFloats():
        rows /= np.diff(group_start).astype(np.float32)[:, None]


def _join(backwards: Sequence[PoolRows]) -> tuple[list[Any], F32]:
    """Rows of several backwards as one batch with one row per bag: table after table, and in a
    table in the order of the backwards."""
    tables = np.concatenate([b.tables for b in backwards])
    order = np.argsort(tables, kind="stable")
    tables = tables[order]
    keys = np.concatenate([b.keys for b in backwards])[order]
    grad = np.ascontiguousarray(np.concatenate([b.rows for b in backwards])[order])
    bounds = np.flatnonzero(np.diff(tables)) + 1
    starts = [0, *bounds.tolist()] if len(tables) else []
    segments = [
        (int(tables[start]), np.ascontiguousarray(part))
        for start, part in zip(starts, np.split(keys, bounds), strict=False)
    ]
    return segments, grad
