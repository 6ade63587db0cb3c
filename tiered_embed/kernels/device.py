"""What the kernels over an HBM tier share: their values are tensors on its device, and they copy
the arrays of a plan there.

Threading: one call at a time.

Legend: ``N`` occurrences, ``U`` unique rows, ``F`` features, ``B`` bags of each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .._native import StepPlan
from ..tiers import HbmTier
from .base import Bags

__all__ = ["DeviceKernel"]

F32 = npt.NDArray[np.float32]


class DeviceKernel:
    """Base of the kernels over one pool's records in HBM; :class:`~.base.Kernel` has the calls."""

    def __init__(self, tier: HbmTier) -> None:
        self._tier = tier
        self._device = tier.moves.device
        self._dim = tier.layout.dim

    def values(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(self._device)

    def to_host(self, values: torch.Tensor) -> F32:
        return values.cpu().numpy()

    def largest_magnitude(self, values: torch.Tensor | F32) -> float:
        tensor = torch.as_tensor(values)
        if tensor.numel() == 0:
            return 0.0
        largest = float(tensor.abs().max())
        return largest if largest == largest else float("inf")

    def free(self) -> None:
        """Frees the tier's memory. Every record in it is lost."""
        self._tier.free()

    def _moved(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """A copy of ``array`` on the device, ready for later work on the trainer's stream.

        It goes through torch's pinned memory, which torch reuses when the copy has arrived.
        """
        if self._device.type == "cpu":
            return torch.from_numpy(array.copy())
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        pinned = torch.empty(array.shape, dtype=dtype, device="cpu", pin_memory=True)
        np.copyto(pinned.numpy(), array)
        return pinned.to(self._device, non_blocking=True)

    def _floats(self, *shape: int) -> torch.Tensor:
        """Uninitialised float32 on the device."""
        return torch.empty(shape, dtype=torch.float32, device=self._device)

    def _offsets(self, bags: Bags, num_ids: int) -> torch.Tensor:
        """(F * B + 1,) on the device; one bag per occurrence if the bags have no offsets."""
        if bags.offsets is None:
            return torch.arange(num_ids + 1, device=self._device)
        return self._moved(bags.offsets)

    def _slots(self, plan: StepPlan) -> torch.Tensor:
        """(U,) int64."""
        return self._moved(plan.slots).to(torch.int64)

    def _bag_of(self, offsets: torch.Tensor, num_ids: int) -> torch.Tensor:
        """The bag of every occurrence, (N,) int64; ``offsets`` (F * B + 1,)."""
        bags = torch.arange(len(offsets) - 1, device=self._device)
        return torch.repeat_interleave(bags, offsets.diff(), output_size=num_ids)
