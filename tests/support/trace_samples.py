"""Small traces that several test modules use."""

import numpy as np
from hypothesis import strategies as st

from tiered_embed.traces import Trace, TraceBags, TraceChunk, TraceTable

I64_MIN, I64_MAX = -(2**63), 2**63 - 1
CODECS = ["none", "zlib", "zstd"]


def batches(trace):
    """Every batch as lists of ids, per table."""
    return [[ids.tolist() for ids in parts] for parts in trace]


def bags(trace):
    """Every sample of the trace: per table the list of its bag's ids."""
    out = []
    for chunk in trace.chunks():
        for s in range(chunk.bags.num_samples):
            sample = []
            for (_, ids), starts in zip(chunk.table_ids, chunk.bags.starts, strict=True):
                low, high = (s, s + 1) if starts is None else starts[s : s + 2]
                sample.append(ids[low:high].tolist())
            out.append(sample)
    return out


def offsets(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def small():
    """Two tables, bags, three chunks: what the golden files hold."""
    spec = [("user", 1000), ("item", None)]
    starts = np.array([0, 2, 2, 3]), None
    ids = np.array([7, 999, 0]), np.array([-(2**63), 2**63 - 1, -1])
    samples = np.array([0, 1, 3])
    parts = tuple(
        (samples if own is None else own[samples], each)
        for own, each in zip(starts, ids, strict=True)
    )
    one = TraceChunk(parts, TraceBags(samples, starts))
    none = TraceChunk(parts)
    ordered = np.arange(1000) // 2
    long = TraceChunk(((np.array([0, 1000]), ordered), (np.array([0, 1000]), ordered * 10**15)))
    return Trace([TraceTable(*each) for each in spec], lambda: iter([one, none, long]))


@st.composite
def chunks(draw, num_tables, with_bags):
    """A chunk of up to 4 batches with any int64 ids."""
    num_batches = draw(st.integers(1, 4))
    samples = offsets(draw(st.lists(st.integers(0, 4), min_size=num_batches, max_size=num_batches)))
    ids = st.one_of(st.integers(I64_MIN, I64_MAX), st.integers(1000, 1300))
    parts, starts = [], []
    for _ in range(num_tables):
        single = draw(st.booleans())
        num = int(samples[-1])
        size = st.just(1) if single else st.integers(0, 3)
        own = offsets(draw(st.lists(size, min_size=num, max_size=num)))
        count = int(own[-1])
        values = draw(st.lists(ids, min_size=count, max_size=count))
        if draw(st.booleans()):
            values = sorted(values)
        parts.append((own[samples], np.array(values, np.int64)))
        starts.append(None if single else own)
    return TraceChunk(tuple(parts), TraceBags(samples, tuple(starts)) if with_bags else None)


@st.composite
def traces(draw, with_bags=None):
    """A trace of up to 3 tables and 3 chunks."""
    num_tables = draw(st.integers(1, 3))
    known = draw(st.booleans()) if with_bags is None else with_bags
    parts = draw(st.lists(chunks(num_tables, known), max_size=3))
    return Trace([TraceTable(f"t{t}") for t in range(num_tables)], lambda: iter(parts))
