"""A committed step together with the steps that it stands on, and the rows that they hold.

A whole step stands alone; a delta stands on an earlier step. Reads only: stores are opened in
copies, because opening one writes a lock and a step is immutable.

Threading: as its caller; two readers of one step are independent.
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

from ..errors import CorruptionError, TieredEmbedError
from ..spec import table_hash
from ..store import RowStore, copy_tree, open_store, os_errors, read_description
from ..tiers import KEY
from .delta import delta_chunks, delta_keys
from .folders import SCRATCH, check_step, committed_steps, current_folder, directory
from .manifest import Manifest, PoolEntry

__all__ = [
    "Chain",
    "Verdict",
    "as_keys",
    "open_chain",
    "other_tables",
    "reading",
    "scan_pool",
    "verdicts",
    "verify",
    "without_tables",
]

U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Chain:
    """A whole step and the deltas that stand on it, oldest first: (folder, manifest) of each."""

    links: tuple[tuple[Path, Manifest], ...]

    @property
    def manifest(self) -> Manifest:
        """The manifest of the step itself."""
        return self.links[-1][1]

    @property
    def folder(self) -> Path:
        return self.links[-1][0]

    def check(self, *, hashed: bool = True) -> int:
        """Compares every file with the manifests; returns the bytes. Raises as
        :meth:`Manifest.check_files`."""
        return sum(manifest.check_files(folder, hashed=hashed) for folder, manifest in self.links)

    def pool_links(self, index: int) -> list[tuple[Path, PoolEntry]]:
        """(folder, entry) of pool ``index`` in every link."""
        layout = self.manifest.pools[index].layout
        out = []
        for folder, manifest in self.links:
            entry = manifest.pools[index]
            out.append((folder / entry.folder, entry))
            if entry.layout != layout:
                raise CorruptionError(
                    f"'{folder}' and the step that it stands on have different pools"
                )
        return out


def open_chain(path: str | os.PathLike[str], step: int | None = None) -> Chain:
    """The manifests of a step (None: the latest) and of those that it stands on.

    Raises:
        FileNotFoundError: nothing is committed there, or not that step.
        CorruptionError: a manifest is damaged, or a step that it stands on is missing.
    """
    where = directory(path)
    steps = committed_steps(where)
    if step is not None:
        check_step(step)
    if not steps or (step is not None and step not in steps):
        what = "nothing is committed" if not steps else f"step {step} is not committed"
        there = (
            f"; committed are {steps[-16:]}"
            if steps
            else ". te.checkpoint.load(model, path, missing='start') begins with initial rows then"
        )
        raise FileNotFoundError(f"{what} in '{where}'{there}")
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
            raise CorruptionError(
                f"'{links[-1][0]}' and the step that it stands on have different pools"
            )
        if links and manifest.id != links[-1][1].base_id:
            raise CorruptionError(
                f"'{links[-1][0]}' stands on another step {current} than the one in '{folder}'; "
                "restore that step's folder, or load an earlier step"
            )
        for pool in manifest.pools:
            if pool.folder.startswith("store/") != (manifest.base is None):
                raise CorruptionError(f"'{folder}' mixes whole pools with deltas")
        links.append((folder, manifest))
        current = manifest.base
    return Chain(tuple(reversed(links)))


def verify(path: str | os.PathLike[str], step: int | None = None) -> int:
    """Reads every byte of a step (None: of every step), compares digests, returns the bytes read.

    Raises:
        FileNotFoundError: nothing is committed there.
        CorruptionError: a file is missing or damaged, or does not belong to the step.
    """
    if step is not None:
        return open_chain(path, step).check()
    total = 0
    for verdict in verdicts(path):
        if verdict.error is not None:
            raise verdict.error
        total += verdict.bytes
    return total


@dataclass(frozen=True)
class Verdict:
    """Whether a committed step can be restored: error says what is damaged, in it or in a step that
    it stands on. bytes: of its own files."""

    step: int
    bytes: int
    error: TieredEmbedError | None = None


def verdicts(path: str | os.PathLike[str]) -> Iterator[Verdict]:
    """Reads every byte of every step, once, and tells of each whether it can be restored.

    Raises:
        FileNotFoundError: nothing is committed there.
    """
    where = directory(path)
    steps = committed_steps(where)
    if not steps:
        open_chain(path)  # raises
    own: dict[int, int | TieredEmbedError] = {}
    for step in steps:
        try:
            links = open_chain(where, step).links
        except TieredEmbedError as error:
            yield Verdict(step, 0, error)
            continue
        for folder, manifest in links:
            if manifest.step not in own:
                own[manifest.step] = _checked(folder, manifest)
        size = own[step]
        if isinstance(size, TieredEmbedError):
            yield Verdict(step, 0, size)
            continue
        below = [m.step for _, m in reversed(links) if isinstance(own[m.step], TieredEmbedError)]
        if not below:
            yield Verdict(step, size)
            continue
        told = f"its own files are intact, but it stands on step {below[0]}: {own[below[0]]}"
        yield Verdict(step, size, CorruptionError(told))


def _checked(folder: Path, manifest: Manifest) -> int | TieredEmbedError:
    try:
        return manifest.check_files(folder)
    except TieredEmbedError as error:
        return error


@contextlib.contextmanager
def reading(folder: Path, entry: PoolEntry, near: Path) -> Iterator[RowStore]:
    """The store of a committed step, opened in a copy of links below ``near``."""
    with os_errors(f"cannot read '{folder}' by a copy in '{near}'"):
        scratch = tempfile.mkdtemp(prefix=SCRATCH, dir=near)
    try:
        copy = Path(scratch) / "store"
        copy_tree(folder, copy)
        wanted = entry.store_layout()
        with open_store(
            "auto", copy, wanted.record_bytes, wanted.record, "read_only", tables=wanted.tables
        ) as store:
            yield store
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def other_tables(store_folder: Path, tables: Iterable[str]) -> list[str]:
    """Tables that a store holds besides ``tables``: a model without them trained there."""
    description = read_description(store_folder)
    return [] if description is None else sorted(description.tables.keys() - set(tables))


def scan_pool(chain: Chain, index: int, path: Path) -> Iterator[tuple[U8, U8]]:
    """(keys, records) of a pool's rows, in no particular order: of every row its newest record.

    Takes 12 bytes of memory for every row in a delta.
    """
    (base, entry), *deltas = chain.pool_links(index)
    later = [np.empty(0, KEY)]  # per link, from the newest: the ascending keys of all newer links
    for folder, _ in reversed(deltas):
        later.append(np.union1d(later[-1], as_keys(delta_keys(folder))))
    later.reverse()
    near = path if os.access(path, os.W_OK) else Path(tempfile.gettempdir())
    others = other_tables(base, entry.layout.tables)
    with reading(base, entry, near) as store:
        yield from _without(later[0], without_tables(others, store.scan()))
    for (folder, _), newer in zip(deltas, later[1:], strict=True):
        yield from _without(newer, delta_chunks(folder, entry.record_bytes))


def as_keys(keys: U8) -> npt.NDArray[np.void]:
    """``keys`` (n, 12) as (n,) of a type that NumPy sorts and compares as a store does."""
    return np.ascontiguousarray(keys).view(KEY).ravel()


def without_tables(
    names: Iterable[str], chunks: Iterable[tuple[U8, U8]]
) -> Iterator[tuple[U8, U8]]:
    """``chunks`` without the rows of the tables ``names``."""
    heads = np.array([np.frombuffer(table_hash(name), "<u4")[0] for name in names], np.uint32)
    for keys, records in chunks:
        if len(heads):
            keep = ~np.isin(np.ascontiguousarray(keys[:, :4]).view("<u4").ravel(), heads)
            keys, records = keys[keep], records[keep]
        if len(keys):
            yield keys, records


def _without(gone: npt.NDArray[np.void], chunks: Iterable[tuple[U8, U8]]) -> Iterator[Any]:
    for keys, records in chunks:
        if len(gone):
            mine = as_keys(keys)
            at = np.minimum(np.searchsorted(gone, mine), len(gone) - 1)
            keep = gone[at] != mine
            keys, records = keys[keep], records[keep]
        if len(keys):
            yield keys, records
