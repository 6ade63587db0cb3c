"""FBGEMM's table-batched kernels over the slots of an HBM tier, on CUDA and on the CPU.

A step takes one of two ways. The plain way is FBGEMM's own forward and its exact, deterministic
backward (one block per row). The other way is for what FBGEMM does not do once per row: weight
decay outside the formula, clipping, gradients summed over several backwards. This module then sums
and conditions the row gradients, and FBGEMM applies them.

The two ways give different bits, so the choice never depends on where rows are: the program alone
decides it.

Threading: one call at a time.

Legend: ``N`` occurrences, ``U`` unique rows, ``F`` features, ``B`` bags of each, ``D`` dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from .. import _native
from .._native import StepPlan
from ..errors import ConfigError
from ..optim import NORM_FLOOR, Optimizer
from ..tiers import HbmTier, PoolLayout
from .base import Bags, LookedUp, UpdateOptions
from .device import DeviceKernel
from .fbgemm_pair import require_fbgemm
from .fbgemm_table import ON_CPU, OPTIMIZERS, PRECISIONS, SlotTable, import_fbgemm

__all__ = ["FbgemmKernel"]

F32 = npt.NDArray[np.float32]

OCCURRENCES = 1 << 18  # gradients are gathered for this many at a time


@dataclass(frozen=True, eq=False)
class Forward(LookedUp):
    """FBGEMM's forward, made for the update numbered ``step`` with ``lr``; ``output`` (B, F * D)
    holds the graph that the update differentiates."""

    step: int
    lr: float
    output: torch.Tensor


class FbgemmKernel(DeviceKernel):
    """Kernels over one pool's records in an HBM tier.

    Args:
        features: first column in the output and pooling of each of the pool's features.

    REQUIRES: :meth:`check` has passed.
    """

    @staticmethod
    def check(
        layout: PoolLayout,
        features: Sequence[tuple[int, str]],
        device: torch.device,
        rounding: str = "nearest",
    ) -> None:
        """Checks that such a kernel can be made, before memory is taken for its rows.

        Args:
            rounding: how stored weights are rounded.

        Raises:
            ConfigError: FBGEMM is missing, does not fit torch, or lacks what is asked for.
        """
        _check(layout, [pooling for _, pooling in features], device.type, rounding)
        require_fbgemm(device.type)
        import_fbgemm()

    def __init__(self, tier: HbmTier, *, features: Sequence[tuple[int, str]]) -> None:
        super().__init__(tier)
        self._columns = [column for column, _ in features]
        self._means = [pooling == "mean" for _, pooling in features]
        self._bags = SlotTable(tier, len(self._columns))
        # One row per bag, for gradients that are already summed.
        self._rows = self._bags if self._columns == [0] else SlotTable(tier, 1)

    @staticmethod
    def has(optimizer: Optimizer | None, dtype: str) -> bool:
        """Whether FBGEMM on CUDA has the optimizer and the dtype of the rows."""
        return dtype in PRECISIONS and (optimizer is None or optimizer.kernel in OPTIMIZERS)

    def free(self) -> None:
        super().free()
        with self._tier.use():
            for batched in (self._bags, self._rows):
                batched.point_at_tier()

    def lookup(
        self,
        plan: StepPlan,
        bags: Bags,
        out: torch.Tensor,
        step: int,
        optimizer: Optimizer | None = None,
    ) -> Forward | None:
        lr = 0.0 if optimizer is None else optimizer.lr
        with self._tier.use():
            indices, offsets, weights = self._inputs(plan, bags)
            output = self._bags_for(bags)(indices, offsets, weights, step, lr)
            self._place(output.detach(), bags, offsets, out)
        return None if optimizer is None else Forward(step, lr, output)

    def lookup_rows(
        self, weights: F32, inverse: npt.NDArray[np.int32], bags: Bags, out: torch.Tensor
    ) -> None:
        offsets = self._offsets(bags, len(inverse))
        given = bags.sample_weights
        pooled = torch.nn.functional.embedding_bag(
            self._moved(inverse).to(torch.int64),
            self._moved(weights),
            offsets,
            mode="sum",
            per_sample_weights=None if given is None else self._moved(given),
            include_last_offset=True,
        )
        num_features = len(self._columns_of(bags)[0])
        pooled = pooled.view(num_features, len(out), self._dim).transpose(0, 1)
        self._place(pooled.reshape(len(out), num_features * self._dim), bags, offsets, out)

    def update(
        self,
        plan: StepPlan,
        bags: Bags,
        grad: torch.Tensor,
        optimizer: Optimizer,
        options: UpdateOptions,
        looked_up: LookedUp | None,
    ) -> None:
        assert looked_up is None or isinstance(looked_up, Forward)
        plain = (
            optimizer.keep == 1.0
            and optimizer.l2 == 0.0
            and optimizer.clip_value is None
            and optimizer.clip_row_norm is None
            and not options.by_frequency
        )
        if plain and looked_up is not None and looked_up.step == options.step:
            with self._tier.use():
                batched, output = self._bags_for(bags), looked_up.output
                if looked_up.lr != optimizer.lr:
                    output = batched(*self._inputs(plan, bags), options.step, optimizer.lr)
                taken = self._taken(grad, bags, self._offsets(bags, plan.num_ids))
                if options.scale != 1.0:
                    taken = taken * options.scale
                batched.update(output, taken, optimizer.lr)
            return
        rows = self.row_gradients(plan, bags, grad)
        self.condition(plan, rows, optimizer, options)
        self.apply(plan, rows, optimizer, options.step, 1.0)

    def row_gradients(self, plan: StepPlan, bags: Bags, grad: torch.Tensor) -> torch.Tensor:
        if self._device.type == "cpu":
            rows = np.empty((len(plan.slots), self._dim), np.float32)
            threads = torch.get_num_threads()
            _native.row_gradients(plan, bags.native, grad.numpy(), rows, threads)
            return torch.from_numpy(rows)
        offsets = self._offsets(bags, plan.num_ids)
        by_bag = self._by_bag(grad, bags, offsets)
        bag_of = self._bag_of(offsets, plan.num_ids)
        weights = None if bags.sample_weights is None else self._moved(bags.sample_weights)
        group = self._moved(plan.group).to(torch.int64)
        starts = self._moved(plan.group_start).to(torch.int64)
        out = self._floats(len(plan.slots), self._dim)
        for first, last in _blocks(plan.group_start):
            start = int(plan.group_start[first])
            members = group[start : int(plan.group_start[last])]
            parts = by_bag[bag_of[members]]
            if weights is not None:
                parts = parts * weights[members, None]
            out[first:last] = torch.segment_reduce(
                parts, "sum", offsets=starts[first : last + 1] - start, axis=0, unsafe=True
            )
        return out

    def condition(
        self, plan: StepPlan, rows: torch.Tensor, optimizer: Optimizer, options: UpdateOptions
    ) -> float:
        if options.by_frequency:
            occurrences = np.diff(plan.group_start).astype(np.float32)
            rows /= self._moved(occurrences)[:, None]
        if options.scale != 1.0:
            rows *= options.scale
        if optimizer.clip_value is not None:
            rows.clamp_(-optimizer.clip_value, optimizer.clip_value)
        if optimizer.clip_row_norm is not None:
            norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
            rows *= (optimizer.clip_row_norm / (norms + NORM_FLOOR)).clamp_(max=1.0)
        if optimizer.clip_global_norm is None:
            return 0.0
        return float(torch.linalg.vector_norm(rows, dim=1).to(torch.float64).square().sum())

    def apply(
        self, plan: StepPlan, rows: torch.Tensor, optimizer: Optimizer, step: int, factor: float
    ) -> None:
        if factor != 1.0:
            rows *= factor
        with self._tier.use():
            slots = self._slots(plan)
            if optimizer.keep != 1.0 or optimizer.l2 != 0.0:
                weights = self._tier.weights[slots].to(torch.float32)
                if optimizer.keep != 1.0:
                    weights *= optimizer.keep
                    self._tier.weights[slots] = weights.to(self._tier.weights.dtype)
                if optimizer.l2 != 0.0:
                    rows += optimizer.l2 * weights
            ends = torch.arange(len(slots) + 1, device=self._device)
            looked_up = self._rows(slots, ends, None, step, optimizer.lr)
            self._rows.update(looked_up, rows, optimizer.lr)

    def sample_weight_gradient(
        self, plan: StepPlan, bags: Bags, grad: torch.Tensor
    ) -> torch.Tensor:
        with self._tier.use():
            indices, offsets, _ = self._inputs(plan, bags)
            by_bag = self._by_bag(grad, bags, offsets)
            bag_of = self._bag_of(offsets, plan.num_ids)
            out = self._floats(plan.num_ids)
            for start in range(0, len(indices), OCCURRENCES):
                part = slice(start, start + OCCURRENCES)
                rows = self._tier.weights[indices[part]].to(torch.float32)
                out[part] = (rows * by_bag[bag_of[part]]).sum(dim=1)
            return out

    def renormalise(self, plan: StepPlan, max_norm: float, norm_type: float) -> None:
        with self._tier.use():
            slots = self._slots(plan)
            rows = self._tier.weights[slots].to(torch.float32)
            norms = torch.linalg.vector_norm(rows, norm_type, dim=1, keepdim=True)
            scaled = torch.where(norms > max_norm, rows * (max_norm / (norms + 1e-7)), rows)
            self._tier.weights[slots] = scaled.to(self._tier.weights.dtype)

    # --- inputs and outputs in FBGEMM's shape -----------------------------------------------------

    def _bags_for(self, bags: Bags) -> SlotTable:
        return self._rows if bags.offsets is None else self._bags

    def _inputs(
        self, plan: StepPlan, bags: Bags
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The slot of every occurrence (N,), offsets (F * B + 1,), sample weights (N,) or None."""
        indices = self._slots(plan).index_select(0, self._moved(plan.inverse))
        weights = bags.sample_weights
        moved = None if weights is None else self._moved(weights)
        return indices, self._offsets(bags, plan.num_ids), moved

    def _bags_per_feature(self, bags: Bags, offsets: torch.Tensor) -> int:
        return (len(offsets) - 1) // (1 if bags.offsets is None else len(self._columns))

    def _columns_of(self, bags: Bags) -> tuple[list[int], list[bool]]:
        return ([0], [False]) if bags.offsets is None else (self._columns, self._means)

    def _lengths(self, k: int, bags: Bags, offsets: torch.Tensor) -> torch.Tensor:
        """The number of ids in each bag of feature ``k``, at least 1, as (B, 1)."""
        num_bags = self._bags_per_feature(bags, offsets)
        bounds = offsets[k * num_bags : (k + 1) * num_bags + 1]
        return bounds.diff().clamp_(min=1).to(torch.float32)[:, None]

    def _place(
        self, looked_up: torch.Tensor, bags: Bags, offsets: torch.Tensor, out: torch.Tensor
    ) -> None:
        """Writes ``looked_up`` (B, F * D) into the features' columns of ``out``."""
        dim = self._dim
        columns, means = self._columns_of(bags)
        for k, (start, mean) in enumerate(zip(columns, means, strict=True)):
            pooled = looked_up[:, k * dim : (k + 1) * dim]
            if mean:
                pooled = pooled / self._lengths(k, bags, offsets)
            out[:, start : start + dim] = pooled

    def _taken(self, grad: torch.Tensor, bags: Bags, offsets: torch.Tensor) -> torch.Tensor:
        """The gradient of FBGEMM's output, (B, F * D)."""
        dim = self._dim
        columns, means = self._columns_of(bags)
        whole = columns == list(range(0, dim * len(columns), dim)) and grad.shape[1] == dim * len(
            columns
        )
        if whole and not any(means):
            return grad
        parts = [grad[:, start : start + dim] for start in columns]
        for k, mean in enumerate(means):
            if mean:
                parts[k] = parts[k] / self._lengths(k, bags, offsets)
        return torch.cat(parts, dim=1)

    def _by_bag(self, grad: torch.Tensor, bags: Bags, offsets: torch.Tensor) -> torch.Tensor:
        """The same by bag, in the order of the offsets: (F * B, D)."""
        taken = self._taken(grad, bags, offsets)
        num_features = taken.shape[1] // self._dim
        by_feature = taken.view(len(taken), num_features, self._dim).transpose(0, 1)
        return by_feature.reshape(-1, self._dim)


