"""``te.joined``: the outputs of a collection side by side. Threading: any thread."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..errors import ConfigError

__all__ = ["joined"]


def joined(outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What ``torch.cat(list(outputs.values()), dim=1)`` returns, (B, sum of dims), for free where
    these are all outputs of one forward in their order.

    A :class:`~tiered_embed.TieredEmbeddingBagCollection` returns views of one tensor for a batch
    that is a mapping; this is that tensor, so that neither direction copies anything.

    Raises:
        ConfigError: there is no output.
    """
    parts = list(outputs.values())
    if not parts:
        raise ConfigError("there are no outputs to join; pass what a collection returned")
    whole = parts[0]._base
    if whole is None or whole.dim() != 2 or not whole.is_contiguous():
        return torch.cat(parts, dim=1)
    column = whole.storage_offset()
    for part in parts:
        if part._base is not whole or part.dim() != 2 or part.storage_offset() != column:
            return torch.cat(parts, dim=1)
        if part.shape[0] != whole.shape[0] or part.stride() != whole.stride():
            return torch.cat(parts, dim=1)
        column += part.shape[1]
    if column != whole.storage_offset() + whole.shape[1]:
        return torch.cat(parts, dim=1)
    return whole if torch.is_grad_enabled() else whole.detach()
