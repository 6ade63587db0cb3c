"""``te.row_optimizer``: the optimizer that applies the gradients of modules with ``update="step"``.

The gradients are those of the modules' parameters, as clipping, gradient scalers and accumulation
have left them; the engines apply them with their fused kernels.

Threading: the thread that trains.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ..engine import Engine, tables_of_parameter
from ..errors import ConfigError
from ..modules import TieredModule

__all__ = ["RowOptimizer", "row_optimizer"]


class RowOptimizer(torch.optim.Optimizer):
    """Applies the gradients of a model's tiered modules, and of its dense part where that is given.

    ``param_groups`` has those of ``dense`` first. Then there is one for each optimizer of each
    module, with its ``lr``, which ``step`` reads, and its ``name``: the names of the tables. A
    table's ``lr_factor`` multiplies the ``lr`` of its group. Other hyperparameters are those of the
    module's own optimizer. Its state is in the rows, not in ``state``.
    """

    of_rows = True  # others must not step the parameters of touched rows

    def __init__(self, model: nn.Module, dense: torch.optim.Optimizer | None = None) -> None:
        self._dense: torch.optim.Optimizer | None = None
        modules = [m for m in model.modules() if isinstance(m, TieredModule)]
        self._engines: list[Engine] = [
            m.engine
            for m in modules
            if m.engine.updates is not None and m.engine.options.update == "step"
        ]
        if not self._engines:
            raise ConfigError(
                "the model has no tiered module that trains with update='step', so there are no "
                "gradients to apply; make its modules with update='step', or use te.lr_optimizer "
                "for those whose rows backward updates"
            )
        if dense is not None and not isinstance(dense, torch.optim.Optimizer):
            raise ConfigError(
                f"dense is a {type(dense).__name__}; pass the torch optimizer of the dense part"
            )
        followed = [
            (engine, spec)
            for engine in self._engines
            if engine.updates is not None
            for spec in engine.updates.optimizers
        ]
        groups = [
            {
                "params": [
                    touched.parameter
                    for touched in engine.touched
                    if touched is not None and touched.pool.layout.optimizer == spec
                ],
                "lr": spec.lr,
                "name": ", ".join(engine.tables_of(spec)),
            }
            for engine, spec in followed
        ]
        super().__init__(groups, {})
        self._followed = followed
        for engine in self._engines:
            assert engine.passes is not None
            engine.passes.will_be_applied()
        if dense is not None:
            self._join(dense)

    def _join(self, dense: torch.optim.Optimizer) -> None:
        for group in dense.param_groups:  # model.parameters() has those of the rows, too
            group["params"] = [p for p in group["params"] if tables_of_parameter(p) is None]
        self._dense = dense
        self.param_groups = [*dense.param_groups, *self.param_groups]
        self.state = dense.state
        self.defaults = dense.defaults

    @property
    def _num_dense(self) -> int:
        return len(self.param_groups) - len(self._followed)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the rows, then the dense part; ``closure`` runs first, with gradients on.

        Raises:
            NonFiniteError, ConfigError, CapacityError: as ``backward`` of a module that updates its
                rows there. No row of the module in question has changed; modules before it have
                been updated.
        """
        out = None
        if closure is not None:
            with torch.enable_grad():
                out = closure()
        for i, (engine, spec) in enumerate(self._followed):
            assert engine.updates is not None
            engine.updates.follow(spec, partial(self._learning_rate, i))
        for engine in self._engines:
            engine.check_learning_rates()  # of all, before any row changes
        for engine in self._engines:
            assert engine.passes is not None
            engine.passes.apply()
        if self._dense is not None:
            self._dense.step()
        return out

    def _learning_rate(self, followed: int) -> object:
        return self.param_groups[self._num_dense + followed]["lr"]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients of the rows, whatever ``set_to_none`` says, and unpins the rows."""
        super().zero_grad(set_to_none)
        for engine in self._engines:
            assert engine.passes is not None
            engine.passes.drop()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the optimizer of the dense part.

        Raises:
            ConfigError: there is none.
        """
        if not hasattr(self, "_followed"):  # torch's constructor adds the groups of the rows
            super().add_param_group(param_group)
            return
        if self._dense is None:
            raise ConfigError(
                "te.row_optimizer(model) only has the rows; pass dense=, an optimizer that takes "
                "other parameters"
            )
        self._dense.add_param_group(param_group)
        self.param_groups.insert(self._num_dense, self._dense.param_groups[-1])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what ``state_dict`` returned: learning rates, and the dense part's state."""
        super().load_state_dict(state_dict)
        if self._dense is not None:
            groups = self.param_groups[: self._num_dense]
            self._dense.__setstate__({"state": self.state, "param_groups": groups})
            self.state = self._dense.state


def row_optimizer(model: nn.Module, dense: torch.optim.Optimizer | None = None) -> RowOptimizer:
    """The optimizer of the rows of modules with ``update="step"``.

    ::

        optimizer = te.row_optimizer(model, dense=torch.optim.AdamW(model.parameters(), lr=1e-3))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    Args:
        model: holds the tiered modules.
        dense: the optimizer of the other parameters, for trainers that take one optimizer. It
            steps with the rows, and the parameters of the rows are taken out of it.

    Raises:
        ConfigError: the model has no module that trains with ``update="step"``.
    """
    return RowOptimizer(model, dense)
