"""All rows of a model as tensors, for ``torch.distributed.checkpoint`` (DCP).

Threading: the thread that trains the model.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import torch
from torch import nn

from ..engine import Pool
from ..errors import ConfigError
from ..spec import absolute_path
from .pools import pools_of, tiered_modules

__all__ = ["RowsState"]

MOST_BYTES = 4 << 30


class RowsState:
    """A DCP ``Stateful``: ``dcp.save({"model": model, "rows": te.checkpoint.RowsState(model)})``.

    Use it for tables that fit into memory twice, up to 4 GiB. For larger ones use
    :func:`tiered_embed.checkpoint.save`, which links files. The state of each table is ``ids``
    int64 (n,), ``records`` uint8 (n, record_bytes) and ``steps``.

    ``dcp.load`` fills the tensors that it is given, so it restores only into a model with as many
    rows as the saved one had. :meth:`load` restores into any model.

    DCP stores its own metadata as a pickle: read only directories that you trust. Checkpoints of
    :func:`tiered_embed.checkpoint.save` contain no code.
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
                            f"the rows take more than {MOST_BYTES} bytes; use te.checkpoint.save, "
                            "which links files instead of copying rows"
                        )
                out[_key(module_name, table)] = {
                    "ids": torch.from_numpy(np.concatenate(ids)),
                    "records": torch.from_numpy(np.concatenate(records)),
                    "steps": torch.tensor(module.engine.steps, device="cpu"),
                }
        return out

    def load(self, path: str | os.PathLike[str], name: str = "rows") -> None:
        """Restores what ``dcp.save`` wrote under ``name`` into a model that holds no other rows.

        Raises:
            ConfigError: there are no such rows, or the tables differ; nothing is written.
        """
        # Imported here because it takes half as long as all other imports together.
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata
        from torch.distributed.checkpoint.state_dict_loader import load

        path = absolute_path(path, "path")
        saved = FileSystemReader(path).read_metadata().state_dict_metadata
        flat = {
            key: torch.empty(entry.size, dtype=entry.properties.dtype, device="cpu")
            for key, entry in saved.items()
            if key.startswith(f"{name}.") and isinstance(entry, TensorStorageMetadata)
        }
        if not flat:
            raise ConfigError(
                f"'{path}' holds nothing called {name!r}; it holds {sorted(saved)[:8]}"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of no_dist, which is on purpose
            load(flat, checkpoint_id=path, no_dist=True)
        state: dict[str, Any] = {}
        for key, tensor in flat.items():
            table, _, field = key.removeprefix(f"{name}.").rpartition(".")
            state.setdefault(table, {})[field] = tensor
        self.load_state_dict(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Writes the rows. The model must be built as the saved one was, and must not hold rows
        that the state lacks.

        Raises:
            ConfigError: tables or record sizes differ; nothing is written.
        """
        wanted = {
            _key(name, table): (module, pool, t)
            for name, module, pool in pools_of(self._model)
            for t, (table, _) in enumerate(pool.layout.tables)
        }
        if set(wanted) != set(state):
            raise ConfigError(
                f"the state has the tables {sorted(state)}; the model has {sorted(wanted)}"
            )
        for key, (_, pool, t) in wanted.items():
            _check(key, state[key], pool, pool.layout.tables[t][1])
        for key, (module, pool, t) in wanted.items():
            part = state[key]
            pool.write(t, part["ids"].numpy(), part["records"].numpy())
            module.engine.set_steps(int(part["steps"]))


def _check(key: str, part: dict[str, torch.Tensor], pool: Pool, rows: int | None) -> None:
    if set(part) != {"ids", "records", "steps"}:
        raise ConfigError(
            f"the state of {key} has {sorted(part)} instead of ids, records and steps"
        )
    ids, records = part["ids"], part["records"]
    if ids.dtype != torch.int64 or ids.dim() != 1 or records.dtype != torch.uint8:
        raise ConfigError(f"{key}: ids must be int64 (n,), not {ids.dtype} {tuple(ids.shape)}")
    if tuple(records.shape) != (len(ids), pool.layout.record_bytes):
        wanted = (len(ids), pool.layout.record_bytes)
        raise ConfigError(
            f"{key}: records must have the shape {wanted}, not {tuple(records.shape)}"
        )
    if len(set(ids.tolist())) != len(ids):
        raise ConfigError(f"{key}: some ids are repeated")
    if len(ids) and rows is not None and not (int(ids.min()) >= 0 and int(ids.max()) < rows):
        raise ConfigError(
            f"{key}: ids reach from {ids.min()} to {ids.max()}, but the table has {rows} rows"
        )


def _key(module: str, table: str) -> str:
    return f"{module}:{table}" if module else table


def _no_records(pool: Pool) -> np.ndarray[Any, Any]:
    return np.empty((0, pool.layout.record_bytes), np.uint8)
