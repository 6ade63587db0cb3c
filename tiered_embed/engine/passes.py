"""When the gradients of a backward pass reach the rows.

A pass may run the backward of several forwards: two towers that share a module, a module that is
called twice. Their row gradients are added up, forward after forward, and make one update at the
end of the pass. Where no other forward waits for its backward, the pass holds this one alone, and
rows are updated at once.

With ``update="step"`` the sums go to the parameters of ``touched.py`` at the end of the pass, and
reach the rows when :meth:`Passes.apply` is called.

Threading: as the engine.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from ..errors import CapacityError, ConfigError, NonFiniteError, StoreError
from .autograd_pass import NO_PASS, at_end_of_pass, current_pass, keeps_graph
from .lease import Lease
from .outside import RowsWatch, scaler_of_pass
from .phases import Phases
from .pool import Pool
from .step import Step
from .touched import RowGradients, TouchedRows
from .updates import PoolGradient, Updates, divide_by_counts

__all__ = ["Passes"]

_log = logging.getLogger("tiered_embed")


class Given(NamedTuple):
    """What one forward gets in a pass. kept: its backward may run again."""

    step: Step
    parts: list[PoolGradient]
    kept: bool


class Passes:
    """The backward passes of one engine, and its forwards that wait for one.

    Args:
        touched: per pool, None where its rows never train.
        at_once: rows are updated by backward; else by :meth:`apply`.
        names: of the tables, for messages.
    """

    def __init__(
        self,
        updates: Updates,
        touched: Sequence[TouchedRows | None],
        phases: Phases,
        *,
        at_once: bool,
        names: str,
    ) -> None:
        self._updates = updates
        self._touched = [t for t in touched if t is not None]
        self._of_pool = touched
        self._phases = phases
        self._at_once = at_once
        self._names = names
        self._watch = RowsWatch(names, updates.optimizers) if at_once else None
        # Forwards whose backward may come. What they read is kept if rows change before.
        self._open: weakref.WeakSet[Step] = weakref.WeakSet()
        self._given: dict[int, list[Given]] = {}  # by pass, until it ends
        self._updated_at: float | None = None  # the last update's end
        self._may_repeat = False  # forwards without gradients may be repeated inside a pass
        self._never_applied = 0  # passes, while nobody has promised to apply them

    # --- forwards ---------------------------------------------------------------------------------

    def prepare(self) -> None:
        """A forward is about to take slots."""
        if current_pass() == NO_PASS:
            # What is left is of passes that failed.
            for given in self._given.values():
                for g in given:
                    self._finish(g.step, updated=False)
            self._given.clear()
        for touched in self._touched:
            touched.yield_slots()

    def add(self, step: Step) -> None:
        """A forward that may be differentiated."""
        self._open.add(step)
        step.within = current_pass()
        if step.within != NO_PASS:
            # torch.utils.checkpoint repeats this forward inside a backward pass, and may run its
            # backward in a pass of its own, which is a part of that one.
            self._collect(step.within)

    def note_repeatable(self) -> None:
        """A forward of a module that trains, without gradients: ``torch.utils.checkpoint`` makes
        such ones, and repeats them inside the backward pass."""
        self._may_repeat = True

    def check_scaler(self, step: Step) -> None:
        """Raises unless the rows know of the scaler that scaled the running pass's loss, if any.

        Raises:
            ConfigError: they do not.
        """
        if not self._at_once or not any(step.trains):
            return
        scaler = scaler_of_pass(current_pass()) or scaler_of_pass(step.within)
        if scaler is not None and scaler is not self._updates.grad_scaler:
            raise ConfigError(
                f"this loss was scaled by {scaler.get_scale():g}, and the rows of table "
                f"{self._names} do not know the GradScaler that did it: they would move that many "
                "times too far. Pass it to te.lr_optimizer(model, grad_scaler=scaler) and call "
                "scaler.step() with that optimizer, too; or make the module with update='step' "
                "and te.row_optimizer(model)"
            )

    # --- backwards --------------------------------------------------------------------------------

    def take(self, step: Step, parts: list[PoolGradient]) -> None:
        """The backward of one forward: ``parts``, of the pools that train by it; may be empty.

        Raises:
            NonFiniteError: and no row has changed.
        """
        number = current_pass() if step.within == NO_PASS else step.within
        kept = current_pass() != NO_PASS and keeps_graph()
        if not parts:
            if not kept:
                self._finish(step, updated=False)
            return
        given = Given(step, parts, kept)
        if number == NO_PASS or (self._at_once and self._is_alone(step, number)):
            self._end([given])
            return
        if number not in self._given:
            self._collect(number)
        self._given[number].append(given)

    def _is_alone(self, step: Step, number: int) -> bool:
        """Whether the pass can have no other forward of this engine, or they need not wait."""
        if self._updates.accumulating:
            return True
        if self._may_repeat or number in self._given:
            return False
        return len(self._open) <= (step in self._open)

    def _collect(self, number: int) -> None:
        """Gathers what forwards get in the running pass, until it ends."""
        if number in self._given:
            return
        self._given[number] = []
        at_end_of_pass(partial(self._end_pass, number))

    def _end_pass(self, number: int) -> None:
        self._may_repeat = False
        given = self._given.pop(number, None)
        if given:
            self._end(sorted(given, key=lambda g: g.step.number))

    def _end(self, given: list[Given]) -> None:
        """The pass is over, or holds no more than this."""
        if not self._at_once:
            self._deliver(given)
        elif self._updates.accumulating:
            self._accumulate(given)
        else:
            self._update(given)

    def _update(self, given: list[Given]) -> None:
        self._keep_rows([g.step for g in given])
        updated = True  # whatever interrupts the next lines, rows may have changed
        joined = len(given) > 1
        try:
            with self._phases.time("update"):
                if joined:
                    updated = self._updates.run_joined([g.parts for g in given])
                else:
                    updated = self._updates.run(given[0].parts)
        except (ConfigError, NonFiniteError, StoreError):
            updated = False
            raise
        finally:
            for g in given:
                self._finish(g.step, updated=updated and not joined)
        if updated and self._watch is not None:
            self._watch.note(current_pass(), self._updates.steps)
        self._note_time()

    def apply_accumulated(self, pools: Sequence[Pool]) -> None:
        """As :meth:`Updates.apply_accumulated`."""
        self._keep_rows()
        self._updates.apply_accumulated(pools)

    def _accumulate(self, given: list[Given]) -> None:
        for g in given:
            with self._phases.time("update"):
                self._updates.accumulate_parts(g.parts, (current_pass(), g.step.number))
            if self._watch is not None:
                self._watch.note(current_pass(), self._updates.steps + 1)
            if not g.kept:
                self._finish(g.step, updated=False)

    def _finish(self, step: Step, *, updated: bool) -> None:
        self._open.discard(step)
        step.release(updated=updated)

    def _keep_rows(self, but: Sequence[Step] = ()) -> None:
        """Rows are about to change: forwards whose backward is to come keep what they read."""
        if len(self._open) <= sum(step in self._open for step in but):
            return
        for step in list(self._open):
            if step.needs_rows and all(step is not other for other in but):
                step.keep()

    def _note_time(self) -> None:
        now = time.perf_counter()
        if self._updated_at is not None:
            self._phases.add("step", now - self._updated_at)
        self._updated_at = now

    # --- update="step" ----------------------------------------------------------------------------

    def _deliver(self, given: list[Given]) -> None:
        """The pass's row gradients go to the parameters."""
        with self._phases.time("update"):
            for p, touched in enumerate(self._of_pool):
                rows = [
                    self._row_gradients(part, g.kept, g.step.changed)
                    for g in given
                    for part in g.parts
                    if part.pool is g.step.pools[p]
                ]
                if touched is not None and rows:
                    touched.add(rows)
            for g in given:
                if not g.kept:
                    self._open.discard(g.step)
                    g.step.release(updated=False, but=[part.lease for part in g.parts])
        if self._never_applied >= 0:
            self._never_applied += 1
            if self._never_applied == 3:
                _log.warning(
                    "three backward passes have given gradients to the rows of table %s, and none "
                    "was applied: update='step' needs te.row_optimizer(model), and its .step()",
                    self._names,
                )

    def _row_gradients(self, part: PoolGradient, kept: bool, changed: bool) -> RowGradients:
        plan, kernel = part.lease.plan, part.pool.kernel
        rows = kernel.row_gradients(plan, part.bags, part.grad)
        tensor = torch.as_tensor(rows)
        if self._updates.by_frequency and tensor.is_cpu:
            divide_by_counts(tensor.numpy(), plan.group_start)
        elif self._updates.by_frequency:
            counts = np.diff(plan.group_start).astype(np.float32)
            tensor /= torch.from_numpy(counts).to(tensor.device)[:, None]
        lease = None if kept else part.lease
        return RowGradients(plan.tables, plan.keys, tensor, plan.slots, lease, changed)

    def will_be_applied(self) -> None:
        """Somebody calls :meth:`apply`, sooner or later."""
        self._never_applied = -1

    def apply(self) -> bool:
        """One update with the gradients of the parameters; returns whether rows were changed.

        Parameters without a gradient are left out; where all are, nothing happens.

        Raises:
            NonFiniteError, ConfigError, CapacityError: and no row has changed.
        """
        ready = [touched for touched in self._touched if touched.has_gradient]
        if not ready:
            return False
        self._keep_rows()
        leases: list[Lease] = []
        changed = False
        try:
            with self._phases.time("update"):
                parts = []
                for touched in ready:
                    lease, rows = touched.rows_to_apply()
                    leases.append(lease)
                    parts.append((touched.pool, lease, rows))
                changed = True  # whatever interrupts the next line, rows may have changed
                changed = self._updates.apply_rows(parts)
        except (CapacityError, ConfigError, NonFiniteError, StoreError):
            changed = False
            raise
        finally:
            for touched, lease in zip(ready, leases, strict=False):
                touched.applied(lease, updated=changed)
        self._note_time()
        return changed

    def drop(self) -> None:
        """As ``zero_grad``: the gradients of the parameters are gone, and their rows unpinned."""
        for touched in self._touched:
            touched.drop()

    def reopen(self, pools: Sequence[Pool]) -> None:
        """Other rows replace these: no backward of the forwards so far may change them."""
        for step in list(self._open):
            step.release(updated=False)
        self._open.clear()
        self._given.clear()
        self._updated_at = None
        self.drop()
        for pool, touched in zip(pools, self._of_pool, strict=True):
            if touched is not None:
                touched.pool = pool
