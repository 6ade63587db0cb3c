"""What acts on gradients outside the modules, so that it is noticed where it misses the rows.

A fused update needs every gradient when ``backward`` runs. Two things come from elsewhere:

- A loss that a ``GradScaler`` scaled has scaled gradients. Scalers tell nobody, so the class's
  ``scale`` is wrapped, once, when the first module that trains is made: the scaled loss says in its
  backward pass which scaler it was.
- What changes gradients between ``backward`` and an optimizer's step (clipping), or adds up several
  backwards (accumulation), does not reach rows that are updated already. torch's hooks show it on
  one parameter of each optimizer.

Threading: any thread; backward passes may run in several.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..errors import ConfigError
from ..optim import Optimizer
from .autograd_pass import at_end_of_pass, current_pass
from .touched import tables_of_parameter

__all__ = ["RowsWatch", "scaler_of_pass", "watch"]

_log = logging.getLogger("tiered_embed")
KEPT_PASSES = 64

_scalers: dict[int, weakref.ref[torch.amp.GradScaler]] = {}  # by backward pass, the newest last
_watches: weakref.WeakSet[RowsWatch] = weakref.WeakSet()
_watched: weakref.WeakKeyDictionary[torch.optim.Optimizer, _Watched] = weakref.WeakKeyDictionary()
_of_rows: weakref.WeakKeyDictionary[torch.optim.Optimizer, tuple[int, list[torch.Tensor]]]
_of_rows = weakref.WeakKeyDictionary()


@functools.cache  # once in a process
def watch() -> None:
    """From now on scalers and optimizers are watched."""
    register_optimizer_step_pre_hook(_before_step)
    scale = torch.amp.GradScaler.scale

    @functools.wraps(scale)
    def marking(self: torch.amp.GradScaler, outputs: Any) -> Any:
        scaled = scale(self, outputs)
        return _marked(scaled, weakref.ref(self)) if self.is_enabled() else scaled

    torch.amp.GradScaler.scale = marking  # type: ignore[method-assign]


# --- gradient scalers -----------------------------------------------------------------------------


def scaler_of_pass(number: int) -> torch.amp.GradScaler | None:
    """The scaler that scaled the loss of a backward pass; None: none did."""
    known = _scalers.get(number)
    return None if known is None else known()


def _marked(scaled: Any, scaler: weakref.ref[torch.amp.GradScaler]) -> Any:
    if isinstance(scaled, torch.Tensor):
        if scaled.requires_grad:
            scaled.register_hook(lambda _: _note_scaler(scaler))  # type: ignore[no-untyped-call]
        return scaled
    if isinstance(scaled, (list, tuple)):
        for part in scaled:
            _marked(part, scaler)
        return scaled
    return (_marked(part, scaler) for part in scaled)


def _note_scaler(scaler: weakref.ref[torch.amp.GradScaler]) -> None:
    _scalers[current_pass()] = scaler
    while len(_scalers) > KEPT_PASSES:
        _scalers.pop(next(iter(_scalers)), None)


# --- optimizers -----------------------------------------------------------------------------------


class RowsWatch:
    """Tells, once each, of what a trainer does that misses the rows of one engine.

    Args:
        names: of the tables, for messages.
        optimizers: of the rows. Where one of them clips, the clipping of the dense part is its own
            affair.
    """

    def __init__(self, names: str, optimizers: Sequence[Optimizer]) -> None:
        self._names = names
        self._updates: dict[int, int] = {}  # by pass, the update that it had a part in
        limits = ("clip_value", "clip_row_norm", "clip_global_norm")
        self._clips = any(getattr(o, name) is not None for o in optimizers for name in limits)
        self._adds = False  # it was said
        _watches.add(self)

    def note(self, number: int, update: int) -> None:
        """A backward pass has a part in an update of rows."""
        self._updates[number] = update
        while len(self._updates) > KEPT_PASSES:
            del self._updates[next(iter(self._updates))]

    def compare(self, passes: Iterable[int], changed: bool) -> None:
        """An optimizer steps with the gradients of ``passes``; ``changed``: since they ended."""
        mine = {self._updates[number] for number in passes if number in self._updates}
        if mine and changed and not self._clips:
            self._clips = True
            _log.warning(
                "the gradients of a model are changed between backward and the optimizer's step, "
                "as clip_grad_norm_ does, but the rows of table %s were updated by backward, with "
                "the gradients as they were. Pass clip_global_norm=, clip_row_norm= or clip_value= "
                "to the module's optimizer, or make the module with update='step'",
                self._names,
            )
        if len(mine) > 1 and not self._adds:
            self._adds = True
            _log.warning(
                "the optimizer steps with the sum of several backward passes, and they have "
                "updated the rows of table %s one by one, %d times. Put them inside "
                "te.accumulate(model), or make the module with update='step'; where no sum is "
                "meant, call zero_grad",
                self._names,
                len(mine),
            )
        if self._clips and self._adds:
            _watches.discard(self)


class _Watched:
    """The gradient of one parameter, which stands for all that an optimizer has."""

    def __init__(self, parameter: torch.Tensor) -> None:
        self.passes: list[int] = []  # whose gradients it adds up
        self.is_new = False  # added to since the optimizer's last step
        self._seen: tuple[int, int] | None = None  # (address, version) after the last pass
        self.hook = parameter.register_post_accumulate_grad_hook(self._added)  # type: ignore[no-untyped-call]
        self._parameter = weakref.ref(parameter)

    def _added(self, parameter: torch.Tensor) -> None:
        now = _identity(parameter)
        known = self._seen
        if known is None or now is None or now != (known[0], known[1] + 1):
            self.passes.clear()  # another gradient, or one that was zeroed
        self._seen = now
        self.is_new = True
        self.passes.append(current_pass())
        # Averages of several ranks come at the end of the pass, in calls like this one, and in
        # calls that those make.
        at_end_of_pass(lambda: at_end_of_pass(lambda: at_end_of_pass(self._look)))

    def _look(self) -> None:
        parameter = self._parameter()
        self._seen = None if parameter is None else _identity(parameter)

    @property
    def changed(self) -> bool:
        """Whether the gradient has changed since the last addition."""
        parameter = self._parameter()
        now = None if parameter is None else _identity(parameter)
        return now is not None and self._seen is not None and now != self._seen


def _identity(parameter: torch.Tensor) -> tuple[int, int] | None:
    grad = parameter.grad
    if grad is None or grad.layout is not torch.strided:
        return None
    return grad.data_ptr(), grad._version


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if getattr(optimizer, "of_rows", False):
        return
    _refuse_parameters_of_rows(optimizer)
    if not _watches:
        return
    known = _watched.get(optimizer)
    if known is None or not known.is_new:
        # The first step, or what was watched is frozen or unused by now.
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        with_gradient = (p for p in parameters if p.grad is not None and p.requires_grad)
        first = next(with_gradient, None)
        if known is not None and first is not None:
            known.hook.remove()
        if first is not None:
            _watched[optimizer] = _Watched(first)
        return
    known.is_new = False
    for rows in list(_watches):
        rows.compare(known.passes, known.changed)


def _refuse_parameters_of_rows(optimizer: torch.optim.Optimizer) -> None:
    size = sum(len(group["params"]) for group in optimizer.param_groups)
    known = _of_rows.get(optimizer)
    if known is None or known[0] != size:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        known = size, [p for p in parameters if tables_of_parameter(p) is not None]
        _of_rows[optimizer] = known
    for parameter in known[1]:
        if parameter.grad is not None:
            raise ConfigError(
                f"a {type(optimizer).__name__} steps the rows of table "
                f"{tables_of_parameter(parameter)}, which only te.row_optimizer can: the "
                "parameter stands for the rows that a step touches. Use "
                "te.row_optimizer(model, dense=optimizer) in its place"
            )
