"""Everything that one process holds of some tables: pools, stream, store, updates.

There is no ``nn.Module`` in it: a module, a shard, a server and a benchmark use it alike.
"""

from .batch import Batch
from .engine import Engine
from .executors import apart_from_own_threads
from .inputs import FeatureBatch, feature_batch
from .pool import Pool

__all__ = [
    "Batch",
    "Engine",
    "FeatureBatch",
    "Pool",
    "apart_from_own_threads",
    "feature_batch",
]
