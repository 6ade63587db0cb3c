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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..errors import CapacityError, ConfigError, CorruptionError, StoreError
from ..modules.pool import Pool
from ..store import RowStore, decode_rows, open_store, read_meta, write_meta
from ..store.directory import StoreDirectory, os_errors, sync_path
from . import extra as extras
from .delta import delta_chunks
from .folders import check_step, committed_steps, copy_tree, current_folder, remove_tree, sync_tree
from .manifest import Manifest, PoolEntry
from .save import note_restored, pools_of, settle, tiered_modules

__all__ = ["Chain", "load", "open_chain", "verify"]


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

    def pool_links(self, index: int) -> list[tuple[Path, PoolEntry]]:
        """(folder, entry) of pool ``index`` in every link."""
        identity = self.manifest.pools[index].identity
        out = []
        for folder, manifest in self.links:
            entry = manifest.pools[index]
            out.append((folder / entry.folder, entry))
            if entry.identity != identity:
                raise CorruptionError(f"'{folder}' holds other pools than the step it stands on")
        return out


def open_chain(path: str | os.PathLike[str], step: int | None = None) -> Chain:
    """The manifests of a step (None: the latest) and of those that it stands on.

    Raises:
        FileNotFoundError: nothing is committed there, or not that step.
        CorruptionError: a manifest is not as written, or a base is missing.
    """
    directory = Path(path)
    steps = committed_steps(directory)
    if step is not None:
        check_step(step)
    if not steps or (step is not None and step not in steps):
        what = "nothing" if not steps else f"no step {step} (but {steps[-16:]})"
        raise FileNotFoundError(f"{what} is committed in '{directory}'")
    current: int | None = steps[-1] if step is None else step
    links: list[tuple[Path, Manifest]] = []
    while current is not None:
        folder = current_folder(directory, current)
        if current not in steps:
            raise CorruptionError(
                f"'{links[-1][0]}' stands on step {current}, which is not in '{directory}'; "
                "restore that step's folder, or load an earlier step"
            )
        manifest = Manifest.read(folder)
        if manifest.step != current:
            raise CorruptionError(f"'{folder}' holds step {manifest.step}; rename it")
        if links and len(manifest.pools) != len(links[-1][1].pools):
            raise CorruptionError(f"'{links[-1][0]}' holds other pools than the step it stands on")
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
    steps = committed_steps(Path(path))
    if not steps:
        open_chain(path)  # says so
    total = 0
    for each in steps:
        chain = open_chain(path, each)
        total += chain.manifest.check_files(chain.folder)
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
    with contextlib.suppress(StoreError):
        settle(model)
    chain = open_chain(path, step)
    chain.check(hashed=check)
    extra = extras.read(chain.folder) if "extra.json" in chain.manifest.files else None
    pairs = _paired(model, chain)
    for pool, index in pairs:
        if pool.store is None:
            _check_room(pool, chain, index, Path(path))
    _replace(model, chain, pairs, Path(path))
    note_restored(model, Path(path), chain.manifest.step)
    return {"step": chain.manifest.step, "extra": extra}


def _paired(model: nn.Module, chain: Chain) -> list[tuple[Pool, int]]:
    """Each pool with the index of its entry: by layout, and by module where that is ambiguous."""
    left = list(enumerate(chain.manifest.pools))
    out = []
    for name, _, pool in pools_of(model):
        wanted = PoolEntry(
            folder="store/0",
            module=name,
            layout=pool.layout.describe(),
            record_bytes=pool.layout.record_bytes,
            steps=0,
        )
        same = [item for item in left if item[1].identity == wanted.identity]
        if not same:
            raise ConfigError(
                f"'{chain.folder}' has no rows for {wanted.layout}; it holds "
                f"{[entry.layout for _, entry in left]}. Build the model as it was saved"
            )
        named = [item for item in same if item[1].module == name]
        item = (named or same)[0]
        if item[1].record_bytes != wanted.record_bytes:
            raise CorruptionError(
                f"'{chain.folder}' says {item[1].record_bytes} bytes a record of {wanted.layout}, "
                f"which take {wanted.record_bytes}"
            )
        left.remove(item)
        out.append((pool, item[0]))
    if left:
        raise ConfigError(
            f"'{chain.folder}' also holds rows of {[entry.layout for _, entry in left]}, which the "
            "model lacks. Build the model as it was saved"
        )
    return out


