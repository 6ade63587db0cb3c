"""Lookup and update of rows as Triton programs, with the bits of the native kernels.

The arithmetic is that of ``optim/`` and ``native/kernels``: a row's gradient is summed in chunks of
256 occurrences, sums over columns run in 16 lanes and end in one binary tree, division and square
root are correctly rounded, and nothing is contracted (launch with ``enable_fp_fusion=False``). One
program owns a row, or a chunk of a hot row. So the order is fixed, with no sort and no atomics.

Tiles are (ROWS, 16): the rows of one program, sixteen columns at a time. ``triton.py`` imports this
module only where Triton is installed.

Legend: ``N`` occurrences, ``U`` unique rows, ``F`` features, ``B`` bags of each, ``D`` dim.
"""

# mypy: ignore-errors
# Triton compiles the source of a jit function as written: it is Triton's Python, not ours.

import triton
import triton.language as tl

__all__ = ["add_chunks", "apply_rows", "condition_rows", "dot_occurrences", "pool", "sum_chunk"]

LANES = tl.constexpr(16)


@triton.jit
def _tree(lanes, ROWS: tl.constexpr):
    """(ROWS, 16) -> (ROWS,): 8 + 8, 4 + 4, 2 + 2, 1 + 1.

    Every ``tl.sum`` adds two numbers, so its order does not matter.
    """
    x = tl.sum(tl.reshape(lanes, (ROWS, 2, 8)), axis=1)
    x = tl.sum(tl.reshape(x, (ROWS, 2, 4)), axis=1)
    x = tl.sum(tl.reshape(x, (ROWS, 2, 2)), axis=1)
    return tl.sum(x, axis=1)


@triton.jit
def _decode(stored, TYPE: tl.constexpr):
    """Stored weights as float32; bfloat16 ones are stored as int16 with the same bits."""
    if TYPE == "bfloat16":
        x = (stored.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        x = stored.to(tl.float32)
    return x


@triton.jit
def _encode(x, TYPE: tl.constexpr):
    """Rounds to nearest, ties to even."""
    if TYPE == "bfloat16":
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded)
        stored = rounded.to(tl.uint16).to(tl.int16, bitcast=True)
    else:
        stored = x.to(tl.float16)
    return stored


@triton.jit
def pool(
    weights,
    slots,
    inverse,
    offsets,
    sample_weights,
    columns,
    means,
    out,
    row_stride,
    bags_per_feature,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    TYPE: tl.constexpr,
):
    """``out[b, columns[f] :][:D]`` = pooled rows of bag (f, b); one program per bag.

    weights (slots, D), slots (U,) int64, inverse (N,) int32, offsets (F * B + 1,) int64,
    sample_weights (N,) float32, columns (F,) int64, means (F,) int32.
    """
    bag = tl.program_id(0).to(tl.int64)
    feature = bag // bags_per_feature
    within = bag % bags_per_feature
    first = tl.load(offsets + bag)
    last = tl.load(offsets + bag + 1)
    c = tl.arange(0, COLUMNS)
    inside = c < D
    total = tl.zeros((COLUMNS,), tl.float32)
    for i in range(first, last):
        slot = tl.load(slots + tl.load(inverse + i))
        row = _decode(tl.load(weights + slot * D + c, mask=inside, other=0), TYPE)
        if WEIGHTED:
            row = tl.load(sample_weights + i) * row
        total += row
    if tl.load(means + feature) != 0:
        total = tl.math.div_rn(total, tl.maximum(last - first, 1).to(tl.float32))
    tl.store(out + within * row_stride + tl.load(columns + feature) + c, total, mask=inside)


