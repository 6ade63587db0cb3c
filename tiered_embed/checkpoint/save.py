"""Saving a step: everything that was trained, as of one moment, committed or absent.

A save has two halves. The *cut*, in the caller's thread, fixes what the step is: dirty rows are
copied out, the user's ``extra`` is encoded, and every pool's store is told to link its files once
it holds the rows of the cut. The rest (hash, manifest, fsync, rename) may run in the background.
Training that goes on meanwhile changes nothing in the step.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..errors import ConfigError, StoreError, TieredEmbedError
from ..modules.base import TieredModule
from ..modules.pool import Pool
from ..store import encode_keys, open_store, write_meta
from ..store.directory import os_errors
from ..tiers import ChangedKeys
from . import extra as extras
from .delta import write_delta
from .folders import check_step, commit, committed_steps, current_folder, lock, prepare, remove_tree
from .manifest import FileEntry, Manifest, PoolEntry, files_below, sha256_of

__all__ = ["Saved", "pools_of", "save", "save_delta", "tiered_modules"]

_log = logging.getLogger("tiered_embed")


class Saved:
    """A save that was cut; :meth:`wait` tells that it is committed."""

    def __init__(self, path: Path, step: int) -> None:
        self.step = step
        self._path = path
        self._future: Future[None] | None = None
        self._told = False  # somebody has seen how it ended

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
            StoreError: it is not, and will not be; training may go on.
        """
        self._told = True
        if self._future is not None:
            self._future.result()
        return self

    def raise_untold(self) -> None:
        """Raises a failure that nobody has waited for. REQUIRES: done."""
        if not self._told:
            self.wait()


@dataclass(frozen=True)
class _Basis:
    """What a delta stands on: the step that a model's rows were last saved as or restored from."""

    path: Path
    step: int
    changed: list[ChangedKeys]  # per pool, since then


# Per model: the newest save, and what its next delta may stand on.
_newest: weakref.WeakKeyDictionary[nn.Module, Saved] = weakref.WeakKeyDictionary()
_bases: weakref.WeakKeyDictionary[nn.Module, _Basis] = weakref.WeakKeyDictionary()


def tiered_modules(model: nn.Module) -> list[tuple[str, TieredModule]]:
    """(name, module) of the tiered modules inside ``model``, each once.

    Raises:
        ConfigError: there is none.
    """
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, TieredModule)]
    if not found:
        raise ConfigError("the model has no tiered module: there are no rows to save or restore")
    return found


def pools_of(model: nn.Module) -> list[tuple[str, TieredModule, Pool]]:
    """(module's name, module, pool), in the order of the model."""
    return [(n, m, pool) for n, m in tiered_modules(model) for pool in m._runtime.pools]


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    step: int,
    extra: Any = None,
    background: bool = False,
) -> Saved:
    """Saves every row, its optimizer state and ``extra`` as ``path/step-<step>``.

    Call it between a backward and the next forward. Committed or absent: an interrupted save leaves
    what the next one sweeps.

    Args:
        step: names the step; any number that is not committed there yet.
        extra: dense weights, optimizer and RNG states, a reader's cursor (``Prefetch.state_dict``):
            nested dicts, lists and tuples of tensors, arrays, strings and numbers.
        background: return after the cut. Training may go on at once; the write buffer may take the
            dirty bytes, at most 1 GiB at a time, and 256 MiB until the step's rows are stored.

    Returns:
        The save; without ``background`` it is committed.

    Raises:
        ConfigError: a step that is committed already, an ``extra`` that is no plain data, a model
            without tiered modules, gradients being accumulated.
        StoreError: it could not be written, or an earlier background save failed. Nothing that was
            committed is lost.
    """
    return _save(model, Path(path), check_step(step), extra, background, None)


def save_delta(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    step: int,
    extra: Any = None,
    background: bool = False,
) -> Saved:
    """As :func:`save`, of the rows alone that changed since the model's newest save or restore.

    Restoring the step restores the steps that it stands on first.

    Raises:
        ConfigError: nothing in ``path`` to stand on, or a pool without an SSD tier. Else as
            :func:`save`.
    """
    directory = Path(path)
    _settle(model)
    basis = _bases.get(model)
    if (
        basis is None
        or basis.path != directory.absolute()
        or basis.step not in committed_steps(directory)
    ):
        raise ConfigError(
            f"a delta needs the newest save or restore of this model in '{directory}'; "
            "call te.checkpoint.save first"
        )
    if basis.step >= check_step(step):
        raise ConfigError(f"step {step} is not behind step {basis.step}, on which it stands")
    return _save(model, directory, step, extra, background, basis)


def settle(model: nn.Module) -> None:
    """Waits for the model's newest save; raises its failure unless somebody has seen it."""
    _settle(model)


def note_restored(model: nn.Module, path: Path, step: int) -> None:
    """The model's rows are those of a committed step."""
    _bases[model] = _Basis(path.absolute(), step, _track(model))


def _settle(model: nn.Module) -> None:
    newest = _newest.get(model)
    if newest is None:
        return
    if not newest.done:
        with contextlib.suppress(TieredEmbedError):
            assert newest._future is not None
            newest._future.result()
    newest.raise_untold()


