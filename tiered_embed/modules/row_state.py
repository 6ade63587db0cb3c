"""Optimizer state of rows, with the step count that belongs to it, and torch's form of both.

Threading: as all tiered modules.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..engine import Engine
from ..errors import ConfigError
from ..optim import Optimizer

__all__ = ["RowState", "load_from_torch", "take_steps"]

# Arrays of torch's optimizers that are the same thing as ours. Whatever else they keep decides how
# they go on, and has no place here.
OURS = {
    "exp_avg": "exp_avg",
    "exp_avg_sq": "exp_avg_sq",
    "sum": "sum",
    "momentum_buffer": "momentum",
}


class RowState(dict[str, torch.Tensor]):
    """State arrays of rows by name, each (n, width) float32.

    steps: the updates of the module that they come from, which ``load_rows`` takes over. A pickle
    of it is a plain dict, without ``steps``.
    """

    def __init__(self, arrays: Mapping[str, torch.Tensor], engine: Engine) -> None:
        super().__init__(arrays)
        self.steps = engine.steps
        self.engine = weakref.ref(engine)

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return dict, (dict(self),)


def take_steps(engine: Engine, table: int, state: object, steps: int | None) -> int:
    """The step count of ``engine`` once ``state`` is loaded into rows of ``table``.

    Raises:
        ConfigError: ``steps`` is no count, or state of another module disagrees with rows that are
            trained here.
    """
    if steps is not None:
        if isinstance(steps, bool) or not isinstance(steps, int) or not 0 <= steps < 2**62:
            raise ConfigError(f"steps is {steps!r}; it must be an integer, 0 or more")
        return steps
    optimizer = engine.wiring.layouts[engine.wiring.places[table][0]].optimizer
    counts = optimizer is not None and _counts_steps(optimizer)
    if isinstance(state, RowState):
        if engine.steps == 0:
            return state.steps
        if counts and state.steps != engine.steps and state.engine() is not engine:
            raise ConfigError(
                f"the state comes from a module with {state.steps} updates, but this module has "
                f"had {engine.steps}, and its optimizer corrects by their number; pass "
                f"steps={engine.steps} to keep that of this module, or steps={state.steps}"
            )
    elif counts and engine.steps == 0 and isinstance(state, Mapping) and _any(state):
        name = engine.tables[table].name
        warnings.warn(
            f"state was loaded into table {name!r} of a module that counts no update yet, and its "
            "optimizer corrects by their number, so its first updates will be too large; pass "
            "steps= with the number of updates that made this state, or 0",
            UserWarning,
            stacklevel=3,
        )
    return engine.steps


def _counts_steps(optimizer: Optimizer) -> bool:
    """Whether the formula depends on the number of updates."""
    return optimizer.hyper(1) != optimizer.hyper(2)


def _any(state: Mapping[str, Any]) -> bool:
    return any(isinstance(part, torch.Tensor) and bool(part.any()) for part in state.values())


def _from_torch(
    engine: Engine, table: int, given: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], int | None]:
    """The state arrays (num_embeddings, width) of ``table``, and the step count, if there is one.

    Args:
        given: ``optimizer.state[weight]`` of one of torch's optimizers.

    Raises:
        ConfigError: the table's optimizer does not keep these arrays, or they have another shape.
    """
    config = engine.tables[table]
    layout = engine.wiring.layouts[engine.wiring.places[table][0]]
    wanted = {} if layout.optimizer is None else layout.optimizer.state_layout(layout.dim)
    if not isinstance(given, Mapping):
        raise ConfigError(f"state is a {type(given).__name__}; pass optimizer.state[weight]")
    arrays = {name: value for name, value in given.items() if name != "step" and value is not None}
    if {OURS.get(name) for name in arrays} != set(wanted) or not wanted:
        raise ConfigError(
            f"table {config.name!r}: the state has the arrays {sorted(arrays)}, but the optimizer "
            f"of the table keeps {sorted(wanted)}; pass the state of the same optimizer of torch "
            "(Adam, AdamW and SparseAdam without amsgrad, Adagrad, SGD with momentum)"
        )
    out = {}
    for name, value in arrays.items():
        shape = (config.num_embeddings, wanted[OURS[name]])
        if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
            found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ConfigError(f"table {config.name!r}: {name} is {found}; pass shape {shape}")
        if value.layout is not torch.strided or not value.is_floating_point():
            raise ConfigError(f"table {config.name!r}: {name} must be a dense float tensor")
        out[OURS[name]] = value.detach()
    step = given.get("step")
    return out, None if step is None else int(step)


def _touched(state: Mapping[str, torch.Tensor]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The ids of rows that have any state."""
    found = [part.ne(0).any(dim=1).cpu() for part in state.values()]
    return torch.stack(found).any(dim=0).nonzero().reshape(-1).numpy()


def load_from_torch(engine: Engine, table: int, given: Any, block: int) -> int | None:
    """Writes the state of one of torch's optimizers, ``block`` rows at a time; returns its step
    count, if there is one.

    Raises:
        ConfigError: as :func:`_from_torch`; nothing is written.
    """
    rows = engine.rows
    arrays, steps = _from_torch(engine, table, given)
    ids = _touched(arrays)
    for start in range(0, len(ids), block):
        some = ids[start : start + block]
        part = {name: value[some].float().cpu().numpy() for name, value in arrays.items()}
        stored = torch.from_numpy(rows.weights(table, some).reshape(-1)).view(rows.dtype(table))
        rows.load(table, some, stored.view(len(some), -1).float().numpy(), part)
    return steps
