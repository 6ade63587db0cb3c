"""``native/tests/fault_shim.c``: builds it, and arms it in a process that has it preloaded."""

import ctypes
import fcntl
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "native/tests/fault_shim.c"
LIBRARY = ROOT / "build/torture/fault_shim.so"


@dataclass(frozen=True)
class Fault:
    """What happens at the ``at``-th change of a file below a directory; see fault_shim.c."""

    mode: str  # kill_before, kill_after, fail, short
    at: int
    errno: int = 0
    sticky: bool = False


def build() -> Path:
    """The shim's library, compiled where it is absent or older than its source."""
    LIBRARY.parent.mkdir(parents=True, exist_ok=True)
    with open(LIBRARY.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not LIBRARY.exists() or LIBRARY.stat().st_mtime < SOURCE.stat().st_mtime:
            compiler = shutil.which("cc") or shutil.which("gcc") or "c++"
            subprocess.run(
                [
                    *(compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"),
                    *("-fvisibility=hidden", str(SOURCE), "-o", str(LIBRARY)),
                ],
                check=True,
            )
    return LIBRARY


def is_loaded() -> bool:
    return hasattr(ctypes.CDLL(None), "fault_shim_count")


def arm(folder: Path, fault: Fault | None = None, log: Path | None = None) -> None:
    """From here on changes below ``folder`` are counted from 1, and ``fault`` comes."""
    os.environ["TE_FAULT_DIR"] = str(folder.resolve())
    os.environ["TE_FAULT_LOG"] = "" if log is None else str(log)
    os.environ["TE_FAULT_MODE"] = "" if fault is None else fault.mode
    os.environ["TE_FAULT_AT"] = "0" if fault is None else str(fault.at)
    os.environ["TE_FAULT_ERRNO"] = "0" if fault is None else str(fault.errno)
    os.environ["TE_FAULT_STICKY"] = "1" if fault is not None and fault.sticky else "0"
    ctypes.CDLL(None).fault_shim_reload()


def disarm() -> int:
    """Ends counting; returns how many changes there were."""
    library = ctypes.CDLL(None)
    library.fault_shim_count.restype = ctypes.c_long
    count = int(library.fault_shim_count())
    os.environ["TE_FAULT_DIR"] = ""
    library.fault_shim_reload()
    return count