@triton.jit
def sum_chunk(
    grad,
    group,
    begins,
    ends,
    bag_of,
    lengths,
    sample_weights,
    columns,
    out,
    row_stride,
    bags_per_feature,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_MEANS: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    """``out[p]`` = the sum of the gradients of the occurrences ``group[begins[p] : ends[p]]``.

    One program per chunk of at most 256 occurrences. grad (B, row_stride), group (N,) int32, begins
    and ends (P,) int64, bag_of (N,) int64, lengths (F * B,) float32 (the divisor of each bag's
    gradient), out (P, D).
    """
    p = tl.program_id(0).to(tl.int64)
    first = tl.load(begins + p)
    last = tl.load(ends + p)
    c = tl.arange(0, COLUMNS)
    inside = c < D
    total = tl.zeros((COLUMNS,), tl.float32)
    for i in range(first, last):
        occurrence = tl.load(group + i)
        bag = tl.load(bag_of + occurrence)
        at = bag % bags_per_feature * row_stride + tl.load(columns + bag // bags_per_feature)
        row = tl.load(grad + at + c, mask=inside, other=0.0)
        if HAS_MEANS:
            row = tl.math.div_rn(row, tl.load(lengths + bag))
        if WEIGHTED:
            row = tl.load(sample_weights + occurrence) * row
        total += row
    tl.store(out + p * D + c, total, mask=inside)


@triton.jit
def add_chunks(rows, hot, firsts, chunks, D: tl.constexpr, COLUMNS: tl.constexpr):
    """``rows[hot[p]] += chunks[firsts[p] : firsts[p + 1]]``, one chunk after the other.

    One program per hot row: hot (P,) int64, firsts (P + 1,) int64, chunks (C, D).
    """
    p = tl.program_id(0)
    u = tl.load(hot + p)
    c = tl.arange(0, COLUMNS)
    inside = c < D
    total = tl.load(rows + u * D + c, mask=inside, other=0.0)
    for i in range(tl.load(firsts + p), tl.load(firsts + p + 1)):
        total += tl.load(chunks + i * D + c, mask=inside, other=0.0)
    tl.store(rows + u * D + c, total, mask=inside)


@triton.jit
def _dot(a, at_a, b, at_b, live, D: tl.constexpr, ROWS: tl.constexpr):
    """Dot products of the rows that start at ``at_a`` and ``at_b`` (ROWS, 1), in lanes."""
    c = tl.arange(0, LANES)[None, :]
    lanes = tl.zeros((ROWS, LANES), tl.float32)
    for k in range(0, D, LANES):
        inside = live & (k + c < D)
        x = tl.load(a + at_a + k + c, mask=inside, other=0.0)
        y = tl.load(b + at_b + k + c, mask=inside, other=0.0)
        lanes += x * y
    return _tree(lanes, ROWS)


@triton.jit
def condition_rows(
    rows,
    occurrences,
    squares,
    num_rows,
    scalars,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BY_FREQUENCY: tl.constexpr,
    SCALED: tl.constexpr,
    CLIPPED: tl.constexpr,
    NORM_CLIPPED: tl.constexpr,
):
    """Conditions ``rows`` (U, D) in place and writes the sum of squares of each (U,).

    occurrences (U,) float32; scalars: scale, clip_value, clip_row_norm.
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = (r < num_rows)[:, None]
    at = r.to(tl.int64)[:, None] * D
    c = tl.arange(0, LANES)[None, :]
    count = tl.load(occurrences + r, mask=r < num_rows, other=1.0)[:, None]
    scale = tl.load(scalars)
    high = tl.load(scalars + 1)
    for k in range(0, D, LANES):
        inside = live & (k + c < D)
        g = tl.load(rows + at + k + c, mask=inside, other=0.0)
        if BY_FREQUENCY:
            g = tl.math.div_rn(g, tl.broadcast_to(count, (ROWS, LANES)))
        if SCALED:
            g = g * scale
        if CLIPPED:
            g = tl.where(g > high, high, tl.where(g < -high, -high, g))
        tl.store(rows + at + k + c, g, mask=inside)
    tl.debug_barrier()
    if NORM_CLIPPED:
        norm = tl.math.sqrt_rn(_dot(rows, at, rows, at, live, D, ROWS)) + 1e-6
        factor = tl.math.div_rn(tl.broadcast_to(tl.load(scalars + 2), (ROWS,)), norm)[:, None]
        for k in range(0, D, LANES):
            inside = live & (k + c < D)
            g = tl.load(rows + at + k + c, mask=inside, other=0.0)
            g = tl.where(factor >= 1.0, g, g * factor)
            tl.store(rows + at + k + c, g, mask=inside)
        tl.debug_barrier()
    tl.store(squares + r, _dot(rows, at, rows, at, live, D, ROWS), mask=r < num_rows)


@triton.jit
def _splat(scalar, ROWS: tl.constexpr):
    return tl.broadcast_to(scalar, (ROWS, LANES))


@triton.jit
def _trust(numerator, denominator):
    usable = (numerator > 0.0) & (denominator > 0.0)
    return tl.where(usable, tl.math.div_rn(numerator, tl.where(usable, denominator, 1.0)), 1.0)


@triton.jit
def apply_rows(
    weights,
    scratch,
    state0,
    state1,
    rows,
    slots,
    num_rows,
    h,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    KIND: tl.constexpr,
    TYPE: tl.constexpr,
    KEEP: tl.constexpr,
    L2: tl.constexpr,
):
    """Weight decay and the formula of ``KIND``, with conditioned ``rows`` (U, D).

    ``rows`` is overwritten. weights (slots, D) of ``TYPE``; unless that is float32, scratch (U, D)
    holds them as float32 meanwhile. state0, state1: the state arrays (slots, 1 or D). h (12 + 2,)
    float32: the scalars of the optimizer's ``hyper``, then ``keep`` and ``l2`` at 12 and 13.
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = r < num_rows
    live = is_row[:, None]
    slot = tl.load(slots + r, mask=is_row, other=0)
    wide = slot[:, None] * D  # of weights and state arrays of D columns
    at = r.to(tl.int64)[:, None] * D
    c = tl.arange(0, LANES)[None, :]
    w = weights
    at_w = wide
    if TYPE != "float32":
        w = scratch
        at_w = at
        for k in range(0, D, LANES):
            inside = live & (k + c < D)
            x = _decode(tl.load(weights + wide + k + c, mask=inside, other=0), TYPE)
            tl.store(scratch + at + k + c, x, mask=inside)
        tl.debug_barrier()
    if KEEP or L2:
        for k in range(0, D, LANES):
            inside = live & (k + c < D)
            x = tl.load(w + at_w + k + c, mask=inside, other=0.0)
            if KEEP:
                x = x * tl.load(h + 12)
                tl.store(w + at_w + k + c, x, mask=inside)
            if L2:
                g = tl.load(rows + at + k + c, mask=inside, other=0.0)
                tl.store(rows + at + k + c, g + tl.load(h + 13) * x, mask=inside)
        tl.debug_barrier()

    # --- scalars of each row -----------------------------------------------------------------
    factor = tl.zeros((ROWS,), tl.float32)
    if KIND == "SGD":
        factor += tl.load(h)
    if KIND == "RowWiseAdagrad" or KIND == "RowWiseRMSProp":
        mean = tl.math.div_rn(
            _dot(rows, at, rows, at, live, D, ROWS), tl.full((ROWS,), D, tl.float32)
        )
        s = tl.load(state0 + slot, mask=is_row, other=0.0)
        if KIND == "RowWiseRMSProp":
            s = tl.load(h + 2) * s
            mean = tl.load(h + 3) * mean
        s = s + mean
        tl.store(state0 + slot, s, mask=is_row)
        lr = tl.broadcast_to(tl.load(h), (ROWS,))
        factor = tl.math.div_rn(lr, tl.math.sqrt_rn(s) + tl.load(h + 1))
    denominator = tl.zeros((ROWS,), tl.float32)
    if KIND == "PartialRowWiseAdam" or KIND == "PartialRowWiseLAMB":
        mean = tl.math.div_rn(
            _dot(rows, at, rows, at, live, D, ROWS), tl.full((ROWS,), D, tl.float32)
        )
        v = tl.load(state1 + slot, mask=is_row, other=0.0)
        v = tl.load(h + 4) * v + tl.load(h + 5) * mean
        tl.store(state1 + slot, v, mask=is_row)
        bias = tl.broadcast_to(tl.load(h + 7), (ROWS,))
        denominator = tl.math.sqrt_rn(tl.math.div_rn(v, bias)) + tl.load(h + 1)
    if KIND == "LARSSGD":
        weight_norm = tl.math.sqrt_rn(_dot(w, at_w, w, at_w, live, D, ROWS))
        norm = (
            tl.math.sqrt_rn(_dot(rows, at, rows, at, live, D, ROWS)) + tl.load(h + 2) * weight_norm
        )
        usable = (weight_norm > 0.0) & (norm > 0.0)
        rate = tl.math.div_rn(tl.load(h) * weight_norm, tl.where(usable, norm, 1.0))
        factor = tl.where(usable, rate, tl.load(h + 3))

    # --- column by column ---------------------------------------------------------------------
    for k in range(0, D, LANES):
        inside = live & (k + c < D)
        g = tl.load(rows + at + k + c, mask=inside, other=0.0)
        x = tl.load(w + at_w + k + c, mask=inside, other=0.0)
        if KIND == "SGD" or KIND == "RowWiseAdagrad" or KIND == "RowWiseRMSProp":
            tl.store(w + at_w + k + c, x - factor[:, None] * g, mask=inside)
        elif KIND == "MomentumSGD":
            m = tl.load(state0 + wide + k + c, mask=inside, other=0.0)
            m = tl.load(h + 1) * m + g
            tl.store(state0 + wide + k + c, m, mask=inside)
            tl.store(w + at_w + k + c, x - tl.load(h) * m, mask=inside)
        elif KIND == "LARSSGD":
            m = tl.load(state0 + wide + k + c, mask=inside, other=0.0)
            m = tl.load(h + 1) * m + factor[:, None] * (g + tl.load(h + 2) * x)
            tl.store(state0 + wide + k + c, m, mask=inside)
            tl.store(w + at_w + k + c, x - m, mask=inside)
        elif KIND == "Adagrad":
            s = tl.load(state0 + wide + k + c, mask=inside, other=0.0) + g * g
            tl.store(state0 + wide + k + c, s, mask=inside)
            step = tl.math.div_rn(tl.load(h) * g, tl.math.sqrt_rn(s) + tl.load(h + 1))
            tl.store(w + at_w + k + c, x - step, mask=inside)
        elif KIND == "FTRL":
            lr = _splat(tl.load(h), ROWS)
            z = tl.load(state0 + wide + k + c, mask=inside, other=0.0)
            before = tl.load(state1 + wide + k + c, mask=inside, other=0.0)
            after = before + g * g
            root = tl.math.sqrt_rn(after)
            sigma = tl.math.div_rn(root - tl.math.sqrt_rn(before), lr)
            z = z + (g - sigma * x)
            tl.store(state0 + wide + k + c, z, mask=inside)
            tl.store(state1 + wide + k + c, after, mask=inside)
            l1 = tl.load(h + 2)
            shrunk = z - tl.where(z < 0.0, -l1, l1)
            divisor = tl.math.div_rn(tl.load(h + 1) + root, lr) + tl.load(h + 3)
            zero = (tl.abs(z) <= l1) | (divisor == 0.0)
            solved = tl.math.div_rn(-shrunk, tl.where(zero, 1.0, divisor))
            tl.store(w + at_w + k + c, tl.where(zero, 0.0, solved), mask=inside)
        else:  # two moments
            m = tl.load(state0 + wide + k + c, mask=inside, other=0.0)
            m = tl.load(h + 2) * m + tl.load(h + 3) * g
            tl.store(state0 + wide + k + c, m, mask=inside)
            m = tl.math.div_rn(m, _splat(tl.load(h + 6), ROWS))
            below = tl.broadcast_to(denominator[:, None], (ROWS, LANES))
            if KIND == "Adam" or KIND == "LAMB":
                v = tl.load(state1 + wide + k + c, mask=inside, other=0.0)
                v = tl.load(h + 4) * v + tl.load(h + 5) * (g * g)
                tl.store(state1 + wide + k + c, v, mask=inside)
                v = tl.math.div_rn(v, _splat(tl.load(h + 7), ROWS))
                below = tl.math.sqrt_rn(v) + tl.load(h + 1)
            step = tl.math.div_rn(m, below)
            if KIND == "Adam" or KIND == "PartialRowWiseAdam":
                tl.store(w + at_w + k + c, x - tl.load(h) * step, mask=inside)
            else:
                tl.store(rows + at + k + c, step + tl.load(h + 8) * x, mask=inside)
    if KIND == "LAMB" or KIND == "PartialRowWiseLAMB":
        tl.debug_barrier()
        weight_norm = tl.math.sqrt_rn(_dot(w, at_w, w, at_w, live, D, ROWS))
        norm = tl.math.sqrt_rn(_dot(rows, at, rows, at, live, D, ROWS))
        factor = tl.load(h) * _trust(weight_norm, norm)
        for k in range(0, D, LANES):
            inside = live & (k + c < D)
            x = tl.load(w + at_w + k + c, mask=inside, other=0.0)
            step = factor[:, None] * tl.load(rows + at + k + c, mask=inside, other=0.0)
            tl.store(w + at_w + k + c, x - step, mask=inside)
    if TYPE != "float32":
        tl.debug_barrier()
        for k in range(0, D, LANES):
            inside = live & (k + c < D)
            x = tl.load(scratch + at + k + c, mask=inside, other=0.0)
            tl.store(weights + wide + k + c, _encode(x, TYPE), mask=inside)


@triton.jit
def dot_occurrences(
    weights,
    slots,
    inverse,
    grad,
    bag_of,
    columns,
    out,
    num_ids,
    row_stride,
    bags_per_feature,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    TYPE: tl.constexpr,
):
    """``out[i]`` = dot(gradient of the bag of occurrence i, its row), in lanes.

    Features that pool by sum only.
    """
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = i < num_ids
    slot = tl.load(slots + tl.load(inverse + i, mask=live, other=0), mask=live, other=0)
    bag = tl.load(bag_of + i, mask=live, other=0)
    at = bag % bags_per_feature * row_stride + tl.load(columns + bag // bags_per_feature)
    c = tl.arange(0, LANES)[None, :]
    lanes = tl.zeros((ROWS, LANES), tl.float32)
    for k in range(0, D, LANES):
        inside = live[:, None] & (k + c < D)
        g = tl.load(grad + at[:, None] + k + c, mask=inside, other=0.0)
        x = _decode(tl.load(weights + slot[:, None] * D + k + c, mask=inside, other=0), TYPE)
        lanes += g * x
    tl.store(out + i, _tree(lanes, ROWS), mask=live)
