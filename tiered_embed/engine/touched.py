"""The touched rows of one pool as an ``nn.Parameter``: what torch's tools see of its rows.

With ``update="step"`` its values are the rows that backwards have given gradients since those were
last dropped, and its ``.grad`` is their summed gradient: what clips, unscales, logs or zeroes the
gradients of a model does so with the rows. With ``update="backward"`` the parameter has no rows and
never a gradient. Either way ``requires_grad`` freezes the rows of the pool.

Threading: as the engine.

Legend: ``U`` touched rows, ``D`` dim.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from .. import _native
from ..errors import CapacityError, ConfigError
from ..kernels import Bags, CpuKernel
from .lease import Lease
from .outputs import in_huge_pages
from .pool import Pool

__all__ = ["RowGradients", "TouchedRows", "tables_of_parameter"]

U16 = npt.NDArray[np.uint16]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

_ATTRIBUTE = "_tiered_embed_tables"


class RowGradients(NamedTuple):
    """Summed gradients that one forward got.

    tables: (U,). keys: (U,) without repeats. rows: (U, D) on the pool's device. slots: (U,) of the
    rows. lease: pins them, if nobody else will need it; else None. changed: the forward itself
    changed rows (``max_norm``).
    """

    tables: U16
    keys: I64
    rows: torch.Tensor
    slots: I32
    lease: Lease | None
    changed: bool


class TouchedRows:
    """The parameter of one pool whose rows train, and which rows it holds.

    Args:
        tables: the names of the pool's tables, for messages.
        device: of the parameter.
    """

    def __init__(self, pool: Pool, tables: Sequence[str], device: torch.device) -> None:
        self.pool = pool
        self._device = device
        self._names = ", ".join(repr(name) for name in tables[:4])
        self._delivering = False
        self._tables: U16 = np.empty(0, np.uint16)
        self._keys: I64 = np.empty(0, np.int64)
        self._lease: Lease | None = None  # of exactly these rows, in their order
        self._changed = False  # rows of that lease were changed by its forward
        self._scratch = self._empty()  # fresh memory would cost more than what is done in it
        self._versions = 0, 0  # of the parameter and of its gradient, as they were left here
        self.parameter = nn.Parameter(self._empty())
        setattr(self.parameter, _ATTRIBUTE, self._names)
        # Not this object itself: the parameter would keep the pool alive.
        check = weakref.WeakMethod(self._check_gradient)
        self.parameter.register_hook(lambda grad: _call(check, grad))  # type: ignore[no-untyped-call]

    @property
    def trains(self) -> bool:
        return self.parameter.requires_grad

    @property
    def has_gradient(self) -> bool:
        return self.parameter.grad is not None

    # --- gradients come -------------------------------------------------------------------------

    def add(self, given: list[RowGradients]) -> None:
        """Adds the gradients of one backward pass, forward after forward, to ``.grad``.

        torch's accumulation does it, so hooks of the parameter run. Empties ``given``.
        """
        self._forget_dropped()
        parameter = self.parameter
        if len(given) == 1 and parameter.grad is None:
            self.drop()
            self._tables, self._keys, grad, slots, self._lease, self._changed = given.pop()
            values = self._read(slots)
        else:
            grad, values = self._merge(given)
            given.clear()
        parameter.data = values
        box = [grad]
        del grad  # torch keeps this very tensor as .grad if nobody else has it
        self._delivering = True
        try:
            with torch.enable_grad():
                _Deliver.apply(parameter, box).backward()  # type: ignore[no-untyped-call]
        finally:
            self._delivering = False
        self._note_versions()

    def _merge(self, given: Sequence[RowGradients]) -> tuple[torch.Tensor, torch.Tensor]:
        """Makes room for more rows; returns the pass's gradient and the values, (U, D) each."""
        parameter = self.parameter
        tables = np.concatenate([self._tables, *(g.tables for g in given)])
        keys = np.concatenate([self._keys, *(g.keys for g in given)])
        first, inverse = _distinct(tables, keys)
        num_before = len(self._keys)
        values = torch.cat([parameter.detach(), *(self._read(g.slots) for g in given)])
        values = values[self._moved(first)]
        grad = torch.zeros_like(values)
        start = num_before
        for g in given:
            # Rows come once in each of them, so the order of a row's additions is that of `given`.
            self._add_rows(g.rows, inverse[start : start + len(g.keys)], grad)
            start += len(g.keys)
        before = parameter.grad
        self._tables, self._keys = tables[first], keys[first]
        parameter.grad = None
        parameter.data = values
        if before is not None:
            # The rows so far come first, in their order.
            more = before.new_zeros((len(values) - num_before, before.shape[1]))
            parameter.grad = torch.cat([before, more])
        self._release()
        for g in given:
            if g.lease is not None:
                g.lease.release(updated=g.changed)
        return grad, values

    def _add_rows(self, rows: torch.Tensor, where: I64, total: torch.Tensor) -> None:
        if total.is_cpu:
            # Not by torch, whose threads may flush subnormal numbers to zero.
            _native.add_rows(rows.numpy(), where, total.numpy(), torch.get_num_threads())
        else:
            total.index_add_(0, self._moved(where), rows)

    def _check_gradient(self, grad: torch.Tensor) -> None:
        if not self._delivering:
            raise ConfigError(
                f"a term of the loss differentiates the parameter of table {self._names}, which "
                "stands for the rows that a step touches and is no table of weights; pass "
                "weight_decay= to the module's optimizer instead of a penalty, and use rows(ids) "
                "for values"
            )

    # --- gradients go ---------------------------------------------------------------------------

    def rows_to_apply(self) -> tuple[Lease, Any]:
        """A lease of the rows, and their gradients (U, D) in its order, which may be overwritten.

        They are staged where they are not pinned.

        Raises:
            ConfigError: somebody wrote into the parameter.
            CapacityError: no room for all of them, and no tier below.
        """
        parameter, kernel = self.parameter, self.pool.kernel
        if parameter._version != self._versions[0]:
            raise ConfigError(
                f"the parameter of table {self._names} was written in place, which cannot reach "
                "the rows; write rows with load_rows, and have their gradients applied by "
                "te.row_optimizer alone"
            )
        assert parameter.grad is not None
        grad = parameter.grad.detach().to(torch.float32)
        if self._lease is not None:
            if len(self._scratch) < len(grad):
                self._scratch = self._empty(len(grad))
            taken = self._scratch[: len(grad)]
            return self._lease, kernel.values(taken.copy_(grad))
        order = np.argsort(self._tables, kind="stable")
        tables, keys = self._tables[order], np.ascontiguousarray(self._keys[order])
        starts = [0, *(np.flatnonzero(np.diff(tables)) + 1).tolist(), len(tables)]
        segments = [
            (int(tables[start]), keys[start:stop])
            for start, stop in itertools.pairwise(starts)
            if stop > start
        ]
        self._tables, self._keys = tables, keys
        if len(order) and not np.array_equal(order, np.arange(len(order))):
            where = self._moved(order)
            parameter.data = parameter.detach()[where]
            parameter.grad = grad = grad[where]
            self._note_versions()
        try:
            lease = self.pool.scheduler.stage(segments)
        except CapacityError as error:
            raise CapacityError(
                f"{len(keys)} rows of table {self._names} have gradients and are more than memory "
                f"holds; add up fewer backwards before a step, or drop them with zero_grad: {error}"
            ) from error
        bags = Bags(self.pool.row_layout, None, None, len(keys))
        return lease, kernel.row_gradients(lease.plan, bags, kernel.values(grad.contiguous()))

    def applied(self, lease: Lease, *, updated: bool) -> None:
        """The gradients of :meth:`rows_to_apply` were applied, or not. They stay until they are
        dropped, as in torch."""
        if updated:
            self._read(lease.plan.slots, self.parameter.detach())
            self._note_versions()
        if lease is not self._lease:
            lease.release(updated=updated, used=False)  # what staged them again was no lookup
        elif updated:
            self._lease = None
            lease.release(updated=True)

    def yield_slots(self) -> None:
        """Unpins the rows: another forward needs slots. Their gradients stay."""
        self._forget_dropped()
        self._release()

    def drop(self) -> None:
        """As ``zero_grad``: no row is touched, and no slot is pinned."""
        self._release()
        self._tables, self._keys = self._tables[:0], self._keys[:0]
        self.parameter.grad = None
        self.parameter.data = self._empty()

    def _release(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release(updated=self._changed)

    def _forget_dropped(self) -> None:
        """Drops rows whose gradients somebody has dropped, or zeroed, since."""
        grad = self.parameter.grad
        if len(self._keys) and (
            grad is None or (grad._version != self._versions[1] and not grad.any())
        ):
            self.drop()

    # --- values ---------------------------------------------------------------------------------

    def _empty(self, num_rows: int = 0) -> torch.Tensor:
        shape = num_rows, self.pool.layout.dim
        return in_huge_pages(torch.empty(shape, dtype=torch.float32, device=self._device))

    def _note_versions(self) -> None:
        grad = self.parameter.grad
        self._versions = self.parameter._version, 0 if grad is None else grad._version

    def _read(self, slots: I32, out: torch.Tensor | None = None) -> torch.Tensor:
        """The rows in ``slots`` (U,) of the topmost tier, (U, D) float32; into ``out`` if given."""
        pool = self.pool
        if out is None:
            out = self._empty(len(slots))
        if not isinstance(pool.kernel, CpuKernel):
            values = pool.layout.values(pool.upper.gather(slots))
            return out.copy_(torch.from_numpy(values))
        bags = Bags(pool.row_layout, None, None, len(slots))
        first_lower = pool.planner.first_lower_slot
        pool.kernel.lookup_in_place(slots, None, first_lower, None, bags, out.numpy())
        return out

    def _moved(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(self._device)


def _call(check: weakref.WeakMethod[Any], grad: torch.Tensor) -> None:
    method = check()
    if method is not None:
        method(grad)


def tables_of_parameter(parameter: torch.Tensor) -> str | None:
    """The tables whose touched rows this is, as a message names them; None for any other tensor."""
    return getattr(parameter, _ATTRIBUTE, None)


def _distinct(tables: U16, keys: I64) -> tuple[I64, I64]:
    """(where each distinct row comes first, (V,) ascending; which of these every row is, (N,))."""
    order = np.lexsort((keys, tables))  # stable
    t, k = tables[order], keys[order]
    new = np.ones(len(order), bool)
    new[1:] = (t[1:] != t[:-1]) | (k[1:] != k[:-1])
    group = np.cumsum(new) - 1
    first = order[new]
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    inverse = np.empty(len(order), np.int64)
    inverse[order] = rank[group]
    return np.sort(first), inverse


class _Deliver(torch.autograd.Function):
    """Gives a parameter the gradient in ``box`` as autograd would give it any other."""

    @staticmethod
    def forward(ctx: Any, parameter: torch.Tensor, box: list[torch.Tensor]) -> torch.Tensor:
        ctx.box = box
        return torch.zeros((), dtype=torch.float32, device=parameter.device)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return ctx.box.pop(), None
