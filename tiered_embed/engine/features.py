"""Checks what a caller passes, and brings it into one form; changes nothing.

Threading: pure functions; any thread.

Legend: ``N`` ids of a feature, ``B`` bags.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .. import _native
from ..errors import ConfigError, IdRangeError

__all__ = ["Feature", "Outside", "check_ids", "drop_ids", "feature_of", "plain", "row_per_id"]

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

INTEGERS = (torch.int64, torch.int32)
PRUNED = -1  # what FBGEMM calls a pruned row: with bounds_check="warning" it is left out
WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Outside(NamedTuple):
    """What ``bounds_check`` did with the ids of a feature that lie outside its table.

    clamped: moved to the nearest row. ignored: to be left out. warned: replaced by 0. first: the
    position of the first one that was replaced, and the id.
    """

    clamped: int = 0
    ignored: int = 0
    warned: int = 0
    first: tuple[int, int] = (-1, -1)


class Feature(NamedTuple):
    """One feature's ids (N,) and, when pooled, its bags' offsets (B + 1,) and weights (N,)."""

    ids: I64
    offsets: I64 | None
    sample_weights: torch.Tensor | None
    kept: Bools | None = None  # (ids as given,): which of them are used; None: all
    padded: Bools | None = None  # (ids as given,): which are the padding row; None: none
    outside: Outside | None = None  # None: no id was

    @property
    def num_bags(self) -> int:
        return len(self.ids) if self.offsets is None else len(self.offsets) - 1


def _integers(where: str, name: str, tensor: object) -> torch.Tensor:
    if (
        isinstance(tensor, torch.Tensor)
        and tensor.dtype in INTEGERS
        and tensor.layout is torch.strided
        and tensor.is_cpu
        and not tensor.is_nested
    ):
        return tensor
    what = f"{where}: {name}"
    if not isinstance(tensor, torch.Tensor):
        raise ConfigError(f"{what} is a {type(tensor).__name__}; pass an int64 or int32 tensor")
    if tensor.dtype not in INTEGERS:
        raise ConfigError(f"{what} has dtype {tensor.dtype}; it must be torch.int64 or torch.int32")
    if tensor.is_nested:
        raise ConfigError(
            f"{what} is a nested tensor; pass its values, and offsets where they make bags"
        )
    if tensor.layout is not torch.strided:
        raise ConfigError(f"{what} has layout {tensor.layout}; pass a dense tensor")
    if tensor.is_cuda:
        return tensor.cpu()  # the planner is there
    raise ConfigError(f"{what} is on {tensor.device}; move it to the CPU: {name}.cpu()")


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, or a copy where its memory does not hold its values: torch has negated views, and
    zeros without memory."""
    if tensor.is_neg() or tensor._is_zerotensor():
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
    return tensor


def _array(tensor: torch.Tensor) -> I64:
    array = plain(tensor).numpy()
    if array.dtype == np.int64 and array.ndim == 1 and array.flags.c_contiguous:
        return array
    return np.ascontiguousarray(array, np.int64).reshape(-1)


def check_ids(
    table: str,
    ids: I64,
    num_rows: int | None,
    bounds_check: str,
    remedy: str = "pass bounds_check='clamp' or raise num_embeddings",
    num_threads: int = 1,
) -> tuple[I64, Outside | None]:
    """The ids, inside ``[0, num_rows)``, and what was done to that end; any int64 is inside when
    ``num_rows`` is None.

    Ids to be ignored stay, for :func:`drop_ids`. ``remedy`` ends the message.

    Raises:
        IdRangeError: one is outside and ``bounds_check`` is ``"raise"``.
    """
    bad = -1 if num_rows is None else _native.first_bad_id(ids, num_rows, num_threads)
    if bad < 0:
        return ids, None
    assert num_rows is not None
    if bounds_check == "raise":
        raise IdRangeError(
            f"table {table!r}: id {ids[bad]} at position {bad} is outside [0, {num_rows}); {remedy}"
        )
    wrong = (ids < 0) | (ids >= num_rows)
    total = int(np.count_nonzero(wrong))
    if bounds_check == "clamp":
        return ids.clip(0, num_rows - 1), Outside(clamped=total)
    if bounds_check == "ignore":
        return ids, Outside(ignored=total)
    replaced = wrong & (ids != PRUNED)
    warned = int(np.count_nonzero(replaced))
    first = int(replaced.argmax())
    return np.where(replaced, 0, ids), Outside(
        ignored=total - warned, warned=warned, first=(first, int(ids[first]))
    )


