"""Restores a committed step into whatever tiers, policy and store the model has now.

Everything is read and checked before anything is discarded. Then every working store is replaced,
see ``exchange.py``.

Threading: the thread that trains the model.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..engine import Pool
from ..errors import CapacityError, ConfigError, CorruptionError
from ..store import WHOLE, Replacement, decode_rows
from . import extra as extras
from .chain import Chain, open_chain, scan_pool
from .exchange import exchange, start_anew
from .folders import committed_steps, directory
from .manifest import PoolEntry
from .pools import pool_entry, pools_of, tiered_modules
from .restored import build_store
from .save import note_restored, note_started, wait_for_newest

__all__ = ["load"]


def load(
    model: nn.Module,
    path: str | os.PathLike[str],
    step: int | None = None,
    *,
    check: bool = True,
    missing: str = "raise",
    extra: bool = True,
) -> dict[str, Any]:
    """Restores the rows of ``model``; what was trained since that step is discarded.

    The model must have the tables, optimizer and seed of the saved one. Tier sizes, policy, depth
    and store may differ. Tables that the model lacks but its ssd directory holds are not touched.

    Args:
        step: None for the latest committed one.
        check: compare the SHA-256 of every file first. Otherwise only names and sizes are compared,
            and the store's own checksums protect what is read later.
        missing: what to do where ``path`` has no committed step. ``"raise"`` a FileNotFoundError,
            or ``"start"`` anew: every row gets its initial value, and what the ssd directory holds
            of the model's tables is discarded. A loop that begins with it may be killed and started
            again at any moment.
        extra: False restores the rows alone; ``"extra"`` is None then.

    Returns:
        ``{"step": ..., "extra": ...}``; ``{"step": 0, "extra": None}`` after a start.

    Raises:
        FileNotFoundError: nothing is committed in ``path``, or not that step.
        ConfigError: the checkpoint is another model's, or a te.prefetch loop is running.
        CorruptionError, StoreError, CapacityError: nothing was changed, unless the message says
            that the model needs another load.
    """
    if not isinstance(missing, str) or missing not in ("raise", "start"):
        raise ConfigError(f"missing is {missing!r}; choose 'raise' or 'start'")
    if missing == "start" and step is not None:
        raise ConfigError(
            f"missing='start' is for a loop that takes the latest step; leave step={step!r} out, "
            "or pass missing='raise'"
        )
    for _, module in tiered_modules(model):
        module.engine.check_idle("restore into")
        if module.engine.in_loop:
            raise ConfigError(
                "a te.prefetch loop is running; restore before it starts, or leave it first"
            )
    with contextlib.suppress(Exception):  # how an earlier save ended does not matter now
        wait_for_newest(model, "restore into")
    where = directory(path)
    if missing == "start" and not committed_steps(where):
        start_anew(model, where)
        note_started(model)
        return {"step": 0, "extra": None}
    chain = open_chain(path, step)
    chain.check(hashed=check)
    wanted = extra and "extra.json" in chain.manifest.files
    given = extras.read(chain.folder) if wanted else None
    pairs = _paired(model, chain)
    for pool, index in pairs:
        if pool.store is None:
            _check_room(pool, chain, index, where)
    _replace(model, chain, pairs, where)
    note_restored(model, where, chain.manifest)
    return {"step": chain.manifest.step, "extra": given}


def _paired(model: nn.Module, chain: Chain) -> list[tuple[Pool, int]]:
    """Each pool with the index of its entry in the manifest, found by layout and, among entries of
    equal layout, by the module's name."""
    wanted = [(pool_entry(name, pool, "store/0", 0), pool) for name, _, pool in pools_of(model)]
    left = dict(enumerate(chain.manifest.pools))
    chosen: dict[int, int] = {}
    for named in (True, False):
        for i, (entry, _) in enumerate(wanted):
            same = [
                k
                for k, other in left.items()
                if other.layout == entry.layout and (not named or other.module == entry.module)
            ]
            if i in chosen or not same:
                continue
            if len(same) > 1:
                names = sorted(left[k].module for k in same)
                raise ConfigError(
                    f"module {entry.module!r} may be any of {names}, whose tables are equal; give "
                    "the modules the names that they had when they were saved"
                )
            chosen[i] = same[0]
            del left[same[0]]
    missing = [entry.layout.tables for i, (entry, _) in enumerate(wanted) if i not in chosen]
    if missing or left:
        raise ConfigError(
            f"'{chain.folder}' holds {[e.layout.model_dump() for e in chain.manifest.pools]}, but "
            f"the model has {[e.layout.model_dump() for e, _ in wanted]}; build the model as it "
            "was saved. With another optimizer, or none, te.checkpoint.load_weights(model, path) "
            "takes the weights alone"
        )
    for i, (entry, _) in enumerate(wanted):
        _check_alike(entry, chain.manifest.pools[chosen[i]], chain.folder)
    return [(pool, chosen[i]) for i, (_, pool) in enumerate(wanted)]


