"""What is on its way from one pool's write buffer into its store, and how much that may be.

The buffer is bounded: who finds it overfull waits for the oldest writes before handing down more.
While somebody waits for plans (:meth:`Writes.hurry`), and for a batch outside the stream, the limit
is twice as large, so that no caller waits for the disk because of rows of others.

Threading: one thread at a time; any thread may hurry.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, TimeoutError

import numpy as np
import numpy.typing as npt

from ..tiers import SsdTier
from .phases import Phases

__all__ = ["Writes"]

SNAPSHOT_BYTES = 1 << 30  # dirty records that a snapshot copies before it waits for writes
SNAPSHOT_SLACK_BYTES = 256 << 20  # more for the write buffer while a snapshot is written
HURRY_CHECK_S = 1e-3  # how often who waits for room looks for a hurry


class Writes:
    """The writes of one pool, in order.

    Args:
        submit: runs a job after the earlier ones, in the background.
        limit_bytes: of records on their way down, in addition to those of one plan. Records that
            are being written are held twice.
    """

    def __init__(
        self,
        ssd: SsdTier,
        submit: Callable[[Callable[[], None]], Future[None]],
        phases: Phases,
        limit_bytes: int,
    ) -> None:
        self.limit_bytes = limit_bytes
        self._ssd = ssd
        self._submit = submit
        self._phases = phases
        self._under_way: deque[Future[None]] = deque()  # oldest first; may be done
        self._num_portions = 0  # handed down, and no write posted for them
        self._num_hurrying = 0
        self._snapshot: Future[None] | None = None  # the newest; later writes wait for it
        self._snapshot_bytes = 0  # more that the write buffer may hold because of it

    @contextlib.contextmanager
    def hurry(self) -> Iterator[None]:
        """For a caller that waits for plans: they wait for writes only beyond twice the limit."""
        self._num_hurrying += 1
        try:
            yield
        finally:
            self._num_hurrying -= 1

    def hand_down(
        self,
        tables: npt.NDArray[np.uint16],
        rows: npt.NDArray[np.int64],
        records: npt.NDArray[np.uint8],
    ) -> None:
        """Puts ``records`` (n, record_bytes) of the rows (n,) into the write buffer."""
        self._ssd.hand_down(tables, rows, records)
        self._num_portions += self._ssd.num_portions(len(rows))

    def post(self) -> None:
        """Starts writing what was handed down since the last call.

        One job per portion: each that ends makes room, and other pools take turns with it.
        """
        while self._num_portions > 0:
            self._num_portions -= 1
            self._under_way.append(self._submit(self._write_portion))

    def await_room(self, *, aside: bool) -> None:
        """Waits, oldest write first, until the buffer is within its limit, or a write has failed.

        ``aside``: for a batch outside the stream.
        """
        if not self._is_overfull(aside):
            return
        with self._phases.time("back_pressure"):
            for write in list(self._under_way):
                while not write.done() and self._is_overfull(aside):
                    with contextlib.suppress(TimeoutError):
                        write.exception(timeout=HURRY_CHECK_S)
                if not write.done() or write.exception() is not None:
                    return

    def check(self) -> None:
        """Raises StoreError, or what else a write that has ended ran into; again at every call."""
        while self._under_way and self._under_way[0].done():
            self._under_way[0].result()
            self._under_way.popleft()

    def finish(self) -> None:
        """Returns when every write has ended. Raises as :meth:`check`."""
        self._finish_down_to(0)

    def snapshot(
        self,
        parts: Iterator[
            tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64], npt.NDArray[np.uint8]]
        ],
        job: Callable[[], None],
    ) -> None:
        """Runs ``job`` in the background, while the store holds all ``parts`` and what was handed
        down before, and nothing that is handed down after this call.

        ``parts``: arguments of :meth:`hand_down`, each copied out of memory when it is asked for.

        Raises:
            StoreError: an earlier write failed.
        """
        for part in parts:
            if self._ssd.in_flight_bytes > SNAPSHOT_BYTES:
                self._under_way.append(self._submit(self._write_all))
                self._finish_down_to(SNAPSHOT_BYTES // 2)
            self._ssd.hand_down(*part)
        self._ssd.hold()
        self._snapshot_bytes = self._ssd.in_flight_bytes + SNAPSHOT_SLACK_BYTES

        def write() -> None:
            self._write_all()
            self._ssd.store.flush()

        def follow() -> None:
            try:
                job()
            finally:
                self._ssd.resume()

        self._under_way.append(self._submit(write))
        self._snapshot = self._submit(follow)
        self._under_way.append(self._snapshot)

    def _finish_down_to(self, most_bytes: int) -> None:
        """Waits, oldest write first, until at most ``most_bytes`` are on their way."""
        while self._under_way and (most_bytes == 0 or self._ssd.in_flight_bytes > most_bytes):
            # Removed only once it has ended, so that an interrupted wait can be repeated.
            self._under_way[0].result()
            self._under_way.popleft()

    def _is_overfull(self, aside: bool) -> bool:
        limit = self.limit_bytes
        if self._snapshot is not None and not self._snapshot.done():
            limit += self._snapshot_bytes
        within = 2 if aside or self._num_hurrying > 0 else 1
        return self._ssd.in_flight_bytes > within * limit

    # --- jobs -----------------------------------------------------------------------------------

    def _write_portion(self) -> None:
        with self._phases.time("write"):
            self._ssd.write_portion()

    def _write_all(self) -> None:
        with self._phases.time("write"):
            self._ssd.write_back()
