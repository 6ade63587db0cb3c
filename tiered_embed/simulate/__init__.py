"""What a training run would count, and what caches of any size would hit, from an id stream alone.

``replay`` drives the runtime's own planner over a trace and moves no row: its counts are the run's.
``belady`` and ``belady_batches`` are bounds; ``classic`` and ``peer`` are policies from the
literature. ``lru_curve`` gives LRU's misses for every size; ``shards``, ``aet``, ``che`` and
``mini_simulation`` estimate them for less work. ``replay`` needs only the package itself; loops
over single accesses need numba, which the extra ``sim`` installs. Nothing here starts a thread;
planners of large pools start their own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .planner_replay import Difference, ReplayResult, SimulatedCounts, replay
from .records import Records

if TYPE_CHECKING:
    from .bounds import belady, belady_batches
    from .classics import CLASSICS, classic
    from .curve import CurveError, MissRatioCurve
    from .curves import aet, che, lru_curve, mini_simulation
    from .lru_replay import lru
    from .peers import PEERS, peer
    from .policies import misses_of, policy_names
    from .report import size_text
    from .sampling import sampled, shards
    from .study import Study, table_rows

__all__ = [
    "CLASSICS",
    "PEERS",
    "CurveError",
    "Difference",
    "MissRatioCurve",
    "Records",
    "ReplayResult",
    "SimulatedCounts",
    "Study",
    "aet",
    "belady",
    "belady_batches",
    "charts",
    "che",
    "classic",
    "lru",
    "lru_curve",
    "mini_simulation",
    "misses_of",
    "peer",
    "policy_names",
    "replay",
    "report",
    "sampled",
    "shards",
    "size_text",
    "study",
    "table_rows",
]

# numba takes seconds to import, so that only those who use its loops should wait for it.
_PLACES = {
    "bounds": ("belady", "belady_batches"),
    "classics": ("CLASSICS", "classic"),
    "curve": ("CurveError", "MissRatioCurve"),
    "curves": ("aet", "che", "lru_curve", "mini_simulation"),
    "lru_replay": ("lru",),
    "peers": ("PEERS", "peer"),
    "policies": ("misses_of", "policy_names"),
    "report": ("size_text",),
    "sampling": ("sampled", "shards"),
    "study": ("Study", "table_rows"),
}


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
