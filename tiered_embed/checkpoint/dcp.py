"""A face for ``torch.distributed.checkpoint``: all rows of a model as tensors."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import torch
from torch import nn

from ..engine import Pool
from ..errors import ConfigError
from .save import pools_of, tiered_modules

__all__ = ["RowsState"]

MOST_BYTES = 4 << 30


class RowsState:
    """A DCP ``Stateful``: ``dcp.save({"model": model, "rows": te.checkpoint.RowsState(model)})``.

    For tables that fit memory twice; beyond 4 GiB use :func:`tiered_embed.checkpoint.save`, which
    links files. Per pool and table: ``ids`` int64 (n,) and ``records`` uint8 (n, record_bytes).

    ``dcp.load`` fills the tensors that it is given, so that it restores into a model with as many
    rows as the saved one; :meth:`load` restores into any.

    DCP keeps its own metadata as a pickle: read only directories that you trust. Checkpoints of
    :func:`tiered_embed.checkpoint.save` hold no code.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def state_dict(self) -> dict[str, Any]:
        """Copies of every materialised row.

        Raises:
            ConfigError: more than 4 GiB.
        """
        out: dict[str, Any] = {}
        total = 0
        for _, module in tiered_modules(self._model):
            module.engine.flush()
        for module_name, module, pool in pools_of(self._model):
            for t, (table, _) in enumerate(pool.layout.tables):
                ids, records = [np.empty(0, np.int64)], [_no_records(pool)]
                for rows, part in pool.materialised(t):
                    ids.append(rows)
                    records.append(part)
                    total += part.nbytes
                    if total > MOST_BYTES:
                        raise ConfigError(
                            f"the rows take more than {MOST_BYTES} bytes; te.checkpoint.save links "
                            "files instead of copying rows"
                        )
                out[_key(module_name, table)] = {
                    "ids": torch.from_numpy(np.concatenate(ids)),
                    "records": torch.from_numpy(np.concatenate(records)),
                    "steps": torch.tensor(module.engine.steps),
                }
        return out

    def load(self, path: str | os.PathLike[str], name: str = "rows") -> None:
        """Restores what ``dcp.save`` wrote under ``name`` into a model that holds no other rows.

        Raises:
            ConfigError: no such rows there, or other tables; nothing is written.
        """
        # Here, for it takes half as long to import as all the rest.
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata
        from torch.distributed.checkpoint.state_dict_loader import load

        saved = FileSystemReader(path).read_metadata().state_dict_metadata
        flat = {
            key: torch.empty(entry.size, dtype=entry.properties.dtype)
            for key, entry in saved.items()
            if key.startswith(f"{name}.") and isinstance(entry, TensorStorageMetadata)
        }
        if not flat:
            raise ConfigError(f"'{path}' holds nothing called {name!r}, but {sorted(saved)[:8]}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is one process, as asked
            load(flat, checkpoint_id=path, no_dist=True)
        state: dict[str, Any] = {}
        for key, tensor in flat.items():
            table, _, field = key.removeprefix(f"{name}.").rpartition(".")
            state.setdefault(table, {})[field] = tensor
        self.load_state_dict(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Writes the rows; the model must have been built as the saved one and be untrained, or
        hold no other rows.

        Raises:
            ConfigError: other tables or record sizes; nothing is written.
        """
        wanted = {
            _key(name, table): (module, pool, t)
            for name, module, pool in pools_of(self._model)
            for t, (table, _) in enumerate(pool.layout.tables)
        }
        if set(wanted) != set(state):
            raise ConfigError(f"the state is of {sorted(state)}; the model has {sorted(wanted)}")
        for key, (_, pool, t) in wanted.items():
            _check(key, state[key], pool, pool.layout.tables[t][1])
        for key, (module, pool, t) in wanted.items():
            part = state[key]
            pool.write(t, part["ids"].numpy(), part["records"].numpy())
            module.engine.set_steps(int(part["steps"]))


def _check(key: str, part: dict[str, torch.Tensor], pool: Pool, rows: int | None) -> None:
    if set(part) != {"ids", "records", "steps"}:
        raise ConfigError(f"{key} has {sorted(part)}, not ids, records and steps")
    ids, records = part["ids"], part["records"]
    if ids.dtype != torch.int64 or ids.dim() != 1 or records.dtype != torch.uint8:
        raise ConfigError(f"{key}: ids are {ids.dtype} {tuple(ids.shape)}, not int64 (n,)")
    if tuple(records.shape) != (len(ids), pool.layout.record_bytes):
        wanted = (len(ids), pool.layout.record_bytes)
        raise ConfigError(f"{key}: records are {tuple(records.shape)}, not {wanted}")
    if len(set(ids.tolist())) != len(ids):
        raise ConfigError(f"{key}: ids are repeated")
    if len(ids) and rows is not None and not (int(ids.min()) >= 0 and int(ids.max()) < rows):
        raise ConfigError(f"{key}: ids reach from {ids.min()} to {ids.max()}, of {rows} rows")


def _key(module: str, table: str) -> str:
    return f"{module}:{table}" if module else table


def _no_records(pool: Pool) -> np.ndarray[Any, Any]:
    return np.empty((0, pool.layout.record_bytes), np.uint8)
