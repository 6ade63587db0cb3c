"""What touches a training loop: prefetching, learning rates, accumulation, swapping modules.

Threading: the thread that trains; nothing here owns another one.
"""

from .accumulation import accumulate
from .learning_rates import RowOptimizer, lr_optimizer
from .prefetching import Prefetch, prefetch
from .swap_report import SwapEntry, SwapReport
from .swapping import swap

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
