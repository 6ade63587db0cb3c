"""Plain, validated data that every layer shares.

Tables, tiers, options, initial values, row formats and counts.

Nothing here touches memory or disk. Every value is checked on construction, so whoever holds one of
these objects may trust it.
"""

from . import init
from .counts import Counts, PhaseTimes, Stats, TierStats
from .init import Constant, Init, Uniform, philox4x32
from .options import DTYPES, KERNELS, MOST_DEPTH, EngineOptions, option_help
from .row_formats import ITEM_BYTES, TYPE_NUMBERS, renormalised, rounding_key
from .sizes import parse_bytes
from .tables import Mode, TableConfig, table_hash
from .tiers import Tiers

__all__ = [
    "DTYPES",
    "ITEM_BYTES",
    "KERNELS",
    "MOST_DEPTH",
    "TYPE_NUMBERS",
    "Constant",
    "Counts",
    "EngineOptions",
    "Init",
    "Mode",
    "PhaseTimes",
    "Stats",
    "TableConfig",
    "TierStats",
    "Tiers",
    "Uniform",
    "init",
    "option_help",
    "parse_bytes",
    "philox4x32",
    "renormalised",
    "rounding_key",
    "table_hash",
]
