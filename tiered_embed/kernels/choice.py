"""Which kernel computes if the caller leaves the choice to us (``kernel="auto"``).

A pure function; safe from any thread.
"""

from __future__ import annotations

from ..spec import EngineOptions
from ..tiers import PoolLayout
from .fbgemm import FbgemmKernel

__all__ = ["kernel_for"]


def kernel_for(options: EngineOptions, layout: PoolLayout) -> str:
    """The kernel that ``options`` ask for, over a pool with ``layout``: ``"native"``, ``"fbgemm"``
    or ``"triton"``."""
    if options.kernel != "auto":
        return options.kernel
    if options.tiers.hbm is None:
        return "native"
    on_gpu = options.compute_device.type == "cuda"
    has_fbgemm = FbgemmKernel.has(layout.optimizer, layout.dtype)
    return "triton" if on_gpu and not has_fbgemm else "fbgemm"
