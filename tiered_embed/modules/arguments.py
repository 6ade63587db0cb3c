"""What callers pass: arguments of one feature, ids and values of rows. Threading: any thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError
from .tracing import refuse_tracing

__all__ = ["BAG_ARGUMENTS", "arguments", "float_values", "row_ids"]

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


def row_ids(ids: object) -> npt.NDArray[np.int64]:
    """1-D integers (n,) as int64.

    Raises:
        ConfigError: they are something else, or beyond int64.
    """
    refuse_tracing((ids,) if isinstance(ids, torch.Tensor) else ())
    if isinstance(ids, torch.Tensor):
        if ids.is_nested:
            raise ConfigError("ids are a nested tensor; pass 1-D integers")
        if ids.is_meta:
            raise ConfigError(
                "ids are on the meta device, which holds no values; pass a tensor on the CPU"
            )
        if ids.layout is not torch.strided or ids.dtype.is_floating_point or ids.dtype.is_complex:
            raise ConfigError(f"ids are {ids.dtype} with layout {ids.layout}; pass 1-D integers")
        ids = ids.numpy(force=True)
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ConfigError(f"ids are {array.dtype} with shape {array.shape}; pass 1-D integers")
    if array.dtype == np.uint64 and array.size and array.max() > np.uint64(2**63 - 1):
        raise ConfigError(
            f"ids go up to {array.max()}, which is beyond int64; view them as int64 first"
        )
    return np.ascontiguousarray(array.astype(np.int64))


def float_values(
    what: str, values: object, allowed: tuple[torch.dtype, ...] = (torch.float32,)
) -> npt.NDArray[np.float32]:
    """A dense tensor of one of the ``allowed`` dtypes as float32; ``what`` names it in messages.

    Raises:
        ConfigError: it is something else.
    """
    refuse_tracing((values,) if isinstance(values, torch.Tensor) else ())
    if not isinstance(values, torch.Tensor) or values.dtype not in allowed:
        kind = values.dtype if isinstance(values, torch.Tensor) else type(values).__name__
        raise ConfigError(f"{what} are {kind}; pass a {' or '.join(map(str, allowed))} tensor")
    if values.is_nested:
        raise ConfigError(f"{what} are a nested tensor; pass a dense one")
    if values.layout is not torch.strided:
        raise ConfigError(f"{what} have layout {values.layout}; pass a dense tensor")
    if values.is_meta:
        raise ConfigError(
            f"{what} are on the meta device, which holds no values; pass a tensor on the CPU"
        )
    out: npt.NDArray[np.float32] = values.detach().to(torch.float32).contiguous().numpy(force=True)
    return out
