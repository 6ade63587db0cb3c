"""Selections of settings in which every possible pair (triple, ...) of values occurs."""

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

Choice = tuple[Any, ...]


def parts(choice: Choice, strength: int) -> set[Choice]:
    """What one choice covers: every ``strength`` of its values, with their places."""
    return set(itertools.combinations(enumerate(choice), strength))


def possible(
    values: Sequence[Sequence[Any]],
    strength: int = 2,
    allowed: Callable[[Choice], bool] | None = None,
) -> set[Choice]:
    """All that any allowed choice covers; without ``allowed`` any is."""
    if allowed is not None:
        every = (c for c in itertools.product(*values) if allowed(c))
        return set().union(*(parts(c, strength) for c in every))
    placed = [[(place, value) for value in v] for place, v in enumerate(values)]
    several = itertools.combinations(placed, strength)
    return {part for some in several for part in itertools.product(*some)}


def covering(
    values: Sequence[Sequence[Any]],
    seed: int,
    strength: int = 2,
    allowed: Callable[[Choice], bool] | None = None,
) -> list[Choice]:
    """A seeded, greedy selection of choices, one of each of ``values``, that covers everything."""
    draw = random.Random(seed)
    missing = possible(values, strength, allowed)
    order = sorted(missing, key=repr)
    draw.shuffle(order)
    chosen: list[Choice] = []
    for wanted in order:
        if wanted not in missing:
            continue
        candidates = []
        while len(candidates) < 24:
            choice = [draw.choice(v) for v in values]
            for place, value in wanted:
                choice[place] = value
            if allowed is None or allowed(tuple(choice)):
                candidates.append(tuple(choice))
        best = max(candidates, key=lambda c: len(parts(c, strength) & missing))
        chosen.append(best)
        missing -= parts(best, strength)
    return chosen
