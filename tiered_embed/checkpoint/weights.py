"""Takes only the weights of a committed step into a model with another optimizer, or with none.

Threading: the thread that trains the model.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..engine import Pool
from ..errors import ConfigError
from ..modules import TieredModule
from ..spec import table_hash
from ..store import decode_rows
from . import extra as extras
from .chain import Chain, open_chain, scan_pool
from .folders import directory
from .manifest import PoolEntry
from .pools import pools_of

__all__ = ["load_weights"]


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], step: int | None = None, *, extra: bool = True
) -> dict[str, Any]:
    """Loads the rows of ``model`` without their optimizer state, which starts anew.

    For a model whose optimizer is another than that of the saved one, or None; :func:`load`
    restores both. The model must not have trained or loaded rows. A checkpoint may have more
    tables.

    Args:
        step: None for the latest committed one.
        extra: as in :func:`load`.

    Returns:
        ``{"step": ..., "extra": ...}``.

    Raises:
        FileNotFoundError: nothing is committed in ``path``, or not that step.
        ConfigError: a table of the model is missing there, or differs in dim, dtype, seed, init,
            padding row or number of rows; or the model has rows already. Nothing is written.
        CorruptionError, StoreError, CapacityError: as :func:`load`.
    """
    where = directory(path)
    chain = open_chain(path, step)
    chain.check(hashed=True)
    found = [
        (module, pool, name, _entry_of(chain, module_name, name))
        for module_name, module, pool in pools_of(model)
        for name, _ in pool.layout.tables
    ]
    for module, pool, name, index in found:
        module.engine.check_idle("load weights into")
        _check_alike(pool, name, chain.manifest.pools[index], chain.folder)
        _check_untouched(module, pool, name)
    wanted = extra and "extra.json" in chain.manifest.files
    given = extras.read(chain.folder) if wanted else None
    for index in sorted({index for *_, index in found}):
        mine = {
            table_hash(name): (module, name) for module, _, name, other in found if other == index
        }
        _load(chain, index, mine, where)
    return {"step": chain.manifest.step, "extra": given}


def _entry_of(chain: Chain, module: str, table: str) -> int:
    """The index of the entry with the table: of the module's name, if several have it."""
    entries = list(enumerate(chain.manifest.pools))
    having = [(i, entry) for i, entry in entries if table in entry.layout.tables]
    if len(having) > 1:
        having = [(i, entry) for i, entry in having if entry.module == module]
    if len(having) != 1:
        known = sorted({name for _, entry in entries for name in entry.layout.tables})
        raise ConfigError(
            f"'{chain.folder}' has {len(having)} tables {table!r} for module {module!r}; it holds "
            f"{known}: give module and table the names that they had when they were saved"
        )
    return having[0][0]


def _check_alike(pool: Pool, name: str, saved: PoolEntry, folder: Path) -> None:
    at = saved.layout.tables.index(name)
    now = pool.layout.describe()
    i = [table for table, _ in pool.layout.tables].index(name)
    padding = pool.layout.padding[i] if pool.layout.padding else None
    pairs = {
        "dim": (saved.layout.dim, now["dim"]),
        "dtype": (saved.layout.dtype, now["dtype"]),
        "seed": (saved.layout.seed, now["seed"]),
        "init": (list(saved.layout.init), list(now["init"])),
        "padding_idx": (saved.padding[at], padding),
    }
    differ = [f"{fact}: saved {a}, here {b}" for fact, (a, b) in pairs.items() if a != b]
    rows = pool.layout.tables[i][1]
    before = saved.rows[at]
    if rows is not None and (before is None or before > rows):
        differ.append(f"num_embeddings: saved {before}, here {rows}")
    if differ or saved.layout.dtype == "int8":
        raise ConfigError(
            f"table {name!r} in '{folder}' differs ({'; '.join(differ) or 'int8 rows'}); only the "
            "optimizer may differ"
        )


def _check_untouched(module: TieredModule, pool: Pool, name: str) -> None:
    if module.engine.in_loop or module.engine.steps or len(_some_rows(module, pool, name)):
        raise ConfigError(
            f"table {name!r} has rows already, and they would mix with those of the checkpoint; "
            "load weights into a new model, before it trains"
        )


def _some_rows(module: TieredModule, pool: Pool, name: str) -> Any:
    module.flush()
    table = [known for known, _ in pool.layout.tables].index(name)
    return next((ids for ids, _ in pool.materialised(table)), ())


def _load(
    chain: Chain, index: int, mine: dict[bytes, tuple[TieredModule, str]], path: Path
) -> None:
    layout = chain.manifest.pools[index].layout
    dtype = getattr(torch, layout.dtype)
    for keys, records in scan_pool(chain, index, path):
        for head, (module, name) in mine.items():
            rows = (keys[:, :4] == np.frombuffer(head, np.uint8)).all(axis=1)
            if not rows.any():
                continue
            weights = np.ascontiguousarray(records[rows][:, : layout.dim * dtype.itemsize])
            module.load_rows(
                decode_rows(np.ascontiguousarray(keys[rows])),
                torch.from_numpy(weights.reshape(-1)).view(dtype).view(-1, layout.dim),
                table=name,
            )
