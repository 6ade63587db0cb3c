"""Who else holds a weight that ``te.swap`` has replaced: what they do no longer reaches the rows.

It asks Python's garbage collector, so it sees lists, dicts, objects and optimizers, but not the
local variables of functions that run.

Threading: the caller's thread.
"""

from __future__ import annotations

import gc
import types
from collections.abc import Collection, Sequence
from typing import Any

import torch

__all__ = ["holders"]

MOST_LEVELS = 4
CONTAINERS = (list, tuple, dict, set, frozenset, types.CellType)


def holders(weights: Sequence[torch.Tensor], known: Collection[int]) -> list[list[str]]:
    """For each weight, the names of the types of what holds it.

    Args:
        known: ids of objects that may hold them: what the caller itself has made, and the modules
            that are replaced.
    """
    found: list[dict[str, None]] = [{} for _ in weights]
    # What is to be asked for, and which weights are in it. One search of the heap for each level.
    level: dict[int, tuple[Any, set[int]]] = {id(w): (w, {i}) for i, w in enumerate(weights)}
    seen = {id(weights), id(level), *known, *level, *map(id, level.values())}
    for _ in range(MOST_LEVELS):
        above: dict[int, tuple[Any, set[int]]] = {}
        asked = [held for held, _ in level.values()]
        for holder in gc.get_referrers(*asked):
            if holder is asked or id(holder) in seen or isinstance(holder, types.FrameType):
                continue
            inside = [level[id(part)][1] for part in gc.get_referents(holder) if id(part) in level]
            mine = set().union(*inside)
            if isinstance(holder, CONTAINERS):
                above[id(holder)] = holder, mine
                continue
            for i in mine:
                found[i][_describe(holder)] = None
        seen.update(above, map(id, above.values()), (id(above), id(asked)))
        level = above
        if not level:
            break
    return [sorted(names) for names in found]


def _describe(holder: Any) -> str:
    if isinstance(holder, types.ModuleType):
        return f"the Python module {holder.__name__}"
    if isinstance(holder, types.FunctionType):
        return f"the function {holder.__qualname__}"
    return type(holder).__name__
