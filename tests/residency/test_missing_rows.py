"""``name_missing`` against a dictionary: tables that share ids, repeats, rows that have a slot."""

import numpy as np

from tiered_embed import _native


def named_by_a_dictionary(segments, slots):
    names, out = {}, []
    occurrences = [(table, int(i)) for table, ids in segments for i in ids]
    for row, slot in zip(occurrences, slots.tolist(), strict=True):
        out.append(slot if slot >= 0 else -1 - names.setdefault(row, len(names)))
    return out, list(names)


def test_missing_rows_are_numbered_by_their_first_occurrence():
    draw = np.random.default_rng(3)
    ids = np.arange(20_000, dtype=np.int64)
    segments = [(table, draw.choice(ids, 30_000)) for table in (0, 2, 1, 3, 1)]
    segments.insert(2, (3, np.empty(0, np.int64)))
    slots = np.where(draw.random(150_000) < 0.3, draw.integers(0, 99, 150_000), -1).astype(np.int32)
    expected, rows = named_by_a_dictionary(segments, slots)

    tables, keys = _native.name_missing(segments, slots)

    assert slots.tolist() == expected
    assert list(zip(tables.tolist(), keys.tolist(), strict=True)) == rows
    assert len(rows) > 50_000


def test_one_id_is_two_rows_in_two_tables():
    # Some 20 of so many pairs begin at one entry of the 1,024 that a small call probes.
    for i in range(20_000):
        one = np.array([i], np.int64)
        slots = np.full(3, -1, np.int32)
        tables, keys = _native.name_missing([(0, one), (1, one), (0, one)], slots)
        assert (slots.tolist(), tables.tolist(), keys.tolist()) == ([-1, -2, -1], [0, 1], [i, i])


def test_ids_of_the_whole_range_are_told_apart():
    edge = [0, -1, 1, 2**31, -(2**31), 2**32, 2**63 - 1, -(2**63)]
    segments = [(0, np.array(edge + edge, np.int64)), (5, np.array(edge, np.int64))]
    slots = np.full(24, -1, np.int32)

    tables, keys = _native.name_missing(segments, slots)

    assert slots.tolist() == [-1 - m for m in [*range(8), *range(8), *range(8, 16)]]
    assert tables.tolist() == [0] * 8 + [5] * 8
    assert keys.tolist() == edge + edge


def test_nothing_is_named_where_every_row_has_a_slot():
    slots = np.array([3, 0, 3], np.int32)

    tables, keys = _native.name_missing([(0, np.array([7, 8, 7], np.int64))], slots)

    assert slots.tolist() == [3, 0, 3]
    assert len(tables) == len(keys) == 0
