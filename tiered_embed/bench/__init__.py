"""The benchmark of a cache: trains on an id stream and tells what it cost."""

from . import report
from .measuring import BenchResult, run, simulated
from .options import BagBatch, BenchOptions

__all__ = ["BagBatch", "BenchOptions", "BenchResult", "report", "run", "simulated"]
