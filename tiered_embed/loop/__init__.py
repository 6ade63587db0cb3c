"""What touches a training loop: prefetching, learning rates, accumulation, swapping modules."""

from .prefetching import Prefetch, prefetch
from .swapping import SwapEntry, SwapReport, swap
from .training import RowOptimizer, accumulate, lr_optimizer

__all__ = [
    "Prefetch",
    "RowOptimizer",
    "SwapEntry",
    "SwapReport",
    "accumulate",
    "lr_optimizer",
    "prefetch",
    "swap",
]