def _check_alike(wanted: PoolEntry, saved: PoolEntry, folder: Path) -> None:
    if saved.record_bytes != wanted.record_bytes:
        raise CorruptionError(
            f"'{folder}' says that records of {saved.layout.tables} have {saved.record_bytes} "
            f"bytes, but they have {wanted.record_bytes}; restore an earlier step, or the file"
        )
    if set(saved.shards) != {WHOLE}:
        raise ConfigError(
            f"'{folder}' holds the shards {saved.shards} of {saved.layout.tables}; this version "
            "restores whole tables"
        )
    if saved.padding != wanted.padding:
        raise ConfigError(
            f"'{folder}' has padding_idx {saved.padding} for the tables {saved.layout.tables}, but "
            f"the model has {wanted.padding}; build the model as it was saved"
        )
    for name, before, now in zip(saved.layout.tables, saved.rows, wanted.rows, strict=True):
        if now is not None and (before is None or before > now):
            had, remedy = (
                ("any number of", "pass num_embeddings=None")
                if before is None
                else (before, "raise num_embeddings")
            )
            raise ConfigError(
                f"table {name!r} had {had} rows in '{folder}' and has {now} here; {remedy}"
            )


def _replace(model: nn.Module, chain: Chain, pairs: list[tuple[Pool, int]], path: Path) -> None:
    indices = [index for _, index in pairs]

    def fill() -> None:
        for (_, module, pool), index in zip(pools_of(model), indices, strict=True):
            module.engine.set_steps(chain.manifest.pools[index].steps)
            if pool.store is None:
                for table, ids, records in _rows(chain, index, pool, path):
                    pool.write(table, ids, records)

    exchange(model, _prepared(chain, pairs), f"restoring from '{chain.folder}'", fill)


def _prepared(chain: Chain, pairs: list[tuple[Pool, int]]) -> list[tuple[Replacement, int]]:
    """For every pool with an SSD tier, a complete store to replace its own, and the step count of
    its rows."""
    out: list[tuple[Replacement, int]] = []
    try:
        for pool, index in pairs:
            if pool.store is None:
                continue
            steps = chain.manifest.pools[index].steps
            replacement = Replacement(pool.store.path, [name for name, _ in pool.layout.tables])
            replacement.prepare()
            out.append((replacement, steps))
            build_store(chain, index, pool, replacement.restoring)
            replacement.seal(steps)
    except BaseException:
        for replacement, _ in out:
            replacement.abandon()
        raise
    return out


def _rows(chain: Chain, index: int, pool: Pool, path: Path) -> Iterator[tuple[int, Any, Any]]:
    """(index of the table in the pool, ids, records) of every row of the step."""
    tables = {h.tobytes(): t for t, h in enumerate(pool.layout.table_hashes)}
    for keys, records in scan_pool(chain, index, path):
        heads = keys[:, :4].copy().view("<u4").ravel()
        for head in np.unique(heads):
            mine = heads == head
            table = tables.get(keys[mine][0, :4].tobytes())
            if table is None:
                raise CorruptionError(f"'{chain.folder}' has rows of a table that it does not list")
            ids = decode_rows(keys[mine])
            name, rows = pool.layout.tables[table]
            if rows is not None and not (ids.min() >= 0 and ids.max() < rows):
                outside = ids.min() if ids.min() < 0 else ids.max()
                raise ConfigError(
                    f"'{chain.folder}' has row {outside} of table {name!r}, "
                    f"which has {rows} rows here; raise num_embeddings"
                )
            yield table, ids, records[mine]


def _check_room(pool: Pool, chain: Chain, index: int, path: Path) -> None:
    """Without an SSD tier all rows of the step must fit into memory.

    Raises:
        CapacityError: they do not.
    """
    counts = np.zeros(len(pool.layout.tables), np.int64)
    for table, ids, _ in _rows(chain, index, pool, path):
        counts[table] += len(ids)
    needed, room = pool.room(counts.tolist())
    if needed > room:
        raise CapacityError(
            f"step {chain.manifest.step} has {needed} rows of {[n for n, _ in pool.layout.tables]} "
            f"but DDR has {room} slots for them, and there is no SSD tier; raise ddr or pass ssd"
        )
