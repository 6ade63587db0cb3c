"""Record arrays of the tiers. A tier holds bytes and copies them; it decides nothing."""

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
