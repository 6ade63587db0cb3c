"""The contestants of ``training beyond-memory``: each builds its data, then trains.

All start from the same rows, train the same batches in the same order with the same gradient and
the same row-wise Adagrad. Each builds and trains in a process of its own (``one_contestant.py``).
Legend: ``N`` ids of a batch, ``U`` unique rows, ``B`` bags, ``D`` dim.
"""

import mmap
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.support.machine import process_memory
from benchmarks.support.reports import console
from benchmarks.training.spec import Ids, Spec, hottest_ids, initial_rows

__all__ = ["CONTESTANTS", "Trainer"]

LR, EPS = 0.02, 1e-8
WARM_READERS = 32
WRITE_ROWS = 4096
EVICTING_BATCHES = 8


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
        for _ in range(EVICTING_BATCHES):
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
