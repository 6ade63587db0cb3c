"""The directory around a store: who may use it, and what its records look like.

::

    path/LOCK          flock held for the life of a store; contains the holder's pid
    path/layout.json   the record layout and the tables (description.py); its presence commits the
                       creation
    path/meta.json     small facts that the caller keeps (marks.py), replaced as a whole (optional)
    path/db/           the backend's files
    path/import.tmp/   scratch space of a bulk import, removed by the next opening
    path/CREATING      exists while the store is being created

This module knows no backend. Every JSON file carries the SHA-256 of its content.

Threading: one thread at a time, except that ``write_meta`` may run at the same time as anything but
another ``write_meta``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError, CorruptionError, StoreError
from .description import Description, Tables, merged

__all__ = [
    "Mode",
    "OpenHereError",
    "StoreDirectory",
    "description_path",
    "make_directory",
    "os_errors",
    "read_description",
    "read_meta",
    "replace_file",
    "sync_path",
    "write_description",
    "write_meta",
]

Mode = Literal["create", "read_write", "read_only"]

_directories: weakref.WeakSet[StoreDirectory] = weakref.WeakSet()
_LAYOUT = "layout.json"
_META = "meta.json"
_RESTORE = (
    "restore the file, or move its folder away, make the module anew, and restore its rows with "
    "te.checkpoint.load(model, path)"
)


class OpenHereError(StoreError):
    """This very process has the store in ``path`` open."""

    path: Path | None = None


@contextlib.contextmanager
def os_errors(what: str) -> Iterator[None]:
    """Turns an OSError into a StoreError; nothing else in the package does."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{what}: {error}") from error


def sync_path(path: Path) -> None:
    """fsync a file or a directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """Creates ``path`` (0700) and what is missing above it, so that it survives a power loss."""
    if path.is_dir():
        return
    if path.parent != path:
        make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    sync_path(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Writes ``path`` atomically and durably. No link is followed on the way.

    Raises:
        StoreError: it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    with os_errors(f"cannot write '{path}'"):
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_path(path.parent)


def _digest(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the file atomically and durably."""
    try:
        text = json.dumps({"content": content, "sha256": _digest(content)}, indent=1)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path.name}: only JSON values can be stored: {error}") from error
    replace_file(path, (text + "\n").encode())


