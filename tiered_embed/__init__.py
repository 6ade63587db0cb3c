"""Embedding tables larger than memory, for PyTorch: rows live across HBM, DDR and SSD.

Rows move between the tiers ahead of the training loop, the backward applies a fused optimizer once
per row, and the trained bytes do not depend on where the rows were.
"""

from . import checkpoint, errors, init, optim
from .config import TableConfig, Tiers
from .errors import (
    CapacityError,
    ClosedError,
    ConfigError,
    CorruptionError,
    IdRangeError,
    NonFiniteError,
    NotCopyableError,
    StoreError,
    TieredEmbedError,
)
from .modules import TieredEmbedding, TieredEmbeddingBag, TieredEmbeddingBagCollection
from .prefetch import prefetch
from .stats import Stats
from .swap import SwapEntry, SwapReport, swap
from .training import accumulate, lr_optimizer

__version__ = "0.1.0.dev0"

__all__ = [
    "CapacityError",
    "ClosedError",
    "ConfigError",
    "CorruptionError",
    "IdRangeError",
    "NonFiniteError",
    "NotCopyableError",
    "Stats",
    "StoreError",
    "SwapEntry",
    "SwapReport",
    "TableConfig",
    "TieredEmbedError",
    "TieredEmbedding",
    "TieredEmbeddingBag",
    "TieredEmbeddingBagCollection",
    "Tiers",
    "accumulate",
    "checkpoint",
    "errors",
    "init",
    "lr_optimizer",
    "optim",
    "prefetch",
    "swap",
]
