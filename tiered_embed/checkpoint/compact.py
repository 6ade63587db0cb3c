"""Two steps compared, and a delta made whole."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..store import open_store, write_meta
from ..store.directory import StoreDirectory, os_errors, sync_path
from . import folders
from .delta import delta_chunks
from .load import open_chain, scan_pool
from .manifest import MANIFEST, FileEntry, Manifest, files_below, sha256_of

__all__ = ["PoolDifference", "compact", "diff"]


@dataclass(frozen=True)
class PoolDifference:
    """How the rows of one pool differ between two steps."""

    tables: tuple[str, ...]
    added: int
    removed: int
    changed: int
    same: int


def diff(path: str | os.PathLike[str], first: int, second: int) -> list[PoolDifference]:
    """Per pool, in the order of step ``first``: rows that ``second`` has more, less, or otherwise.

    Takes 28 bytes of memory per row of a pool.

    Raises:
        FileNotFoundError: a step is not committed. CorruptionError: one is damaged.
    """
    chains = open_chain(path, first), open_chain(path, second)
    for chain in chains:
        chain.check(hashed=False)
    entries = chains[1].manifest.pools
    out = []
    for index, entry in enumerate(chains[0].manifest.pools):
        twins = [i for i, other in enumerate(entries) if other.identity == entry.identity]
        near = Path(path) if os.access(path, os.W_OK) else Path(tempfile.gettempdir())
        before = _fingerprints(scan_pool(chains[0], index, near))
        after = _fingerprints(scan_pool(chains[1], twins[0], near)) if twins else {}
        both = before.keys() & after.keys()
        changed = sum(before[key] != after[key] for key in both)
        out.append(
            PoolDifference(
                tables=tuple(map(str, entry.layout.get("tables", ()))),
                added=len(after) - len(both),
                removed=len(before) - len(both),
                changed=changed,
                same=len(both) - changed,
            )
        )
    return out


def compact(path: str | os.PathLike[str], step: int | None = None) -> int:
    """Makes a delta whole: afterwards it stands on no other step. Returns the step.

    A whole step stays as it is. Interrupted, the delta is still there.

    Raises:
        FileNotFoundError: the step is not committed. CorruptionError: it is damaged.
        StoreError: it cannot be written, or another save is under way.
    """
    directory = Path(path)
    chain = open_chain(directory, step)
    number = chain.manifest.step
    if chain.manifest.base is None:
        return number
    chain.check()
    with folders.lock(directory):
        folder = directory / f"step-{number}.tmp"
        with os_errors(f"cannot write '{folder}'"):
            if folder.exists():
                folders.remove_tree(folder)
            folder.mkdir(mode=0o700)
            for name in chain.manifest.files:
                if name.startswith("extra."):
                    (folder / name).write_bytes((chain.folder / name).read_bytes())
        pools = []
        for index, entry in enumerate(chain.manifest.pools):
            name = f"store/{index}"
            (base, _), *deltas = chain.pool_links(index)
            folders.copy_tree(base, folder / name)
            backend = StoreDirectory.recorded_backend(base)
            with open_store(
                backend,  # type: ignore[arg-type]
                folder / name,
                entry.record_bytes,
                entry.layout,
                "read_write",
            ) as store:
                for changed, _ in deltas:
                    for keys, records in delta_chunks(changed, entry.record_bytes):
                        store.put(keys, records)
                store.flush()
            write_meta(folder / name, {"step": entry.steps, "settled": True})
            with os_errors(f"cannot write '{folder}'"):
                (folder / name / "LOCK").unlink()
            pools.append(entry.model_copy(update={"folder": name}))
        files = {
            name: FileEntry(size=size, sha256=sha256_of(folder / name))
            for name, size in files_below(folder)
            if name != MANIFEST
        }
        Manifest(version=1, step=number, base=None, pools=pools, files=files).write(folder)
        aside = chain.folder.with_name(f"step-{number}.replaced")
        with os_errors(f"cannot replace '{chain.folder}'"):
            folders.sync_tree(folder)
            if chain.folder != aside:
                os.rename(chain.folder, aside)
            os.rename(folder, directory / f"step-{number}")
            sync_path(directory)
            folders.remove_tree(aside)
    return number


def _fingerprints(rows: object) -> dict[bytes, int]:
    out: dict[bytes, int] = {}
    for keys, records in rows:  # type: ignore[attr-defined]
        hashes = [hash(record.tobytes()) for record in np.ascontiguousarray(records)]
        out.update(zip((key.tobytes() for key in keys), hashes, strict=True))
    return out
