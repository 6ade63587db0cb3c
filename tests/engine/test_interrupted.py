"""Waits that are interrupted, writes that fail, collectors that run anywhere: nothing is lost.

Jobs are stepped by hand where order matters (``stepped.py``).
"""

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiered_embed as te
from looped_bag import DIM, SGD, dense_digest, ids_of, make_bag, run_script, train_one
from stepped import Steps, batch_of
from tiered_embed.engine.executors import Executors
from tiered_embed.engine.scheduler import Scheduler
from tiered_embed.engine.stream import Stream
from tiered_embed.residency.budgets import PoolSlots
from tiered_embed.residency.planner import Planner
from tiered_embed.store import open_store
from tiered_embed.tiers.host import HostTier
from tiered_embed.tiers.layout import PoolLayout
from tiered_embed.tiers.memory import MemoryTiers
from tiered_embed.tiers.ssd import SsdTier

RECORD = 4 * DIM


class Interrupted(Steps):
    """A wait for one of its jobs is interrupted, once, when told so."""

    interrupt = False

    def run_until(self, future: Future) -> None:
        if self.interrupt and not future.done():
            self.interrupt = False
            raise KeyboardInterrupt
        super().run_until(future)


def own_jobs(module: te.TieredEmbeddingBag) -> Executors:
    scheduler = module.engine.pools[0].scheduler
    scheduler._jobs.executors.shutdown()
    jobs = Executors(Steps(), Interrupted(), Interrupted())
    scheduler._jobs.executors = scheduler._mover._executors = jobs
    return jobs


def stored(folder: Path, rows: int) -> tuple[PoolLayout, Any]:
    """A store that holds rows 0 … rows − 1, each its own number."""
    layout = PoolLayout((("table", rows),), DIM, SGD, te.init.Uniform(), 0)
    store = open_store("memory", folder, layout.record_bytes, layout.describe())
    ssd = SsdTier(layout, store)
    values = np.repeat(np.arange(rows, dtype=np.float32)[:, None], DIM, axis=1)
    ssd.hand_down(np.zeros(rows, np.uint16), np.arange(rows), values.view(np.uint8))
    ssd.write_back()
    return layout, ssd


def test_a_batch_planned_at_once_waits_for_reads_of_the_stream(tmp_path):
    """Every row is resident once it is planned, and in its slot only once it was read."""
    layout, ssd = stored(tmp_path / "store", 4)
    planner = Planner(layout.tables, PoolSlots((0,), 4, 0, 0), policy="lru", backed=True, tier="-")
    ddr, jobs = HostTier(layout, 4, 1), Executors(Steps(), Steps(), Steps())
    scheduler = Scheduler(planner, MemoryTiers(ddr), ssd, lookahead=0, depth=0, executors=jobs)
    Stream([scheduler]).push(batch_of((0, np.arange(4))))
    jobs.staging.run()
    assert planner.all_resident
    assert len(jobs.reading.jobs) == 1
    lease = scheduler.stage([(0, np.array([2]))])
    assert (ddr.gather(lease.plan.slots).view(np.float32) == 2.0).all()
    lease.release(updated=False)
    scheduler.close()
    ssd.store.close()


def test_an_interrupted_cancel_can_be_repeated(tmp_path):
    """Nothing is released before its read has ended, nor planned twice afterwards."""
    batches = [ids_of(n) for n in range(9)]
    with make_bag(tmp_path, rows=50) as module:
        jobs = own_jobs(module)
        loop = iter(te.prefetch(range(4), module, ids=lambda n: {module: batches[n]}))
        next(loop)
        train_one(module, batches[0])
        jobs.staging.run()
        assert jobs.reading.jobs
        jobs.reading.interrupt = True
        with pytest.raises(KeyboardInterrupt):
            loop.close()
        assert jobs.reading.jobs
        before = module.stats().tiers["DDR"].lookups
        for n in te.prefetch(range(4, 9), module, ids=lambda n: {module: batches[n]}):
            train_one(module, batches[n])
        assert not jobs.reading.jobs
        assert module.stats().tiers["DDR"].lookups - before == 5 * 4
        assert module.digest() == dense_digest([batches[0], *batches[4:]])


def test_an_interrupted_wait_for_rows_forgets_no_read(tmp_path):
    batches = [ids_of(n) for n in range(6)]
    with make_bag(tmp_path, rows=50) as module:
        jobs = own_jobs(module)
        loop = iter(te.prefetch(range(6), module, ids=lambda n: {module: batches[n]}))
        next(loop)
        train_one(module, batches[0])
        jobs.staging.run()
        jobs.reading.interrupt = True
        with pytest.raises(KeyboardInterrupt):
            module.rows(batches[1].flatten())
        assert jobs.reading.jobs
        loop.close()
        assert not jobs.reading.jobs
        assert module.digest() == dense_digest(batches[:1])


