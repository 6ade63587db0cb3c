"""``manifest.json``: what a committed step consists of, to the byte.

Format 2; format 1, which had neither ``ranks`` nor ``shards``, is read as one rank's whole tables.
The file is ``{"content": ..., "sha256": ...}``: the content is a :class:`Manifest`, and the digest
is that of the content as canonical JSON. Every other file of the step is listed with its size and
SHA-256; no file may be missing, and no other file may be there. A manifest is treated as hostile:
sizes, counts and names have limits, names are relative and plain, and no link is followed.

Threading: immutable data and pure functions of a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import ConfigError, CorruptionError, StoreError
from ..store import WHOLE, StoreLayout, os_errors

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "FileEntry",
    "Layout",
    "Manifest",
    "PoolEntry",
    "files_below",
    "hashed",
    "identity",
    "sha256_of",
]

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
MOST_BYTES = 64 << 20  # of a manifest
MOST_FILES = 1 << 20
MOST_DEPTH = 3  # store/0/db
HASH_CHUNK = 8 << 20

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}"
FILE_PATTERN = (
    rf"^(store/\d{{1,6}}/(db/)?{_NAME}|delta/\d{{1,6}}/{_NAME}|extra\.(json|safetensors))$"
)
FOLDER_PATTERN = r"^(store|delta)/\d{1,6}$"

Count = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, Field(max_length=65536)]
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class FileEntry(_Strict):
    """One file."""

    size: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Layout(_Strict):
    """``PoolLayout.describe()``: two pools with equal layouts can take each other's records."""

    tables: Annotated[list[Text], Field(min_length=1, max_length=65536)]
    dim: Annotated[int, Field(ge=1, lt=2**24)]
    dtype: Literal["float32", "float16", "bfloat16", "int8"]
    optimizer: Text | None
    state: Annotated[dict[Text, Count], Field(max_length=64)]
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    init: Annotated[list[float], Field(min_length=2, max_length=2)]


class PoolEntry(_Strict):
    """The rows of one pool: a store or, in a delta, the rows that changed.

    module: its name inside the model, to tell entries of equal layout apart. rows, padding, shards:
    per table of the layout, its number of rows (None: any id), its padding row (None: it has none)
    and the part of it that this entry holds.
    """

    folder: Annotated[str, Field(pattern=FOLDER_PATTERN)]
    module: Text
    layout: Layout
    rows: Annotated[list[Count | None], Field(max_length=65536)]
    padding: Annotated[list[Count | None], Field(max_length=65536)]
    shards: Annotated[list[Text], Field(max_length=65536)]
    record_bytes: Annotated[int, Field(ge=1, lt=2**31)]
    steps: Annotated[int, Field(ge=0, lt=2**62)]  # updates of its module until then

    @model_validator(mode="after")
    def _one_per_table(self) -> PoolEntry:
        num = len(self.layout.tables)
        if not num == len(self.rows) == len(self.padding) == len(self.shards):
            raise ValueError(
                f"{num} tables have {len(self.rows)} sizes, {len(self.padding)} padding rows and "
                f"{len(self.shards)} shards"
            )
        return self

    def store_layout(self) -> StoreLayout:
        """What a store must agree with to hold these rows."""
        layout = self.layout
        record = layout.model_dump(include={"dim", "dtype", "optimizer", "state"})
        facts = zip(self.rows, self.padding, self.shards, strict=True)
        return StoreLayout(
            record,
            self.record_bytes,
            {
                name: {
                    "rows": rows,
                    "padding": padding,
                    "seed": layout.seed,
                    "init": layout.init,
                    "shard": shard,
                }
                for name, (rows, padding, shard) in zip(layout.tables, facts, strict=True)
            },
        )


