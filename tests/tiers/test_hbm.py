"""The HBM tier by itself: records in and out, growth, its gate, and the order of its copies."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import tiered_embed as te
from small import DIM, make, random_ids
from stand_in_cuda import Cuda
from tiered_embed.optim.adagrad import Adagrad
from tiered_embed.optim.adam import Adam
from tiered_embed.optim.base import Optimizer
from tiered_embed.optim.descent import SGD
from tiered_embed.store import open_store
from tiered_embed.store.keys import encode_keys
from tiered_embed.tiers.hbm import HbmTier
from tiered_embed.tiers.layout import PoolLayout
from tiered_embed.tiers.moves import Copies, StreamCopies

# --- records --------------------------------------------------------------------------------------


def layout_of(optimizer: Optimizer | None, dtype: str = "float32", dim: int = 8) -> PoolLayout:
    tables = (("a", 100), ("b", None))
    return PoolLayout(tables, dim, optimizer, te.init.Uniform(-1.0, 1.0), 7, dtype, (None, 5))


MOVES: dict[str, Callable[[], Any]] = {
    "host": Copies,
    "stream": lambda: StreamCopies(torch.device("cpu"), cuda=Cuda()),
    "stream, in blocks": lambda: StreamCopies(torch.device("cpu"), cuda=Cuda(), pinned_bytes=400),
}


@pytest.fixture(params=MOVES)
def moves(request: pytest.FixtureRequest) -> Any:
    return MOVES[request.param]()


def random_records(layout: PoolLayout, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    state = rng.standard_normal((n, layout.state_floats)).astype(np.float32)
    return layout.records(rng.standard_normal((n, layout.dim)).astype(np.float32), state)


def slots_of(*slots: int) -> np.ndarray:
    return np.array(slots, np.int32)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("optimizer", [None, SGD(lr=0.1), Adagrad(lr=0.1), Adam(lr=0.1)])
def test_records_come_back_as_they_went_in(optimizer, dtype, moves) -> None:
    layout = layout_of(optimizer, dtype)
    tier = HbmTier(layout, 40, moves)
    assert tier.weights.shape == (40, 8)
    assert tier.weights.dtype == getattr(torch, dtype)
    assert [tuple(a.shape) for a in tier.state.values()] == [
        (40, width) for width in layout.state_layout.values()
    ]
    rng = np.random.default_rng(1)
    slots = rng.permutation(40)[:23].astype(np.int32)
    records = random_records(layout, 23)
    tier.scatter(slots, records)
    assert np.array_equal(tier.gather(slots), records)
    backwards = slots[::-1].copy()
    assert np.array_equal(tier.gather(backwards), records[::-1])
    assert np.array_equal(
        tier.weights[torch.from_numpy(slots).long()].numpy().view(np.uint8),
        records[:, : layout.row_bytes],
    )
    others = np.setdiff1d(np.arange(40, dtype=np.int32), slots)
    assert not tier.gather(others).any(), "slots that nobody wrote are zeros"
    none = slots_of()
    assert tier.gather(none).shape == (0, layout.record_bytes)
    tier.scatter(none, tier.gather(none))
    assert np.array_equal(tier.gather(slots), records)


def test_what_is_gathered_is_a_copy(moves) -> None:
    layout = layout_of(SGD(lr=0.1))
    tier = HbmTier(layout, 4, moves)
    taken = tier.gather(slots_of(0, 1))
    tier.scatter(slots_of(0, 1), random_records(layout, 2))
    assert not taken.any()
    given = random_records(layout, 2)
    tier.scatter(slots_of(0, 1), given)
    given[:] = 0
    assert tier.gather(slots_of(0, 1)).any()


def test_only_what_is_kept_is_written(moves) -> None:
    layout = layout_of(Adagrad(lr=0.1))
    tier = HbmTier(layout, 6, moves)
    before = random_records(layout, 6, seed=1)
    slots = slots_of(5, 4, 3, 2, 1, 0)
    tier.scatter(slots, before)
    after = random_records(layout, 6, seed=2)
    keep = np.array([True, False, True, True, False, False])
    tier.scatter(slots, after, keep)
    assert np.array_equal(tier.gather(slots), np.where(keep[:, None], after, before))
    tier.scatter(slots, before, np.zeros(6, bool))
    assert np.array_equal(tier.gather(slots), np.where(keep[:, None], after, before))
    tier.scatter(slots, before, np.ones(6, bool))
    assert np.array_equal(tier.gather(slots), before)


def test_initial_values_are_those_of_the_layout(moves) -> None:
    layout = layout_of(Adagrad(lr=0.1))
    tier = HbmTier(layout, 6, moves)
    before = random_records(layout, 5)
    slots = slots_of(0, 2, 1, 5, 3)
    tier.scatter(slots, before)
    tables, rows = np.array([0, 1, 1, 0, 1], np.uint16), np.array([3, 5, -9, 99, 4], np.int64)
    skip = np.array([False, False, True, False, False])
    tier.initialise(slots, tables, rows, skip)
    wanted = np.where(skip[:, None], before, layout.initial_records(tables, rows))
    assert np.array_equal(tier.gather(slots), wanted)
    assert not tier.gather(slots_of(2)).any(), "the padding row"
    tier.initialise(slots, tables, rows)
    assert np.array_equal(tier.gather(slots), layout.initial_records(tables, rows))


# --- growth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_growth_keeps_every_record(dtype, moves) -> None:
    layout = layout_of(Adam(lr=0.1), dtype)
    tier = HbmTier(layout, 10, moves)
    known = [tier.weights, *tier.state.values()]
    records = random_records(layout, 10)
    every = np.arange(10, dtype=np.int32)
    tier.scatter(every, records)
    for wanted in (3, 10, 11, 12, 40, 41):
        tier.reserve(wanted)
        assert tier.num_slots >= wanted
        assert all(len(array) == tier.num_slots for array in known), "the same tensors, longer"
        assert np.array_equal(tier.gather(every), records)
        assert not tier.gather(np.arange(10, tier.num_slots, dtype=np.int32)).any()
    assert tier.num_slots < 60, "some room to spare, not more"


def test_growth_waits_for_users_and_users_for_growth() -> None:
    """A stepped growth: it has asked for its turn while a kernel is inside."""
    layout = layout_of(SGD(lr=0.1))
    copies = Copies()
    moving, go_on = threading.Event(), threading.Event()
    move = copies.move

    def held(old: torch.Tensor, new: torch.Tensor) -> None:
        moving.set()
        assert go_on.wait(30)
        move(old, new)

    copies.move = held  # type: ignore[method-assign]
    tier = HbmTier(layout, 4, copies)
    records = random_records(layout, 4)
    every = np.arange(4, dtype=np.int32)
    tier.scatter(every, records)
    growth = threading.Thread(target=tier.reserve, args=(100,))
    with tier.use():
        growth.start()
        while not tier._growing:  # it has come as far as the gate
            pass
        assert not moving.is_set()
        assert len(tier.weights) == 4
    assert moving.wait(30)
    seen: list[np.ndarray] = []
    reader = threading.Thread(target=lambda: seen.append(tier.gather(every)))
    reader.start()
    assert tier._users == 0, "the reader waits outside"
    go_on.set()
    for thread in (growth, reader):
        thread.join(30)
        assert not thread.is_alive()
    assert np.array_equal(seen[0], records)
    assert tier.num_slots >= 100


def out_of_memory(*args: Any) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_device_without_room_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of(Adagrad(lr=0.1))
    monkeypatch.setattr(Copies, "zeros", out_of_memory)
    with pytest.raises(te.CapacityError, match="cpu has no room for 9 records of 64 bytes of") as e:
        HbmTier(layout, 9, Copies())
    for part in ("'a', 'b'", "576 bytes", "lower hbm"):
        assert part in str(e.value)


def test_growth_without_room_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of(Adagrad(lr=0.1))
    tier = HbmTier(layout, 4, Copies())
    records = random_records(layout, 4)
    every = np.arange(4, dtype=np.int32)
    tier.scatter(every, records)
    zeros = tier.moves.zeros

    def second_fails(num_slots: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        monkeypatch.setattr(tier.moves, "zeros", out_of_memory)
        return zeros(num_slots, width, dtype)

    monkeypatch.setattr(tier.moves, "zeros", second_fails)
    with pytest.raises(te.CapacityError, match="no room for 50 records"):
        tier.reserve(50)
    assert tier.num_slots == 4
    assert [len(a) for a in (tier.weights, *tier.state.values())] == [4, 4]
    assert np.array_equal(tier.gather(every), records)
    with tier.use():
        pass
    monkeypatch.undo()
    tier.reserve(50)
    assert np.array_equal(tier.gather(every), records)


@pytest.mark.parametrize("ddr", [None, 3 * 4 * DIM, 300 * 4 * DIM])
def test_a_failed_growth_loses_no_row(ddr, tmp_path, monkeypatch) -> None:
    """The planner had given slots away: of victims, and of rows that were to come up again."""
    digests = []
    for fails in (False, True):
        tiers = te.Tiers(hbm=4 * 4 * DIM, ddr=ddr, ssd=tmp_path / str(fails), store="memory")
        options = {"optimizer": SGD(lr=0.1), "device": "cpu", "kernel": "fbgemm"}
        module = make(tiers=tiers, **options)
        for start in (0, 4, 8):
            module(torch.arange(start, start + 4)[:, None]).sum().backward()
        if fails:
            monkeypatch.setattr(Copies, "zeros", out_of_memory)
            with pytest.raises(te.CapacityError, match="no room for"):
                module(torch.arange(2, 24)[:, None])
            with pytest.raises(te.CapacityError, match="staging failed"):
                module(random_ids(0))
            monkeypatch.undo()
        module.close()
        with make(tiers=tiers, **options) as again:
            digests.append(again.digest())
    assert digests[0] == digests[1]


def test_rows_that_a_failed_exchange_leaves_nowhere_are_told_of(tmp_path, monkeypatch) -> None:
    """And nothing else is written in their place."""
    tiers = te.Tiers(hbm=4 * 4 * DIM, ddr=300 * 4 * DIM, ssd=tmp_path, store="memory")
    module = make(tiers=tiers, optimizer=SGD(lr=0.1), device="cpu", kernel="fbgemm")
    for start in (0, 4, 8):
        module(torch.arange(start, start + 4)[:, None]).sum().backward()
    rows = module.rows(range(12))
    monkeypatch.setattr(Copies, "gather", out_of_memory)
    with pytest.raises(te.TieredEmbedError, match="staging failed"):
        module(torch.arange(4)[:, None])
    monkeypatch.undo()
    with pytest.raises(te.TieredEmbedError, match="were lost"):
        module.close()
    layout = module.engine.pools[0].layout
    (folder,) = tmp_path.glob("pool-*")
    store = open_store(
        "memory", folder, layout.record_bytes, layout.store_layout().record, tables={}
    )
    records = np.empty((12, layout.record_bytes), np.uint8)
    found = store.get(encode_keys(layout.table_hashes[0].tobytes(), np.arange(12)), records)
    store.close()
    # Four were coming up and are known; four were to go down and are not.
    assert found.tolist() == [True] * 8 + [False] * 4
    assert np.array_equal(records[:8].view(np.float32), rows[:8].numpy())


def test_a_default_device_is_not_the_tiers() -> None:
    with torch.device("meta"):
        tier = HbmTier(layout_of(SGD(lr=0.1)), 4, Copies())
    assert tier.weights.device.type == "cpu"


# --- the order of copies on a device --------------------------------------------------------------


def stream_tier() -> tuple[HbmTier, Cuda]:
    cuda = Cuda()
    tier = HbmTier(layout_of(SGD(lr=0.1)), 8, StreamCopies(torch.device("cpu"), cuda=cuda))
    cuda.log.clear()
    return tier, cuda


def test_the_trainer_waits_for_fills_and_copies_for_the_trainer() -> None:
    tier, cuda = stream_tier()
    tier.scatter(slots_of(0, 1), random_records(tier.layout, 2))
    filled = [line for line in cuda.log if line.startswith("side records")][-1].split()[-1]
    cuda.log.clear()
    with tier.use():
        assert cuda.log == [f"trainer waits for side {filled}"]
    used = cuda.log[-1].removeprefix("trainer records ")
    assert used.isdecimal()
    for copy in (
        lambda: tier.gather(slots_of(0)),
        lambda: tier.scatter(slots_of(2), random_records(tier.layout, 1)),
        lambda: tier.reserve(tier.num_slots + 1),
    ):
        cuda.log.clear()
        copy()
        assert cuda.log[0] == f"side waits for trainer {used}"


def test_a_kernel_that_failed_has_used_the_rows_all_the_same() -> None:
    tier, cuda = stream_tier()

    def fails() -> None:
        with tier.use():
            raise RuntimeError("out of memory, after another kernel was launched")

    with pytest.raises(RuntimeError):
        fails()
    assert cuda.log[-1].startswith("trainer records")
    tier.reserve(20)  # nobody is inside


def test_of_two_fills_the_trainer_waits_for_the_later_one() -> None:
    """One thread has recorded its event, and sleeps before it says so."""
    tier, cuda = stream_tier()
    records = random_records(tier.layout, 1)
    recorded, second_done = threading.Event(), threading.Event()
    mine = threading.local()
    events = {"first": 0, "second": 0}

    def notice(number: int) -> None:
        name = getattr(mine, "name", None)
        if name is None or cuda.current_stream(torch.device("cpu")).name != "side":
            return
        events[name] = number
        mine.left -= 1
        if name == "first" and mine.left == 0:  # its fill; buffers' events came before
            recorded.set()
            second_done.wait(0.2)  # under a lock the second cannot be done

    cuda.recorded = notice

    def fill(name: str, slot: int) -> None:
        mine.name, mine.left = name, 3
        tier.scatter(slots_of(slot), records)

    first = threading.Thread(target=fill, args=("first", 0))
    first.start()
    assert recorded.wait(30)

    def second() -> None:
        fill("second", 1)
        second_done.set()

    other = threading.Thread(target=second)
    other.start()
    for thread in (first, other):
        thread.join(30)
        assert not thread.is_alive()
    cuda.log.clear()
    with tier.use():
        assert cuda.log == [f"trainer waits for side {max(events.values())}"]


def test_pinned_buffers_are_bounded_and_come_back() -> None:
    moves = StreamCopies(torch.device("cpu"), cuda=Cuda(), pinned_bytes=4 * 100)
    layout = layout_of(Adagrad(lr=0.1))  # 64 bytes: one a buffer
    tier = HbmTier(layout, 300, moves)
    records = random_records(layout, 300)
    every = np.arange(300, dtype=np.int32)
    parts = np.array_split(every, 6)
    threads = [
        threading.Thread(target=lambda p=part: tier.scatter(p, records[p])) for part in parts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert np.array_equal(tier.gather(every), records)
    assert moves._num_buffers <= 4
    assert len(moves._free) == moves._num_buffers
    wide = HbmTier(layout_of(SGD(lr=0.1), dim=64), 5, moves)  # a record beyond a buffer
    wide.scatter(slots_of(4, 0), random_records(wide.layout, 2))
    assert np.array_equal(wide.gather(slots_of(4, 0)), random_records(wide.layout, 2))
