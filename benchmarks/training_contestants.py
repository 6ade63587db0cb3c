"""The contestants of part (b) of ``training.py``: each builds its data, then trains, in a process.

``python training_contestants.py SPEC.json RESULT.json`` runs one phase of one contestant, so that
the parent can put it into a memory group of its own; ``training_beyond_memory.py`` calls it. All
start from the same rows, train the same batches in the same order with the same gradient and the
same row-wise Adagrad. Legend: ``N`` ids of a batch, ``U`` unique rows, ``B`` bags, ``D`` dim.
"""

import itertools
import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from common import Neighbours, console, process_io, process_memory, spread

__all__ = ["CONTESTANTS", "Spec", "hottest_ids", "initial_rows", "main"]

LR, EPS = 0.02, 1e-8
CHUNK_ROWS = 1 << 16
WARM_READERS = 32
WRITE_ROWS = 4096
SETTLE_BATCHES = 8
CHECKED_ROWS = 2048

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Spec:
    """What a contestant is told. ``ids_path``: (batches, N) int64, read again when it ends."""

    contestant: str
    phase: str  # "build" or "train"
    directory: str
    ids_path: str
    rows: int
    dim: int
    batch_size: int
    pooling: int
    threads: int
    seed: int
    ddr_bytes: int
    limit_bytes: int
    lookahead: int
    depth: int | str
    policy: str
    store: str
    direct_io: bool
    warm_s: float
    ours_warm_s: float
    budget_s: float
    max_batches: int

    @property
    def ids_per_batch(self) -> int:
        return self.batch_size * self.pooling

    def batches(self) -> Iterator[Ids]:
        """The id batches in order, for ever; copied out of a file, so that they take no memory."""
        drawn = np.load(self.ids_path, mmap_mode="r")
        for i in itertools.count():
            yield np.array(drawn[i % len(drawn)])

    def gradient(self) -> torch.Tensor:
        """(B, D), the same for every batch."""
        draw = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.batch_size, self.dim, generator=draw) * 0.01

    def offsets(self) -> torch.Tensor:
        return torch.arange(self.batch_size) * self.pooling

    def checked_ids(self) -> Ids:
        """Rows of the first batch that contestants are compared on."""
        return np.unique(next(self.batches()))[:CHECKED_ROWS]


def initial_rows(spec: Spec) -> Iterator[tuple[Ids, npt.NDArray[np.float32]]]:
    """All rows in chunks of ascending ids: (n,), (n, D). The same for every contestant."""
    for start in range(0, spec.rows, CHUNK_ROWS):
        count = min(CHUNK_ROWS, spec.rows - start)
        draw = np.random.Generator(np.random.SFC64([spec.seed, start]))
        weights = draw.random((count, spec.dim), dtype=np.float32)
        weights -= 0.5
        weights *= 0.02
        yield np.arange(start, start + count, dtype=np.int64), weights


def hottest_ids(spec: Spec, count: int) -> Ids:
    """The ``count`` most popular ids, most popular first."""
    from tiered_embed.traces.hashing import scatter

    ranks = np.arange(min(count, spec.rows), dtype=np.int64)
    return scatter(ranks, spec.rows, spec.seed)


class Trainer(Protocol):
    """One contestant in its training process."""

    def warm_up(self, spec: Spec) -> dict[str, Any]:
        """Bring memory into the state that it has after long training, as far as time allows."""

    def train(self) -> None:
        """Train the next batch."""

    def rows(self, ids: Ids) -> npt.NDArray[np.float32]:
        """Current weights, (n, D)."""

    def counters(self) -> dict[str, Any]:
        """Running counts, to be subtracted; nothing for most."""

    def close(self) -> None: ...


# --- tiered_embed ---------------------------------------------------------------------------------