def _read_json(path: Path) -> dict[str, Any]:
    with os_errors(f"cannot read '{path}'"):
        raw = path.read_bytes()
    try:
        document = json.loads(raw)
        content = document["content"]
        intact = isinstance(content, dict) and _digest(content) == document["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptionError(f"'{path}' is not readable JSON ({error}); {_RESTORE}") from error
    if not intact:
        raise CorruptionError(f"'{path}' does not match its SHA-256; {_RESTORE}")
    return dict(content)


def read_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping last written with ``write_meta``; empty if there is none."""
    file = Path(path) / _META
    return _read_json(file) if file.exists() else {}


def write_meta(path: str | os.PathLike[str], meta: Mapping[str, Any]) -> None:
    """Replace ``path/meta.json`` atomically and durably by the JSON values of ``meta``."""
    _write_json(Path(path) / _META, meta)


def description_path(path: str | os.PathLike[str]) -> str:
    """The file that says what a store holds."""
    return f"{os.fspath(path)}{os.sep}{_LAYOUT}"


def read_description(path: str | os.PathLike[str]) -> Description | None:
    """What ``path/layout.json`` says; None where there is no store.

    Raises:
        CorruptionError: it is damaged. StoreError: of a format that this version does not read.
    """
    if not StoreDirectory.exists(path):
        return None
    return Description.parse(_read_json(Path(path) / _LAYOUT), str(path))


def write_description(path: str | os.PathLike[str], description: Description) -> None:
    """Replaces ``path/layout.json`` atomically and durably."""
    _write_json(Path(path) / _LAYOUT, description.content())


def _identity(file: int | Path) -> tuple[int, int]:
    """Of the file itself, whatever path led to it."""
    found = os.stat(file)
    return found.st_dev, found.st_ino


def _held_locks() -> list[int]:
    """The descriptors of the locks that this process holds."""
    held = [directory._lock_fd for directory in list(_directories)]
    return [fd for fd in held if fd is not None]


class StoreDirectory:
    """A locked store directory; ``release`` unlocks it."""

    def __init__(self, path: str | os.PathLike[str], mode: Mode) -> None:
        self.path = Path(path).absolute()
        self.mode = mode
        self._lock_fd: int | None = None
        self._db: tuple[int, int] | None = None  # the directory that the backend has open
        if mode == "create":
            with os_errors(f"cannot create the store directory '{self.path}'"):
                make_directory(self.path.parent)
                # Its name is made durable with the layout, which commits the creation.
                self.path.mkdir(mode=0o700, exist_ok=True)
                self.path.chmod(0o700)
        elif not self.exists(self.path):
            raise StoreError(
                f"there is no store in '{self.path}' (no {_LAYOUT}); open it with mode='create'"
            )
        try:
            self._lock()
            self._sweep()
        except BaseException:
            self.release()
            raise

    @staticmethod
    def exists(path: str | os.PathLike[str]) -> bool:
        """Whether a store was created there."""
        try:
            return (Path(path) / _LAYOUT).exists()
        except OSError:  # below a file, or no permission: creating it will say which
            return False

    @property
    def db_path(self) -> Path:
        return self.path / "db"

    @property
    def scratch_path(self) -> Path:
        return self.path / "import.tmp"

    def _lock(self) -> None:
        lock_path = self.path / "LOCK"
        shared = self.mode == "read_only"
        with os_errors(f"cannot open '{lock_path}'"):
            # Not through a link: its target would be truncated.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(lock_path, flags, 0o600)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise StoreError(f"'{lock_path}' is no regular file; remove it")
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            identity = _identity(fd)
            os.close(fd)
            fact = f"store '{self.path}' is already open, by pid {pid}"
            # The pid alone may be that of a process in another container.
            if identity not in [_identity(held) for held in _held_locks()]:
                raise StoreError(f"{fact}; close it there first") from error
            here = OpenHereError(
                f"{fact}, which is this process; close what has it open, or every module with "
                "te.close_all()"
            )
            here.path = self.path
            raise here from error
        self._lock_fd = fd
        _directories.add(self)
        with os_errors(f"cannot write '{lock_path}'"):
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    def check_in_place(self) -> None:
        """Raises StoreError if what lies at the path now is another directory than the one that was
        opened: what is written into the one would be missed in the other."""
        if self._lock_fd is None:
            return
        with os_errors(f"store '{self.path}' was moved or removed while it was open"):
            lock = _identity(self.path / "LOCK")
            db = _identity(self.db_path)
            os.stat(self.path / _LAYOUT)
        if lock != _identity(self._lock_fd) or self._db not in (None, db):
            raise StoreError(
                f"store '{self.path}' was replaced while it was open. Rows that were trained since "
                "are in neither directory as a whole: close it, and restore a checkpoint"
            )

    def remember_db(self) -> None:
        """Notes which directory the backend has opened."""
        with os_errors(f"cannot read '{self.db_path}'"):
            self._db = _identity(self.db_path)

    def _sweep(self) -> None:
        if self.mode == "read_only":
            return
        creating = self.path / "CREATING"
        with os_errors(f"cannot prepare '{self.path}'"):
            shutil.rmtree(self.scratch_path, ignore_errors=True)
            if self.mode == "read_write":
                creating.unlink(missing_ok=True)
                return
            if self.exists(self.path):
                raise StoreError(
                    f"'{self.path}' already holds a store; open it with mode='read_write'"
                )
            if creating.exists():  # a killed creation, in which nothing was acknowledged
                shutil.rmtree(self.db_path, ignore_errors=True)
            elif self.db_path.exists() and any(self.db_path.iterdir()):
                raise StoreError(
                    f"'{self.db_path}' has files but '{self.path / _LAYOUT}' is missing; "
                    "choose another directory, or restore the file"
                )
            creating.unlink(missing_ok=True)
            creating.touch(exist_ok=False)
            self.db_path.mkdir(mode=0o700, exist_ok=True)
            sync_path(self.path)

    @property
    def description(self) -> Description:
        """The description of the store that is there. REQUIRES: it was created."""
        found = read_description(self.path)
        if found is None:
            raise StoreError(f"'{self.path / _LAYOUT}' is gone; restore the file")
        return found

    def commit_layout(
        self, backend: str, record_bytes: int, layout: Mapping[str, Any], tables: Tables | None
    ) -> None:
        """Writes the description of a new store, which exists from here on."""
        new = Description(backend, record_bytes, layout)
        if tables is not None:
            new = new.with_tables(merged({}, tables, str(self.path)))
        write_description(self.path, new)
        with os_errors(f"cannot finish the creation of '{self.path}'"):
            (self.path / "CREATING").unlink(missing_ok=True)
            sync_path(self.path.parent)

    def register(self, tables: Tables) -> None:
        """Adds ``tables`` to those that the store lists; if ``read_only``, it must list them all.

        Raises:
            ConfigError: as :func:`~tiered_embed.store.description.merged`, or a table is missing.
        """
        stored = self.description
        after = merged(stored.tables, tables, str(self.path))
        new = sorted(after.keys() - stored.tables.keys())
        if new and self.mode == "read_only":
            raise ConfigError(
                f"store '{self.path}' holds the tables {sorted(stored.tables)}, not {new}"
            )
        # A store of format 1 keeps it while nothing is added: the version that wrote it reads it.
        changed = new or (stored.version > 1 and after != stored.tables)
        if changed and self.mode != "read_only":
            write_description(self.path, stored.with_tables(after))

    def copy_description(self, target: Path) -> None:
        """Describe a copy of the store in ``target``. Its layout is written last and commits it."""
        meta = read_meta(self.path)
        if meta:
            write_meta(target, meta)
        _write_json(target / _LAYOUT, _read_json(self.path / _LAYOUT))

    def abandon_creation(self) -> None:
        """Undo a creation that failed before ``commit_layout``."""
        shutil.rmtree(self.db_path, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.path / "CREATING").unlink(missing_ok=True)

    def release(self) -> None:
        """Unlock; a second call does nothing."""
        if self._lock_fd is None:
            return
        fd, self._lock_fd = self._lock_fd, None
        # A forked child shares the lock: closing our descriptor alone would leave it held.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)

    def forget_after_fork(self) -> None:
        """In a forked child: gives the lock up, so that it ends with the parent."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None
