"""Saves a step: everything that was trained until one moment, committed or absent.

A save has two halves. The *snapshot*, in the caller's thread, fixes what the step holds: dirty rows
are copied out, the user's ``extra`` is encoded, and every pool's store will link its files as soon
as these rows have reached it. The rest (hash, manifest, fsync, rename) may run in the background.
Training may go on; it changes nothing in the step.

Threading: the thread that trains the model; the second half uses no row that is being trained.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..engine import Pool
from ..errors import ClosedError, ConfigError, StoreError
from ..modules import TieredModule
from ..store import os_errors, remove_tree
from ..tiers import ChangedKeys
from . import extra as extras
from .folders import (
    check_step,
    commit,
    committed_steps,
    current_folder,
    directory,
    lock,
    prepare,
    step_folder,
)
from .manifest import Manifest, PoolEntry, hashed, identity
from .pools import pool_entry, pools_of, tiered_modules
from .snapshot import take_snapshot

__all__ = [
    "Saved",
    "note_restored",
    "note_started",
    "save",
    "save_delta",
    "wait_for_newest",
]

KNOWN_STEPS = 8
_log = logging.getLogger("tiered_embed")


class Saved:
    """A save whose snapshot is taken; :meth:`wait` returns once it is committed."""

    def __init__(self, path: Path, step: int) -> None:
        self._pid = os.getpid()
        self.step = step
        self._path = path
        self._future: Future[None] | None = None
        self.seen = False  # a caller knows how it ended

    @property
    def path(self) -> Path:
        """The step's folder, once committed."""
        return self._path

    @property
    def done(self) -> bool:
        return self._future is None or self._future.done()

    def wait(self) -> Saved:
        """Returns once the step is committed.

        Raises:
            StoreError: the save failed; training may go on.
            ClosedError: the save belongs to another process.
        """
        if self._pid != os.getpid():
            raise ClosedError(
                f"step {self.step} is saved by process {self._pid}; wait for it there"
            )
        try:
            if self._future is not None:
                self._future.result()
        finally:
            self.seen = self.seen or self.done
        return self


@dataclass(frozen=True)
class _Basis:
    """The step that a delta stands on: the one last saved from the model or restored to it."""

    path: Path
    step: int
    id: str
    changed: list[ChangedKeys]  # per pool, since then


# Per model: its newest save, and the step that its next delta may stand on.
_newest: weakref.WeakKeyDictionary[nn.Module, Saved] = weakref.WeakKeyDictionary()
_bases: weakref.WeakKeyDictionary[nn.Module, _Basis] = weakref.WeakKeyDictionary()


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    step: int,
    extra: Any = None,
    background: bool = False,
) -> Saved:
    """Saves every row, its optimizer state and ``extra`` as ``path/step-<step>``.

    Call it between a backward and the next forward. The step is committed or absent: an interrupted
    save leaves only files that the next save removes.

    Args:
        step: the number of the step, which must not be committed there yet.
        extra: dense weights, optimizer and RNG states, a reader's cursor (``Prefetch.state_dict``):
            nested dicts, lists and tuples of tensors, arrays, strings and numbers. What would come
            back as something else is refused; ``extra.py`` lists what there may be.
        background: return once the snapshot is taken. Training may go on at once; the write buffer
            may take the dirty bytes, at most 1 GiB at a time, and 256 MiB until the step's rows are
            stored.

    Returns:
        The save; without ``background`` it is committed.

    Raises:
        ConfigError: the step is committed already, ``extra`` is not plain data, the model has no
            tiered module, or gradients are being accumulated.
        StoreError: the step could not be written, or an earlier background save failed. No
            committed step is lost.
    """
    return _save(model, directory(path), check_step(step), extra, background, None)


def save_delta(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    step: int,
    extra: Any = None,
    background: bool = False,
) -> Saved:
    """As :func:`save`, but writes only the rows that changed since the newest save or restore.

    A restore of this step reads the steps that it stands on, too.

    Raises:
        ConfigError: ``path`` has no step to stand on, or a pool has no SSD tier. Otherwise as
            :func:`save`.
    """
    where = directory(path)
    wait_for_newest(model, "save")
    basis = _bases.get(model)
    if basis is None or basis.path != where:
        raise _no_basis(where)
    if basis.step >= check_step(step):
        raise ConfigError(
            f"step {step} does not come after step {basis.step}, on which it would stand"
        )
    return _save(model, where, step, extra, background, basis)


def _no_basis(path: Path) -> ConfigError:
    return ConfigError(
        f"a delta stands on this model's newest save or restore, which must be in '{path}', and "
        "needs a record of all writes since then; call te.checkpoint.save first"
    )


def note_restored(model: nn.Module, path: Path, manifest: Manifest) -> None:
    """Notes that the model's rows are now those of a committed step."""
    _bases[model] = _Basis(path, manifest.step, manifest.id, _track(model))


