"""The tiers: HBM and DDR as record arrays by slot, the SSD as a store with a write buffer.

A tier holds bytes and copies them. Which row lies where is the planner's decision.
"""

from .hbm import HbmTier
from .host import HostTier
from .layout import PoolLayout
from .memory import MemoryTier, MemoryTiers
from .moves import Copies, Moves, StreamCopies
from .opening import open_ssd
from .ssd import KEY, ChangedKeys, SsdTier

__all__ = [
    "KEY",
    "ChangedKeys",
    "Copies",
    "HbmTier",
    "HostTier",
    "MemoryTier",
    "MemoryTiers",
    "Moves",
    "PoolLayout",
    "SsdTier",
    "StreamCopies",
    "open_ssd",
]