def _track(model: nn.Module) -> list[ChangedKeys]:
    tiers = [pool.pipeline.ssd for _, _, pool in pools_of(model)]
    return [ChangedKeys() if ssd is None else ssd.track() for ssd in tiers]


def _save(
    model: nn.Module, path: Path, step: int, extra: Any, background: bool, basis: _Basis | None
) -> Saved:
    _settle(model)
    pools = pools_of(model)
    _check(pools, basis is not None)
    encoded = {} if extra is None else extras.encode(extra)
    held = contextlib.ExitStack()
    held.enter_context(lock(path))
    try:
        folder = prepare(path, step)
        held.callback(_sweep, folder)
        kind = "store" if basis is None else "delta"
        with os_errors(f"cannot write into '{folder}'"):
            (folder / kind).mkdir(mode=0o700)
        cuts: list[Future[None]] = []
        entries: list[PoolEntry] = []
        changed: list[ChangedKeys] = []
        for i, (name, module, pool) in enumerate(pools):
            runtime = module._runtime
            entries.append(
                PoolEntry(
                    folder=f"{kind}/{i}",
                    module=name,
                    layout=pool.layout.describe(),
                    record_bytes=pool.layout.record_bytes,
                    steps=runtime.steps,
                )
            )
            target = folder / kind / str(i)
            since = None if basis is None else basis.changed[i]
            cuts.append(_cut(pool, target, runtime.steps, since, changed))
    except BaseException:
        held.close()
        raise

    def finish() -> None:
        with held:
            for cut in cuts:
                cut.result()
            _write(folder, encoded)
            manifest = Manifest(
                version=1,
                step=step,
                base=None if basis is None else basis.step,
                pools=entries,
                files=_hashed(folder, path),
            )
            manifest.write(folder)
            commit(folder)

    saved = Saved(path / f"step-{step}", step)
    _newest[model] = saved
    if background:
        saved._future = pools[0][2].pipeline.in_saving_thread(_logged(finish, saved))
        # A delta may stand on it at once: the next save waits for this one, and raises its failure.
    else:
        saved._told = True
        finish()
    _bases[model] = _Basis(path.absolute(), step, changed)
    return saved


def _check(pools: list[tuple[str, TieredModule, Pool]], delta: bool) -> None:
    for name, module, pool in pools:
        pool.pipeline.check()
        updates = module._runtime.updates
        if updates is not None and updates.accumulating:
            raise ConfigError("gradients are being accumulated; save after te.accumulate")
        if delta and pool.store is None:
            raise ConfigError(
                f"module {name!r} has no SSD tier, so nobody knows which rows changed; "
                "save it whole"
            )


def _cut(
    pool: Pool, target: Path, steps: int, since: ChangedKeys | None, changed: list[ChangedKeys]
) -> Future[None]:
    """Fixes a pool's rows; the future tells that they are in ``target``."""
    ssd, store = pool.pipeline.ssd, pool.store
    if ssd is None or store is None:
        changed.append(ChangedKeys())
        return _copied(pool, target, steps)

    def job() -> None:
        # Between two writes: what the tier writes later belongs to the next step.
        changed[place] = ssd.track()
        if since is not None:
            write_delta(store, since.keys(), target)
            return
        store.checkpoint(target)
        write_meta(target, {"step": steps, "settled": True})

    place = len(changed)
    changed.append(ChangedKeys())
    return pool.pipeline.cut(job)


def _copied(pool: Pool, target: Path, steps: int) -> Future[None]:
    """Without a store below: writes one, of every materialised row, before it returns."""
    pool.pipeline.quiesce()
    layout = pool.layout

    def chunks() -> Any:
        hashes = [layout.table_hashes[i].tobytes() for i in range(len(layout.tables))]
        for key, i in sorted((h, i) for i, h in enumerate(hashes)):
            for rows, records in pool.materialised(i):
                yield encode_keys(key, rows), np.ascontiguousarray(records)

    with open_store("auto", target, layout.record_bytes, layout.describe(), "create") as store:
        store.import_sorted(chunks())
    write_meta(target, {"step": steps, "settled": True})
    with os_errors(f"cannot write into '{target}'"):
        (target / "LOCK").unlink()
    done: Future[None] = Future()
    done.set_result(None)
    return done


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    with os_errors(f"cannot write into '{folder}'"):
        for name, content in contents.items():
            (folder / name).write_bytes(content)


def _hashed(folder: Path, path: Path) -> dict[str, FileEntry]:
    """Size and digest of every file; those of files shared with a committed step are known."""
    known: dict[tuple[int, int, int], str] = {}
    for step in reversed(committed_steps(path)[-8:]):
        before = current_folder(path, step)
        with contextlib.suppress(StoreError, OSError):
            for name, entry in Manifest.read(before).files.items():
                status = os.lstat(before / name)
                known.setdefault((status.st_dev, status.st_ino, entry.size), entry.sha256)
    out = {}
    for name, size in files_below(folder):
        status = os.lstat(folder / name)
        digest = None
        if name.endswith(".sst"):  # never changes once written
            digest = known.get((status.st_dev, status.st_ino, size))
        out[name] = FileEntry(size=size, sha256=digest or sha256_of(folder / name))
    return out


def _sweep(folder: Path) -> None:
    """Of a save that did not commit; of one that did the folder is gone."""
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
