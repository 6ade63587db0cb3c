"""``te.lr_optimizer``: a ``torch.optim.Optimizer`` for the fused updates of tiered modules.

Learning-rate schedulers and gradient scalers work on it as on any optimizer. The updates themselves
are the engine's: every backward reads the learning rate and the scale from here.

Threading: the thread that trains.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ..engine import Engine
from ..errors import ConfigError
from ..modules import TieredModule

__all__ = ["LearningRates", "lr_optimizer"]


# The optimizer that rows follow; a second one would take them from the first.
_made: weakref.WeakKeyDictionary[Engine, LearningRates] = weakref.WeakKeyDictionary()


class LearningRates(torch.optim.Optimizer):
    """The learning rates of a model's tiered modules, as a ``torch.optim.Optimizer``.

    One parameter group per trained module, with its ``lr``, which every backward reads, and its
    ``name``: the names of the tables. A module whose tables have different optimizers has one group
    for each of these. A table's ``lr_factor`` multiplies the ``lr`` of its group. Rows are updated
    by the backward itself: ``step`` does nothing to them.
    """

    of_rows = True  # others are watched for what misses the rows

    def __init__(self, model: nn.Module, grad_scaler: torch.amp.GradScaler | None = None) -> None:
        modules = [m for m in model.modules() if isinstance(m, TieredModule)]
        trained = [
            (m, m.engine.updates, spec)
            for m in modules
            if m.engine.updates is not None and m.engine.options.update == "backward"
            for spec in m.engine.updates.optimizers
        ]
        if not trained:
            raise ConfigError(
                "the model has no tiered module whose rows backward trains, so there is no "
                "learning rate to set; pass a model with a tiered module that has an optimizer. "
                "Modules with update='step' take te.row_optimizer"
            )
        groups = [
            {
                # A parameter may be in one group only: a module's first group has its anchor, which
                # tells a scaler of all its rows.
                "params": [
                    updates.anchor
                    if spec is updates.optimizers[0]
                    else torch.zeros_like(updates.anchor, requires_grad=True)
                ],
                "lr": spec.lr,
                "name": ", ".join(module.engine.tables_of(spec)),
            }
            for module, updates, spec in trained
        ]
        super().__init__(groups, {})
        for i, (module, updates, spec) in enumerate(trained):
            updates.follow(spec, partial(self._learning_rate, i))
            updates.grad_scaler = grad_scaler
            _made[module.engine] = self
        self._complete = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: ``step`` would train none of its parameters.

        Raises:
            ConfigError: always, once the optimizer is made.
        """
        if getattr(self, "_complete", False):
            raise ConfigError(
                "te.lr_optimizer trains no parameters of its own, so it takes no further group; "
                "give the dense parameters to a torch.optim optimizer"
            )
        super().add_param_group(param_group)

    def _learning_rate(self, group: int) -> object:
        return self.param_groups[group]["lr"]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Calls ``closure``, for loops that pass one; the backward in it updates the rows."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()


def lr_optimizer(
    model: nn.Module, grad_scaler: torch.amp.GradScaler | None = None
) -> torch.optim.Optimizer:
    """An optimizer for ``torch.optim.lr_scheduler`` and gradient scalers.

    ::

        rows = te.lr_optimizer(model, grad_scaler=scaler)
        scheduler = torch.optim.lr_scheduler.StepLR(rows, step_size=1000, gamma=0.5)
        ...
        scaler.scale(loss).backward()      # rows are unscaled, checked and updated here
        scaler.step(dense); scaler.step(rows); scaler.update(); scheduler.step()

    Rows have one learning rate, so a second call for the same modules returns the same optimizer.

    Args:
        model: holds the tiered modules.
        grad_scaler: row gradients are divided by its scale. Where one of them is infinite or NaN,
            the update is left out, and ``scaler.step(rows)`` makes the scaler lower its scale.

    Raises:
        ConfigError: the model has no tiered module that trains; some of them have an optimizer
            that was made for other modules too; or theirs has another gradient scaler.
    """
    trained = _trained(model)
    made = [_made[engine] for engine in trained if engine in _made]
    if not made:
        return LearningRates(model, grad_scaler)
    known = made[0]
    theirs = {engine for engine, rows in list(_made.items()) if rows is known}
    if theirs != set(trained):
        names = [group["name"] for group in known.param_groups]
        raise ConfigError(
            f"there is a te.lr_optimizer for the tables {names} already, and this call is for "
            "other modules too, or for some of these: a schedule of the first would be lost. Make "
            "one for the whole model, and set the lr of single tables in its param_groups"
        )
    for engine in trained if grad_scaler is not None else ():
        assert engine.updates is not None
        if engine.updates.grad_scaler not in (None, grad_scaler):
            raise ConfigError(
                "the te.lr_optimizer of this model has another grad_scaler already; pass that one"
            )
        engine.updates.grad_scaler = grad_scaler
    return known


def _trained(model: nn.Module) -> list[Engine]:
    """The engines of the modules whose rows ``backward`` trains."""
    engines = [m.engine for m in model.modules() if isinstance(m, TieredModule)]
    return [e for e in engines if e.updates is not None and e.options.update == "backward"]
