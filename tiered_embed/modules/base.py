"""What all tiered modules offer beside their forward."""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..config import TableConfig
from ..errors import ConfigError
from ..stats import Stats
from .options import RuntimeOptions
from .runtime import Batch, Runtime

__all__ = ["TieredModule"]

M = TypeVar("M", bound="TieredModule")


def _ids(ids: object) -> npt.NDArray[np.int64]:
    if isinstance(ids, torch.Tensor):
        if ids.is_meta:
            raise ConfigError("ids are on meta, which holds no values; pass a tensor on the CPU")
        ids = ids.detach().cpu().numpy()
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ConfigError(f"ids are {array.dtype} of shape {array.shape}; pass 1-D integers")
    if array.dtype == np.uint64 and array.size and array.max() > np.uint64(2**63 - 1):
        raise ConfigError(f"ids reach {array.max()}, beyond int64; view them as int64 first")
    return np.ascontiguousarray(array.astype(np.int64))


def _floats(what: str, values: object) -> npt.NDArray[np.float32]:
    if not isinstance(values, torch.Tensor) or values.dtype != torch.float32:
        kind = values.dtype if isinstance(values, torch.Tensor) else type(values).__name__
        raise ConfigError(f"{what} are {kind}; pass a torch.float32 tensor")
    if values.is_meta:
        raise ConfigError(f"{what} are on meta, which holds no values; pass a tensor on the CPU")
    return values.detach().cpu().contiguous().numpy()


_open_modules: weakref.WeakSet[TieredModule] = weakref.WeakSet()


# Registered behind the stores' own hook, so it runs before the stores are closed.
@atexit.register
def _close_all() -> None:
    for module in list(_open_modules):
        module._finalizer()


def _close_unattended(runtime: Runtime, pid: int) -> None:
    if pid != os.getpid():
        return
    try:
        runtime.close()
    except Exception:
        logging.getLogger("tiered_embed").exception("rows trained since the last flush are lost")


class TieredModule(nn.Module):
    """Base of the tiered modules; not made by itself.

    Rows are trained by ``backward``: there is no ``.step()`` and there are no parameters. A module
    is used by one thread at a time. It holds files and threads: close it, or use it in ``with``.
    """

    def __init__(
        self,
        tables: list[TableConfig],
        features: list[tuple[str, int]],
        options: RuntimeOptions,
        *,
        pooled: bool = True,
    ) -> None:
        super().__init__()
        self._runtime = Runtime(tables, features, options, pooled=pooled)
        # What was trained reaches the store even when nobody calls close(): when the module is
        # collected, or at interpreter exit.
        self._finalizer = weakref.finalize(self, _close_unattended, self._runtime, os.getpid())
        _open_modules.add(self)

    def prepare(self, value: Any) -> Batch:
        """A forward's arguments, checked; what ``te.prefetch`` stages."""
        raise NotImplementedError

    def rows(self, ids: object, table: str | None = None) -> torch.Tensor:
        """Current weights of ``ids`` (n,) -> (n, D) float32, a copy; stages and changes nothing.

        Raises:
            IdRangeError: an id outside its table.
            ConfigError: ids that are not 1-D integers, or an ambiguous ``table``.
        """
        runtime = self._runtime
        return torch.from_numpy(runtime.rows(runtime.table_index(table), _ids(ids)))

    def optimizer_state(self, ids: object, table: str | None = None) -> dict[str, torch.Tensor]:
        """State arrays of ``ids`` (n,), each (n, width) float32, a copy. Raises as :meth:`rows`."""
        runtime = self._runtime
        state = runtime.optimizer_state(runtime.table_index(table), _ids(ids))
        return {name: torch.from_numpy(array) for name, array in state.items()}

    def load_rows(
        self,
        ids: object,
        weights: torch.Tensor,
        state: Mapping[str, torch.Tensor] | None = None,
        table: str | None = None,
    ) -> None:
        """Writes rows: ``ids`` (n,) without repeats, ``weights`` (n, D) float32.

        ``state`` maps each state array to (n, width) float32; zeros when omitted.

        Raises:
            IdRangeError, ConfigError: and nothing is written.
        """
        runtime = self._runtime
        arrays = None
        if state is not None:
            arrays = {name: _floats(f"state {name!r}", value) for name, value in state.items()}
        runtime.load_rows(
            runtime.table_index(table), _ids(ids), _floats("weights", weights), arrays
        )

    def import_rows(
        self,
        chunks: Iterable[
            tuple[object, torch.Tensor] | tuple[object, torch.Tensor, Mapping[str, torch.Tensor]]
        ],
        table: str | None = None,
    ) -> int:
        """Bulk import into an empty SSD tier; returns the number of rows.

        Args:
            chunks: (ids (n,), weights (n, D)[, state]) with ids ascending over all chunks.

        Raises:
            ConfigError: ids out of order, a store that holds rows, no SSD tier; nothing is kept.
        """
        runtime = self._runtime

        def arrays() -> Iterable[Any]:
            for ids, weights, *rest in chunks:
                state = (
                    {k: _floats(f"state {k!r}", v) for k, v in rest[0].items()} if rest else None
                )
                yield _ids(ids), _floats("weights", weights), state

        return runtime.import_rows(runtime.table_index(table), arrays())

    def stats(self) -> Stats:
        """Running counts per tier and table."""
        return self._runtime.stats()

    def digest(self) -> str:
        """SHA-256 over (table, row id, record) of every materialised row, in key order."""
        return self._runtime.digest()

    def flush(self) -> None:
        """Writes every dirty row back to the SSD tier."""
        self._runtime.flush()

    def close(self) -> None:
        """Flushes, then lets go of files and threads; idempotent.

        Raises:
            StoreError: rows could not be written.
        """
        self._finalizer.detach()
        self._runtime.close()

    def __enter__(self: M) -> M:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def extra_repr(self) -> str:
        runtime = self._runtime
        tables = ", ".join(
            f"{t.name}: {t.num_embeddings} x {t.embedding_dim}" for t in runtime.tables
        )
        tiers = runtime.options.tiers
        ssd = "none" if tiers.ssd is None else tiers.store
        return f"{tables}; ddr={tiers.ddr} bytes, ssd={ssd}, optimizer={runtime.options.optimizer}"
