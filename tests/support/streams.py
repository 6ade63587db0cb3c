"""Seeded id and gradient streams for the tests; the same bits on any machine and NumPy.

Gradients have full mantissas and magnitudes over some binary orders, so that adding them in another
order gives other bits.
"""

from pathlib import Path

import numpy as np

from reference import Bags, Batch, Stream, Table
from tiered_embed import traces


class Draw:
    """Numbers from Philox's raw words, which NumPy keeps stable for ever."""

    def __init__(self, seed: int) -> None:
        self._raw = np.random.Philox(seed)

    def words(self, n: int) -> np.ndarray:
        return self._raw.random_raw(n) >> np.uint64(8)

    def integers(self, low: int, high: int, n: int) -> np.ndarray:
        return (self.words(n) % np.uint64(high - low)).astype(np.int64) + low

    def skewed(self, high: int, n: int) -> np.ndarray:
        """Ids in [0, high), small ones far more often."""
        u = (self.words(n) >> np.uint64(16)).astype(np.float64) * 2.0**-40
        return (u * u * u * u * high).astype(np.int64)

    def floats(self, *shape: int) -> np.ndarray:
        """float32 in (-4, 4), sizes from 2**-6 up."""
        n = int(np.prod(shape))
        unit = (self.words(n) >> np.uint64(32)).astype(np.float32) * np.float32(2.0**-24)
        scale = np.ldexp(np.float32(1), self.integers(-5, 4, n)).astype(np.float32)
        return ((unit - np.float32(0.5)) * scale).reshape(shape)

    def offsets(self, num_bags: int, num_ids: int) -> np.ndarray:
        """(B + 1,): random bags, some of them empty."""
        cuts = np.sort(self.integers(0, num_ids + 1, num_bags - 1))
        return np.concatenate([[0], cuts, [num_ids]]).astype(np.int64)

    def gradients(self, tables: tuple[Table, ...], batch: Batch) -> dict[str, np.ndarray]:
        return {f: self.floats(batch[f].num_bags, t.dim) for t in tables for f in t.feature_names}


def _stream(tables: tuple[Table, ...], batches: list[Batch], draw: Draw) -> Stream:
    return Stream(tables, tuple(batches), tuple(draw.gradients(tables, b) for b in batches))


def scarab(path: Path, dim: int, *, num_batches: int = 72, num_ids: int = 28) -> Stream:
    """The production trace from its start: any int64, half of them negative."""
    trace = traces.read_raw(path)[: num_batches * num_ids]
    draw = Draw(1)
    tables = (Table("scarab", dim),)
    batches: list[Batch] = [
        {"scarab": Bags(ids, draw.offsets(6, num_ids))} for ids in trace.reshape(-1, num_ids)
    ]
    return _stream(tables, batches, draw)


def checkins(path: Path, *, num_batches: int = 48, num_bags: int = 9) -> Stream:
    """Four tables in three pools; a venue's bag is the last three venues, in the mean."""
    log = traces.read_checkins(path)
    tables = (
        Table("user", 7),
        Table("hour", 24, num_embeddings=169),
        Table("venue", 7, num_embeddings=2**40, mode="mean"),
        Table("category", 130, num_embeddings=1000),
    )
    batches: list[Batch] = []
    for b in range(num_batches):
        part = slice(b * num_bags, (b + 1) * num_bags)
        one_each = np.arange(num_bags + 1, dtype=np.int64)
        batch = {name: Bags(ids[part], one_each) for name, ids in log.tables().items()}
        recent = [log.venues[max(0, i - 2) : i + 1] for i in range(part.start, part.stop)]
        offsets = np.cumsum([0] + [len(r) for r in recent]).astype(np.int64)
        batch["venue"] = Bags(np.concatenate(recent), offsets)
        batches.append(batch)
    return _stream(tables, batches, Draw(2))


def duplicates(dim: int, *, num_batches: int = 24) -> Stream:
    """Weighted bags; single rows with hundreds and with thousands of occurrences in a batch."""
    draw = Draw(3)
    tables = (Table("hot", dim, num_embeddings=5000),)
    batches: list[Batch] = []
    for b in range(num_batches):
        ids = draw.skewed(5000, 60)
        if b % 8 == 3:
            # More than 16 chunks of 256, a few more, exactly one, one and a bit.
            hot = np.repeat(np.array([17, 4000, 4001, 4002], np.int64), [9001, 700, 256, 257])
            ids = np.concatenate([ids, hot])
            ids = ids[np.argsort(draw.words(len(ids)), kind="stable")]
        weights = None if b % 3 == 1 else draw.floats(len(ids))
        batches.append({"hot": Bags(ids, draw.offsets(11, len(ids)), weights)})
    return _stream(tables, batches, draw)


def generated(*, num_batches: int = 40, odd_dims: bool = True) -> Stream:
    """Everything at once, from no data: shared tables, mixed dims and modes, weights, no bags."""
    draw = Draw(4)
    tables = (
        Table("item", 24, features=("clicked", "seen")),
        Table("user", 7 if odd_dims else 8, num_embeddings=300, mode="mean"),
        Table("tag", 24, num_embeddings=40),
        Table("bias", 1 if odd_dims else 4),
        Table("wide", 130 if odd_dims else 128, num_embeddings=2000),
    )
    batches: list[Batch] = []
    for b in range(num_batches):
        num_bags = 0 if b == 7 else 5
        batch: dict[str, Bags] = {}
        for table in tables:
            for f in table.feature_names:
                n = 0 if num_bags == 0 or (b == 9 and f == "seen") else 3 + b % 5
                high = table.num_embeddings or 2000
                ids = draw.skewed(high, n)
                if table.num_embeddings is None:
                    ids = ids * np.int64(-7919)  # negative and far apart
                offsets = draw.offsets(num_bags, n) if num_bags else np.zeros(1, np.int64)
                weights = draw.floats(n) if f == "seen" and b % 2 else None
                batch[f] = Bags(ids, offsets, weights)
        batches.append(batch)
    return _stream(tables, batches, draw)


def maxima(*, num_batches: int = 24) -> Stream:
    """Maximum pooling beside sums of the same dim; the same row several times in a bag."""
    draw = Draw(5)
    tables = (
        Table("best", 24, num_embeddings=400, mode="max", features=("left", "right")),
        Table("sum", 24, num_embeddings=400),
        Table("top", 7, mode="max"),
    )
    batches: list[Batch] = []
    for b in range(num_batches):
        batch: dict[str, Bags] = {}
        for table in tables:
            for f in table.feature_names:
                n = 12 + b % 7
                batch[f] = Bags(draw.skewed(400, n), draw.offsets(5, n))
        batches.append(batch)
    return _stream(tables, batches, draw)
