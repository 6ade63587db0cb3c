"""The arguments of one feature, however a caller holds them together. Threading: any thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import ConfigError

__all__ = ["BAG_ARGUMENTS", "arguments"]

BAG_ARGUMENTS = ("indices", "offsets", "per_sample_weights")


def arguments(where: str, value: Any, names: Sequence[str]) -> tuple[Any, ...]:
    """What ``value`` gives for each of ``names``, in their order; None where it gives nothing.

    A tuple holds the arguments, and so does a list of tensors: a ``DataLoader`` makes lists of the
    tuples that its dataset yields. Anything else is the first argument.

    Raises:
        ConfigError: there are more of them than ``names``.
    """
    together = isinstance(value, tuple) or (
        isinstance(value, list)
        and bool(value)
        and all(part is None or isinstance(part, torch.Tensor) for part in value)
    )
    given = tuple(value) if together else (value,)
    if len(given) > len(names):
        raise ConfigError(
            f"{where} was given {len(given)} tensors; pass at most {len(names)}: "
            f"({', '.join(names)})"
        )
    return (*given, *[None] * (len(names) - len(given)))
