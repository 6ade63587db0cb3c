"""The benchmark of a cache: trains on an id stream and reports where the time went."""

from . import report
from .measuring import BenchResult, run, simulated
from .options import BagBatch, BenchOptions, engine_options

__all__ = [
    "BagBatch",
    "BenchOptions",
    "BenchResult",
    "engine_options",
    "report",
    "run",
    "simulated",
]
