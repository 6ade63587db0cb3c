"""Checkpoints: ``path/step-N``, committed or absent.

``save`` and ``load`` handle a model's rows with their optimizer state, and whatever else a run
needs to go on; ``save_delta`` writes only what changed; ``verify`` reads every byte.
``manifest.py`` says what a step consists of, ``folders.py`` how it is committed, ``save.py`` how it
is written, ``chain.py`` how it is read, ``load.py`` and ``restored.py`` how a model gets it back.
No pickle anywhere.

Threading: call from the thread that trains the model. A save in the background works on a snapshot
and never on the rows that are being trained.
"""

from .chain import Verdict, open_chain, verdicts, verify
from .compact import PoolDifference, compact, diff
from .dcp import RowsState
from .export import TableExport, export
from .extra import restore_rng, rng_state
from .load import load
from .save import Saved, save, save_delta
from .steps import list, prune
from .weights import load_weights

__all__ = [
    "PoolDifference",
    "RowsState",
    "Saved",
    "TableExport",
    "Verdict",
    "compact",
    "diff",
    "export",
    "list",
    "load",
    "load_weights",
    "open_chain",
    "prune",
    "restore_rng",
    "rng_state",
    "save",
    "save_delta",
    "verdicts",
    "verify",
]
