"""Restoring a committed step, into whatever tiers, policy and store the model has now.

Everything is read and checked before anything is discarded. Then the working stores are marked as
of no step, replaced, and marked again once all are in place: a crash in between leaves a model that
refuses to train until it is restored.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from ..engine import Pool
from ..errors import CapacityError, ConfigError, CorruptionError, StoreError
from ..store import (
    RowStore,
    StoreDirectory,
    beside,
    decode_rows,
    open_store,
    os_errors,
    read_meta,
    sync_path,
    write_meta,
)
from ..tiers import KEY
from . import extra as extras
from .delta import delta_chunks, delta_keys
from .folders import (
    SCRATCH,
    check_step,
    committed_steps,
    copy_tree,
    current_folder,
    directory,
    remove_tree,
    sync_tree,
)
from .manifest import Manifest, PoolEntry
from .save import note_restored, pool_entry, pools_of, settle, tiered_modules

__all__ = ["Chain", "apply_deltas", "as_keys", "load", "open_chain", "scan_pool", "verify"]

U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Chain:
    """A whole step and the deltas that stand on it, oldest first: (folder, manifest) of each."""

    links: tuple[tuple[Path, Manifest], ...]

    @property
    def manifest(self) -> Manifest:
        """The restored step's."""
        return self.links[-1][1]

    @property
    def folder(self) -> Path:
        return self.links[-1][0]

    def check(self, *, hashed: bool = True) -> int:
        """Compares every file with the manifests; returns the bytes. Raises as they do."""
        return sum(manifest.check_files(folder, hashed=hashed) for folder, manifest in self.links)

    def check_own(self) -> int:
        """As :meth:`check`, of the last link alone."""
        folder, manifest = self.links[-1]
        return manifest.check_files(folder)

    def pool_links(self, index: int) -> list[tuple[Path, PoolEntry]]:
        """(folder, entry) of pool ``index`` in every link."""
        layout = self.manifest.pools[index].layout
        out = []
        for folder, manifest in self.links:
            entry = manifest.pools[index]
            out.append((folder / entry.folder, entry))
            if entry.layout != layout:
                raise CorruptionError(f"'{folder}' holds other pools than the step it stands on")
        return out


def open_chain(path: str | os.PathLike[str], step: int | None = None) -> Chain:
    """The manifests of a step (None: the latest) and of those that it stands on.

    Raises:
        FileNotFoundError: nothing is committed there, or not that step.
        CorruptionError: a manifest is not as written, or a base is missing.
    """
    where = directory(path)
    steps = committed_steps(where)
    if step is not None:
        check_step(step)
    if not steps or (step is not None and step not in steps):
        what = "nothing" if not steps else f"no step {step} (but {steps[-16:]})"
        raise FileNotFoundError(f"{what} is committed in '{where}'")
    current: int | None = steps[-1] if step is None else step
    links: list[tuple[Path, Manifest]] = []
    while current is not None:
        folder = current_folder(where, current)
        if current not in steps:
            raise CorruptionError(
                f"'{links[-1][0]}' stands on step {current}, which is not in '{where}'; "
                "restore that step's folder, or load an earlier step"
            )
        manifest = Manifest.read(folder)
        if manifest.step != current:
            raise CorruptionError(f"'{folder}' holds step {manifest.step}; rename it")
        if links and len(manifest.pools) != len(links[-1][1].pools):
            raise CorruptionError(f"'{links[-1][0]}' holds other pools than the step it stands on")
        if links and manifest.id != links[-1][1].base_id:
            raise CorruptionError(
                f"'{links[-1][0]}' stands on another step {current} than the one in '{folder}'; "
                "restore that step's folder, or load an earlier step"
            )
        for pool in manifest.pools:
            if pool.folder.startswith("store/") != (manifest.base is None):
                raise CorruptionError(f"'{folder}' mixes whole pools with changed rows")
        links.append((folder, manifest))
        current = manifest.base
    return Chain(tuple(reversed(links)))


