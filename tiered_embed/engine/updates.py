"""From gradients to updated rows: learning rate, gradient scaling, accumulation, and the decision
whether a step happens at all, which is made before any row changes.

The arithmetic is the kernels'. Threading: as the engine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError, NonFiniteError
from ..kernels import Bags, LookedUp, UpdateOptions
from ..optim import Optimizer
from ..tiers import PoolLayout
from .lease import Lease
from .pool import Pool

__all__ = ["PoolGradient", "Updates"]

F32 = npt.NDArray[np.float32]

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
        self._learning_rates: dict[Optimizer, Callable[[], float]] = {}
        # With the newest learning rate, by spec and factor; the same object while that stays.
        self._scheduled: dict[tuple[Optimizer, float], Optimizer] = {}
        self._by_frequency = by_frequency
        self._on_nonfinite = on_nonfinite
        self._accumulated: list[list[PoolRows]] | None = None  # per backward, per pool

    def follow(self, optimizer: Optimizer, learning_rate: Callable[[], float]) -> None:
        """From now on every backward asks ``learning_rate`` for the lr of this spec."""
        self._learning_rates[optimizer] = learning_rate

    def optimizer_of(self, layout: PoolLayout) -> Optimizer | None:
        """The spec of a pool with the pool's current learning rate; None: it is only read."""
        spec = layout.optimizer
        if spec is None:
            return None
        schedule = self._learning_rates.get(spec)
        lr = spec.lr if schedule is None else float(schedule())
        if layout.lr_factor != 1.0:
            lr *= layout.lr_factor
        key = spec, layout.lr_factor
        known = self._scheduled.get(key, spec)
        if lr != known.lr:
            known = self._scheduled[key] = replace(spec, lr=lr)
        return known

    def run(self, parts: Sequence[PoolGradient]) -> bool:
        """One backward: updates the rows, or notes their gradients while accumulating.

        Returns whether rows were changed.

        Raises:
            NonFiniteError: and no row has changed.
        """
        if self._accumulated is not None:
            self._accumulated.append([self._sum(part) for part in parts])
            return False
        return self._update(parts, by_frequency=self._by_frequency)

    # --- accumulation ---------------------------------------------------------------------------

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

    def apply_accumulated(self, pools: Sequence[Pool]) -> None:
        """One update with the sum of all backwards since :meth:`accumulate`. ``pools``: all of the
        engine."""
        backwards, self._accumulated = self._accumulated or [], None
        if not backwards:
            return
        leases: list[Lease] = []
        changed = False
        try:
            parts = []
            for p, pool in enumerate(pool for pool in pools if pool.layout.trains):
                segments, grad = _join([backward[p] for backward in backwards])
                leases.append(pool.scheduler.stage(segments))
                bags = Bags(pool.row_layout, None, None, len(grad))
                values = pool.kernel.values(torch.from_numpy(grad))
                parts.append(PoolGradient(pool, leases[-1], bags, values))
            changed = True  # whatever interrupts the next line, rows may have changed
            changed = self._update(parts, by_frequency=False)
        except (ConfigError, NonFiniteError):
            changed = False
            raise
        finally:
            for lease in leases:
                lease.release(updated=changed)

    def _sum(self, part: PoolGradient) -> PoolRows:
        plan = part.lease.plan
        kernel = part.pool.kernel
        rows = kernel.to_host(kernel.row_gradients(plan, part.bags, part.grad))
        if self._by_frequency:
            rows /= np.diff(plan.group_start).astype(np.float32)[:, None]
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
        self.steps += 1
        options = UpdateOptions(self.steps, 1.0 / scale, by_frequency)
        if rows is None:
            for p, optimizer in zip(parts, optimizers, strict=True):
                kernel = p.pool.kernel
                kernel.update(p.lease.plan, p.bags, p.grad, optimizer, options, p.looked_up)
            return True
        squares: dict[Optimizer | None, float] = {}  # by spec: each has a norm of its own
        for p, part, optimizer in zip(parts, rows, optimizers, strict=True):
            spec = p.pool.layout.optimizer
            of_part = p.pool.kernel.condition(p.lease.plan, part, optimizer, options)
            squares[spec] = squares.get(spec, 0.0) + of_part
        for p, part, optimizer in zip(parts, rows, optimizers, strict=True):
            factor = optimizer.global_factor(squares[p.pool.layout.optimizer])
            p.pool.kernel.apply(p.lease.plan, part, optimizer, self.steps, factor)
        return True

    def _optimizer_of(self, part: PoolGradient) -> Optimizer:
        optimizer = self.optimizer_of(part.pool.layout)
        assert optimizer is not None  # the others have no part in an update
        return optimizer

    def _surely_finite(self, parts: Sequence[PoolGradient]) -> bool:
        """Whether the output's gradient alone shows that no row's sum can overflow."""
        if self._on_nonfinite == "allow" and self.grad_scaler is None:
            return True
        for p in parts:
            bound = p.pool.kernel.largest_magnitude(p.grad) * p.lease.plan.num_ids
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
