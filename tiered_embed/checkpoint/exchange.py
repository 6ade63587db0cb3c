"""Gives a model other rows as one step: those of a checkpoint, or initial ones.

Every working store is replaced as ``store/replacing.py`` describes: a crash in between leaves a
model that refuses to train until it is restored.

Threading: the thread that trains the model.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from ..engine import Pool
from ..errors import StoreError
from ..store import Replacement
from .pools import pools_of, tiered_modules
from .restored import build_empty

__all__ = ["exchange", "start_anew"]

_log = logging.getLogger("tiered_embed")


def exchange(
    model: nn.Module,
    prepared: Sequence[tuple[Replacement, int]],
    what: str,
    fill: Callable[[], None],
) -> None:
    """Replaces the model's stores by ``prepared`` ones, each with the step count of its rows; then
    ``fill`` sets the rows of pools without a store.

    ``what`` is being done, for the error that the model raises where it failed midway.
    """
    modules = [module for _, module in tiered_modules(model)]
    why = StoreError(
        f"{what} failed midway, so the model has no rows; call te.checkpoint.load(model, path) "
        "again"
    )
    try:
        for module in modules:
            module.engine.discard(why)
        for replacement, _ in prepared:
            replacement.mark()
        for replacement, _ in prepared:
            replacement.exchange()
        for replacement, steps in prepared:
            replacement.finish(steps)
        for module in modules:
            module.engine.reopen()
        fill()
    except BaseException:
        for module in modules:
            module.engine.refuse(why)
        raise
    finally:
        for replacement, _ in prepared:
            replacement.abandon()


def start_anew(model: nn.Module, path: Path) -> None:
    """Gives every row of ``model`` its initial value, because nothing is committed in ``path``."""
    modules = [module for _, module in tiered_modules(model)]
    pools = [pool for _, _, pool in pools_of(model)]
    if not any(module.engine.steps for module in modules) and all(map(_is_new, pools)):
        return
    _log.warning(
        "nothing is committed in '%s', so the model starts anew, and what was trained so far of "
        "the tables %s is discarded",
        path,
        sorted(table.name for module in modules for table in module.engine.tables)[:8],
    )
    prepared: list[tuple[Replacement, int]] = []
    try:
        for pool in pools:
            if pool.store is None:
                continue
            replacement = Replacement(pool.store.path, [name for name, _ in pool.layout.tables])
            replacement.prepare()
            prepared.append((replacement, 0))
            build_empty(pool, replacement.restoring)
            replacement.seal(0)
    except BaseException:
        for replacement, _ in prepared:
            replacement.abandon()
        raise

    def fill() -> None:
        for module in modules:
            module.engine.set_steps(0)

    exchange(model, prepared, "starting anew", fill)


def _is_new(pool: Pool) -> bool:
    """Whether no row of the pool was ever trained or loaded."""
    if not pool.scheduler.condition.usable:
        return False
    with contextlib.suppress(StoreError):
        pool.scheduler.quiesce()
    if not pool.scheduler.condition.usable or len(pool.planner.dirty_rows()[1]):
        return False
    return not any(
        True for table in range(len(pool.layout.tables)) for _ in pool.materialised(table)
    )