def verify(path: str | os.PathLike[str], step: int | None = None) -> int:
    """Reads every byte of a step (None: of every step) and compares digests; returns the bytes.

    Raises:
        FileNotFoundError: nothing is committed there.
        CorruptionError: a file is missing, damaged, or not of the step.
    """
    if step is not None:
        return open_chain(path, step).check()
    steps = committed_steps(directory(path))
    if not steps:
        open_chain(path)  # says so
    total = 0
    for each in steps:
        total += open_chain(path, each).check_own()
    return total


def load(
    model: nn.Module, path: str | os.PathLike[str], step: int | None = None, *, check: bool = True
) -> dict[str, Any]:
    """Restores the rows of ``model``; what was trained since is discarded.

    The model must have the tables, optimizer and seed of the saved one; tier sizes, policy, depth
    and store may differ.

    Args:
        step: None for the latest committed one.
        check: compare every file's SHA-256 first. Without, only names and sizes; the store's own
            checksums guard what is read later.

    Returns:
        ``{"step": ..., "extra": ...}``.

    Raises:
        FileNotFoundError: nothing is committed in ``path``, or not that step.
        ConfigError: another model's checkpoint, or a te.prefetch loop is running.
        CorruptionError, StoreError, CapacityError: nothing was changed, unless the message says
            that the model needs another load.
    """
    for _, module in tiered_modules(model):
        module.engine.check_idle("restore into")
        if module.engine.stream is not None:
            raise ConfigError("a te.prefetch loop is running; restore before it, or leave it first")
    with contextlib.suppress(Exception):  # of a save that nobody waits for any more
        settle(model, "restore into")
    where = directory(path)
    chain = open_chain(path, step)
    chain.check(hashed=check)
    extra = extras.read(chain.folder) if "extra.json" in chain.manifest.files else None
    pairs = _paired(model, chain)
    for pool, index in pairs:
        if pool.store is None:
            _check_room(pool, chain, index, where)
    _replace(model, chain, pairs, where)
    note_restored(model, where, chain.manifest)
    return {"step": chain.manifest.step, "extra": extra}


def _paired(model: nn.Module, chain: Chain) -> list[tuple[Pool, int]]:
    """Each pool with the index of its entry: by layout, and by module where layouts are equal."""
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
                    f"module {entry.module!r} is none of {names}, whose tables are alike; give the "
                    "modules the names that they were saved under"
                )
            chosen[i] = same[0]
            del left[same[0]]
    missing = [entry.layout.tables for i, (entry, _) in enumerate(wanted) if i not in chosen]
    if missing or left:
        raise ConfigError(
            f"'{chain.folder}' holds {[e.layout.model_dump() for e in chain.manifest.pools]}, the "
            f"model has {[e.layout.model_dump() for e, _ in wanted]}. Build the model as it was "
            "saved"
        )
    for i, (entry, _) in enumerate(wanted):
        _check_alike(entry, chain.manifest.pools[chosen[i]], chain.folder)
    return [(pool, chosen[i]) for i, (_, pool) in enumerate(wanted)]


def _check_alike(wanted: PoolEntry, saved: PoolEntry, folder: Path) -> None:
    if saved.record_bytes != wanted.record_bytes:
        raise CorruptionError(
            f"'{folder}' says {saved.record_bytes} bytes a record of {saved.layout.tables}, which "
            f"take {wanted.record_bytes}"
        )
    if saved.padding != wanted.padding:
        raise ConfigError(
            f"'{folder}' has padding_idx {saved.padding} of {saved.layout.tables}, the model "
            f"{wanted.padding}; build it as it was saved"
        )
    for name, before, now in zip(saved.layout.tables, saved.rows, wanted.rows, strict=True):
        if now is not None and (before is None or before > now):
            raise ConfigError(
                f"table {name!r} had {'unbounded' if before is None else before} rows in "
                f"'{folder}' and has {now} here; raise num_embeddings"
            )


