"""Record arrays of the tiers. A tier holds bytes and copies them; it decides nothing."""

from .ddr import DdrTier
from .layout import PoolLayout
from .ssd import ChangedKeys, SsdTier

__all__ = ["ChangedKeys", "DdrTier", "PoolLayout", "SsdTier"]