class Ours:
    """``te.prefetch`` and a ``TieredEmbeddingBag`` over DDR and SSD."""

    def __init__(self, spec: Spec) -> None:
        self._emb = Ours._module(spec)
        self._grad = spec.gradient()
        offsets = spec.offsets()
        emb = self._emb
        import tiered_embed as te

        loader = ((torch.from_numpy(ids), offsets) for ids in spec.batches())
        self._loop = iter(te.prefetch(loader, emb, ids=lambda batch: {emb: batch}))
        self._trained = 0

    @staticmethod
    def _module(spec: Spec) -> Any:
        import tiered_embed as te

        return te.TieredEmbeddingBag(
            spec.rows,
            spec.dim,
            tiers=te.Tiers(
                ddr=spec.ddr_bytes,
                ssd=spec.directory,
                store=spec.store,
                direct_io=spec.direct_io,
            ),
            optimizer=te.optim.RowWiseAdagrad(lr=LR, eps=EPS),
            lookahead=spec.lookahead,
            depth=spec.depth,
            policy=spec.policy,
            num_threads=spec.threads,
        )

    @staticmethod
    def build(spec: Spec) -> None:
        emb = Ours._module(spec)
        emb.import_rows((ids, torch.from_numpy(rows)) for ids, rows in initial_rows(spec))
        emb.close()

    def warm_up(self, spec: Spec) -> dict[str, Any]:
        """Train until DDR is full, and a little longer so that rows are evicted at each step."""
        slots = self._ddr()["slot_bytes"] // ((spec.dim + 1) * 4)
        stop = time.perf_counter() + spec.ours_warm_s
        first, said = self._trained, 0.0
        while self._ddr()["resident"] < slots and time.perf_counter() < stop:
            self.train()
            if time.perf_counter() - said > 10:
                said = time.perf_counter()
                console.print(f"  warm-up: {self._ddr()['resident']} of {slots} slots taken")
        full = self._ddr()["resident"] >= slots
        for _ in range(SETTLE_BATCHES):
            self.train()
        return {
            "how": "trained batches until DDR was full" if full else "DDR was NOT full in time",
            "batches": self._trained - first,
            "resident_rows": self._ddr()["resident"],
            "slots": slots,
        }

    def train(self) -> None:
        ids, offsets = next(self._loop)
        self._emb(ids, offsets).backward(self._grad)
        self._trained += 1

    def rows(self, ids: Ids) -> npt.NDArray[np.float32]:
        return self._emb.rows(ids).numpy()

    def _ddr(self) -> dict[str, Any]:
        return self._emb.stats().as_dict()["tiers"]["DDR"]

    def counters(self) -> dict[str, Any]:
        return self._emb.stats().as_dict()

    def close(self) -> None:
        self._loop.close()  # type: ignore[attr-defined]
        self._emb.close()


# --- what the peers share -------------------------------------------------------------------------


