"""``te.lr_optimizer``: a ``torch.optim.Optimizer`` for the fused updates of tiered modules.

Learning-rate schedulers and gradient scalers work on it as on any optimizer. The updates themselves
are the engine's: every backward reads the learning rate and the scale from here.

Threading: the thread that trains.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..modules import TieredModule

__all__ = ["LearningRates", "lr_optimizer"]


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
        for i, (_, updates, spec) in enumerate(trained):
            updates.follow(spec, partial(self._learning_rate, i))
            updates.grad_scaler = grad_scaler

    def _learning_rate(self, group: int) -> float:
        return float(self.param_groups[group]["lr"])

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

    Args:
        model: holds the tiered modules.
        grad_scaler: row gradients are divided by its scale. Where one of them is infinite or NaN,
            the update is left out, and ``scaler.step(rows)`` makes the scaler lower its scale.

    Raises:
        ConfigError: the model has no tiered module that trains.
    """
    return LearningRates(model, grad_scaler)
