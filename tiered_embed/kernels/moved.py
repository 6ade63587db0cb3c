"""Plan arrays on their way to a device, on the trainer's stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["moved"]


def moved(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy of ``array`` on ``device``; what follows on the trainer's stream finds it there.

    Through pinned memory that torch keeps, and gives out again once the copy has arrived.
    """
    if device.type == "cpu":
        return torch.from_numpy(array.copy())
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    pinned = torch.empty(array.shape, dtype=dtype, device="cpu", pin_memory=True)
    np.copyto(pinned.numpy(), array)
    return pinned.to(device, non_blocking=True)
