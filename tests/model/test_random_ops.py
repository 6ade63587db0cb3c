"""Random operations on a tiered module against a dense model; a failure prints seed and history.

What the operations may do to a row's place (stage, pin, evict, write back, reopen) must never show:
after each of them outputs, rows, state and digest are those of ``reference.DenseTrainer``.
"""

import gc
import itertools
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiered_embed as te
from reference import Bags, Batch, DenseTrainer, Table
from running import INIT, OPTIMIZERS, SEED, bag_args, make_module, record_bytes
from tiered_embed.residency.planner import POLICIES

NUM_OPERATIONS = 2000
MAX_HELD = 3

ONE_TABLE = (Table("one", 5),)
ONE_MEAN_TABLE = (Table("one", 4, num_embeddings=70, mode="mean"),)
MANY_TABLES = (
    Table("item", 4, features=("clicked", "seen")),
    Table("user", 4, num_embeddings=60),
    Table("hour", 8, num_embeddings=3, mode="mean"),
    Table("venue", 8, num_embeddings=80),
)


class Machine:
    """A module, the dense model, and the operations that are applied to both."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.choice = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.folder = folder
        self.tables = (ONE_TABLE, MANY_TABLES, ONE_MEAN_TABLE, MANY_TABLES)[seed % 4]
        self.kind = list(OPTIMIZERS)[seed // 2 % 4]
        self.optimizer = OPTIMIZERS[self.kind]
        self.store = ("memory", "rocksdb")[seed % 2]
        self.dense = DenseTrainer(self.tables, self.optimizer, init=INIT, seed=SEED)
        self.history: deque[str] = deque(maxlen=25)
        self.num_operations = 0
        # (output per feature, batch) of forwards that wait for their backward.
        self.held: list[tuple[dict[str, torch.Tensor], Batch]] = []
        self.module = self.make()

    def make(self) -> Any:
        size = sum(record_bytes(t, self.optimizer) for t in self.tables)
        ddr = size * self.choice.choice([2, 5, 12, 40, 100])
        lookahead = self.choice.choice([0, 1, 2, 5, 20])
        options = {
            "policy": self.choice.choice(POLICIES),
            "lookahead": lookahead,
            "depth": self.choice.choice([*(d for d in (0, 1, 2, 4) if d <= lookahead), "auto"]),
            "num_threads": self.choice.choice([1, 1, 2, 4]),
        }
        hbm = None
        if self.choice.random() < 0.6:
            hbm = size * self.choice.choice([2, 5, 12, 40])
            ddr = self.choice.choice([ddr, ddr, None])
            options |= {"device": "cpu", "kernel": "native"}
        self.history.append(f"open hbm={hbm} ddr={ddr} {options}")
        self.looked_up = {table.name: (0, 0) for table in self.tables}
        tiers = te.Tiers(hbm=hbm, ddr=ddr, ssd=self.folder, store=self.store)
        return make_module(self.tables, tiers, self.optimizer, **options)

    # --- pieces ---------------------------------------------------------------------------------

    def ids(self, table: Table, n: int) -> np.ndarray:
        if table.num_embeddings is None:
            return (self.numbers.integers(0, 50, n) - 25) * np.int64(2**57)
        return self.numbers.integers(0, table.num_embeddings, n)

    def batch(self) -> Batch:
        num_bags = int(self.numbers.integers(0, 5))
        out = {}
        for table in self.tables:
            for feature in table.feature_names:
                n = int(self.numbers.integers(0, 13)) if num_bags else 0
                cuts = np.sort(self.numbers.integers(0, n + 1, max(num_bags - 1, 0)))
                offsets = np.array([0, *cuts, n] if num_bags else [0], np.int64)
                weights = None
                if table.mode == "sum" and self.choice.random() < 0.3:
                    weights = self.floats(n)
                out[feature] = Bags(self.ids(table, n), offsets, weights)
        return out

    def floats(self, *shape: int) -> np.ndarray:
        return self.numbers.standard_normal(shape, np.float32)

    def args(self, batch: Batch) -> Any:
        args = {name: bag_args(bags) for name, bags in batch.items()}
        return args if len(self.tables) > 1 else args["one"]

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The module's output, compared with the dense model's."""
        args = self.args(batch)
        out = self.module(args) if len(self.tables) > 1 else {"one": self.module(*args)}
        if self.module.training and torch.is_grad_enabled():
            for table in self.tables:
                self.count(table, np.concatenate([batch[f].ids for f in table.feature_names]))
        for name, expected in self.dense.forward(batch).items():
            got = out[name].detach().numpy()
            assert np.array_equal(got.view(np.int32), expected.view(np.int32)), name
        return out

    def count(self, table: Table, ids: np.ndarray) -> None:
        lookups, unique = self.looked_up[table.name]
        self.looked_up[table.name] = lookups + len(ids), unique + len(np.unique(ids))

    def backward(self, out: dict[str, torch.Tensor], batch: Batch) -> None:
        grads = {name: self.floats(*o.shape) for name, o in out.items()}
        torch.autograd.backward(list(out.values()), [torch.from_numpy(g) for g in grads.values()])
        self.dense.backward(batch, grads)

    def table(self) -> Table:
        return self.choice.choice(self.tables)

    # --- operations -----------------------------------------------------------------------------

    def train(self) -> None:
        batch = self.batch()
        self.backward(self.forward(batch), batch)

    def hold(self) -> None:
        """A forward whose backward comes later, or never."""
        batch = self.batch()
        self.held.append((self.forward(batch), batch))
        if len(self.held) > MAX_HELD:
            self.drop()

    def finish(self) -> None:
        if self.held:
            self.backward(*self.held.pop(self.choice.randrange(len(self.held))))

    def drop(self) -> None:
        if self.held:
            self.held.pop(self.choice.randrange(len(self.held)))

    def evaluate(self) -> None:
        batch = self.batch()
        if self.choice.random() < 0.5:
            with torch.no_grad():
                out = self.forward(batch)
        else:
            self.module.eval()
            out = self.forward(batch)
            self.module.train()
        for table in self.tables:
            for name in table.feature_names:
                assert not out[name].requires_grad
                bags = batch[name]
                if bags.num_bags:
                    self.check_with_torch(table, bags, out[name])

    def check_with_torch(self, table: Table, bags: Bags, out: torch.Tensor) -> None:
        unique, inverse = np.unique(bags.ids, return_inverse=True)
        weights = self.dense.records(table, unique)[:, : table.dim]
        wanted = torch.nn.functional.embedding_bag(
            torch.from_numpy(inverse.reshape(-1).astype(np.int64)),
            # An empty table is none to torch.
            torch.from_numpy(np.concatenate([weights, np.zeros((1, table.dim), np.float32)])),
            torch.from_numpy(bags.offsets),
            mode=table.mode,
            per_sample_weights=None if bags.weights is None else torch.from_numpy(bags.weights),
            include_last_offset=True,
        )
        torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)

    def rows(self) -> None:
        table = self.table()
        ids = self.ids(table, int(self.numbers.integers(0, 9)))
        wanted = self.dense.records(table, ids)
        assert np.array_equal(self.module.rows(ids, table.name).numpy(), wanted[:, : table.dim])
        state = self.module.optimizer_state(ids, table.name)
        assert list(state) == list(self.optimizer.state_layout(table.dim))
        parts = [np.empty((len(ids), 0), np.float32), *(s.numpy() for s in state.values())]
        assert np.array_equal(np.concatenate(parts, axis=1), wanted[:, table.dim :])

    def load_rows(self) -> None:
        table = self.table()
        ids = np.unique(self.ids(table, int(self.numbers.integers(0, 9))))
        weights = self.floats(len(ids), table.dim)
        arrays = {}
        for name, width in self.optimizer.state_layout(table.dim).items():
            arrays[name] = abs(self.floats(len(ids), width))
        given = {name: torch.from_numpy(a) for name, a in arrays.items()}
        if self.choice.random() < 0.4:
            given = None
            arrays = {name: np.zeros_like(a) for name, a in arrays.items()}
        self.module.load_rows(ids, torch.from_numpy(weights), given, table.name)
        self.count(table, ids)
        self.dense.write(table, ids, np.concatenate([weights, *arrays.values()], axis=1))

    def flush(self) -> None:
        self.module.flush()

    def digest(self) -> None:
        assert self.module.digest() == self.dense.digest()

    def stats(self) -> None:
        stats = self.module.stats()
        assert stats.steps == self.dense.steps
        tiers = dict(stats.tiers)
        ssd = tiers.pop("SSD", None)
        top, *lower = tiers.values()
        for counts in (top, *stats.tables.values()):
            assert counts.hits == counts.unique - counts.misses
            assert 0 <= counts.misses <= counts.unique <= counts.lookups
            assert counts.staged >= counts.misses  # batches of abandoned loops were staged too
            assert counts.evicted <= counts.staged
        # Those of forwards and of written rows, whatever was prefetched in vain.
        for name, (lookups, unique) in self.looked_up.items():
            assert (stats.tables[name].lookups, stats.tables[name].unique) == (lookups, unique)
        if ssd is not None:
            # Evictions and flushes alike: nothing else goes down.
            assert ssd.staged <= sum(tier.written_back for tier in tiers.values())
        for counts in lower:
            assert counts.staged <= top.evicted  # pools whose rows all fit HBM have no DDR
            assert counts.hits == counts.unique - counts.misses
            assert counts.hits <= counts.staged

    def collect(self) -> None:
        gc.collect(0)

    def reopen(self) -> None:
        """Other tiers, policy and threads; a backward that comes after the close is refused."""
        self.module.close()
        if self.held and self.choice.random() < 0.5:
            out, _ = self.held[0]
            with pytest.raises(te.ClosedError):
                torch.autograd.backward([o.sum() for o in out.values()])
        self.held.clear()
        self.module = self.make()

    def prefetch(self) -> None:
        """A loop over a few batches, with other operations in it; sometimes left early."""
        batches = [self.batch() for _ in range(self.choice.randint(1, 7))]
        stop = self.choice.randint(0, len(batches)) if self.choice.random() < 0.5 else None
        module = self.module
        loop = iter(te.prefetch(batches, module, ids=lambda batch: {module: self.args(batch)}))
        for i, batch in enumerate(itertools.islice(loop, stop)):
            assert batch is batches[i]
            while self.choice.random() < 0.4:
                self.do(INSIDE)
            self.record(f"loop batch {i}")
            what = self.choice.random()
            if what < 0.8:
                out = self.forward(batch)
                if self.choice.random() < 0.15:
                    # Twice the same batch: the second forward plans on its own.
                    self.backward(self.forward(batch), batch)
                self.backward(out, batch)
            elif what < 0.9:
                self.held.append((self.forward(batch), batch))
            while self.choice.random() < 0.3:
                self.do(INSIDE)
        self.record("loop ends" if stop is None else f"loop abandoned at {stop}")
        loop.close()

    # --- the walk -------------------------------------------------------------------------------

    def record(self, what: str) -> None:
        self.num_operations += 1
        self.history.append(f"{self.num_operations}: {what}")

    def do(self, weighted: dict[Callable[["Machine"], None], int]) -> None:
        (operation,) = self.choice.choices(list(weighted), list(weighted.values()))
        self.record(operation.__name__)
        operation(self)


