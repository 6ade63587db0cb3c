"""libCacheSim's policies through one adapter; the extra ``sim`` installs its wheel.

Every row has size 1, and policies keep their own defaults. The rows are written to a temporary file
in libCacheSim's oracleGeneral format, which its C++ code reads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..traces import ORACLE_GENERAL, Trace
from .numbering import Numbering, accesses
from .planner_replay import SimulatedCounts

__all__ = ["PEERS", "PeerTrace", "least_slots", "peer"]

# Left out: LFUDA, which never ends on the check-ins (0.3.5), and policies that learn or need to
# know the future.
PEERS = (
    *("LRU", "FIFO", "Clock", "LFU", "SLRU", "TwoQ", "ARC", "LIRS", "GDSF", "Hyperbolic"),
    *("LeCaR", "Cacheus", "Sieve", "S3FIFO", "WTinyLFU"),
)

# With fewer rows a policy's smallest queue is empty: it never hits, or aborts the process.
_LEAST_SLOTS = {"WTinyLFU": 100, "S3FIFO": 20}


class PeerTrace:
    """A trace in a file that libCacheSim reads, to be replayed under several policies."""

    def __init__(self, path: Path, num_accesses: int, num_rows: int) -> None:
        self._path = path
        self.num_accesses = num_accesses
        self.num_rows = num_rows

    @classmethod
    @contextmanager
    def of(cls, trace: Trace) -> Iterator[PeerTrace]:
        """Writes 24 bytes per access to a temporary file, which is removed at the end."""
        numbering = Numbering(len(trace.tables))
        with tempfile.TemporaryDirectory(prefix="tiered-embed-peer-") as folder:
            path = Path(folder) / "trace.oracleGeneral"
            written = 0
            with path.open("wb") as file:
                for piece in accesses(trace, numbering):
                    requests = np.empty(len(piece.rows), ORACLE_GENERAL)
                    requests["time"] = 0
                    requests["object"] = piece.rows.astype(np.uint64) + 1
                    requests["size"] = 1
                    requests["next_access"] = -2
                    file.write(requests.tobytes())
                    written += len(piece.rows)
            yield cls(path, written, numbering.num_rows)

    def counts(self, policy: str, slots: int) -> SimulatedCounts:
        """What one policy counts.

        Raises:
            ConfigError: an unknown policy, too few slots, or libCacheSim is not installed.
        """
        if policy not in PEERS:
            raise ConfigError(f"policy is {policy!r}; choose one of {', '.join(PEERS)}")
        if slots < least_slots(policy):
            raise ConfigError(
                f"slots is {slots}; libCacheSim's {policy} needs at least {least_slots(policy)}: "
                "with fewer, its smallest queue is empty"
            )
        cache: Any = getattr(_library(), policy)(slots, hashpower=20)
        ratio, _ = cache.process_trace(self.reader())
        misses = round(ratio * self.num_accesses)
        evicted = max(0, misses - slots)
        return SimulatedCounts(
            lookups=self.num_accesses,
            unique=self.num_accesses,
            misses=misses,
            hits=self.num_accesses - misses,
            staged=misses,
            evicted=evicted,
            written_back=evicted,
            cold=self.num_rows,
        )

    def reader(self) -> Any:
        library = _library()
        return library.TraceReader(str(self._path), library.TraceType.ORACLE_GENERAL_TRACE)


def least_slots(policy: str) -> int:
    """The fewest rows with which libCacheSim's policy works."""
    return _LEAST_SLOTS.get(policy, 10)


def peer(trace: Trace, slots: int, policy: str) -> SimulatedCounts:
    """What libCacheSim's policy of that name counts at each access, over all tables together."""
    with PeerTrace.of(trace) as written:
        return written.counts(policy, slots)


def _library() -> Any:
    try:
        import libcachesim
    except ImportError as error:
        raise ConfigError(f"{error}; pip install 'tiered_embed[sim]'") from error
    return libcachesim
