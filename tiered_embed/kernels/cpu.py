"""The native CPU kernels.

The bits of a result depend neither on the number of threads nor on the instruction set; ``optim/``
and ``spec/row_formats.py`` hold the definitions.

Threading: one call at a time; native code uses threads of its own.

Legend: ``N`` occurrences, ``U`` unique rows, ``B`` bags of a feature, ``D`` dim.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from .. import _native
from ..optim import Optimizer
from ..spec import rounding_key
from .base import HUGE_BYTES, Bags, LookedUp, UpdateOptions

__all__ = ["CpuKernel"]

F32 = npt.NDArray[np.float32]

_KINDS = {name: kind for kind, name in enumerate(_native.optimizer_names())}


class CpuKernel:
    """Kernels over one pool's records.

    Args:
        rounding_seed: seed of stochastic rounding; None rounds to nearest.
        table_words: the identity of each table, as Philox counts them.
    """

    def __init__(
        self,
        records: _native.RecordArray,
        dim: int,
        num_threads: int,
        *,
        rounding_seed: int | None = None,
        table_words: npt.NDArray[np.uint32] | None = None,
    ) -> None:
        self._records = records
        self._dim = dim
        self._num_threads = num_threads
        self._rounding_seed = rounding_seed
        self._table_words = [] if table_words is None else table_words.tolist()
        self._made: tuple[Optimizer, tuple[object, ...], _native.StepSpec] | None = None

    def values(self, tensor: torch.Tensor) -> F32:
        """``tensor`` as the other methods take it: a view."""
        array: F32 = (tensor.detach() if tensor.requires_grad else tensor).numpy()
        return array

    def to_host(self, values: F32) -> F32:
        return values

    def lookup(
        self,
        plan: _native.StepPlan,
        bags: Bags,
        out: F32,
        step: int = 0,
        optimizer: Optimizer | None = None,
    ) -> None:
        """Writes the pooled rows into this pool's columns of ``out`` (B, total columns)."""
        _native.lookup(self._records, plan, bags.native, out, self._num_threads)

    def lookup_rows(
        self, weights: F32, inverse: npt.NDArray[np.int32], bags: Bags, out: F32
    ) -> None:
        """Like :meth:`lookup`, but from ``weights`` (U, D) outside the tier; ``inverse`` (N,)."""
        _native.lookup_rows(weights, inverse, bags.native, out, self._num_threads)

    def lookup_in_place(
        self,
        slots: npt.NDArray[np.int32],
        lower: _native.RecordArray | None,
        first_lower_slot: int,
        scratch: npt.NDArray[np.uint8] | None,
        bags: Bags,
        out: F32,
    ) -> None:
        """Like :meth:`lookup`, without a plan.

        Args:
            slots: (N,) where each occurrence's row is: in this tier, from ``first_lower_slot`` on
                in ``lower``, and -1 - m for record m of ``scratch`` (M, record_bytes).
        """
        _native.lookup_in_place(
            self._records,
            lower,
            first_lower_slot,
            slots,
            scratch,
            bags.native,
            out,
            self._num_threads,
        )

    def lookup_whole(
        self, first_slots: npt.NDArray[np.int64], segments: _native.Segments, bags: Bags, out: F32
    ) -> None:
        """Like :meth:`lookup_in_place`, of tables whose row ``id`` is in slot ``first + id``.

        Args:
            first_slots: (tables of the pool,).
        """
        _native.lookup_whole(
            self._records, first_slots, segments, bags.native, out, self._num_threads
        )

    def lookup_plain(
        self,
        planner: _native.Planner,
        num_rows: int,
        ids: npt.NDArray[np.int64],
        offsets: npt.NDArray[np.int64] | None,
        include_last_offset: bool,
        layout: _native.BagLayout,
        out: F32,
    ) -> bool:
        """Like :meth:`lookup_whole` of one feature, whose table of ``num_rows`` starts at slot 0.

        Args:
            ids: (N,), unchecked.
            offsets: as of ``nn.EmbeddingBag``, unchecked; None: all bags have equally many ids.

        Returns:
            Whether ids and offsets are right, and all rows in their slots; if not, ``out`` is as
            it was.
        """
        return _native.lookup_plain(
            self._records,
            planner,
            num_rows,
            ids,
            offsets,
            include_last_offset,
            layout,
            out,
            self._num_threads,
        )

    def update(
        self,
        plan: _native.StepPlan,
        bags: Bags,
        grad: F32,
        optimizer: Optimizer,
        options: UpdateOptions,
        looked_up: LookedUp | None = None,
    ) -> None:
        """One optimizer step per unique row; ``grad`` is shaped like ``out``."""
        _native.update(
            self._records,
            plan,
            bags.native,
            grad,
            self._spec(optimizer, options),
            self._num_threads,
        )

    # The same in parts, for callers that need every gradient before any row changes.

    def row_gradients(self, plan: _native.StepPlan, bags: Bags, grad: F32) -> F32:
        """The summed gradient of each unique row, (U, D)."""
        rows = np.empty((len(plan.slots), self._dim), np.float32)
        if rows.nbytes >= HUGE_BYTES:
            _native.advise_huge_pages(rows.reshape(-1))
        _native.row_gradients(plan, bags.native, grad, rows, self._num_threads)
        return rows

    def condition(
        self, plan: _native.StepPlan, rows: F32, optimizer: Optimizer, options: UpdateOptions
    ) -> float:
        """``Optimizer.conditioned`` on ``rows`` (U, D), in place; returns the sum of squares."""
        return _native.condition_rows(plan, self._spec(optimizer, options), rows, self._num_threads)

    def apply(
        self, plan: _native.StepPlan, rows: F32, optimizer: Optimizer, step: int, factor: float
    ) -> None:
        """``Optimizer.apply`` with ``factor`` times the conditioned ``rows`` (U, D).

        ``rows`` is overwritten.
        """
        spec = self._spec(optimizer, UpdateOptions(step, factor), clip=False)
        _native.apply_rows(self._records, plan, rows, spec, self._num_threads)

    def sample_weight_gradient(self, plan: _native.StepPlan, bags: Bags, grad: F32) -> torch.Tensor:
        """The gradient of each occurrence's sample weight, (N,)."""
        out = np.empty(len(plan.inverse), np.float32)
        _native.sample_weight_gradient(
            self._records, plan, bags.native, grad, out, self._num_threads
        )
        return torch.from_numpy(out)

    def renormalise(self, plan: _native.StepPlan, max_norm: float, norm_type: float) -> None:
        """Scales the plan's rows down to ``max_norm`` where their norm exceeds it."""
        _native.renormalise(self._records, plan, max_norm, norm_type, self._num_threads)

    def largest_magnitude(self, values: F32) -> float:
        """The largest magnitude in ``values`` (2-D); infinity if one is infinite or NaN."""
        return _native.largest_magnitude(values, self._num_threads)

    def _spec(
        self, optimizer: Optimizer, options: UpdateOptions, *, clip: bool = True
    ) -> _native.StepSpec:
        seed = self._rounding_seed
        hyper = optimizer.hyper(options.step)
        # Most optimizers have the same scalars at every step, so the last spec often serves again.
        what = (hyper, options.scale, options.by_frequency, clip)
        if seed is None and self._made and self._made[0] is optimizer and self._made[1] == what:
            return self._made[2]
        spec = _native.StepSpec(
            _KINDS[optimizer.kernel],
            list(hyper),
            by_frequency=options.by_frequency,
            scale=options.scale,
            clip_value=_limit(optimizer.clip_value if clip else None),
            clip_row_norm=_limit(optimizer.clip_row_norm if clip else None),
            keep=optimizer.keep,
            l2=optimizer.l2,
            rounding_key=None if seed is None else rounding_key(seed, options.step),
            table_words=self._table_words,
        )
        self._made = optimizer, what, spec
        return spec


def _limit(value: float | None) -> float:
    return float("inf") if value is None else value