class Manifest(_Strict):
    """A committed step.

    id: random, so that steps of two runs with the same number differ. base, base_id: the step that
    a delta stands on, None for a whole step. ranks: how many processes wrote it.
    """

    version: Literal[2]
    id: Id
    step: Count
    base: Count | None
    base_id: Id | None
    ranks: Annotated[int, Field(ge=1, lt=2**31)]
    pools: Annotated[list[PoolEntry], Field(max_length=100_000)]
    files: Annotated[
        dict[Annotated[str, Field(pattern=FILE_PATTERN)], FileEntry], Field(max_length=MOST_FILES)
    ]

    def write(self, folder: Path) -> None:
        """Writes the manifest into ``folder``, durably."""
        content = self.model_dump()
        path = folder / MANIFEST
        with os_errors(f"cannot write '{path}'"), open(path, "xb") as file:
            file.write(_text({"content": content, "sha256": _digest(content)}))
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def read(folder: Path) -> Manifest:
        """The manifest of a committed step.

        Raises:
            CorruptionError: it is damaged. StoreError: another version must read it.
        """
        path = folder / MANIFEST
        remedy = "restore an earlier step, or the file"
        document, raw = _load(path, remedy)
        content = document.get("content")
        if not isinstance(content, dict) or set(document) != {"content", "sha256"}:
            raise CorruptionError(f"'{path}' is not a manifest; {remedy}")
        try:
            # Also the bytes that carry no meaning, such as spaces, must be as they were written.
            intact = _digest(content) == document["sha256"] and _text(document) == raw
        except (ValueError, RecursionError):
            intact = False
        if not intact:
            raise CorruptionError(f"'{path}' does not match its SHA-256; {remedy}")
        version = content.get("version")
        if isinstance(version, int) and version not in (1, FORMAT_VERSION):
            raise StoreError(
                f"'{path}' has format {version}, this version of tiered_embed reads 1 to "
                f"{FORMAT_VERSION}; use the version that wrote it"
            )
        try:
            manifest = Manifest.model_validate(_as_format_2(content))
        except (ValidationError, RecursionError) as error:
            first = str(error).splitlines()[:3]
            raise CorruptionError(f"'{path}': {' '.join(first)}; {remedy}") from error
        folders = [pool.folder for pool in manifest.pools]
        if len(set(folders)) != len(folders):
            raise CorruptionError(f"'{path}' names the folder of a pool twice; {remedy}")
        if manifest.base is not None and manifest.base >= manifest.step:
            raise CorruptionError(
                f"'{path}': base {manifest.base} is not an earlier step; {remedy}"
            )
        return manifest

    def check_files(self, folder: Path, *, hashed: bool = True) -> int:
        """Compares the files in ``folder`` with the manifest; returns their bytes.

        Raises:
            CorruptionError: a file is missing, differs, is not a plain file, or is not listed.
        """
        present: dict[str, int] = {}
        folders: set[str] = set()
        for name, size in files_below(folder):
            if name.endswith("/"):
                folders.add(name)
            else:
                present[name] = size
        present.pop(MANIFEST, None)
        implied = {name[: i + 1] for name in self.files for i, c in enumerate(name) if c == "/"}
        implied |= {f"{pool.folder}/" for pool in self.pools} | {"store/", "delta/"}
        for what, names in (
            ("is missing", self.files.keys() - present.keys()),
            ("is not in the manifest", present.keys() - self.files.keys()),
            ("is not in the manifest", folders - implied),
        ):
            if names:
                raise CorruptionError(
                    f"'{folder / min(names)}' {what}; restore an earlier step, or the file"
                )
        total = 0
        for name, entry in self.files.items():
            if present[name] != entry.size:
                raise CorruptionError(
                    f"'{folder / name}' has {present[name]} bytes, but the manifest says "
                    f"{entry.size}; restore an earlier step, or the file"
                )
            if hashed and sha256_of(folder / name) != entry.sha256:
                raise CorruptionError(
                    f"'{folder / name}' does not match its SHA-256; restore an earlier step, or "
                    "the file"
                )
            total += entry.size
        return total


def _as_format_2(content: dict[str, Any]) -> dict[str, Any]:
    """The content of format 1 with what format 2 added; anything else as it is, for validation."""
    if content.get("version") != 1 or isinstance(content["version"], bool) or "ranks" in content:
        return content
    pools = content.get("pools")
    if not isinstance(pools, list):
        return content
    return {**content, "version": 2, "ranks": 1, "pools": [_with_shards(pool) for pool in pools]}


def _with_shards(pool: Any) -> Any:
    layout = pool.get("layout") if isinstance(pool, dict) else None
    tables = layout.get("tables") if isinstance(layout, dict) else None
    if not isinstance(tables, list):
        return pool
    if "shards" in pool:
        return None  # format 1 has none: refused by the validation
    return {**pool, "shards": [WHOLE] * len(tables)}


def hashed(folder: Path, known: Mapping[tuple[int, int, int], str]) -> dict[str, FileEntry]:
    """An entry for every file below ``folder``.

    known: (device, inode, size) -> digest, of immutable files that need not be read again.
    """
    out = {}
    for name, size in files_below(folder):
        if name.endswith("/"):
            continue
        digest = None
        if name.endswith(".sst"):  # never changes once written
            digest = known.get(identity(folder / name))
        out[name] = FileEntry(size=size, sha256=digest or sha256_of(folder / name))
    return out


def identity(path: Path) -> tuple[int, int, int]:
    """(device, inode, size): equal for two names of one file."""
    with os_errors(f"cannot stat '{path}'"):
        status = os.lstat(path)
    return status.st_dev, status.st_ino, status.st_size


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    sha = hashlib.sha256()
    with os_errors(f"cannot read '{path}'"), open(path, "rb", buffering=0) as file:
        while chunk := file.read(HASH_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def files_below(folder: Path) -> Iterator[tuple[str, int]]:
    """(name relative to ``folder``, bytes) of every file below it; folders end with a slash.

    Raises:
        CorruptionError: something is neither a file nor a folder, or a folder lies deeper than
            any folder of a step.
    """
    pending = [""]
    while pending:
        below = pending.pop()
        with os_errors(f"cannot list '{folder / below}'"):
            entries = sorted(os.scandir(folder / below), key=lambda e: e.name)
        for entry in entries:
            name = below + entry.name
            with os_errors(f"cannot stat '{entry.path}'"):
                status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode) and name.count("/") < MOST_DEPTH:
                yield name + "/", 0
                pending.append(name + "/")
            elif stat.S_ISREG(status.st_mode):
                yield name, status.st_size
            else:
                raise CorruptionError(f"'{entry.path}' does not belong to a step; remove it")


def _text(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


def _load(path: Path, remedy: str) -> tuple[dict[str, Any], bytes]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise CorruptionError(f"'{path}' is not a plain file; {remedy}")
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise CorruptionError(f"cannot read '{path}': {error}; {remedy}") from error
    if len(raw) > MOST_BYTES:
        raise CorruptionError(f"'{path}' has more than {MOST_BYTES} bytes; {remedy}")
    try:
        document = json.loads(raw, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"'{path}' is not readable JSON ({error}); {remedy}") from error
    if not isinstance(document, dict):
        raise CorruptionError(f"'{path}' is not a manifest; {remedy}")
    return document, raw


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key appears twice")
    return out


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _digest(content: Any) -> str:
    try:
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"only JSON values can be stored: {error}") from error
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
