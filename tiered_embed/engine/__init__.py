"""Everything that one process holds of some tables: pools, stream, store, updates.

There is no ``nn.Module`` in it: a module, a shard, a server and a benchmark use it alike.
"""

from .checking import CheckedBatch, Presented
from .engine import Engine
from .evaluation import EvaluationStream, EvaluationTicket
from .features import INTEGERS, Feature, feature_of, row_per_id
from .jagged import JaggedLayout, even_bounds, join
from .lanes import apart_from_own_threads
from .outputs import feature_rows
from .pool import Pool
from .step_counts import StepCounts
from .stream import Stream, Ticket, TicketState
from .touched import tables_of_parameter

__all__ = [
    "INTEGERS",
    "CheckedBatch",
    "Engine",
    "EvaluationStream",
    "EvaluationTicket",
    "Feature",
    "JaggedLayout",
    "Pool",
    "Presented",
    "StepCounts",
    "Stream",
    "Ticket",
    "TicketState",
    "apart_from_own_threads",
    "even_bounds",
    "feature_of",
    "feature_rows",
    "join",
    "row_per_id",
    "tables_of_parameter",
]
