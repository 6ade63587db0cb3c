"""What a training loop asks of a whole model: learning rates, and summed gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..modules import TieredModule

__all__ = ["RowOptimizer", "accumulate", "lr_optimizer"]


class RowOptimizer(torch.optim.Optimizer):
    """A ``torch.optim.Optimizer`` over the fused updates of a model's tiered modules.

    One parameter group per trained module, with its ``lr``, which every backward reads, and its
    ``name``. Rows are updated by the backward itself: ``step`` does nothing to them.
    """

    def __init__(self, model: nn.Module, grad_scaler: torch.amp.GradScaler | None = None) -> None:
        modules = [m for m in model.modules() if isinstance(m, TieredModule)]
        trained = [(m, m.engine.updates) for m in modules if m.engine.updates is not None]
        if not trained:
            raise ConfigError(
                "the model has no tiered module that trains: nothing has a learning rate here"
            )
        groups = [
            {
                "params": [updates.anchor],
                "lr": updates.optimizer.lr,
                "name": ", ".join(table.name for table in module.engine.tables),
            }
            for module, updates in trained
        ]
        super().__init__(groups, {})
        for i, (_, updates) in enumerate(trained):
            updates.learning_rate = lambda i=i: self.param_groups[i]["lr"]
            updates.grad_scaler = grad_scaler

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Calls ``closure``, for loops that pass one; the backward in it updates the rows."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()


def lr_optimizer(
    model: nn.Module, grad_scaler: torch.amp.GradScaler | None = None
) -> torch.optim.Optimizer:
    """A face for ``torch.optim.lr_scheduler`` and gradient scalers.

    ::

        rows = te.lr_optimizer(model, grad_scaler=scaler)
        scheduler = torch.optim.lr_scheduler.StepLR(rows, step_size=1000, gamma=0.5)
        ...
        scaler.scale(loss).backward()      # rows are unscaled, checked and updated here
        scaler.step(dense); scaler.step(rows); scaler.update(); scheduler.step()

    Args:
        model: holds the tiered modules.
        grad_scaler: its scale is divided out of the rows' gradients; where one of them is infinite
            or NaN the update is left out, and ``scaler.step(rows)`` tells the scaler.

    Raises:
        ConfigError: no tiered module that trains.
    """
    return RowOptimizer(model, grad_scaler)


@contextmanager
def accumulate(model: nn.Module) -> Iterator[None]:
    """Backwards inside sum row gradients; leaving updates every row once, with its sum.

    Row gradients are added in the order of the backwards, so that the result does not depend on
    tiers. Learning rate and gradient scale are those of the end. An exception drops the sums.

    Raises:
        ConfigError: the model accumulates already.
        NonFiniteError: on leaving, as a backward; modules before the failing one have updated.
    """
    runtimes = [m.engine for m in model.modules() if isinstance(m, TieredModule)]
    trained = [(r, r.updates) for r in runtimes if r.updates is not None]
    begun = []
    try:
        for runtime, updates in trained:
            updates.accumulate()
            begun.append((runtime, updates))
        yield
        for runtime, updates in begun:
            updates.apply_accumulated(runtime.pools)
    finally:
        for _, updates in begun:
            updates.drop_accumulated()