INSIDE = {
    Machine.train: 4,
    Machine.hold: 3,
    Machine.finish: 3,
    Machine.drop: 1,
    Machine.evaluate: 3,
    Machine.rows: 3,
    Machine.load_rows: 2,
    Machine.flush: 1,
    Machine.digest: 1,
    Machine.stats: 1,
    Machine.collect: 1,
}
OUTSIDE = {**INSIDE, Machine.train: 12, Machine.prefetch: 12, Machine.reopen: 1}


def check_that_nothing_is_pinned(machine: Machine) -> None:
    """After everything was let go, single rows never overflow, and a full batch empties the tier.

    It needs all slots at once, so that no policy may keep an old row.
    """
    machine.held.clear()
    gc.collect()
    module = machine.module
    unbounded = next((t for t in machine.tables if t.num_embeddings is None), None)
    place = None if unbounded is None else module.engine.wiring.places[0]
    num_new = module.engine.pools[0].num_slots + 8
    top = next(iter(module.stats().tiers))
    overflow = 0
    for n in range(1, num_new):
        batch = {}
        for table in machine.tables:
            for f in table.feature_names:
                id_ = n if table is unbounded else n % table.num_embeddings
                batch[f] = Bags(np.array([id_], np.int64), np.array([0, 1], np.int64))
        machine.backward(machine.forward(batch), batch)
        if n == 2:  # what the last plans held has gone by now
            overflow = module.stats().tiers[top].overflow
    assert module.stats().tiers[top].overflow == overflow, "single rows found no slot"
    for pool in module.engine.pools:
        assert pool.planner.num_resident <= pool.num_slots + 1
        assert pool.planner.window_size == 0
    if unbounded is not None and place is not None:
        pool, index = module.engine.pools[place[0]], place[1]
        nothing = Bags(np.empty(0, np.int64), np.array([0, 0], np.int64))
        batch = {f: nothing for table in machine.tables for f in table.feature_names}
        full = np.arange(num_new, num_new + pool.num_slots, dtype=np.int64)
        batch[unbounded.feature_names[0]] = Bags(full, np.array([0, len(full)], np.int64))
        machine.backward(machine.forward(batch), batch)
        old = (np.arange(50) - 25) * np.int64(2**57)
        old = old[old != 0]
        slots = pool.planner.find(index, old)
        above = (slots >= 0) & (slots < pool.planner.first_lower_slot)
        assert not above.any(), "a row is pinned for ever"


@pytest.mark.parametrize("seed", range(20))
def test_random_operations_against_a_dense_model(seed, stores, tmp_path):
    machine = Machine(seed, tmp_path)
    if machine.store not in stores:
        pytest.skip("built without RocksDB")
    try:
        while machine.num_operations < NUM_OPERATIONS:
            machine.do(OUTSIDE)
        machine.digest()
        check_that_nothing_is_pinned(machine)
        machine.reopen()
        machine.digest()
    except Exception as error:
        history = "\n  ".join(machine.history)
        raise AssertionError(
            f"seed {seed}, {machine.kind}, {machine.store}: {error!r} after\n  {history}"
        ) from error
    finally:
        machine.held.clear()
        machine.module.close()
