"""``te.accumulate``: several backwards of a model make one update of its rows.

It only begins and ends the accumulation of every tiered module; each engine keeps the sums.

Threading: the thread that trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..modules import TieredModule

__all__ = ["accumulate"]


@contextmanager
def accumulate(model: nn.Module) -> Iterator[None]:
    """Sums the row gradients of the backwards inside, and updates every row once on leaving.

    Row gradients are added in the order of the backwards, so the result does not depend on tiers.
    Learning rate and gradient scale are those at the end. An exception drops the sums. Modules with
    ``update="step"`` accumulate by themselves until their gradients are dropped.

    Raises:
        ConfigError: the model accumulates already.
        NonFiniteError: on leaving, as from a backward. Modules before the one that failed have been
            updated.
    """
    engines = [m.engine for m in model.modules() if isinstance(m, TieredModule)]
    trained = [
        (engine, engine.updates, engine.passes)
        for engine in engines
        if engine.updates is not None
        and engine.passes is not None
        and engine.options.update == "backward"
    ]
    begun = []
    try:
        for engine, updates, passes in trained:
            updates.accumulate()
            begun.append((engine, updates, passes))
        yield
        for engine, _, passes in begun:
            passes.apply_accumulated(engine.pools)
    finally:
        for _, updates, _ in begun:
            updates.drop_accumulated()