class _Gathering:
    """Gather unique rows, pool, differentiate, update, put back: vectorised torch."""

    def __init__(self, spec: Spec) -> None:
        self._batches = spec.batches()
        self._grad = spec.gradient()
        self._offsets = spec.offsets()
        self._dim = spec.dim

    def read(self, ids: Ids) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (U, D) and row-wise Adagrad's sums (U,) of ascending ids (U,)."""
        raise NotImplementedError

    def write(self, ids: Ids, weights: torch.Tensor, sums: torch.Tensor) -> None:
        raise NotImplementedError

    def train(self) -> None:
        ids, inverse = np.unique(next(self._batches), return_inverse=True)
        weights, sums = self.read(ids)
        weights.requires_grad_(True)
        out = torch.nn.functional.embedding_bag(
            torch.from_numpy(inverse.reshape(-1)), weights, self._offsets, mode="sum"
        )
        out.backward(self._grad)
        with torch.no_grad():
            grad = weights.grad
            assert grad is not None
            sums = sums + (grad * grad).mean(1)
            weights = weights - LR * grad / (sums.sqrt() + EPS)[:, None]
        self.write(ids, weights, sums)

    def rows(self, ids: Ids) -> npt.NDArray[np.float32]:
        return self.read(ids)[0].numpy()

    def counters(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


# --- a memory-mapped tensor -----------------------------------------------------------------------


class MemoryMapped(_Gathering):
    """A memory-mapped tensor of weights; the optimizer's sums, 4 bytes a row, stay in memory."""

    advice: int | None = None

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self._path = Path(spec.directory) / "weights.bin"
        with self._path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        if self.advice is not None:
            self._map.madvise(self.advice)
        self._weights = torch.frombuffer(self._map, dtype=torch.float32).view(spec.rows, spec.dim)
        self._sums = torch.zeros(spec.rows)

    @staticmethod
    def build(spec: Spec) -> None:
        with (Path(spec.directory) / "weights.bin").open("wb") as file:
            for _, rows in initial_rows(spec):
                file.write(rows.data)

    def warm_up(self, spec: Spec) -> dict[str, Any]:
        """Read the hottest rows' pages into the page cache, many at once, until it is full."""
        row_bytes = spec.dim * 4
        room = spec.limit_bytes - process_memory()["anonymous_rss_bytes"]
        hottest = hottest_ids(spec, room // mmap.PAGESIZE)
        stop = time.perf_counter() + spec.warm_s
        count, lock = [0], threading.Lock()
        file = os.open(self._path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)

        def read(start: int) -> None:
            if time.perf_counter() > stop:
                return
            part = hottest[start : start + 1024]
            for row in part.tolist():
                os.pread(file, row_bytes, row * row_bytes)
            with lock:
                count[0] += len(part)

        with ThreadPoolExecutor(WARM_READERS) as pool:
            list(pool.map(read, range(0, len(hottest), 1024)))
        os.close(file)
        return {"how": "read the hottest rows into the page cache", "rows": count[0]}

    def read(self, ids: Ids) -> tuple[torch.Tensor, torch.Tensor]:
        at = torch.from_numpy(ids)
        return self._weights.index_select(0, at), self._sums[at]

    def write(self, ids: Ids, weights: torch.Tensor, sums: torch.Tensor) -> None:
        at = torch.from_numpy(ids)
        self._weights[at] = weights
        self._sums[at] = sums


class MemoryMappedRandom(MemoryMapped):
    """The same with ``madvise(MADV_RANDOM)``: a fault reads its page and no readahead."""

    advice = mmap.MADV_RANDOM


# --- rocksdb-py -----------------------------------------------------------------------------------


class RocksDbPy(_Gathering):
    """``rocksdb-py`` as it comes: a ``multi_get`` and a ``WriteBatch`` for each batch."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self._db = RocksDbPy._open(spec)

    @staticmethod
    def _open(spec: Spec) -> Any:
        import rocksdbpy

        options = rocksdbpy.Option()
        options.create_if_missing(True)
        return rocksdbpy.open(str(Path(spec.directory) / "db"), options)

    @staticmethod
    def _put(db: Any, ids: Ids, records: npt.NDArray[np.float32]) -> None:
        import rocksdbpy

        names = ids.astype(">u8").tobytes()
        values = np.ascontiguousarray(records).tobytes()
        size = records.shape[1] * 4
        batch = rocksdbpy.WriteBatch()
        for i in range(len(ids)):
            batch.add(names[8 * i : 8 * i + 8], values[size * i : size * i + size])
        db.write(batch)

    @staticmethod
    def build(spec: Spec) -> None:
        db = RocksDbPy._open(spec)
        for ids, rows in initial_rows(spec):
            records = np.concatenate([rows, np.zeros((len(ids), 1), np.float32)], axis=1)
            for start in range(0, len(ids), WRITE_ROWS):
                RocksDbPy._put(db, ids[start : start + WRITE_ROWS], records[start:][:WRITE_ROWS])
        db.flush()
        db.close()

    def warm_up(self, spec: Spec) -> dict[str, Any]:
        """Read the hottest rows, until time is up or all that could be cached were read."""
        hottest = hottest_ids(spec, spec.limit_bytes // mmap.PAGESIZE)
        stop = time.perf_counter() + spec.warm_s
        count = 0
        while count < len(hottest) and time.perf_counter() < stop:
            self.read(np.sort(hottest[count : count + WRITE_ROWS]))
            count += WRITE_ROWS
        return {"how": "read the hottest rows", "rows": min(count, len(hottest))}

    def read(self, ids: Ids) -> tuple[torch.Tensor, torch.Tensor]:
        names = ids.astype(">u8").tobytes()
        values = self._db.multi_get([names[i : i + 8] for i in range(0, len(names), 8)])
        records = np.frombuffer(b"".join(values), np.float32).reshape(len(ids), self._dim + 1)
        both = torch.from_numpy(records.copy())
        return both[:, : self._dim].contiguous(), both[:, self._dim]

    def write(self, ids: Ids, weights: torch.Tensor, sums: torch.Tensor) -> None:
        RocksDbPy._put(self._db, ids, torch.cat([weights, sums[:, None]], 1).numpy())

    def close(self) -> None:
        self._db.close()


CONTESTANTS: dict[str, Any] = {
    "ours": Ours,
    "mmap": MemoryMapped,
    "mmap_random": MemoryMappedRandom,
    "rocksdb_py": RocksDbPy,
}


# --- one process ----------------------------------------------------------------------------------


def _difference(after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """What a window of time added to running counts."""
    out: dict[str, Any] = {}
    for name, value in after.items():
        if isinstance(value, dict):
            out[name] = _difference(value, before.get(name, {}))
        else:
            out[name] = value - before.get(name, 0)
    return out


def train(spec: Spec) -> dict[str, Any]:
    """Check batch, warm-up, timed batches."""
    torch.set_num_threads(spec.threads)
    trainer: Trainer = CONTESTANTS[spec.contestant](spec)
    start = time.perf_counter()
    if spec.contestant != "ours":
        warmed = trainer.warm_up(spec)
    trainer.train()
    checked = trainer.rows(spec.checked_ids())
    np.save(Path(spec.directory).parent / f"checked-{spec.contestant}.npy", checked)
    if spec.contestant == "ours":
        warmed = trainer.warm_up(spec)
    warmed["seconds"] = time.perf_counter() - start

    neighbours = Neighbours()
    before, io_before = trainer.counters(), process_io()
    spans: list[float] = []
    start = last = time.perf_counter()
    while len(spans) < spec.max_batches and last - start < spec.budget_s:
        trainer.train()
        now = time.perf_counter()
        spans.append(now - last)
        last = now
    elapsed = last - start
    after, io_after = trainer.counters(), process_io()
    result: dict[str, Any] = {
        "warm_up": warmed,
        "timed_batches": len(spans),
        "timed_s": elapsed,
        "rows_per_s": len(spans) * spec.ids_per_batch / elapsed,
        "batch_s": spread(spans) | {"p95": float(np.quantile(spans, 0.95))},
        "neighbour_cores": neighbours.cores(),
        "io": _difference(io_after, io_before),
        "memory": process_memory(),
    }
    if after:
        result["stats"] = after
        result["timed_stats"] = _difference(after, before)
    start = time.perf_counter()
    trainer.close()
    result["close_s"] = time.perf_counter() - start
    return result


def main(spec_path: str, result_path: str) -> None:
    spec = Spec(**json.loads(Path(spec_path).read_text()))
    start = time.perf_counter()
    if spec.phase == "build":
        CONTESTANTS[spec.contestant].build(spec)
        result: dict[str, Any] = {"build_s": time.perf_counter() - start}
    else:
        result = train(spec)
    Path(result_path).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
