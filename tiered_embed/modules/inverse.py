"""``inverse_indices`` of TorchRec's KeyedJaggedTensor: which bag of a key each sample takes.

Batches whose keys have batch sizes of their own hold every distinct bag of a key once.

Pure functions; any thread.

Legend: ``B`` samples, ``K`` keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..engine import INTEGERS
from ..errors import ConfigError, IdRangeError

__all__ = ["check_inverse_indices", "inverse_indices"]


def inverse_indices(value: Any) -> tuple[Sequence[str], torch.Tensor] | None:
    """(keys, (K, B)) of a KeyedJaggedTensor; None where it has none, or none with an element."""
    found = getattr(value, "inverse_indices_or_none", lambda: None)()
    return None if found is None or found[1].numel() == 0 else found


def check_inverse_indices(
    keys: Sequence[str], index: torch.Tensor, num_bags: Mapping[str, int]
) -> None:
    """Checks them for features with ``num_bags`` each.

    Raises:
        ConfigError: a wrong shape or dtype, or a feature without them.
        IdRangeError: a bag that its feature does not have.
    """
    if index.dim() != 2 or index.shape[0] != len(keys) or index.dtype not in INTEGERS:
        raise ConfigError(
            f"inverse_indices have dtype {index.dtype} and shape {tuple(index.shape)} for "
            f"{len(keys)} keys; pass int64 or int32 of shape (keys, samples)"
        )
    position = {key: i for i, key in enumerate(keys)}
    missing = sorted(set(num_bags) - set(position))
    if missing:
        raise ConfigError(
            f"inverse_indices have no row for the features {missing}; pass one for each of "
            f"{list(num_bags)}"
        )
    if not num_bags:
        return
    rows = index[[position[name] for name in num_bags]].cpu()
    sizes = torch.tensor(list(num_bags.values()))[:, None]
    wrong = ((rows < 0) | (rows >= sizes)).nonzero()
    if len(wrong):
        f, sample = wrong[0].tolist()
        name = list(num_bags)[f]
        raise IdRangeError(
            f"inverse_indices name bag {int(rows[f, sample])} of feature {name!r} for sample "
            f"{sample}, but it has {num_bags[name]} bags; pass numbers of its bags"
        )
