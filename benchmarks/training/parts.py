"""``training in-memory``, one part at a time: planner, kernels, and what moving bytes costs.

Legend: ``U`` unique rows of a batch, ``B`` bags, ``D`` dim.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import tiered_embed as te
from benchmarks.support.machine import copy_bandwidth
from benchmarks.support.reports import spread
from benchmarks.training.tables import EPS, LR, Batch, InMemory, gradient
from tiered_embed import _native
from tiered_embed.kernels import POOLINGS, Bags, CpuKernel, UpdateOptions
from tiered_embed.residency.budgets import PoolSlots, allocate
from tiered_embed.residency.planner import Planner, Segment
from tiered_embed.tiers.host import HostTier
from tiered_embed.tiers.layout import PoolLayout

__all__ = ["components"]


def components(p: InMemory, batches: list[Batch], unique: float) -> dict[str, Any]:
    """Planner, lookup and update alone, and the copy bandwidth that no step can beat."""
    tables = [("table", p.rows)]
    record_bytes = (p.dim + 1) * 4
    whole = allocate([tables], [record_bytes], p.rows * record_bytes, backed=False, tier="DDR")[0]
    fifth = PoolSlots((-1,), whole=0, cached=max(1, p.rows // 5), overflow=1 << 24)
    hashed = PoolSlots((-1,), whole=0, cached=p.rows, overflow=1 << 24)
    planner = {
        "whole table, depth 1, lookahead 4": _plan(p, batches, tables, whole, 1, 4),
        "cached, all resident, depth 2, lookahead 32": _plan(p, batches, tables, hashed, 2, 32),
        "cached, a fifth of the rows, depth 2, lookahead 32": _plan(
            p, batches, tables, fifth, 2, 32
        ),
    }
    bandwidth = {str(n): copy_bandwidth(n) for n in range(1, p.threads + 1)}
    # Each unique record is read by the lookup, then read and written by the update; outputs are
    # written and gradients read once. A copied byte is one read and one write.
    moved = unique * (p.dim * 4 / 2 + record_bytes) + p.batch_size * p.dim * 4
    return {
        "planner_ids_per_s": planner,
        "kernels_s": _kernels(p, batches, tables, whole),
        "isa": _native.current_isa(),
        "copy_bytes_per_s": bandwidth,
        "copy_floor_s": moved / bandwidth[str(p.threads)],
    }


def _plan(
    p: InMemory,
    batches: list[Batch],
    tables: list[tuple[str, int]],
    slots: PoolSlots,
    depth: int,
    lookahead: int,
) -> dict[str, float]:
    """ids/s of ``push`` and ``plan`` in a steady state, on the calling core alone."""
    backed = slots.overflow > 0
    planner = Planner(tables, slots, policy="lookahead", backed=backed, tier="DDR")
    endless = itertools.cycle(batches)
    segments: Iterator[list[Segment]] = ([(0, batch.ids.numpy())] for batch in endless)
    for _ in range(lookahead):
        planner.push(next(segments))
    held: list[int] = []

    def step() -> None:
        planner.push(next(segments))
        held.append(planner.plan(depth).number)
        if len(held) > depth:
            planner.release(held.pop(0), updated=True)

    for _ in range(2 * len(batches)):
        step()
    rates = []
    for _ in range(p.rounds):
        start = time.perf_counter()
        for _ in range(p.batches):
            step()
        rates.append(p.batches * p.ids_per_batch / (time.perf_counter() - start))
    return spread(rates)


def _kernels(
    p: InMemory, batches: list[Batch], tables: list[tuple[str, int]], slots: PoolSlots
) -> dict[str, Any]:
    """Seconds of lookup and of update of one batch, by threads."""
    optimizer = te.optim.RowWiseAdagrad(lr=LR, eps=EPS)
    layout = PoolLayout(tuple(tables), p.dim, optimizer, te.init.Uniform(), p.seed)
    planner = Planner(tables, slots, policy="lookahead", backed=False, tier="DDR")
    all_rows = np.arange(p.rows, dtype=np.int64)
    plans = [planner.plan_now([(0, batch.ids.numpy())]) for batch in batches]
    grad = gradient(p).numpy()
    out = np.empty((p.batch_size, p.dim), np.float32)
    columns = _native.BagLayout([POOLINGS["sum"]], [0], p.dim)
    bags = Bags(columns, batches[0].bounds.numpy(), None, p.batch_size)
    options = UpdateOptions(step=1)
    times: dict[str, Any] = {}
    buffer = np.zeros((max(len(plan.slots) for plan in plans), layout.record_bytes), np.uint8)

    def moved(plan: _native.StepPlan) -> np.ndarray:
        return buffer[: len(plan.slots)]

    ddr = HostTier(layout, p.rows, p.threads)
    ddr.initialise(all_rows.astype(np.int32), np.zeros(p.rows, np.uint16), all_rows)
    for threads in range(1, p.threads + 1):
        kernel = CpuKernel(ddr.records, p.dim, threads)
        calls: dict[str, Callable[[Any], None]] = {
            "lookup": lambda plan, kernel=kernel: kernel.lookup(plan, bags, out),
            "update": lambda plan, kernel=kernel: kernel.update(
                plan, bags, grad, optimizer, options
            ),
            # What moving the same records costs, with no arithmetic.
            "copy out": lambda plan, n=threads: ddr.records.gather(plan.slots, moved(plan), n),
            "copy in": lambda plan, n=threads: ddr.records.scatter(
                plan.slots, moved(plan), None, n
            ),
        }
        for name, call in calls.items():
            spans = []
            for plan in plans[: p.warm_batches] + plans:
                start = time.perf_counter()
                call(plan)
                spans.append(time.perf_counter() - start)
            times.setdefault(name, {})[str(threads)] = spread(spans[p.warm_batches :])
    return times
