"""One training forward's hold on its rows.

Threading: as the engine; only :meth:`Step.__del__` may run in any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from ..kernels import Bags, LookedUp
from .autograd_pass import NO_PASS
from .checking import CheckedBatch
from .lease import Lease
from .pool import Pool

__all__ = ["Step"]

Records = list[npt.NDArray[np.uint8] | None]


class Step:
    """The leases of one forward, one per pool, until its backward or its end.

    Args:
        number: of this forward in its engine.
        trains: per pool, whether the backward trains its rows; None: of no pool.

    bags: per pool. looked_up: per pool, what its kernel's lookup left for the update. changed: the
    forward itself changed rows (``max_norm``). within: the backward pass in which this forward ran.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        batch: CheckedBatch,
        bags: list[Bags],
        leases: list[Lease],
        *,
        number: int = 0,
        trains: Sequence[bool] | None = None,
    ) -> None:
        self.number = number
        self.trains = list(trains or [False] * len(pools))
        self.within = NO_PASS
        self.batch = batch
        self.bags = bags
        self.leases = leases
        self.looked_up: list[LookedUp | None] = [None] * len(leases)
        self.changed = False
        self.done = False
        self.pools = pools
        self._read: Records | None = None

    @property
    def needs_rows(self) -> bool:
        """Whether the backward reads rows: for a gradient of the sample weights."""
        weights = self.batch.sample_weights
        return weights is not None and weights.requires_grad

    def records(self, *, only_read: bool = False) -> Records:
        """Copies of the rows' current records, per pool; ``only_read``: of pools that never train,
        and None for the others."""
        return [
            None if only_read and pool.layout.trains else pool.upper.gather(lease.plan.slots)
            for pool, lease in zip(self.pools, self.leases, strict=True)
        ]

    def put(self, records: Records) -> None:
        """Writes back what :meth:`records` returned."""
        for pool, lease, part in zip(self.pools, self.leases, records, strict=True):
            if part is not None:
                pool.upper.scatter(lease.plan.slots, part)

    def keep(self) -> None:
        """Remembers what this step's forward read, because another step is about to change rows."""
        if self._read is None and not self.done:
            self._read = self.records()

    @contextmanager
    def as_read(self) -> Iterator[None]:
        """Inside the context the rows are as the forward read them."""
        if self._read is None:
            yield
            return
        now = self.records()
        self.put(self._read)
        try:
            yield
        finally:
            self.put(now)

    def release(self, *, updated: bool, but: Sequence[Lease] = ()) -> None:
        """Drops the pins, except for leases that somebody else releases.

        ``updated``: the rows of the pools that train were changed.
        """
        self.done = True
        self.looked_up = []  # it may hold device memory
        leases, self.leases = self.leases, []
        for p, lease in enumerate(leases):
            if not any(lease is other for other in but):
                changed = self.changed and self.pools[p].layout.trains
                lease.release(updated=(updated and self.trains[p]) or changed)

    def __del__(self) -> None:
        # The graph was freed without a backward, perhaps by the garbage collector in any thread.
        for pool, lease in zip(self.pools, self.leases, strict=bool(self.leases)):
            lease.drop(updated=self.changed and pool.layout.trains)