def _blocks(group_start: npt.NDArray[np.int32]) -> Iterator[tuple[int, int]]:
    """Ranges of rows with about ``OCCURRENCES`` occurrences each."""
    first, num_rows = 0, len(group_start) - 1
    while first < num_rows:
        last = int(np.searchsorted(group_start, group_start[first] + OCCURRENCES, "right")) - 1
        last = min(max(last, first + 1), num_rows)
        yield first, last
        first = last


def _check(layout: PoolLayout, poolings: Sequence[str], device: str, rounding: str) -> None:
    optimizer = layout.optimizer
    instead = f"; pass kernel='{'native' if device == 'cpu' else 'triton'}'"
    where = f"kernel='fbgemm' on {device}"
    if optimizer is not None:
        name = type(optimizer).__name__
        known = ON_CPU if device == "cpu" else tuple(OPTIMIZERS)
        if optimizer.kernel not in known:
            raise ConfigError(f"{where} has no {name}; it has {', '.join(known)}{instead}")
    if "max" in poolings:
        raise ConfigError(f"{where} pools by sum and mean, not by max{instead}")
    if layout.dtype not in PRECISIONS:
        raise ConfigError(
            f"{where} has no {layout.dtype} rows; it has {', '.join(PRECISIONS)}{instead}"
        )
    if layout.dim % 4:
        raise ConfigError(f"{where} needs a dim that is a multiple of 4, not {layout.dim}{instead}")
    if rounding != "nearest":
        raise ConfigError(f"{where} only rounds to nearest, not {rounding!r}{instead}")
