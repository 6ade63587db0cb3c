"""Plain, checked data that the layers above share.

Tables, tiers, options, initial values, row formats and counts. Nothing here touches tiers or disks.
Every value is checked on construction, so code that holds one of these objects can rely on it.

Threading: plain data and pure functions; counts are changed by their owner only.
"""

from . import init
from .counts import BoundsCounts, Counts, EvaluationCounts, PhaseTimes, Stats, TierStats
from .identity import normal_form, refuse_lookalikes, table_hash
from .init import Constant, Init, Uniform, philox4x32
from .options import (
    BOUNDS_CHECKS,
    DTYPES,
    KERNELS,
    MOST_DEPTH,
    ON_NONFINITE,
    UPDATES,
    EngineKeywords,
    EngineOptions,
    option_help,
    options_from_keywords,
)
from .paths import absolute_path
from .row_formats import ITEM_BYTES, TYPE_NUMBERS, renormalised, rounding_key
from .sizes import parse_bytes
from .tables import Lookup, Mode, RowOptions, TableConfig
from .tiers import Tiers

__all__ = [
    "BOUNDS_CHECKS",
    "DTYPES",
    "ITEM_BYTES",
    "KERNELS",
    "MOST_DEPTH",
    "ON_NONFINITE",
    "TYPE_NUMBERS",
    "UPDATES",
    "BoundsCounts",
    "Constant",
    "Counts",
    "EngineKeywords",
    "EngineOptions",
    "EvaluationCounts",
    "Init",
    "Lookup",
    "Mode",
    "PhaseTimes",
    "RowOptions",
    "Stats",
    "TableConfig",
    "TierStats",
    "Tiers",
    "Uniform",
    "absolute_path",
    "init",
    "normal_form",
    "option_help",
    "options_from_keywords",
    "parse_bytes",
    "philox4x32",
    "refuse_lookalikes",
    "renormalised",
    "rounding_key",
    "table_hash",
]