def test_an_interrupted_flush_forgets_no_write(tmp_path):
    batches = [ids_of(n) for n in (0, 2, 4, 0, 2, 4, 0)]
    module = make_bag(tmp_path, rows=4)
    jobs = own_jobs(module)
    for ids in batches:
        train_one(module, ids)
    jobs.writing.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        module.flush()
    module.close()
    assert not jobs.writing.jobs
    with make_bag(tmp_path) as again:
        assert again.digest() == dense_digest(batches)


def test_write_backs_follow_one_another(tmp_path):
    """An older record that is still on its way never lands on a newer one."""
    _, ssd = stored(tmp_path, 1)
    put, in_put, go_on = ssd.store._put, threading.Event(), threading.Event()

    def slow_once(keys: Any, records: Any) -> None:
        if not in_put.is_set():
            in_put.set()
            assert go_on.wait(60)
        put(keys, records)

    ssd.store._put = slow_once

    def write(value: float) -> threading.Thread:
        record = np.full((1, DIM), value, np.float32).view(np.uint8)
        ssd.hand_down(np.zeros(1, np.uint16), np.zeros(1, np.int64), record)
        thread = threading.Thread(target=ssd.write_back)
        thread.start()
        return thread

    first = write(1.0)
    assert in_put.wait(60)
    second = write(2.0)
    second.join(0.3)  # it would be done by now
    go_on.set()
    first.join()
    second.join()
    records, found = ssd.read(np.zeros(1, np.uint16), np.zeros(1, np.int64))
    assert found.all()
    assert (records.view(np.float32) == 2.0).all()
    ssd.store.close()


def test_a_write_that_failed_for_once_is_told_by_close(tmp_path):
    """Not an error of the store, which remembers its own."""
    module = make_bag(tmp_path, rows=4)
    own_jobs(module)
    module.engine.pools[0].scheduler._mover._writes.limit_bytes = 0
    store, failed = module.engine.pools[0].store, []
    put = store._put

    def fail_once(*args: Any) -> None:
        if not failed:
            failed.append(True)
            raise MemoryError("no room for a batch")
        put(*args)

    store._put = fail_once
    train_one(module, ids_of(0))
    train_one(module, ids_of(1))
    with pytest.raises((te.TieredEmbedError, MemoryError)):
        train_one(module, ids_of(2))
    with pytest.raises((te.TieredEmbedError, MemoryError)):
        module.close()


def test_victims_that_could_not_be_copied_out_are_told_by_close(tmp_path):
    module = make_bag(tmp_path, rows=4)
    own_jobs(module)
    ddr = module.engine.pools[0].upper
    train_one(module, ids_of(0))
    gather, failed = ddr.gather, []

    def fail_once(slots: Any) -> Any:
        if not failed:
            failed.append(True)
            raise MemoryError("no room for copies")
        return gather(slots)

    ddr.gather = fail_once
    with pytest.raises(te.TieredEmbedError, match="no room for copies"):
        train_one(module, ids_of(1))
    with pytest.raises(te.TieredEmbedError, match=r"lost.*no room for copies"):
        module.close()


def test_a_collector_in_a_reading_thread_closes_without_blocking(tmp_path):
    """The module's last reference goes in a thread that its close would wait for."""
    done = run_script(
        tmp_path,
        """
        import weakref
        del loop, module
        gc.disable()
        faulthandler.dump_traceback_later(30, exit=True)
        go, collected = threading.Event(), threading.Event()

        def train():
            tiers = te.Tiers(ddr=96, ssd=sys.argv[1] + "/other", store="memory")
            module = te.TieredEmbeddingBag(
                None, 4, tiers=tiers, optimizer=te.optim.SGD(lr=0.5), lookahead=1, depth=1)
            store = module.engine.pools[0].store
            get, reads = type(store)._get, []
            store = weakref.ref(store)

            def collecting(*args):
                reads.append(1)
                if len(reads) == 2:
                    go.wait(20)
                    gc.collect()
                    collected.set()
                return get(store(), *args)

            store()._get = collecting
            try:
                loop = iter(te.prefetch(range(9), module, ids=lambda n: {module: ids_of(n)}))
                for n in loop:
                    module(ids_of(n)).sum().backward()
                    raise ValueError("a bug in the loop")
            except ValueError as error:
                kept = error  # refers to this frame, and the frame to it

        del pool
        train()
        go.set()
        assert collected.wait(20)
        print("done")
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_only_shared_slots_count_for_the_depth(tmp_path):
    planner = Planner(
        (("small", 3), ("large", None)),
        PoolSlots((0, -1), 3, 10, 5),
        policy="lru",
        backed=True,
        tier="-",
    )
    plan = planner.plan_now([(0, np.arange(3)), (1, np.arange(4, dtype=np.int64))])
    assert planner.num_cached(plan) == 4
