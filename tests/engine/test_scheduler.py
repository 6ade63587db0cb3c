"""The scheduler: order of its steps, errors of background jobs, and how it stops.

Jobs are stepped by hand through an executor of the test's own; nothing sleeps.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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


class RecordedDdr(HostTier):
    def __init__(self, layout: PoolLayout, num_slots: int, log: list[str]) -> None:
        super().__init__(layout, num_slots, 1)
        self.log = log

    def gather(self, slots):
        self.log.append(f"evict {sorted(slots.tolist())}")
        return super().gather(slots)

    def scatter(self, slots, records, keep=None):
        kept = slots if keep is None else slots[keep]
        if len(kept):
            self.log.append(f"fill {sorted(kept.tolist())}")
        super().scatter(slots, records, keep)

    def initialise(self, slots, tables, rows, skip=None):
        self.log.append(f"initialise {sorted(rows[~skip].tolist() if skip is not None else rows)}")
        super().initialise(slots, tables, rows, skip)


class RecordedSsd(SsdTier):
    def __init__(self, layout: PoolLayout, store: Any, log: list[str]) -> None:
        super().__init__(layout, store)
        self.log = log

    def read(self, tables, rows, *, counted=True):
        self.log.append(f"read {sorted(rows.tolist())}")
        return super().read(tables, rows, counted=counted)

    def hand_down(self, tables, rows, records):
        self.log.append(f"down {sorted(rows.tolist())}")
        super().hand_down(tables, rows, records)

    def write_portion(self):
        self.log.append("write")
        return super().write_portion()


class Rig:
    """A scheduler over ``slots`` slots and a store in memory, its jobs in our hands."""

    def __init__(
        self, folder: Path, slots: int, *, lookahead: int, depth: int, write_buffer_rows: int = 99
    ) -> None:
        self.log: list[str] = []
        layout = PoolLayout((("table", None),), DIM, SGD, te.init.Uniform(), 0)
        self.store = open_store("memory", folder / "store", layout.record_bytes, layout.describe())
        self.planner = Planner(
            layout.tables, PoolSlots((-1,), 0, slots, 50), policy="lru", backed=True, tier="DDR"
        )
        self.ddr = RecordedDdr(layout, slots + 50, self.log)
        self.staging, self.reading, self.writing = Steps(), Steps(), Steps()
        self.ssd = RecordedSsd(layout, self.store, self.log)
        self.scheduler = Scheduler(
            self.planner,
            MemoryTiers(self.ddr),
            self.ssd,
            lookahead=lookahead,
            depth=depth,
            executors=Executors(self.staging, self.reading, self.writing),
            write_buffer_bytes=write_buffer_rows * layout.record_bytes,
        )
        self.stream = Stream([self.scheduler])

    def push(self, *rows: int) -> None:
        self.stream.push(batch_of((0, np.array(rows, np.int64))))

    def train(self, value: float) -> None:
        """Takes the next batch, sets its rows to ``value``, and lets it go."""
        lease = self.scheduler.take()
        records = np.full((len(lease.plan.slots), DIM), value, np.float32)
        HostTier.scatter(self.ddr, lease.plan.slots, records.view(np.uint8))
        lease.release(updated=True)

    def stage(self) -> list[str]:
        """Runs what was posted, without the writes; the log."""
        self.staging.run()
        self.reading.run()
        return self.take_log()

    def take_log(self) -> list[str]:
        log, self.log[:] = list(self.log), []
        return log


@pytest.fixture
def rig(tmp_path):
    made = []

    def make(slots: int, **options: int) -> Rig:
        made.append(Rig(tmp_path / str(len(made)), slots, **options))
        return made[-1]

    yield make
    for rig in made:
        rig.scheduler.close()
        rig.store.close()


# --- order ----------------------------------------------------------------------------------------


def test_a_plan_evicts_then_reads_then_fills(rig):
    r = rig(2, lookahead=0, depth=0)
    for batch in ([1, 2], [3, 4], [1, 2], [3, 5]):
        r.push(*batch)
    r.train(1.0)
    # Victims are copied out before anything overwrites their slots; their write may come later.
    assert r.stage() == [
        *("read [1, 2]", "initialise [1, 2]"),
        *("evict [0, 1]", "down [1, 2]", "read [3, 4]", "initialise [3, 4]"),
    ]
    assert len(r.writing.jobs) == 1
    r.train(2.0)
    # Rows that are still on their way down are found there.
    assert r.stage() == ["evict [0, 1]", "down [3, 4]", "read [1, 2]", "fill [0, 1]"]
    assert len(r.writing.jobs) == 2
    r.train(3.0)
    # Found rows are filled in, the others start at their initial values.
    log = r.stage()
    assert log[:3] == ["evict [0, 1]", "down [1, 2]", "read [3, 5]"]
    assert log[3] in ("fill [0]", "fill [1]")
    assert log[4:] == ["initialise [5]"]
    assert list(r.store.scan()) == []


@pytest.mark.parametrize("arrived", [False, True])
def test_records_that_were_on_their_way_down_come_back_as_they_left(rig, arrived):
    r = rig(2, lookahead=0, depth=0)
    for batch in ([1, 2], [3, 4], [1, 2]):
        r.push(*batch)
    r.train(1.5)
    r.train(2.5)
    if arrived:
        r.writing.run()
        assert r.ssd.in_flight_bytes == 0
    lease = r.scheduler.take()
    got = HostTier.gather(r.ddr, lease.plan.slots).view(np.float32)
    assert (got == 1.5).all()
    lease.release(updated=False)


def test_reads_of_several_plans_are_in_flight_at_once_and_may_end_in_any_order(rig):
    r = rig(6, lookahead=3, depth=2)
    for n in range(6):
        r.push(2 * n, 2 * n + 1)
    r.staging.run()
    assert len(r.reading.jobs) == 3  # of batches 0, 1 and 2
    r.reading.jobs.reverse()
    r.reading.step()
    assert r.take_log() == ["read [4, 5]", "initialise [4, 5]"]
    assert r.scheduler.peek().keys.tolist() == [0, 1]  # waits for its own rows
    assert r.reading.jobs == deque()
    r.train(1.0)
    r.train(2.0)
    r.scheduler.flush()
    stored = {
        int(key[-1]): r for keys, rows in r.store.scan() for key, r in zip(keys, rows, strict=True)
    }
    assert sorted(stored) == [0, 1, 2, 3]


def test_a_batch_that_jumps_the_queue_waits_for_rows_it_shares_with_the_stream(rig):
    r = rig(9, lookahead=2, depth=1)
    for n in range(4):
        r.push(n, n + 1)
    r.staging.run()
    assert len(r.reading.jobs) == 2
    lease = r.scheduler.stage([(0, np.array([1, 2, 7]))])
    assert not r.reading.jobs
    assert "initialise [7]" in r.take_log()
    lease.release(updated=True)


def test_the_write_buffer_is_bounded(rig):
    """A plan that finds it overfull waits for the oldest write, and for no other."""
    r = rig(2, lookahead=0, depth=0, write_buffer_rows=5)
    for n in range(9):
        r.push(2 * n, 2 * n + 1)
    in_flight, writes = [], []
    for _ in range(9):
        r.train(1.0)
        writes.append(r.stage().count("write"))
        in_flight.append(r.ssd.in_flight_bytes // (4 * DIM))
    # The third plan's victims overfill it; the fourth waits for a write, which takes all down.
    assert in_flight[:7] == [2, 4, 6, 2, 4, 6, 2]
    assert sum(writes) == 2


def test_a_plan_reads_before_it_waits_for_the_writes_of_its_victims(rig):
    r = rig(2, lookahead=0, depth=0, write_buffer_rows=0)
    for batch in ([1, 2], [3, 4], [5, 6]):
        r.push(*batch)
    r.train(1.0)
    assert r.stage()[-2:] == ["read [3, 4]", "initialise [3, 4]"]
    assert len(r.writing.jobs) == 1
    r.train(2.0)
    # Only here, where the next victims need the room.
    log = r.stage()
    assert log.index("write") < log.index("down [3, 4]") < log.index("read [5, 6]")


def test_a_batch_outside_the_stream_waits_neither_for_writes_nor_for_reads_of_others(rig):
    r = rig(30, lookahead=2, depth=2, write_buffer_rows=12)
    for n in range(7):
        r.push(*range(10 * n, 10 * n + 10))
    r.stage()
    for value in (1.0, 2.0):
        r.train(value)
    r.staging.run()
    reads, writes = len(r.reading.jobs), len(r.writing.jobs)
    assert (reads, writes) == (2, 2)  # of batches 3 and 4, and of the rows that made room for them
    assert r.ssd.in_flight_bytes == 20 * 4 * DIM
    r.take_log()
    # Two rows that are in memory, and one that is not.
    lease = r.scheduler.stage([(0, np.array([20, 21, 99]))])
    assert [entry for entry in r.take_log() if entry.startswith(("read", "write"))] == ["read [99]"]
    assert len(r.reading.jobs) == reads
    assert len(r.writing.jobs) >= writes
    lease.release(updated=False)


def test_rows_are_looked_up_while_others_are_read(rig):
    r = rig(40, lookahead=2, depth=2)
    for n in range(6):
        r.push(*range(10 * n, 10 * n + 10))
    r.stage()
    r.train(1.0)
    r.staging.run()
    assert len(r.reading.jobs) == 1  # of rows 30 to 39
    r.scheduler.finish_plans()
    slots = r.planner.find_all([(0, np.array([10, 11]))], 1)
    r.scheduler.await_rows(slots)
    assert len(r.reading.jobs) == 1
    r.scheduler.await_rows(r.planner.find_all([(0, np.array([11, 35]))], 1))
    assert not r.reading.jobs


def test_a_plan_that_fails_while_rows_are_looked_up_is_told(rig):
    r = rig(2, lookahead=0, depth=0)
    r.push(1, 2)
    r.push(3, 4)
    r.train(1.0)
    assert r.staging.jobs, "the second plan must not have run"

    def fail(slots):
        raise MemoryError("no room for copies")

    r.ddr.gather = fail
    with pytest.raises(te.TieredEmbedError, match="no room for copies"):
        r.scheduler.finish_plans()
    with pytest.raises(te.TieredEmbedError, match="were lost"):
        r.scheduler.close()


def test_a_row_that_goes_down_twice_is_written_once_and_newest(rig):
    r = rig(2, lookahead=0, depth=0)
    for batch in ([1, 2], [3, 4], [1, 2], [3, 4]):
        r.push(*batch)
    for value in (1.0, 2.0, 3.0, 4.0):
        r.train(value)
    r.writing.run()
    assert r.store.stats()["put_rows"] == 4
    values = {
        int(key[-1]): float(row.view(np.float32)[0])
        for keys, rows in r.store.scan()
        for key, row in zip(keys, rows, strict=True)
    }
    assert values == {1: 3.0, 2: 3.0, 3: 2.0, 4: 2.0}


def test_clean_rows_are_dropped_without_a_write(rig):
    r = rig(2, lookahead=0, depth=0)
    r.push(1, 2)
    r.push(3, 4)
    r.scheduler.take().release(updated=False)
    r.scheduler.take().release(updated=False)
    assert not [entry for entry in r.take_log() if entry.startswith(("evict", "write"))]
    assert list(r.store.scan()) == []


def test_plans_wait_for_their_window_and_for_the_batch_behind_the_depth(rig):
    r = rig(50, lookahead=1, depth=1)

    def planned() -> list[str]:
        return [entry for entry in r.stage() if entry.startswith("read")]

    r.push(10)
    assert planned() == []  # its window is not known
    r.push(11)
    assert planned() == ["read [10]"]
    r.push(12)
    assert planned() == ["read [11]"]  # one batch ahead of the trainer
    r.push(13)
    assert planned() == []  # two ahead would be deeper than 1
    first = r.scheduler.take()
    assert planned() == []
    first.release(updated=True)
    assert planned() == ["read [12]"]
    r.stream.end()
    assert planned() == []
    r.scheduler.take().release(updated=True)
    assert planned() == ["read [13]"]  # the stream has ended: no window is awaited


def test_jobs_never_wait_for_the_trainer(rig):
    """Whatever was posted can run to its end without another call."""
    r = rig(4, lookahead=3, depth=2)
    held = []
    for n in range(12):
        r.push(n, n + 1, n + 2)
        r.staging.run()
        if n >= 5:
            held.append(r.scheduler.take())
        if n >= 8:
            held.pop(0).release(updated=True)
        r.writing.run()
    assert r.planner.num_resident <= 4 + 9
    for lease in held:
        lease.release(updated=False)


def test_cancel_drops_the_window_and_what_was_staged_for_it(rig):
    r = rig(10, lookahead=2, depth=1)
    for n in range(6):
        r.push(n)
    r.train(1.0)
    r.stream.close()
    r.stream = Stream([r.scheduler])
    assert r.planner.window_size == 0
    r.scheduler.flush()
    stored = np.concatenate([keys for keys, _ in r.store.scan()])
    assert stored[:, -1].tolist() == [0]
    for n in range(6, 9):
        r.push(n)
    r.stream.end()
    for _ in range(3):
        r.train(2.0)
    with pytest.raises(IndexError):
        r.scheduler.take()


# --- modules --------------------------------------------------------------------------------------


def step_jobs(module: te.TieredEmbeddingBag) -> Executors:
    """Takes the module's jobs into our hands."""
    scheduler = module.engine.pools[0].scheduler
    scheduler._jobs.executors.shutdown()
    mine = Executors(Steps(), Steps(), Steps())
    scheduler._jobs.executors = scheduler._mover._executors = mine
    return mine


