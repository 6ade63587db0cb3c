"""A memory limit for a child process, page cache included. Needs the right to make a cgroup."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["MemoryLimit"]


class MemoryLimit:
    """A fresh memory cgroup (v1 or v2) for one child process, page cache included.

    ``kind`` is "cgroup v1", "cgroup v2", or None where this user can make neither.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.kind: str | None = None
        self._path: Path | None = None
        name = f"tiered_embed-benchmark-{os.getpid()}-{time.monotonic_ns()}"
        for kind, parent in _cgroup_parents():
            path = parent / name
            try:
                path.mkdir()
            except OSError:
                continue
            try:
                if kind == "cgroup v1":
                    (path / "memory.limit_in_bytes").write_text(str(limit_bytes))
                    with contextlib.suppress(OSError):  # exists where swap is accounted
                        (path / "memory.memsw.limit_in_bytes").write_text(str(limit_bytes))
                else:
                    (path / "memory.max").write_text(str(limit_bytes))
                    with contextlib.suppress(OSError):
                        (path / "memory.swap.max").write_text("0")
            except OSError:
                path.rmdir()
                continue
            self.kind, self._path = kind, path
            return

    def command(self, argv: Sequence[str]) -> list[str]:
        """``argv``, entering the group before the program starts."""
        if self._path is None:
            return list(argv)
        enter = 'echo $$ > "$0" && exec "$@"'
        return ["/bin/sh", "-c", enter, str(self._path / "cgroup.procs"), *argv]

    def peak_bytes(self) -> int | None:
        """Most memory that the group held, page cache included."""
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            if self._path is not None and (self._path / name).exists():
                return int((self._path / name).read_text())
        return None

    def close(self) -> None:
        """Remove the group; its processes have ended."""
        if self._path is None:
            return
        with contextlib.suppress(OSError):  # v1: hand the cached pages back first
            (self._path / "memory.force_empty").write_text("0")
        for _ in range(50):
            try:
                self._path.rmdir()
            except OSError:
                time.sleep(0.1)
            else:
                break
        self._path = None

    def __enter__(self) -> "MemoryLimit":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _cgroup_parents() -> Iterator[tuple[str, Path]]:
    """Places where a memory group may be made: (kind, directory)."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        own = {
            line.split(":")[1]: line.split(":")[2].lstrip("/")
            for line in Path("/proc/self/cgroup").read_text().splitlines()
        }
    except OSError:
        return
    for _, place, kind, options, *_ in mounts:
        if kind == "cgroup" and "memory" in options.split(","):
            yield "cgroup v1", Path(place)
            yield "cgroup v1", Path(place) / own.get("memory", "")
    for _, place, kind, *_ in mounts:
        if kind != "cgroup2":
            continue
        mine = Path(place) / own.get("", "")
        for parent in (mine, mine.parent, Path(place)):
            with contextlib.suppress(OSError):  # already on, or not ours to turn on
                (parent / "cgroup.subtree_control").write_text("+memory")
            yield "cgroup v2", parent
