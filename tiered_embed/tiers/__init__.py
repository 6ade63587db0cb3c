"""Record arrays of the tiers. A tier holds bytes and copies them; it decides nothing."""

from .ddr import DdrTier
from .layout import PoolLayout
from .memory import MemoryTier, MemoryTiers
from .ssd import ChangedKeys, SsdTier

__all__ = ["ChangedKeys", "DdrTier", "MemoryTier", "MemoryTiers", "PoolLayout", "SsdTier"]