def _replace(model: nn.Module, chain: Chain, pairs: list[tuple[Pool, int]], path: Path) -> None:
    modules = [module for _, module in tiered_modules(model)]
    for module in modules:
        if module._runtime.streaming:
            raise ConfigError("a te.prefetch loop is running; restore before it, or leave it first")
    prepared = _prepared(chain, pairs)
    why = StoreError(
        f"restoring from '{chain.folder}' failed midway: the rows are gone until "
        "te.checkpoint.load(model, path) succeeds"
    )
    try:
        for module in modules:
            module._runtime.discard(why)
        for _, target in prepared:
            write_meta(target, {**read_meta(target), "settled": False})
        for restored, target in prepared:
            _swap(restored, target)
    finally:
        for restored, _ in prepared:
            if restored.exists():
                remove_tree(restored)
    indices = [index for _, index in pairs]
    stored = [index for pool, index in pairs if pool.store is not None]
    for index, (_, target) in zip(stored, prepared, strict=True):
        steps = chain.manifest.pools[index].steps
        write_meta(target, {"step": steps, "settled": True})
    for module in modules:
        module._runtime.reopen()
    for (_, module, pool), index in zip(pools_of(model), indices, strict=True):
        module._runtime.set_steps(chain.manifest.pools[index].steps)
        if pool.store is None:
            for table, ids, records in _rows(chain, index, pool, path):
                pool.write(table, ids, records)


def _prepared(chain: Chain, pairs: list[tuple[Pool, int]]) -> list[tuple[Path, Path]]:
    """Complete stores beside the working ones: (restored, working) of each pool with an SSD."""
    out: list[tuple[Path, Path]] = []
    try:
        for pool, index in pairs:
            if pool.store is None:
                continue
            target = pool.store.path
            restored = target.with_name(target.name.replace("pool-", "restoring-"))
            with os_errors(f"cannot write '{restored}'"):
                if restored.exists():
                    remove_tree(restored)
            out.append((restored, target))
            _restore_store(chain, index, pool, restored)
            with os_errors(f"cannot write '{restored}'"):
                sync_tree(restored)
                sync_path(restored.parent)
    except BaseException:
        for restored, _ in out:
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
    if deltas:
        with open_store(backend, target, record_bytes, layout, "read_write") as store:  # type: ignore[arg-type]
            for folder, _ in deltas:
                for keys, records in delta_chunks(folder, record_bytes):
                    store.put(keys, records)
            store.flush()
    write_meta(target, {"step": chain.manifest.pools[index].steps, "settled": False})


def _swap(restored: Path, target: Path) -> None:
    aside = target.with_name(target.name.replace("pool-", "discarded-"))
    with os_errors(f"cannot replace '{target}'"):
        if aside.exists():
            remove_tree(aside)
        os.rename(target, aside)
        os.rename(restored, target)
        sync_path(target.parent)
        remove_tree(aside)


@contextlib.contextmanager
def _reading(folder: Path, entry: PoolEntry, near: Path) -> Iterator[RowStore]:
    """A committed store, opened in a copy: opening writes a lock, and the step is immutable."""
    with os_errors(f"cannot read '{folder}' by a copy in '{near}'"):
        scratch = tempfile.mkdtemp(prefix="reading-", dir=near)
    try:
        copy = Path(scratch) / "store"
        copy_tree(folder, copy)
        with open_store("auto", copy, entry.record_bytes, entry.layout, "read_only") as store:
            yield store
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def scan_pool(chain: Chain, index: int, near: Path) -> Iterator[tuple[Any, Any]]:
    """(keys, records) of a pool's rows, by no order; of a row that a delta changed, its last."""
    (base, entry), *deltas = chain.pool_links(index)
    newest: dict[bytes, int] = {}
    for i, (folder, _) in enumerate(deltas):
        for keys, _ in delta_chunks(folder, entry.record_bytes):
            newest.update((key.tobytes(), i) for key in keys)
    with _reading(base, entry, near) as store:
        for keys, records in store.scan():
            if newest:
                keep = np.fromiter((k.tobytes() not in newest for k in keys), np.bool_, len(keys))
                keys, records = keys[keep], records[keep]
            if len(keys):
                yield keys, records
    for i, (folder, _) in enumerate(deltas):
        for keys, records in delta_chunks(folder, entry.record_bytes):
            keep = np.fromiter((newest[k.tobytes()] == i for k in keys), np.bool_, len(keys))
            if keep.any():
                yield keys[keep], records[keep]


def _rows(chain: Chain, index: int, pool: Pool, path: Path) -> Iterator[tuple[int, Any, Any]]:
    """(table's index in the pool, ids, records) of every row."""
    tables = {h.tobytes(): t for t, h in enumerate(pool.layout.table_hashes)}
    for keys, records in scan_pool(chain, index, _scratch(path)):
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


def _scratch(path: Path) -> Path:
    """Where links to the step's files are possible, else anywhere."""
    return path if os.access(path, os.W_OK) else Path(tempfile.gettempdir())