def train_loop(
    module: te.TieredEmbeddingBag, batches: Iterable[torch.Tensor], trained: list[torch.Tensor]
) -> None:
    """Prefetches and trains; ``trained`` tells how far it came."""
    for ids in te.prefetch(batches, module, ids=lambda ids: {module: ids}):
        train_one(module, ids)
        trained.append(ids)


@pytest.mark.parametrize(("lookahead", "depth"), [(1, 0), (1, 1), (3, 1), (4, 3), (4, 4)])
def test_prefetch_stages_depth_batches_ahead(lookahead, depth, tmp_path):
    num_batches = 20
    with make_bag(tmp_path, rows=100, lookahead=lookahead, depth=depth) as module:
        batches = [ids_of(n) for n in range(num_batches)]
        loop = te.prefetch(range(num_batches), module, ids=lambda n: {module: batches[n]})
        for n in loop:
            # Reading waits for all jobs that were posted; every batch has 4 ids.
            module.rows([0])
            planned = module.stats().tiers["DDR"].staged // 4
            assert planned == min(n + 1 + depth, num_batches), f"batch {n}"
            train_one(module, batches[n])


def fail_with(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("call", ["_put", "_get"])
@pytest.mark.parametrize("prefetch", [False, True])
def test_a_failing_store_surfaces_in_the_next_forward(call, prefetch, tmp_path):
    module = make_bag(tmp_path)
    jobs = step_jobs(module)
    store = module.engine.pools[0].store
    batches = [ids_of(n) for n in range(9)]
    trained = []

    def loop() -> None:
        source = range(9)
        if prefetch:
            source = te.prefetch(source, module, ids=lambda n: {module: batches[n]})
        for n in source:
            if n == 2:
                setattr(store, call, fail_with(te.StoreError("the disk is on fire")))
            train_one(module, batches[n])
            trained.append(n)
            jobs.writing.run()

    with pytest.raises(te.StoreError, match="the disk is on fire") as raised:
        loop()
    causes = [raised.value, raised.value.__cause__]
    assert any(str(cause) == "the disk is on fire" for cause in causes)
    # Three batches make the memory overflow and the store work; it may show one batch later.
    assert 2 <= len(trained) <= 4
    for again in (
        lambda: train_one(module, batches[0]),
        module.digest,
        module.flush,
        lambda: module.rows([1]),
        lambda: module.load_rows([1], torch.zeros(1, DIM)),
    ):
        with pytest.raises(te.StoreError):
            again()
    try:
        module.close()
    except te.StoreError:
        assert call == "_put", "nothing was lost by a failing read"
    with pytest.raises(te.ClosedError):
        module(batches[0])
    # Its files are free again, and a failing read has lost nothing.
    with make_bag(tmp_path) as again:
        if call == "_get":
            assert again.digest() == dense_digest([batches[n] for n in trained])


@pytest.mark.parametrize("call", ["push", "plan", "release"])
@pytest.mark.parametrize("at", [0, 3])
def test_a_planner_that_fails_is_told_at_the_next_call(call, at, tmp_path):
    """Nobody reads what `push` and `release` end with: they run ahead of the trainer."""
    module = make_bag(tmp_path)
    jobs = step_jobs(module)
    planner = module.engine.pools[0].planner
    whole, calls, trained = getattr(planner, call), [], []

    def fail_once(*args: object, **kwargs: object) -> object:
        calls.append(call)
        if len(calls) == at + 1:
            raise te.TieredEmbedError("no memory for a plan")
        return whole(*args, **kwargs)

    setattr(planner, call, fail_once)
    batches = [ids_of(n) for n in range(12)]

    def loop() -> None:
        for n in te.prefetch(range(12), module, ids=lambda n: {module: batches[n]}):
            train_one(module, batches[n])
            trained.append(n)
            jobs.writing.run()

    with pytest.raises(te.TieredEmbedError, match="no memory for a plan"):
        loop()
    assert len(trained) < 9
    for again in (
        lambda: train_one(module, batches[0]),
        module.digest,
        lambda: train_loop(module, batches[:2], []),
    ):
        with pytest.raises(te.TieredEmbedError, match="no memory for a plan"):
            again()
    module.close()
    if call == "release":
        return  # nobody knows that the batch's rows were changed
    # Here the planner itself is whole, so that what was trained is not lost.
    with make_bag(tmp_path) as again:
        assert again.digest() == dense_digest([batches[n] for n in trained])


def test_an_unforeseen_error_in_a_job_is_wrapped_with_its_cause(tmp_path):
    module = make_bag(tmp_path)
    module.engine.pools[0].upper.initialise = fail_with(ZeroDivisionError("a bug"))
    with pytest.raises(te.TieredEmbedError, match="a bug") as raised:
        train_loop(module, [ids_of(n) for n in range(5)], [])
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    with pytest.raises(te.TieredEmbedError, match="a bug"):
        train_one(module, ids_of(0))
    module.close()


def test_after_close_everything_is_refused(tmp_path):
    module = make_bag(tmp_path)
    waiting = module(ids_of(0))
    train_one(module, ids_of(1))
    module.close()
    module.close()
    for call in (
        lambda: module(ids_of(0)),
        lambda: module.eval()(ids_of(0)),
        lambda: waiting.sum().backward(),
        lambda: module.rows([1]),
        lambda: module.optimizer_state([1]),
        lambda: module.load_rows([1], torch.zeros(1, DIM)),
        module.flush,
        module.digest,
        lambda: list(te.prefetch([0], module, ids=lambda _: {module: ids_of(0)})),
    ):
        with pytest.raises(te.ClosedError):
            call()
    with make_bag(tmp_path) as again:
        assert again.digest() == dense_digest([ids_of(1)])


@pytest.mark.parametrize("consumed", range(5))
def test_an_abandoned_loop_leaves_no_trace(consumed, tmp_path):
    batches = [ids_of(n) for n in range(8)]
    with make_bag(tmp_path, lookahead=4, depth=2) as module:
        loop = iter(te.prefetch(range(8), module, ids=lambda n: {module: batches[n]}))
        for n in range(consumed):
            assert next(loop) == n
            train_one(module, batches[n])
        loop.close()
        assert module.digest() == dense_digest(batches[:consumed])
        assert module.stats().steps == consumed
        # The module is free for another loop.
        for n in te.prefetch(range(consumed, 8), module, ids=lambda n: {module: batches[n]}):
            train_one(module, batches[n])
        assert module.digest() == dense_digest(batches)


def test_two_loops_at_once_are_refused(tmp_path):
    with make_bag(tmp_path) as module:
        first = iter(te.prefetch(range(5), module, ids=lambda n: {module: ids_of(n)}))
        next(first)
        with pytest.raises(te.ConfigError, match="already fed"):
            next(iter(te.prefetch(range(5), module, ids=lambda n: {module: ids_of(n)})))
        train_one(module, ids_of(0))
        assert next(first) == 1
        first.close()


@pytest.mark.parametrize("good", [0, 1, 5])
def test_what_the_loader_raises_arrives_at_its_place(good, tmp_path):
    def loader() -> Iterator[torch.Tensor]:
        yield from (ids_of(n) for n in range(good))
        raise OSError("the reader lost its file")

    trained: list[torch.Tensor] = []
    with make_bag(tmp_path) as module:
        with pytest.raises(OSError, match="lost its file"):
            train_loop(module, loader(), trained)
        assert len(trained) == good
        assert module.digest() == dense_digest(trained)


@pytest.mark.parametrize("good", [0, 1, 5])
def test_a_bad_batch_arrives_after_the_good_ones(good, tmp_path):
    bad = torch.tensor([[1, 2], [3, 10**6]])
    batches = [ids_of(n) for n in range(good)] + [bad, ids_of(good)]
    tiers = te.Tiers(ddr=6 * 4 * DIM, ssd=tmp_path, store="memory")
    trained: list[torch.Tensor] = []
    with te.TieredEmbeddingBag(1000, DIM, tiers=tiers, optimizer=SGD, lookahead=4) as module:
        with pytest.raises(te.IdRangeError, match=r"id 1000000 at position 3 .*\[0, 1000\)"):
            train_loop(module, batches, trained)
        assert len(trained) == good
        assert module.digest() == dense_digest(batches[:good])


# --- stopping -------------------------------------------------------------------------------------


def stored_digest(folder: Path) -> str:
    tiers = te.Tiers(ddr=96, ssd=folder, store="rocksdb_py")
    with te.TieredEmbeddingBag(None, DIM, tiers=tiers, optimizer=SGD) as module:
        return module.digest()


def test_the_end_of_the_interpreter_in_a_loop_keeps_what_was_trained(tmp_path):
    """No close, the loop suspended, a forward without backward, plans in flight."""
    done = run_script(
        tmp_path,
        """
        for n in loop:
            train_one(n)
            if n == 6:
                held = module(ids_of(50))
                sys.exit(0)
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert stored_digest(tmp_path) == dense_digest([ids_of(n) for n in range(7)])


def test_ctrl_c_in_a_waiting_trainer_keeps_what_was_trained(tmp_path):
    """The signal comes while the trainer waits for a read that the test holds back."""
    done = run_script(
        tmp_path,
        """
        read = pool.store._get
        interrupted = threading.Event()
        num_reads = [0]

        def interrupt(number, frame):
            while frame is not None and frame.f_code.co_name != "result":
                frame = frame.f_back
            if frame is not None:  # the trainer waits
                interrupted.set()
                raise KeyboardInterrupt

        def interrupting(*args):
            num_reads[0] += 1
            if num_reads[0] == 6:
                while not interrupted.wait(0.01):
                    os.kill(os.getpid(), signal.SIGINT)
            return read(*args)

        signal.signal(signal.SIGINT, interrupt)
        pool.store._get = interrupting
        trained = 0
        try:
            for n in loop:
                train_one(n)
                trained += 1
        except KeyboardInterrupt:
            pass
        print(trained)
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")
    trained = int(done.stdout)
    assert 0 < trained < 10
    assert stored_digest(tmp_path) == dense_digest([ids_of(n) for n in range(trained)])


def test_ctrl_c_in_a_job_reaches_the_trainer_and_the_process_ends(tmp_path):
    done = run_script(
        tmp_path,
        """
        read = pool.store._get
        num_reads = [0]

        def interrupting(*args):
            num_reads[0] += 1
            if num_reads[0] == 6:
                raise KeyboardInterrupt
            return read(*args)

        pool.store._get = interrupting
        trained = 0
        try:
            for n in loop:
                train_one(n)
                trained += 1
        except (KeyboardInterrupt, te.TieredEmbedError) as error:
            # Itself, or as the cause where an earlier batch's call finds it first.
            assert KeyboardInterrupt in (type(error), type(error.__cause__))
            print(trained)
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")
    trained = int(done.stdout)
    assert 0 < trained < 10
    assert stored_digest(tmp_path) == dense_digest([ids_of(n) for n in range(trained)])


def test_a_graph_that_is_collected_while_a_job_is_posted_does_not_block(tmp_path):
    """The collector runs where it likes, in the executor's ``submit`` too."""
    done = run_script(
        tmp_path,
        """
        gc.disable()
        faulthandler.dump_traceback_later(20, exit=True)
        cycle = [module(ids_of(0))]
        cycle.append(cycle)
        del cycle
        scheduler = pool.scheduler
        go_on = threading.Event()
        scheduler._jobs.post(lambda: go_on.wait(90))

        class Collecting:
            def __init__(self, queue):
                self.queue = queue

            def put(self, item):
                gc.collect()
                self.queue.put(item)

            def get(self):
                return self.queue.get()

        threads = scheduler._jobs.executors.staging._threads
        threads._calls = Collecting(threads._calls)
        scheduler._jobs.post(lambda: None)
        go_on.set()
        train_one(1)
        print("done")
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("backed", [False, True])
def test_whole_tables_are_planned_at_once(tmp_path, backed):
    """With a store below, once every row has been used; until then a job reads rows. Without one,
    always: rows get their initial values in the same call."""
    layout = PoolLayout((("table", 4),), DIM, SGD, te.init.Uniform(), 0)
    slots = PoolSlots((0,), 4, 0, 0)
    planner = Planner(layout.tables, slots, policy="lru", backed=backed, tier="-")
    ssd = None
    if backed:
        store = open_store("memory", tmp_path, layout.record_bytes, layout.describe())
        ssd = SsdTier(layout, store)
    staging, ddr = Steps(), HostTier(layout, 4, 1)
    jobs = Executors(staging, Steps(), Steps())
    scheduler = Scheduler(planner, MemoryTiers(ddr), ssd, lookahead=0, depth=0, executors=jobs)
    posted = []
    submit = staging.submit
    staging.submit = lambda fn, *args: posted.append(fn) or submit(fn, *args)
    for ids, num_jobs in (([0, 1], 1), ([1], 2), ([2, 3], 3), ([0, 3], 3), ([2], 3)):
        lease = scheduler.stage([(0, np.array(ids))])
        assert (lease.plan.keys.tolist(), len(posted)) == (ids, num_jobs if backed else 0)
        initial = layout.initial_records(np.zeros(len(ids), np.uint16), np.array(ids))
        assert np.array_equal(ddr.gather(lease.plan.slots), initial)
        lease.release(updated=True)
    assert planner.dirty_rows()[1].tolist() == [0, 1, 2, 3]
    scheduler.close()
