"""All pools of one engine: made together, asked together, closed together.

Every loop over pools that has to keep an order, or to go on after an error, is here.

Threading: as the schedulers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from ..errors import TieredEmbedError
from ..kernels import Bags
from ..residency import allocate_tiers
from ..spec import Counts, EngineOptions, TierStats
from ..store import check_grouping, encode_keys
from .checking import CheckedBatch
from .lease import Lease
from .phases import Phases
from .pool import Pool
from .scheduler import Scheduler
from .stream import Stream
from .wiring import Wiring

__all__ = ["PoolGroup"]


class PoolGroup:
    """The pools that a wiring asks for, over the tiers of the options.

    Raises:
        ConfigError, StoreError, CapacityError: a pool cannot be made; those before it are closed.
    """

    def __init__(self, wiring: Wiring, options: EngineOptions, phases: Phases) -> None:
        self.wiring = wiring
        self.pools: list[Pool] = []
        if options.tiers.ssd is not None and len(wiring.layouts) > 1:
            check_grouping(options.tiers.ssd, [layout.store_layout() for layout in wiring.layouts])
        slots, lower_slots = allocate_tiers(
            [layout.tables for layout in wiring.layouts],
            [layout.record_bytes for layout in wiring.layouts],
            options.tiers,
        )
        try:
            for p, layout in enumerate(wiring.layouts):
                outputs, num_columns = wiring.outputs(p)
                self.pools.append(
                    Pool(
                        layout,
                        slots[p],
                        lower_slots[p],
                        outputs,
                        num_columns,
                        options=options,
                        phases=phases,
                    )
                )
        except BaseException:
            for pool in self.pools:
                pool.finish()
                pool.close()
            raise
        self._bag_layouts = [pool.bag_layout for pool in self.pools]

    @property
    def schedulers(self) -> list[Scheduler]:
        return [pool.scheduler for pool in self.pools]

    @property
    def stored_step(self) -> int:
        """The step count that the stores were left with."""
        return max(pool.stored_step for pool in self.pools)

    def bags(self, batch: CheckedBatch) -> list[Bags]:
        """Per pool, how the batch's occurrences make bags."""
        return batch.bags(self.wiring, self._bag_layouts)

    # --- one batch --------------------------------------------------------------------------------

    def open_stream(self) -> Stream:
        return Stream(self.schedulers)

    def stage(self, batch: CheckedBatch) -> list[Lease]:
        """Plans and stages one batch at once, outside any stream.

        Raises:
            CapacityError: no room; what was staged for this batch before is released.
        """
        leases: list[Lease] = []
        try:
            for pool, segments in zip(self.pools, batch.segments, strict=True):
                leases.append(pool.scheduler.stage(segments))
        except BaseException:
            for lease in leases:
                lease.drop()
            raise
        return leases

    def check(self) -> None:
        """Raises what a background job of any pool ran into, or ClosedError."""
        for pool in self.pools:
            pool.scheduler.check()

    def check_process(self) -> None:
        """Raises ClosedError in a forked child."""
        for pool in self.pools:
            pool.scheduler.condition.check_process()

    # --- reports ----------------------------------------------------------------------------------

    def digest(self) -> str:
        """SHA-256 over (table, row id, record) of every materialised row. REQUIRES: flushed."""
        sha = hashlib.sha256()
        order = [
            (self.pools[p].layout.table_hashes[i].tobytes(), p, i) for p, i in self.wiring.places
        ]
        for key, p, i in sorted(order):
            for rows, records in self.pools[p].materialised(i):
                keys = encode_keys(key, rows)
                sha.update(np.concatenate([keys, records], axis=1).tobytes())
        return sha.hexdigest()

    def tier_stats(self, options: EngineOptions) -> dict[str, TierStats]:
        """Of each tier in use, topmost first."""
        given = options.tiers
        budgets = {"HBM": given.hbm, "DDR": given.ddr, "SSD": None if given.ssd is None else 0}
        tiers = {
            name: TierStats(budget_bytes=budget)
            for name, budget in budgets.items()
            if budget is not None
        }
        for pool in self.pools:
            for name, part in pool.tier_stats().items():
                tiers[name].add_tier(part)
        return tiers

    def table_counts(self) -> dict[str, Counts]:
        """Of each table."""
        per_pool = [pool.table_counts() for pool in self.pools]
        return {
            table.name: per_pool[p][i]
            for table, (p, i) in zip(self.wiring.tables, self.wiring.places, strict=True)
        }

    # --- life -------------------------------------------------------------------------------------

    def flush(self, step: int) -> None:
        """Writes dirty rows back; the stores then hold every row as of ``step``."""
        if len(self.pools) > 1:
            # Ended halfway, some stores would be of this step and others of an earlier one.
            self.check()
            for pool in self.pools:
                pool.mark_training()
        for pool in self.pools:
            pool.flush()
        for pool in self.pools:
            pool.mark_finished(step)

    def discard(self, why: TieredEmbedError) -> None:
        """Gives up every row, file and thread; every later call raises ``why``."""
        for pool in self.pools:
            pool.discard(why)

    def refuse(self, why: TieredEmbedError) -> None:
        """Every later call raises ``why``."""
        for pool in self.pools:
            pool.scheduler.refuse(why)

    def close(self, step: int) -> None:
        """Flushes, then gives up files and threads, of every pool whatever happens to another.

        Raises:
            StoreError: rows could not be written; the other pools were.
        """
        errors: list[BaseException] = []

        def attempt(call: Callable[[], object]) -> object:
            try:
                return call()
            except BaseException as error:
                errors.append(error)
                return None

        if len(self.pools) > 1 and all(pool.scheduler.condition.usable for pool in self.pools):
            for pool in self.pools:
                attempt(pool.mark_training)
        finished = [attempt(pool.finish) for pool in self.pools]
        if all(finished) and not errors:
            for pool in self.pools:
                attempt(lambda pool=pool: pool.mark_finished(step))  # type: ignore[misc]
        for pool in self.pools:
            attempt(pool.close)
        if errors:
            raise errors[0]