def _replace(model: nn.Module, chain: Chain, pairs: list[tuple[Pool, int]], path: Path) -> None:
    modules = [module for _, module in tiered_modules(model)]
    prepared = _prepared(chain, pairs)
    why = StoreError(
        f"restoring from '{chain.folder}' failed midway: the rows are gone until "
        "te.checkpoint.load(model, path) succeeds"
    )
    indices = [index for _, index in pairs]
    try:
        for module in modules:
            module.engine.discard(why)
        for _, target, _ in prepared:
            write_meta(target, {**read_meta(target), "settled": False})
        for restored, target, _ in prepared:
            _swap(restored, target)
        for _, target, steps in prepared:
            write_meta(target, {"step": steps, "settled": True})
        for module in modules:
            module.engine.reopen()
        for (_, module, pool), index in zip(pools_of(model), indices, strict=True):
            module.engine.set_steps(chain.manifest.pools[index].steps)
            if pool.store is None:
                for table, ids, records in _rows(chain, index, pool, path):
                    pool.write(table, ids, records)
    except BaseException:
        for module in modules:
            module.engine.refuse(why)
        raise
    finally:
        for restored, _, _ in prepared:
            shutil.rmtree(restored, ignore_errors=True)


def _prepared(chain: Chain, pairs: list[tuple[Pool, int]]) -> list[tuple[Path, Path, int]]:
    """Complete stores beside the working ones: (restored, working, steps) of pools with an SSD."""
    out: list[tuple[Path, Path, int]] = []
    try:
        for pool, index in pairs:
            if pool.store is None:
                continue
            target = pool.store.path
            restored, _ = beside(target)
            with os_errors(f"cannot write '{restored}'"):
                if restored.exists():
                    remove_tree(restored)
            out.append((restored, target, chain.manifest.pools[index].steps))
            _restore_store(chain, index, pool, restored)
            with os_errors(f"cannot write '{restored}'"):
                sync_tree(restored)
                sync_path(restored.parent)
    except BaseException:
        for restored, _, _ in out:
            shutil.rmtree(restored, ignore_errors=True)
        raise
    return out


def _restore_store(chain: Chain, index: int, pool: Pool, target: Path) -> None:
    """A store in ``target`` with the rows of the chain, for the pool's backend."""
    assert pool.store is not None
    (base, entry), *deltas = chain.pool_links(index)
    layout, record_bytes = pool.layout.describe(), pool.layout.record_bytes
    backend = StoreDirectory.recorded_backend(pool.store.path)
    if StoreDirectory.recorded_backend(base) == backend:
        copy_tree(base, target)
    else:
        with _reading(base, entry, target.parent) as source:
            store = open_store(backend, target, record_bytes, layout, "create")  # type: ignore[arg-type]
            with store:
                store.import_sorted(source.scan())
    apply_deltas(target, deltas)
    write_meta(target, {"step": chain.manifest.pools[index].steps, "settled": False})


def apply_deltas(store_folder: Path, deltas: list[tuple[Path, PoolEntry]]) -> None:
    """Writes the rows of ``deltas``, oldest first, into a copy of the store they stand on."""
    if not deltas:
        return
    entry = deltas[-1][1]
    layout = entry.layout.model_dump()
    with open_store("auto", store_folder, entry.record_bytes, layout, "read_write") as store:
        for folder, _ in deltas:
            for keys, records in delta_chunks(folder, entry.record_bytes):
                store.put(keys, records)
        store.flush()


def _swap(restored: Path, target: Path) -> None:
    """Between its two renames a crash leaves what opening the pool renames back."""
    _, aside = beside(target)
    with os_errors(f"cannot replace '{target}'"):
        if aside.exists():
            remove_tree(aside)
        os.rename(target, aside)
        try:
            os.rename(restored, target)
        except OSError:
            os.rename(aside, target)
            raise
        sync_path(target.parent)
        remove_tree(aside)