def drop_ids(feature: Feature, num_rows: int | None, padding_idx: int | None) -> Feature:
    """The feature without ids outside ``[0, num_rows)`` and without ``padding_idx``."""
    kept = np.ones(len(feature.ids), np.bool_)
    if num_rows is not None:
        kept &= (feature.ids >= 0) & (feature.ids < num_rows)
    if padding_idx is not None:
        kept &= feature.ids != padding_idx
    if kept.all():
        return feature
    padded = None if padding_idx is None else feature.ids == padding_idx
    offsets, weights = feature.offsets, feature.sample_weights
    if offsets is not None:
        offsets = np.concatenate([[0], np.cumsum(kept)])[offsets]
    if weights is not None:
        weights = weights[torch.from_numpy(kept)]
    return feature._replace(
        ids=feature.ids[kept], offsets=offsets, sample_weights=weights, kept=kept, padded=padded
    )


def feature_of(
    where: str,
    indices: object,
    offsets: object,
    sample_weights: object,
    *,
    include_last_offset: bool = False,
) -> Feature:
    """``nn.EmbeddingBag``'s arguments as a :class:`Feature`.

    Args:
        where: names the feature in messages.
        indices: (N,) with offsets, or (B, n) without.
        offsets: (B,), or (B + 1,) with ``include_last_offset``; it starts at 0 and never decreases.
        sample_weights: shaped like indices, float32, float16 or bfloat16, or None.

    Raises:
        ConfigError: a wrong type, dtype, device or shape, or offsets that make no bags.
    """
    ids = _integers(where, "indices", indices)
    if ids.dim() == 2:
        if offsets is not None:
            raise ConfigError(
                f"{where}: in indices of shape {tuple(ids.shape)} every row is a bag; pass no "
                "offsets with 2-D indices"
            )
        bounds = np.arange(ids.shape[0] + 1, dtype=np.int64) * ids.shape[1]
    elif ids.dim() == 1:
        if offsets is None:
            raise ConfigError(f"{where}: 1-D indices need offsets; pass them, or 2-D indices")
        bounds = _offsets(where, offsets, ids.numel(), include_last_offset)
    else:
        raise ConfigError(f"{where}: indices have shape {tuple(ids.shape)}; pass 1-D or 2-D")
    return Feature(_array(ids), bounds, _weights(where, sample_weights, ids))


def row_per_id(where: str, indices: object) -> Feature:
    """``nn.Embedding``'s argument, of any shape, as a :class:`Feature`; raises as
    :func:`feature_of`."""
    return Feature(_array(_integers(where, "indices", indices)), None, None)


def _offsets(where: str, offsets: object, num_ids: int, include_last: bool) -> I64:
    tensor = _integers(where, "offsets", offsets)
    if tensor.dim() != 1:
        raise ConfigError(f"{where}: offsets have shape {tuple(tensor.shape)}; pass 1-D")
    given = _array(tensor)
    # A copy: the backward reads it too, and the caller may reuse the tensor.
    bounds = _native.bag_bounds(given, num_ids, include_last)
    if bounds is None:
        raise _no_bags(where, given, num_ids, include_last)
    return bounds


def _no_bags(where: str, given: I64, num_ids: int, include_last: bool) -> ConfigError:
    if include_last:
        if len(given) == 0 or given[-1] != num_ids:
            last = "there are no offsets" if len(given) == 0 else f"it is {given[-1]}"
            return ConfigError(
                f"{where}: with include_last_offset=True the last offset must be the number of "
                f"ids, {num_ids}, but {last}"
            )
        bounds = given
    else:
        bounds = np.append(given, num_ids)
    if len(bounds) == 1 and num_ids:
        return ConfigError(
            f"{where}: there are {num_ids} ids but no offsets, so that no bag has them"
        )
    if bounds[0] != 0:
        return ConfigError(f"{where}: offsets start at {bounds[0]}; the first must be 0")
    i = int((bounds[1:] < bounds[:-1]).argmax())
    after = bounds[i + 1] if i + 1 < len(given) else f"the end, {num_ids} ids"
    return ConfigError(
        f"{where}: offsets must not decrease: {bounds[i]} at position {i} is followed by {after}"
    )


def _weights(where: str, weights: object, ids: torch.Tensor) -> torch.Tensor | None:
    if weights is None:
        return None
    if not isinstance(weights, torch.Tensor) or weights.dtype not in WEIGHT_DTYPES:
        kind = weights.dtype if isinstance(weights, torch.Tensor) else type(weights).__name__
        raise ConfigError(f"{where}: per_sample_weights are {kind}; pass a torch.float32 tensor")
    if weights.is_nested:
        raise ConfigError(f"{where}: per_sample_weights are a nested tensor; pass their values")
    if weights.layout is not torch.strided:
        raise ConfigError(
            f"{where}: per_sample_weights have layout {weights.layout}; pass a dense tensor"
        )
    if weights.shape != ids.shape:
        raise ConfigError(
            f"{where}: per_sample_weights have shape {tuple(weights.shape)} but the indices have "
            f"shape {tuple(ids.shape)}; pass one weight per index"
        )
    if weights.device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"{where}: per_sample_weights are on {weights.device}; move them to the CPU"
        )
    return weights.reshape(-1).to(torch.float32)
