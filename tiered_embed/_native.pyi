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
Segment = tuple[int, I64]

HAS_CHECKS: bool  # contracts are checked while running: a build for tests

class NoCapacity(RuntimeError): ...
class TooManyHeld(RuntimeError): ...
class PlannerFailed(RuntimeError): ...

class Segments:
    num_ids: int
    def __init__(self, segments: list[Segment]) -> None: ...
    def copy(self) -> Segments: ...
    def part(self, index: int) -> Segment: ...
    def parts(self) -> list[Segment]: ...

class JaggedLayout:
    def __init__(
        self, num_keys: int, pools: Sequence[Sequence[tuple[int, int, int, int | None]]]
    ) -> None: ...
    def split(self, values: I64, bounds: I64) -> tuple[list[Segments], list[I64]] | None: ...

# lookups, unique, misses, staged, evicted, written back, overflow
TableCounts = tuple[int, int, int, int, int, int, int]

class StepPlan:
    number: int
    overflow: int
    num_ids: int
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
    staged_from: I32
    victim_to: I32
    fallen_keys: I64
    fallen_tables: I16
    fallen_slots: I32
    fallen_dirty: U8
    def matches(self, segments: Segments | list[Segment]) -> bool: ...

class WriteBuffer:
    bytes: int
    def __init__(self, record_bytes: int, portion_bytes: int) -> None: ...
    def add(self, tables: I16, rows: I64, records: U8) -> None: ...
    def read(self, tables: I16, rows: I64, out: U8, found: Bools) -> None: ...
    def hold(self) -> None: ...
    def resume(self) -> None: ...
    def take(self) -> tuple[I16, I64, U8] | None: ...
    def arrived(self) -> None: ...

class InitialRows:
    def __init__(
        self,
        records: RecordArray,
        tables: U32,
        seed: int,
        lo: float,
        scale: float,
        num_threads: int,
    ) -> None: ...

class Planner:
    window_size: int
    num_resident: int
    all_resident: bool
    overhead_bytes: int
    first_lower_slot: int
    num_lower_resident: int
    num_partitions: int
    def __init__(
        self,
        tables: Sequence[tuple[int, int]],
        *,
        whole_slots: int,
        cached_slots: int,
        overflow_slots: int,
        lower_slots: int,
        policy: str,
        backed: bool,
        num_partitions: int,
        num_threads: int,
    ) -> None: ...
    def push(self, segments: Segments | list[Segment]) -> None: ...
    def plan(self, depth: int) -> StepPlan: ...
    def plan_now(
        self, segments: Segments | list[Segment], initial: InitialRows | None = None
    ) -> StepPlan: ...
    def release(self, number: int, updated: bool, used: bool = True) -> None: ...
    def cancel(self) -> None: ...
    def find(self, segments: Segments | list[Segment], num_threads: int) -> I32: ...
    def holds_for_good(self, segments: Segments | list[Segment], num_threads: int) -> bool: ...
    def dirty_rows(self) -> tuple[I16, I64, I32]: ...
    def mark_clean(self) -> None: ...
    def counts(self, used: list[int] | None = ...) -> list[TableCounts]: ...
    def lower_counts(self) -> list[TableCounts]: ...

class Replay:
    num_steps: int
    cold: list[int]
    def __init__(
        self,
        planner: Planner,
        *,
        num_tables: int,
        lookahead: int,
        depth: int,
        updated: bool,
        per_step: bool,
    ) -> None: ...
    def push(self, tables: list[tuple[int, I64, I64]]) -> None: ...
    def finish(self, num_steps: int) -> None: ...
    def take_steps(self) -> I64: ...

class RecordArray:
    record_bytes: int
    def __init__(self, num_slots: int, dim: int, weight_type: int, state_floats: int) -> None: ...
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
    def __init__(self, pooling: list[int], columns: list[int], row_stride: int) -> None: ...

class BatchBags:
    def __init__(
        self,
        layout: BagLayout,
        offsets: I64 | None,
        sample_weights: F32 | None,
        winners: I32 | None,
        bags_per_feature: int,
    ) -> None: ...

class StepSpec:
    def __init__(
        self,
        kind: int,
        hyper: list[float],
        *,
        by_frequency: bool,
        scale: float,
        clip_value: float,
        clip_row_norm: float,
        keep: float,
        l2: float,
        rounding_key: int | None,
        table_words: list[int],
    ) -> None: ...

class StandardFloats:
    """Inside ``with StandardFloats():`` this thread computes as IEEE 754 defines it: to nearest,
    with subnormal numbers, without traps. Code in other threads, such as torch's, is not reached.
    """

    def __init__(self) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...

def name_missing(segments: Segments | list[Segment], slots: I32) -> tuple[I16, I64]: ...
def first_bad_id(ids: I64, num_rows: int, num_threads: int = 1) -> int: ...
def bag_bounds(offsets: I64, num_ids: int, complete: bool) -> I64 | None: ...
def initial_weights(
    tables: U32, rows: I64, seed: int, lo: float, scale: float, out: F32
) -> None: ...
def add_rows(rows: F32, where: I64, total: F32, num_threads: int) -> None: ...
def encode_rows(values: F32, weight_type: int, rows: U8, scale_bias: F32) -> None: ...
def decode_rows(rows: U8, weight_type: int, scale_bias: F32, values: F32) -> None: ...
def lookup(
    records: RecordArray, plan: StepPlan, bags: BatchBags, out: Any, num_threads: int
) -> None: ...
def lookup_rows(
    weights: F32, inverse: I32, bags: BatchBags, out: Any, num_threads: int
) -> None: ...
def lookup_in_place(
    upper: RecordArray,
    lower: RecordArray | None,
    first_lower_slot: int,
    slots: I32,
    scratch: U8 | None,
    bags: BatchBags,
    out: Any,
    num_threads: int,
) -> None: ...
def lookup_whole(
    records: RecordArray,
    first_slots: I64,
    segments: Segments,
    bags: BatchBags,
    out: Any,
    num_threads: int,
) -> None: ...
def lookup_plain(
    records: RecordArray,
    planner: Planner,
    num_rows: int,
    ids: I64,
    offsets: I64 | None,
    complete: bool,
    layout: BagLayout,
    out: Any,
    num_threads: int,
) -> bool: ...
def update(
    records: RecordArray,
    plan: StepPlan,
    bags: BatchBags,
    grad: Any,
    step: StepSpec,
    num_threads: int,
) -> None: ...
def row_gradients(
    plan: StepPlan, bags: BatchBags, grad: Any, rows: Any, num_threads: int
) -> None: ...
def condition_rows(plan: StepPlan, step: StepSpec, rows: Any, num_threads: int) -> float: ...
def apply_rows(
    records: RecordArray, plan: StepPlan, rows: Any, step: StepSpec, num_threads: int
) -> None: ...
def sample_weight_gradient(
    records: RecordArray,
    plan: StepPlan,
    bags: BatchBags,
    grad: Any,
    out: Any,
    num_threads: int,
) -> None: ...
def renormalise(
    records: RecordArray, plan: StepPlan, max_norm: float, norm_type: float, num_threads: int
) -> None: ...
def advise_huge_pages(memory: F32) -> None: ...
def largest_magnitude(x: Any, num_threads: int) -> float: ...
def optimizer_names() -> list[str]: ...
def available_threads(wanted: int) -> int: ...
def end_without_destructors() -> bool: ...
def available_isas() -> list[str]: ...
def current_isa() -> str: ...
def select_isa(name: str) -> None: ...
