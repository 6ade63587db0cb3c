"""What a ``state_dict`` says of a tiered module: not its rows, but how to know them again.

Threading: as all tiered modules.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..engine import CheckedBatch, Engine
from ..errors import ConfigError, TieredEmbedError

__all__ = ["Probes", "describe", "restore"]

I64 = npt.NDArray[np.int64]

PROBED_TABLES = 4
PROBED_ROWS = 4  # of a table, twice: of the last batch, and of all rows
FEW_ROWS = 1 << 20


class Probes:
    """Some ids of the last training batch: rows that surely differ from those of earlier steps."""

    def __init__(self) -> None:
        self._ids: dict[int, I64] = {}

    def note(self, engine: Engine, batch: CheckedBatch) -> None:
        """A forward trains these rows."""
        wiring = engine.wiring
        for f, (_, table) in enumerate(wiring.features[:PROBED_TABLES]):
            pool, index = wiring.feature_parts[f]
            _, ids = batch.segments[pool].part(index)
            if len(ids):
                self._ids[table] = ids[:PROBED_ROWS].copy()

    def ids(self, engine: Engine) -> dict[int, I64]:
        """Per table, ids of rows that were trained or loaded."""
        out = {}
        for table in range(min(len(engine.tables), PROBED_TABLES)):
            mine = [self._ids.get(table, np.empty(0, np.int64)), _materialised(engine, table)]
            ids = np.unique(np.concatenate(mine))
            if len(ids):
                out[table] = ids
        return out


def _materialised(engine: Engine, table: int) -> I64:
    """Some rows of the table that were trained or loaded; none where finding them takes long."""
    p, i = engine.wiring.places[table]
    pool = engine.pools[p]
    rows = np.empty(0, np.int64)
    if pool.store is None and pool.planner.num_resident <= FEW_ROWS:
        pool.scheduler.finish_moves()
        tables, every, _ = pool.planner.dirty_rows()
        rows = np.sort(every[tables == i])
    elif pool.store is not None:
        rows = next((some for some, _ in pool.materialised(i)), rows)  # written by now
    return np.ascontiguousarray(rows[:: max(1, len(rows) // PROBED_ROWS)][:PROBED_ROWS])


def describe(engine: Engine, probes: Probes) -> torch.Tensor:
    """Where the rows are, and which they are, as JSON in a uint8 tensor."""
    ssd = engine.options.tiers.ssd
    text = json.dumps(
        {
            "rows": "in memory" if ssd is None else str(ssd),
            "steps": engine.steps,
            "tables": {t.name: [t.num_embeddings, t.embedding_dim] for t in engine.tables},
            "probes": _probed(engine, probes),
        }
    )
    return torch.tensor(list(text.encode()), dtype=torch.uint8, device="cpu")


def _probed(engine: Engine, probes: Probes) -> dict[str, list[Any]]:
    """Per table, some ids and a digest of their rows; empty where the rows cannot be read now."""
    try:
        return {
            engine.tables[table].name: [ids.tolist(), _digest(engine, table, ids)]
            for table, ids in probes.ids(engine).items()
        }
    except TieredEmbedError:
        return {}


def restore(engine: Engine, state: Any) -> None:
    """Takes the step count from ``state`` if the rows are here; warns if they are not.

    Raises:
        ConfigError: it was saved from other tables, or not by a tiered module.
    """
    try:
        content = json.loads(_text(state))
        given = content["tables"]
        steps = int(content.get("steps", 0))
        if not 0 <= steps < 1 << 53:
            raise ValueError(f"{steps} updates")
        probes = {str(name): (list(ids), str(sha)) for name, (ids, sha) in _probes(content).items()}
    except (AttributeError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(f"this state was not saved by a tiered module: {error!r}") from error
    mine = {t.name: [t.num_embeddings, t.embedding_dim] for t in engine.tables}
    if given != mine:
        raise ConfigError(
            f"this state was saved from tables {given}, but this module has {mine}; load it "
            "into a module with the same tables"
        )
    if "probes" not in content:  # of version 0.1
        return
    if engine.steps not in (0, steps) or not _are_here(engine, probes) or (steps and not probes):
        warnings.warn(
            f"the rows of the tables {[t.name for t in engine.tables][:8]} are not those of this "
            f"state_dict: it was saved after {steps} updates, and the rows here have had "
            f"{engine.steps} and hold other values. A state_dict does not contain rows. Save them "
            "with te.checkpoint.save(model, path, step=...) and restore them with "
            "te.checkpoint.load(model, path); with load_rows, call it before load_state_dict",
            UserWarning,
            stacklevel=2,
        )
        return
    if engine.steps != steps:
        engine.set_steps(steps)


def _text(state: Any) -> bytes:
    numbers = state.tolist()
    if not isinstance(numbers, list):  # bytes(n) would be n zeros
        raise ValueError("a single number")
    return bytes(numbers)


def _probes(content: Any) -> dict[str, Sequence[Any]]:
    return dict(content.get("probes", {}))


def _are_here(engine: Engine, probes: dict[str, tuple[list[int], str]]) -> bool:
    try:
        return all(
            _digest(engine, engine.rows.table_index(name), np.array(ids, np.int64)) == sha
            for name, (ids, sha) in probes.items()
        )
    except TieredEmbedError:  # they cannot be read before they are restored
        return False


def _digest(engine: Engine, table: int, ids: I64) -> str:
    """Of the rows' weights."""
    return hashlib.sha256(engine.rows.weights(table, ids).tobytes()).hexdigest()[:16]
