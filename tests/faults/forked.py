"""Runs a job in a forked child that may be killed: everything is imported already.

REQUIRES: the parent has opened no store and started no thread.
"""

import faulthandler
import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STUCK_S = 120


@dataclass(frozen=True)
class Ended:
    """How a child ended: with a result, an exception's traceback, or a signal."""

    result: Any = None
    error: str = ""
    signal: int = 0

    @property
    def killed(self) -> bool:
        return self.signal == signal.SIGKILL

    def __str__(self) -> str:
        if self.signal:
            return f"ended by {signal.Signals(self.signal).name}\n{self.error}".rstrip()
        return self.error or f"returned {self.result!r}"


def run_forked(job: Callable[[], Any], *, kill_after_s: float | None = None) -> Ended:
    """Runs ``job`` in a child; its result must be JSON. Kills the child after a time if told so."""
    with tempfile.TemporaryDirectory() as folder:
        result, output = Path(folder, "result"), Path(folder, "output")
        pid = os.fork()
        if pid == 0:
            _be_child(job, result, output)
        status = _wait(pid, kill_after_s)
        text = output.read_text(errors="replace") if output.exists() else ""
        if os.WIFSIGNALED(status):
            return Ended(error=text, signal=os.WTERMSIG(status))
        if os.WEXITSTATUS(status) != 0:
            return Ended(error=text or f"exit status {os.WEXITSTATUS(status)}")
        return Ended(result=json.loads(result.read_text()))


def _be_child(job: Callable[[], Any], result: Path, output: Path) -> None:
    status = 1
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        faulthandler.enable(file=fd)
        signal.alarm(STUCK_S)  # a child that hangs ends by SIGALRM: a finding
        result.write_text(json.dumps(job()))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(pid: int, kill_after_s: float | None) -> int:
    if kill_after_s is not None:
        fd = os.pidfd_open(pid)
        try:
            end = time.monotonic() + kill_after_s
            if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
                os.kill(pid, signal.SIGKILL)
        finally:
            os.close(fd)
    return os.waitpid(pid, 0)[1]
