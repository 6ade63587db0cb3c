"""Triton kernels over the slots of an HBM tier: every optimizer of ``te.optim``, on CUDA.

They give the bits of the native kernels: rows trained on a GPU equal rows trained on a CPU. The
programs are in ``triton_rows.py``; this module launches them.

Threading: one call at a time.

Legend: ``N`` occurrences, ``U`` unique rows, ``F`` features, ``B`` bags of each, ``D`` dim.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import _native
from .._native import StepPlan
from ..errors import ConfigError
from ..optim import Optimizer
from ..spec import renormalised
from ..tiers import HbmTier, PoolLayout
from .base import Bags, LookedUp, UpdateOptions
from .device import DeviceKernel

__all__ = ["TritonKernel"]

F32 = npt.NDArray[np.float32]

CHUNK = 256
ROWS = 16  # rows of one program
KEEP, L2 = 12, 13  # their places in the scalars of apply_rows
TYPES = ("float32", "float16", "bfloat16")


class TritonKernel(DeviceKernel):
    """Kernels over one pool's records in an HBM tier.

    Args:
        features: first column in the output and pooling of each of the pool's features.

    REQUIRES: :meth:`check` has passed.
    """

    def __init__(self, tier: HbmTier, *, features: Sequence[tuple[int, str]]) -> None:
        super().__init__(tier)
        self._programs = _programs()
        self._columns = self._moved(np.array([column for column, _ in features], np.int64))
        means = [pooling == "mean" for _, pooling in features]
        self._means = self._moved(np.array(means, np.int32))
        self._has_means = any(means)
        # For batches with one row per bag.
        self._first_column = self._moved(np.zeros(1, np.int64))
        self._no_means = self._moved(np.zeros(1, np.int32))

    @staticmethod
    def check(
        layout: PoolLayout,
        features: Sequence[tuple[int, str]],
        device: torch.device,
        rounding: str,
    ) -> None:
        """Checks that such a kernel can be made, before memory is taken for its rows.

        Raises:
            ConfigError: Triton is missing, or our programs lack what is asked for.
        """
        if device.type == "cpu" and not interpreted():
            raise ConfigError("kernel='triton' computes on a GPU; on the CPU pass kernel='native'")
        if any(pooling == "max" for _, pooling in features):
            raise ConfigError("kernel='triton' pools by sum and mean, not by max")
        if layout.dtype not in TYPES:
            raise ConfigError(
                f"kernel='triton' has no {layout.dtype} rows; it has {', '.join(TYPES)}"
            )
        if rounding != "nearest":
            raise ConfigError(f"kernel='triton' only rounds to nearest, not {rounding!r}")
        _programs()

    def lookup(
        self,
        plan: StepPlan,
        bags: Bags,
        out: torch.Tensor,
        step: int = 1,
        optimizer: Optimizer | None = None,
    ) -> None:
        columns, means, _ = self._features(bags)
        num_bags = self._num_bags(bags, plan.num_ids)
        if num_bags == 0:
            return
        with self._tier.use():
            self._launch(
                self._programs.pool,
                num_bags,
                self._weights(),
                self._slots(plan),
                self._moved(plan.inverse),
                self._offsets(bags, plan.num_ids),
                self._sample_weights(bags),
                columns,
                means,
                out,
                out.stride(0),
                num_bags // len(columns),
                D=self._dim,
                COLUMNS=_power_of_two(self._dim),
                WEIGHTED=bags.sample_weights is not None,
                TYPE=self._tier.layout.dtype,
            )

    def lookup_rows(
        self, weights: F32, inverse: npt.NDArray[np.int32], bags: Bags, out: torch.Tensor
    ) -> None:
        here = torch.empty(out.shape, dtype=torch.float32, device="cpu")
        _native.lookup_rows(weights, inverse, bags.native, here.numpy(), torch.get_num_threads())
        columns, _, _ = self._features(bags)
        for start in columns.tolist():
            out[:, start : start + self._dim] = here[:, start : start + self._dim].to(self._device)

    def update(
        self,
        plan: StepPlan,
        bags: Bags,
        grad: torch.Tensor,
        optimizer: Optimizer,
        options: UpdateOptions,
        looked_up: LookedUp | None = None,
    ) -> None:
        rows = self.row_gradients(plan, bags, grad)
        self._condition(plan, rows, optimizer, options)
        self.apply(plan, rows, optimizer, options.step, 1.0)

    def row_gradients(self, plan: StepPlan, bags: Bags, grad: torch.Tensor) -> torch.Tensor:
        num_rows = len(plan.slots)
        rows = self._floats(num_rows, self._dim)
        if num_rows == 0:
            return rows
        starts = plan.group_start.astype(np.int64)
        first, last = starts[:-1], starts[1:]
        summed = self._chunk_sums(plan, bags, grad)
        summed(first, np.minimum(first + CHUNK, last), rows)
        hot = np.flatnonzero(last - first > CHUNK)
        if len(hot):
            # The other chunks of these rows: one program sums each, another adds the sums in order.
            begins = [np.arange(first[u] + CHUNK, last[u], CHUNK) for u in hot]
            ends = [np.minimum(b + CHUNK, last[u]) for b, u in zip(begins, hot, strict=True)]
            num_chunks = np.cumsum([0, *map(len, begins)])
            chunks = self._floats(int(num_chunks[-1]), self._dim)
            summed(np.concatenate(begins), np.concatenate(ends), chunks)
            self._launch(
                self._programs.add_chunks,
                len(hot),
                rows,
                self._moved(hot.astype(np.int64)),
                self._moved(num_chunks.astype(np.int64)),
                chunks,
                D=self._dim,
                COLUMNS=_power_of_two(self._dim),
            )
        return rows

    def condition(
        self, plan: StepPlan, rows: torch.Tensor, optimizer: Optimizer, options: UpdateOptions
    ) -> float:
        squares = self._condition(plan, rows, optimizer, options)
        # Summed row after row, in float64, as the definition does.
        return float(np.cumsum(squares.cpu().numpy().astype(np.float64))[-1]) if len(rows) else 0.0

    def apply(
        self, plan: StepPlan, rows: torch.Tensor, optimizer: Optimizer, step: int, factor: float
    ) -> None:
        if len(rows) == 0:
            return
        if factor != 1.0:
            rows *= float(np.float32(factor))
        scalars = np.zeros(14, np.float32)
        hyper = optimizer.hyper(step)
        scalars[: len(hyper)] = hyper
        scalars[KEEP], scalars[L2] = optimizer.keep, optimizer.l2
        tier = self._tier
        with tier.use():
            arrays = [*tier.state.values(), rows, rows][:2]  # absent ones are not read
            scratch = rows if tier.layout.dtype == "float32" else torch.empty_like(rows)
            self._launch(
                self._programs.apply_rows,
                -(-len(rows) // ROWS),
                self._weights(),
                scratch,
                *arrays,
                rows,
                self._slots(plan),
                len(rows),
                self._moved(scalars),
                D=self._dim,
                ROWS=ROWS,
                KIND=optimizer.kernel,
                TYPE=tier.layout.dtype,
                KEEP=optimizer.keep != 1.0,
                L2=optimizer.l2 != 0.0,
            )

    def sample_weight_gradient(
        self, plan: StepPlan, bags: Bags, grad: torch.Tensor
    ) -> torch.Tensor:
        out = self._floats(plan.num_ids)
        if plan.num_ids == 0:
            return out
        columns, _, _ = self._features(bags)
        with self._tier.use():
            self._launch(
                self._programs.dot_occurrences,
                -(-plan.num_ids // ROWS),
                self._weights(),
                self._slots(plan),
                self._moved(plan.inverse),
                grad,
                self._bag_of(self._offsets(bags, plan.num_ids), plan.num_ids),
                columns,
                out,
                plan.num_ids,
                grad.stride(0),
                self._num_bags(bags, plan.num_ids) // len(columns),
                D=self._dim,
                ROWS=ROWS,
                TYPE=self._tier.layout.dtype,
            )
        return out

    def renormalise(self, plan: StepPlan, max_norm: float, norm_type: float) -> None:
        # Computed on the host, where the definition is: it allows norms of any order.
        layout = self._tier.layout
        with self._tier.use():
            slots = self._slots(plan)
            rows = self._tier.weights[slots].to(torch.float32).cpu().numpy()
            scaled = renormalised(rows, max_norm, norm_type, layout.dtype)
            self._tier.weights[slots] = self._moved(scaled).to(self._tier.weights.dtype)

    # --- pieces -----------------------------------------------------------------------------------

    def _condition(
        self, plan: StepPlan, rows: torch.Tensor, optimizer: Optimizer, options: UpdateOptions
    ) -> torch.Tensor:
        """As :meth:`condition`; returns each row's sum of squares (U,), still on the device."""
        squares = self._floats(len(rows))
        clips = (optimizer.clip_value, optimizer.clip_row_norm, optimizer.clip_global_norm)
        idle = options.scale == 1.0 and not options.by_frequency and clips == (None, None, None)
        if len(rows) == 0 or idle:
            return squares
        scalars = [options.scale, *(0.0 if clip is None else clip for clip in clips[:2])]
        self._launch(
            self._programs.condition_rows,
            -(-len(rows) // ROWS),
            rows,
            self._moved(np.diff(plan.group_start).astype(np.float32)),
            squares,
            len(rows),
            self._moved(np.array(scalars, np.float32)),
            D=self._dim,
            ROWS=ROWS,
            BY_FREQUENCY=options.by_frequency,
            SCALED=options.scale != 1.0,
            CLIPPED=optimizer.clip_value is not None,
            NORM_CLIPPED=optimizer.clip_row_norm is not None,
        )
        return squares

    def _chunk_sums(self, plan: StepPlan, bags: Bags, grad: torch.Tensor) -> Any:
        """A function that writes the sums over the occurrences [begins, ends) of ``group``."""
        columns, _, has_means = self._features(bags)
        offsets = self._offsets(bags, plan.num_ids)
        bag_of = self._bag_of(offsets, plan.num_ids)
        lengths = offsets.diff().clamp(min=1).to(torch.float32)
        if has_means:
            per_feature = self._means.repeat_interleave(len(lengths) // len(columns))
            lengths = torch.where(per_feature != 0, lengths, torch.ones_like(lengths))
        group, weights = self._moved(plan.group), self._sample_weights(bags)
        bags_per_feature = self._num_bags(bags, plan.num_ids) // len(columns)

        def summed(
            begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], out: torch.Tensor
        ) -> None:
            self._launch(
                self._programs.sum_chunk,
                len(begins),
                grad,
                group,
                self._moved(begins),
                self._moved(ends),
                bag_of,
                lengths,
                weights,
                columns,
                out,
                grad.stride(0),
                bags_per_feature,
                D=self._dim,
                COLUMNS=_power_of_two(self._dim),
                HAS_MEANS=has_means,
                WEIGHTED=bags.sample_weights is not None,
            )

        return summed

    def _features(self, bags: Bags) -> tuple[torch.Tensor, torch.Tensor, bool]:
        """First column of each feature, which features are means, and whether any is."""
        if bags.offsets is None:
            return self._first_column, self._no_means, False
        return self._columns, self._means, self._has_means

    def _num_bags(self, bags: Bags, num_ids: int) -> int:
        return num_ids if bags.offsets is None else len(bags.offsets) - 1

    def _sample_weights(self, bags: Bags) -> torch.Tensor:
        """(N,); not read if the bags have none."""
        none = np.zeros(1, np.float32)
        return self._moved(none if bags.sample_weights is None else bags.sample_weights)

    def _weights(self) -> torch.Tensor:
        """(slots, D), as the programs take them."""
        weights = self._tier.weights
        return weights.view(torch.int16) if weights.dtype == torch.bfloat16 else weights

    def _launch(self, program: Any, num_programs: int, *args: Any, **constants: Any) -> None:
        on_gpu = self._device.type == "cuda"
        with torch.cuda.device(self._device) if on_gpu else nullcontext():
            program[(num_programs,)](*args, **constants, enable_fp_fusion=False)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def interpreted() -> bool:
    """Whether Triton's programs run in Python on the CPU, as in tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _programs() -> Any:
    try:
        from . import triton_rows
    except ImportError:
        raise ConfigError(
            "kernel='triton' needs Triton, which comes with torch's CUDA wheels; pip install triton"
        ) from None
    return triton_rows
