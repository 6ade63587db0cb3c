"""The tier that computes and the kernel over it, for one pool.

Two questions, answered one after the other: which kernel computes (``kernels.kernel_for``), and
where its records lie (in host memory for the native kernel, in tensors on the device for others).

Threading: the thread that makes the engine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..kernels import CpuKernel, FbgemmKernel, Kernel, TritonKernel, kernel_for
from ..residency import PoolSlots
from ..spec import EngineOptions
from ..tiers import Copies, HbmTier, HostTier, MemoryTier, PoolLayout, StreamCopies

__all__ = ["make_compute"]


def make_compute(
    layout: PoolLayout,
    slots: PoolSlots,
    outputs: Sequence[tuple[int, str]],
    options: EngineOptions,
) -> tuple[MemoryTier, Kernel]:
    """The topmost tier with ``slots``, and the kernel that looks rows up and updates them there.

    Raises:
        ConfigError: the kernel cannot do what is asked; no memory has been taken yet.
        CapacityError: there is not enough memory.
    """
    kernel = kernel_for(options, layout)
    if kernel == "native":
        return _native(layout, slots, options)
    kind = FbgemmKernel if kernel == "fbgemm" else TritonKernel
    device = options.compute_device
    kind.check(layout, outputs, device, options.rounding)
    tier = HbmTier(layout, slots.whole + slots.cached, _moves(device))
    return tier, kind(tier, features=outputs)


def _native(
    layout: PoolLayout, slots: PoolSlots, options: EngineOptions
) -> tuple[MemoryTier, Kernel]:
    # With device="cpu" an HBM tier lies in host memory too.
    name = "DDR" if options.tiers.hbm is None else "HBM"
    tier = HostTier(layout, slots.whole + slots.cached + slots.overflow, options.threads, name)
    kernel = CpuKernel(
        tier.records,
        layout.dim,
        options.threads,
        rounding_seed=layout.seed if options.rounding == "stochastic" else None,
        table_words=layout.table_words,
    )
    return tier, kernel


def _moves(device: torch.device) -> Copies | StreamCopies:
    return Copies() if device.type == "cpu" else StreamCopies(device)
