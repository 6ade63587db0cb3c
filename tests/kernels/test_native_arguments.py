"""Native functions write to the very array that they get, or refuse it with a TypeError.

An array of another dtype, layout or protection would be converted: the result would be in a copy
that nobody sees.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tiered_embed import _native
from tiered_embed.kernels import Bags
from tiered_embed.kernels.base import UpdateOptions
from tiered_embed.kernels.cpu import CpuKernel
from tiered_embed.optim import SGD

DIM, ROWS = 4, 6


def plan_and_bags() -> tuple[_native.Planner, _native.StepPlan, Bags]:
    planner = _native.Planner(
        [(ROWS, 0)],
        whole_slots=ROWS,
        cached_slots=0,
        overflow_slots=0,
        lower_slots=0,
        policy="lru",
        backed=False,
        num_partitions=1,
        num_threads=1,
    )
    plan = planner.plan_now([(0, np.array([1, 3], np.int64))])
    layout = _native.BagLayout([0], [0], DIM)
    return planner, plan, Bags(layout, None, None, 2)


RECORDS = _native.RecordArray(ROWS, DIM, 0, 0)
PLANNER, PLAN, BAGS = plan_and_bags()
SLOTS = np.array([0, 1], np.int32)
TABLES16, TABLES = np.zeros(2, np.uint16), np.zeros(2, np.uint32)
IDS = np.array([1, 3], np.int64)
F32, GRAD = np.float32, np.ones((2, DIM), np.float32)
SPEC = CpuKernel(RECORDS, DIM, 1)._spec(SGD(lr=1.0), UpdateOptions(1))
BUFFER = _native.WriteBuffer(4 * DIM, 1 << 20)

# Per writable argument: its shape and dtype, and the call.
CALLS: dict[str, tuple[tuple[int, ...], Any, Callable[[Any], Any]]] = {
    "gather": ((2, 4 * DIM), np.uint8, lambda a: RECORDS.gather(SLOTS, a, 1)),
    "initial_weights": (
        (2, DIM),
        F32,
        lambda a: _native.initial_weights(TABLES, IDS, 0, 1.0, 1.0, a),
    ),
    "encode_rows: rows": (
        (2, 4 * DIM),
        np.uint8,
        lambda a: _native.encode_rows(GRAD, 0, a, np.empty((2, 0), F32)),
    ),
    "encode_rows: scale_bias": (
        (2, 2),
        F32,
        lambda a: _native.encode_rows(GRAD * [[1], [2]], 3, np.empty((2, DIM), np.uint8), a),
    ),
    "decode_rows": (
        (2, DIM),
        F32,
        lambda a: _native.decode_rows(GRAD.view(np.uint8), 0, np.empty((2, 0), F32), a),
    ),
    "add_rows": ((2, DIM), F32, lambda a: _native.add_rows(GRAD, IDS % 2, a, 1)),
    "winners": ((2, DIM), np.int32, lambda a: lookup_maximum(a)),
    "lookup": ((2, DIM), F32, lambda a: _native.lookup(RECORDS, PLAN, BAGS.native, a, 1)),
    "lookup_rows": (
        (2, DIM),
        F32,
        lambda a: _native.lookup_rows(GRAD, SLOTS, BAGS.native, a, 1),
    ),
    "lookup_in_place": (
        (2, DIM),
        F32,
        lambda a: _native.lookup_in_place(RECORDS, None, ROWS, SLOTS, None, BAGS.native, a, 1),
    ),
    "lookup_whole": (
        (2, DIM),
        F32,
        lambda a: _native.lookup_whole(
            RECORDS, np.zeros(1, np.int64), _native.Segments([(0, IDS)]), BAGS.native, a, 1
        ),
    ),
    "lookup_plain": (
        (2, DIM),
        F32,
        lambda a: _native.lookup_plain(
            RECORDS, PLANNER, ROWS, IDS, None, False, _native.BagLayout([0], [0], DIM), a, 1
        ),
    ),
    "name_missing": (
        (2,),
        np.int32,
        lambda a: _native.name_missing([(0, IDS)], a),
    ),
    "row_gradients": (
        (2, DIM),
        F32,
        lambda a: _native.row_gradients(PLAN, BAGS.native, GRAD, a, 1),
    ),
    "condition_rows": ((2, DIM), F32, lambda a: _native.condition_rows(PLAN, SPEC, a, 1)),
    "apply_rows": ((2, DIM), F32, lambda a: _native.apply_rows(RECORDS, PLAN, a, SPEC, 1)),
    "sample_weight_gradient": (
        (2,),
        F32,
        lambda a: _native.sample_weight_gradient(RECORDS, PLAN, BAGS.native, GRAD, a, 1),
    ),
    "advise_huge_pages": ((2 * DIM,), F32, _native.advise_huge_pages),
    "write buffer: out": (
        (2, 4 * DIM),
        np.uint8,
        lambda a: BUFFER.read(TABLES16, IDS, a, np.zeros(2, np.bool_)),
    ),
    "write buffer: found": (
        (2,),
        np.bool_,
        lambda a: BUFFER.read(TABLES16, IDS, np.zeros((2, 4 * DIM), np.uint8), a),
    ),
}


def lookup_maximum(winners: Any) -> None:
    layout = _native.BagLayout([2], [0], DIM)
    bags = _native.BatchBags(layout, np.array([0, 1, 2], np.int64), None, winners, 2)
    _native.lookup(RECORDS, PLAN, bags, np.empty((2, DIM), F32), 1)


@pytest.mark.parametrize("name", CALLS)
def test_a_writable_argument_is_never_converted(name):
    shape, dtype, call = CALLS[name]
    call(np.zeros(shape, dtype))
    others = [np.float64, np.float16, np.int64, np.uint8, np.float32, np.bool_]
    for other in others:
        if other != dtype:
            with pytest.raises(TypeError):
                call(np.zeros(shape, other))
    strided = np.zeros((*shape[:-1], 2 * shape[-1]), dtype)[..., ::2]
    with pytest.raises(TypeError):
        call(strided)
    frozen = np.zeros(shape, dtype)
    frozen.setflags(write=False)
    with pytest.raises(TypeError):
        call(frozen)


def test_every_native_function_that_writes_is_tried():
    """A new binding with a writable array has to be added above."""
    holders = [_native, *(value for value in vars(_native).values() if isinstance(value, type))]
    writing = set()
    for holder in holders:
        for name, member in vars(holder).items():
            for signature, *_ in getattr(member, "__nb_signature__", ()):
                given = signature.partition("->")[0]
                arrays = re.findall(r"(\w+): ndarray\[(.*?)\]", given)
                writing |= {f"{name}.{arg}" for arg, what in arrays if "writable=False" not in what}
    assert writing == {
        "advise_huge_pages.memory",
        "gather.records",
        "initial_weights.out",
        "add_rows.total",
        "encode_rows.rows",
        "encode_rows.scale_bias",
        "decode_rows.values",
        "__init__.winners",
        "lookup.out",
        "lookup_rows.out",
        "lookup_in_place.out",
        "name_missing.slots",
        "row_gradients.rows",
        "condition_rows.rows",
        "apply_rows.rows",
        "sample_weight_gradient.out",
        "lookup_whole.out",
        "lookup_plain.out",
        "read.out",
        "read.found",
    }
