"""Runs pieces of programs in child processes that begin and end as real ones do.

A child is forked from a process that has imported everything, opened no store, and started no
thread: that costs 10 ms, an interpreter of its own 2 s. It runs as ``__main__``, and ends as
Python ends: exit handlers, finalization, destructors of C++.

Run as a program, this module is that process.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

IN_TIME_S = 10.0  # every end comes within this time; twice that on a machine that is busy
HUNG_S = 60.0


@dataclass(frozen=True)
class Ended:
    """How a child ended. status: its exit status, or minus the signal; None if it hung."""

    status: int | None
    out: str
    err: str
    seconds: float

    @property
    def last(self) -> str:
        """The last line that it printed."""
        lines = self.out.splitlines()
        return lines[-1] if lines else ""

    def __str__(self) -> str:
        how = f"hung for {HUNG_S} s" if self.status is None else f"ended with {self.status}"
        return f"{how} after {self.seconds:.1f} s\n--- out\n{self.out}\n--- err\n{self.err}"


class Children:
    """Starts children. Threading: one thread at a time."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="te-children-")
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, source: str, *args: object, hung_s: float = HUNG_S) -> Ended:
        """Runs ``source`` with ``sys.argv[1:]`` as ``args``; kills it if it hangs."""
        folder = self._folder.name
        job = {
            "source": textwrap.dedent(source),
            "args": [str(arg) for arg in args],
            "folder": folder,
            "hung_s": hung_s,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        texts = [Path(folder, name).read_text(errors="replace") for name in ("out", "err")]
        return Ended(answer["status"], *texts, answer["seconds"])

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _ended(pid: int, hung_s: float) -> tuple[int | None, float]:
    start = time.monotonic()
    fd = os.pidfd_open(pid)
    try:
        in_time = bool(select.select([fd], [], [], hung_s)[0])
    finally:
        os.close(fd)
    seconds = time.monotonic() - start
    if not in_time:
        os.killpg(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return (os.waitstatus_to_exitcode(status) if in_time else None), seconds


def _serve() -> dict[str, Any] | None:
    """Forks a child for every line; returns the job in the child, and None at the end."""
    for line in sys.stdin:
        job: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            for fd, name in ((1, "out"), (2, "err")):
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
                os.dup2(os.open(Path(job["folder"], name), flags, 0o666), fd)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            return job
        status, seconds = _ended(pid, job["hung_s"])
        print(json.dumps({"status": status, "seconds": seconds}), flush=True)
    return None


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    import torch  # noqa: F401

    import tiered_embed.cli  # noqa: F401

    warnings.simplefilter("default")
    found = _serve()
    if found is not None:
        sys.argv[1:] = found["args"]
        sys.path.insert(0, str(Path(__file__).parent))
        exec(compile(found["source"], "<child>", "exec"), globals())
