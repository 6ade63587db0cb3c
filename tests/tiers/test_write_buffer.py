"""``WriteBuffer`` against a dictionary."""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tiered_embed._native import WriteBuffer

BYTES = 3
ROWS = [-(2**63), -1, 0, 1, 2, 3, 2**40, 2**63 - 1]
KEYS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(ROWS)), unique=True, max_size=8)


def arrays(keys):
    tables = np.array([t for t, _ in keys], np.uint16)
    return tables, np.array([row for _, row in keys], np.int64)


class Buffer(RuleBasedStateMachine):
    """Truth: the batches in order, and how many of them are on their way."""

    def __init__(self):
        super().__init__()
        self.buffer = WriteBuffer(BYTES)
        self.batches = []
        self.taken = 0
        self.holds = []  # batches before each
        self.count = 0

    @rule(keys=KEYS)
    def add(self, keys):
        records = np.arange(self.count, self.count + BYTES * len(keys)).astype(np.uint8)
        self.count += BYTES * len(keys)
        records = records.reshape(len(keys), BYTES)
        self.buffer.add(*arrays(keys), records)
        if keys:
            self.batches.append(dict(zip(keys, records.tolist(), strict=True)))

    @rule(keys=KEYS)
    def read(self, keys):
        newest = {key: record for batch in self.batches for key, record in batch.items()}
        out = np.full((len(keys), BYTES), 77, np.uint8)
        found = np.zeros(len(keys), np.bool_)
        self.buffer.read(*arrays(keys), out, found)
        assert found.tolist() == [key in newest for key in keys]
        assert out.tolist() == [newest.get(key, [77] * BYTES) for key in keys]

    @rule()
    def hold(self):
        self.buffer.hold()
        self.holds.append(len(self.batches))

    @rule()
    def resume(self):
        self.buffer.resume()
        del self.holds[:1]

    @rule()
    def take(self):
        if self.taken:
            return
        count = self.holds[0] if self.holds else len(self.batches)
        tables, rows, records = self.buffer.take()
        got = dict(
            zip(
                zip(tables.tolist(), rows.tolist(), strict=True),
                records.reshape(-1, BYTES).tolist(),
                strict=True,
            )
        )
        taken = self.batches[:count]
        newest = {key: record for batch in taken for key, record in batch.items()}
        assert got == newest
        assert len(rows) == len(newest)
        self.taken = count

    @rule()
    def arrive(self):
        if not self.taken:
            return
        self.buffer.arrived()
        del self.batches[: self.taken]
        self.holds = [max(0, count - self.taken) for count in self.holds]
        self.taken = 0

    @invariant()
    def bytes_are_what_is_held(self):
        assert self.buffer.bytes == sum(BYTES * len(batch) for batch in self.batches)


TestBuffer = Buffer.TestCase


@pytest.mark.parametrize("num_records", [0, 1, 3])
def test_arrays_of_different_lengths_are_refused(num_records):
    buffer = WriteBuffer(BYTES)
    records = np.zeros((num_records, BYTES), np.uint8)
    with pytest.raises(ValueError, match="differ in length"):
        buffer.add(*arrays([(0, 1), (0, 2)]), records)
    with pytest.raises(ValueError, match="differ in length"):
        buffer.read(*arrays([(0, 1), (0, 2)]), records, np.zeros(2, np.bool_))