@contextlib.contextmanager
def _reading(folder: Path, entry: PoolEntry, near: Path) -> Iterator[RowStore]:
    """A committed store, opened in a copy: opening writes a lock, and the step is immutable."""
    with os_errors(f"cannot read '{folder}' by a copy in '{near}'"):
        scratch = tempfile.mkdtemp(prefix=SCRATCH, dir=near)
    try:
        copy = Path(scratch) / "store"
        copy_tree(folder, copy)
        layout = entry.layout.model_dump()
        with open_store("auto", copy, entry.record_bytes, layout, "read_only") as store:
            yield store
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def scan_pool(chain: Chain, index: int, path: Path) -> Iterator[tuple[U8, U8]]:
    """(keys, records) of a pool's rows, in no order; of a row that deltas changed, its last.

    Takes 12 bytes of memory for every row that a delta changed.
    """
    (base, entry), *deltas = chain.pool_links(index)
    later = [np.empty(0, KEY)]  # ascending keys of all newer links, the newest's first
    for folder, _ in reversed(deltas):
        later.append(np.union1d(later[-1], as_keys(delta_keys(folder))))
    later.reverse()
    near = path if os.access(path, os.W_OK) else Path(tempfile.gettempdir())
    with _reading(base, entry, near) as store:
        yield from _without(later[0], store.scan())
    for (folder, _), newer in zip(deltas, later[1:], strict=True):
        yield from _without(newer, delta_chunks(folder, entry.record_bytes))


def as_keys(keys: U8) -> npt.NDArray[np.void]:
    """``keys`` (n, 12) as (n,), which NumPy sorts and compares as a store does."""
    return np.ascontiguousarray(keys).view(KEY).ravel()


def _without(gone: npt.NDArray[np.void], chunks: Iterable[tuple[U8, U8]]) -> Iterator[Any]:
    for keys, records in chunks:
        if len(gone):
            mine = as_keys(keys)
            at = np.minimum(np.searchsorted(gone, mine), len(gone) - 1)
            keep = gone[at] != mine
            keys, records = keys[keep], records[keep]
        if len(keys):
            yield keys, records


def _rows(chain: Chain, index: int, pool: Pool, path: Path) -> Iterator[tuple[int, Any, Any]]:
    """(table's index in the pool, ids, records) of every row."""
    tables = {h.tobytes(): t for t, h in enumerate(pool.layout.table_hashes)}
    for keys, records in scan_pool(chain, index, path):
        heads = keys[:, :4].copy().view("<u4").ravel()
        for head in np.unique(heads):
            mine = heads == head
            table = tables.get(keys[mine][0, :4].tobytes())
            if table is None:
                raise CorruptionError(f"'{chain.folder}' has rows of a table that it does not name")
            ids = decode_rows(keys[mine])
            name, rows = pool.layout.tables[table]
            if rows is not None and not (ids.min() >= 0 and ids.max() < rows):
                raise ConfigError(
                    f"'{chain.folder}' has row {max(ids.max(), -ids.min())} of table {name!r}, "
                    f"which has {rows} rows here; raise num_embeddings"
                )
            yield table, ids, records[mine]


def _check_room(pool: Pool, chain: Chain, index: int, path: Path) -> None:
    """Without a tier below, all of the step's rows must fit."""
    counts = np.zeros(len(pool.layout.tables), np.int64)
    for table, ids, _ in _rows(chain, index, pool, path):
        counts[table] += len(ids)
    needed, room = pool.room(counts.tolist())
    if needed > room:
        raise CapacityError(
            f"step {chain.manifest.step} has {needed} rows of {[n for n, _ in pool.layout.tables]} "
            f"but DDR has {room} slots for them and nothing below; raise ddr or pass ssd"
        )
