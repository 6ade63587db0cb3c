"""Who runs a pool's background jobs: lanes on the threads that all pools of the process share.

Threading: any thread may submit jobs.
"""

from __future__ import annotations

import os
from concurrent.futures import Executor
from dataclasses import dataclass, field

from .lanes import Lane, SharedThreads

__all__ = ["PLANS_READING", "Executors"]

PLANS_READING = 4  # of one pool at once; each spreads over the store's own threads
CORES = os.cpu_count() or 1

# A staging job may wait for the write buffer, and a reading job for the disk.
_staging = SharedThreads("staging", min(max(CORES, 2), 8))
_reading = SharedThreads("reading", min(max(CORES, PLANS_READING), 16))
_writing = SharedThreads("writing", min(max(CORES, 2), 4))
_saving = SharedThreads("saving", 2)


@dataclass(frozen=True)
class Executors:
    """Who runs a pool's background jobs; lanes on shared threads by default. Tests step them.

    staging: plans, in order, one at a time. reading: several plans' reads at once.
    writing: write-backs, in order, one at a time. saving: what follows a checkpoint's snapshot.
    """

    staging: Executor = field(default_factory=lambda: Lane(_staging))
    reading: Executor = field(default_factory=lambda: Lane(_reading, PLANS_READING))
    writing: Executor = field(default_factory=lambda: Lane(_writing))
    saving: Executor = field(default_factory=lambda: Lane(_saving))

    def shutdown(self) -> None:
        """Returns when every job has ended."""
        for executor in (self.staging, self.reading, self.writing, self.saving):
            executor.shutdown(wait=True)
