"""Embedding tables larger than memory, for PyTorch: rows live across HBM, DDR and SSD.

Rows move between the tiers ahead of the training loop, the backward applies a fused optimizer once
per row, and the trained bytes do not depend on where the rows were.
"""

from . import checkpoint, errors, optim
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
from .loop import SwapEntry, SwapReport, accumulate, lr_optimizer, prefetch, row_optimizer, swap
from .modules import (
    TieredEmbedding,
    TieredEmbeddingBag,
    TieredEmbeddingBagCollection,
    TieredEmbeddingCollection,
    close_all,
    joined,
)
from .spec import EngineOptions, Stats, TableConfig, Tiers, init
from .store import drop_table

__version__ = "0.1.0.dev0"

__all__ = [
    "CapacityError",
    "ClosedError",
    "ConfigError",
    "CorruptionError",
    "EngineOptions",
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
    "TieredEmbeddingCollection",
    "Tiers",
    "accumulate",
    "checkpoint",
    "close_all",
    "drop_table",
    "errors",
    "init",
    "joined",
    "lr_optimizer",
    "optim",
    "prefetch",
    "row_optimizer",
    "swap",
]
