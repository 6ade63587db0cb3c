"""What touches a training loop: prefetching, learning rates, accumulation, swapping modules.

Threading: the thread that trains; nothing here owns another one.
"""

from .accumulation import accumulate
from .learning_rates import LearningRates, lr_optimizer
from .prefetching import Prefetch, prefetch
from .row_optimizer import RowOptimizer, row_optimizer
from .swap_report import SwapEntry, SwapReport
from .swapping import swap

__all__ = [
    "LearningRates",
    "Prefetch",
    "RowOptimizer",
    "SwapEntry",
    "SwapReport",
    "accumulate",
    "lr_optimizer",
    "prefetch",
    "row_optimizer",
    "swap",
]
