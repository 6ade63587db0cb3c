from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

I16 = npt.NDArray[np.uint16]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Segments = list[tuple[int, I64]]

class NoCapacity(RuntimeError): ...
class TooManyHeld(RuntimeError): ...

class StepPlan:
    number: int
    overflow: int
    keys: I64
    tables: I16
    slots: I32
    inverse: I32
    group_start: I32
    group: I32
    staged: I32
    victim_keys: I64
    victim_tables: I16
    victim_slots: I32
    victim_dirty: U8
    def matches(self, segments: Segments) -> bool: ...

class Planner:
    window_size: int
    num_resident: int
    overhead_bytes: int
    def __init__(
        self,
        tables: Sequence[tuple[int, int]],
        *,
        whole_slots: int,
        cached_slots: int,
        overflow_slots: int,
        policy: str,
        backed: bool,
    ) -> None: ...
    def push(self, segments: Segments) -> None: ...
    def plan(self, depth: int) -> StepPlan: ...
    def plan_now(self, segments: Segments) -> StepPlan: ...
    def release(self, number: int, updated: bool) -> None: ...
    def cancel(self) -> None: ...
    def find(self, table: int, ids: I64) -> I32: ...
    def dirty_rows(self) -> tuple[I16, I64, I32]: ...
    def mark_clean(self) -> None: ...
    def renumber(self) -> None: ...
    def counts(self) -> list[tuple[int, int, int, int, int, int]]: ...

class RecordArray:
    record_bytes: int
    def __init__(self, num_slots: int, dim: int, state_floats: int) -> None: ...
    def gather(self, slots: I32, records: U8, num_threads: int) -> None: ...
    def scatter(self, slots: I32, records: U8, keep: Bools | None, num_threads: int) -> None: ...
    def initialise(
        self,
        slots: I32,
        tables: U32,
        rows: I64,
        skip: Bools | None,
        seed: int,
        lo: float,
        scale: float,
        num_threads: int,
    ) -> None: ...

class BagLayout:
    def __init__(self, mean: list[bool], columns: list[int], row_stride: int) -> None: ...

def first_bad_id(ids: I64, num_rows: int) -> int: ...
def initial_weights(
    tables: U32, rows: I64, seed: int, lo: float, scale: float, out: F32
) -> None: ...
def lookup(
    records: RecordArray,
    plan: StepPlan,
    layout: BagLayout,
    offsets: I64 | None,
    sample_weights: F32 | None,
    bags_per_feature: int,
    out: Any,
    num_threads: int,
) -> None: ...
def lookup_rows(
    weights: F32,
    inverse: I32,
    layout: BagLayout,
    offsets: I64 | None,
    sample_weights: F32 | None,
    bags_per_feature: int,
    out: Any,
    num_threads: int,
) -> None: ...
def update(
    records: RecordArray,
    plan: StepPlan,
    layout: BagLayout,
    offsets: I64 | None,
    sample_weights: F32 | None,
    bags_per_feature: int,
    grad: Any,
    kind: int,
    hyper: list[float],
    num_threads: int,
) -> None: ...
def sample_weight_gradient(
    records: RecordArray,
    plan: StepPlan,
    layout: BagLayout,
    offsets: I64 | None,
    bags_per_feature: int,
    grad: Any,
    out: Any,
    num_threads: int,
) -> None: ...
def available_isas() -> list[str]: ...
def current_isa() -> str: ...
def select_isa(name: str) -> None: ...
