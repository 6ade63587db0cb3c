"""``WriteBuffer`` against a dictionary."""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tiered_embed._native import WriteBuffer

BYTES = 3
PORTION = 4  # records
ROWS = [-(2**63), -1, 0, 1, 2, 3, 2**40, 2**63 - 1]
KEYS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(ROWS)), unique=True, max_size=8)


def arrays(keys):
    tables = np.array([t for t, _ in keys], np.uint16)
    return tables, np.array([row for _, row in keys], np.int64)


class Buffer(RuleBasedStateMachine):
    """Truth: the batches in order, and how many of them are on their way."""

    def __init__(self):
        super().__init__()
        self.buffer = WriteBuffer(BYTES, PORTION * BYTES)
        self.batches = []  # of at most a portion
        self.taken = 0
        self.holds = []  # batches before each
        self.count = 0

    @rule(keys=KEYS)
    def add(self, keys):
        records = np.arange(self.count, self.count + BYTES * len(keys)).astype(np.uint8)
        self.count += BYTES * len(keys)
        records = records.reshape(len(keys), BYTES)
        self.buffer.add(*arrays(keys), records)
        pairs = list(zip(keys, records.tolist(), strict=True))
        self.batches += [dict(pairs[i : i + PORTION]) for i in range(0, len(pairs), PORTION)]

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
        """The oldest batches that make up one portion, again until they have arrived."""
        before = self.holds[0] if self.holds else len(self.batches)
        count = 0
        while count < before and sum(map(len, self.batches[: count + 1])) <= PORTION:
            count += 1
        taken = self.buffer.take()
        if before == 0:
            assert taken is None
            return
        tables, rows, records = taken
        keys = list(zip(tables.tolist(), rows.tolist(), strict=True))
        assert len(set(keys)) == len(keys)
        replaced = {key for batch in self.batches[count:before] for key in batch}
        newest = {key: record for batch in self.batches[:count] for key, record in batch.items()}
        held = {key for batch in self.batches[before:] for key in batch}
        got = dict(zip(keys, records.reshape(-1, BYTES).tolist(), strict=True))
        # Where a hold keeps the newest record, an older one may go down before the one after it.
        assert got.keys() >= newest.keys() - replaced
        assert got.keys() - (newest.keys() - replaced) <= held
        assert all(newest[key] == record for key, record in got.items())
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
    buffer = WriteBuffer(BYTES, PORTION * BYTES)
    records = np.zeros((num_records, BYTES), np.uint8)
    with pytest.raises(ValueError, match="differ in length"):
        buffer.add(*arrays([(0, 1), (0, 2)]), records)
    with pytest.raises(ValueError, match="differ in length"):
        buffer.read(*arrays([(0, 1), (0, 2)]), records, np.zeros(2, np.bool_))