def note_started(model: nn.Module) -> None:
    """Notes that the model's rows are initial ones, on which no delta can stand."""
    _bases.pop(model, None)


def wait_for_newest(model: nn.Module, what: str) -> None:
    """Waits for the model's newest save.

    Raises:
        StoreError: the save failed, and no caller has seen that yet. Otherwise as
            :meth:`Engine.check_idle`.
    """
    for _, module in tiered_modules(model):
        module.engine.check_idle(what)
    newest = _newest.get(model)
    if newest is not None and not newest.seen:
        newest.wait()


def _track(model: nn.Module) -> list[ChangedKeys]:
    tiers = [pool.scheduler.ssd for _, _, pool in pools_of(model)]
    return [ChangedKeys() if ssd is None else ssd.track() for ssd in tiers]


def _save(
    model: nn.Module, path: Path, step: int, extra: Any, background: bool, basis: _Basis | None
) -> Saved:
    wait_for_newest(model, "save")
    pools = pools_of(model)
    _check(pools, basis is not None)
    encoded = {} if extra is None else extras.encode(extra)
    held = contextlib.ExitStack()
    held.enter_context(lock(path))
    snapshots: list[Future[None]] = []
    try:
        if basis is not None:
            _check_basis(basis, path, pools)
        folder = prepare(path, step)
        held.callback(_sweep, folder)
        kind = "store" if basis is None else "delta"
        with os_errors(f"cannot write into '{folder}'"):
            (folder / kind).mkdir(mode=0o700)
        entries: list[PoolEntry] = []
        changed: list[ChangedKeys] = []
        for i, (name, module, pool) in enumerate(pools):
            runtime = module.engine
            entries.append(pool_entry(name, pool, f"{kind}/{i}", runtime.steps))
            target = folder / kind / str(i)
            since = None if basis is None else basis.changed[i]
            snapshots.append(take_snapshot(pool, target, runtime.steps, since, changed))
        this = secrets.token_hex(16)

        def finish() -> None:
            with held:
                for snapshot in futures.wait(snapshots).done:
                    snapshot.result()
                _write(folder, encoded)
                manifest = Manifest(
                    version=2,
                    id=this,
                    step=step,
                    base=None if basis is None else basis.step,
                    base_id=None if basis is None else basis.id,
                    ranks=1,
                    pools=entries,
                    files=hashed(folder, _known(path)),
                )
                manifest.write(folder)
                commit(folder)

        saved = Saved(step_folder(path, step), step)
        if background:
            saved._future = pools[0][2].scheduler.in_saving_thread(_logged(finish, saved))
    except BaseException:
        # Snapshots under way must not write into the folder of a later save.
        futures.wait(snapshots)
        held.close()
        raise
    _newest[model] = saved
    if not background:
        saved.seen = True
        finish()
    _bases[model] = _Basis(path, step, this, changed)
    return saved


def _check_basis(basis: _Basis, path: Path, pools: list[tuple[str, TieredModule, Pool]]) -> None:
    """Raises unless the step is still there and every write since is known. REQUIRES: the lock."""
    if basis.step not in committed_steps(path) or len(basis.changed) != len(pools):
        raise _no_basis(path)
    if Manifest.read(current_folder(path, basis.step)).id != basis.id:
        raise _no_basis(path)
    for (_, _, pool), changed in zip(pools, basis.changed, strict=True):
        if pool.scheduler.ssd is None or not pool.scheduler.ssd.tracks(changed):
            raise _no_basis(path)


def _check(pools: list[tuple[str, TieredModule, Pool]], delta: bool) -> None:
    for name, _, pool in pools:
        pool.scheduler.check()
        if delta and pool.store is None:
            raise ConfigError(
                f"module {name!r} has no SSD tier, which would record the rows that change; "
                "use te.checkpoint.save"
            )


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    with os_errors(f"cannot write into '{folder}'"):
        for name, content in contents.items():
            (folder / name).write_bytes(content)


def _known(path: Path) -> dict[tuple[int, int, int], str]:
    """Digests of the files of the newest steps; a new step may share these files."""
    known: dict[tuple[int, int, int], str] = {}
    for step in reversed(committed_steps(path)[-KNOWN_STEPS:]):
        before = current_folder(path, step)
        with contextlib.suppress(StoreError):
            for name, entry in Manifest.read(before).files.items():
                known.setdefault(identity(before / name), entry.sha256)
    return known


def _sweep(folder: Path) -> None:
    """Removes the folder of a save that did not commit; after a commit there is none."""
    with contextlib.suppress(OSError):
        if folder.exists():
            remove_tree(folder)


def _logged(job: Callable[[], None], saved: Saved) -> Callable[[], None]:
    def run() -> None:
        try:
            job()
        except BaseException as error:
            thread = threading.current_thread().name
            _log.error("saving step %d failed in %s: %s", saved.step, thread, error)
            raise

    return run
