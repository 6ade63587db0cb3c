"""One embedding table: its name, its shape, and the features that read it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError
from ..optim import Optimizer
from .init import Constant, Init, Uniform
from .options import DTYPES, EngineOptions

__all__ = ["Lookup", "Mode", "RowOptions", "TableConfig"]

Mode = Literal["sum", "mean", "max"]
MODES: tuple[Mode, ...] = ("sum", "mean", "max")

Lookup = tuple[str, int | None, npt.NDArray[np.int64], npt.NDArray[np.int64] | None]
"""A feature of a forward: table name, its rows, ids (N,), and the bags' starts (B + 1,) into them,
None where every bag is one id."""


class RowOptions(NamedTuple):
    """What one table's rows are, and how they train: its own options, else those of its module.

    optimizer: None where rows are only read. dtype: as in ``row_formats.py``. lr_factor: of the
    optimizer's learning rate.
    """

    optimizer: Optimizer | None
    init: Init
    dtype: str
    lr_factor: float


@dataclass(frozen=True)
class TableConfig:
    """One embedding table and the features that look rows up in it.

    Args:
        name: must be unique among the tables of a store.
        num_embeddings: the number of rows, or ``None`` if any int64 is a row id.
        embedding_dim: columns.
        feature_names: features that read this table; by default one with the table's name.
        mode: how a bag's rows are pooled.
        padding_idx: a row that is left out of pooling and is not trained. A negative one counts
            from the end.
        optimizer, init, dtype: as in ``te.EngineOptions``, for this table alone. None: the
            module's.
        lr_factor: multiplies the learning rate of the table's optimizer, at every step of a
            schedule too.
        trainable: False: rows are only read, and no optimizer state is kept for them.

    Raises:
        ConfigError: an empty name, a count that is not positive, an unknown mode, a feature name
            that is empty or given twice, a padding_idx outside the table, or an option of a wrong
            type.
    """

    name: str
    num_embeddings: int | None
    embedding_dim: int
    feature_names: Sequence[str] = field(default=())
    mode: Mode = "sum"
    padding_idx: int | None = None
    optimizer: Optimizer | None = None
    init: Init | None = None
    dtype: torch.dtype | None = None
    lr_factor: float = 1.0
    trainable: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"a table's name is {self.name!r}; it must be a non-empty string")
        if any("\ud800" <= letter <= "\udfff" for letter in self.name):
            raise ConfigError(f"a table's name is {self.name!r}; it must be valid Unicode text")
        where = f"table {self.name!r}"
        if self.num_embeddings is not None and not _positive_int(self.num_embeddings):
            raise ConfigError(
                f"{where}: num_embeddings is {self.num_embeddings!r}; "
                "it must be a positive integer, or None for any int64 id"
            )
        if not _positive_int(self.embedding_dim):
            raise ConfigError(
                f"{where}: embedding_dim is {self.embedding_dim!r}; it must be a positive integer"
            )
        if not isinstance(self.mode, str) or self.mode not in MODES:
            raise ConfigError(f"{where}: mode is {self.mode!r}; choose 'sum', 'mean' or 'max'")
        if isinstance(self.feature_names, str) or not isinstance(self.feature_names, Sequence):
            raise ConfigError(
                f"{where}: feature_names is {self.feature_names!r}; pass a sequence of names"
            )
        if not all(isinstance(name, str) and name for name in self.feature_names):
            raise ConfigError(
                f"{where}: feature_names is {self.feature_names!r}; pass non-empty strings"
            )
        names = tuple(self.feature_names) or (self.name,)
        if len(set(names)) != len(names):
            raise ConfigError(f"{where}: feature_names is {list(names)}; name each feature once")
        object.__setattr__(self, "feature_names", names)
        object.__setattr__(self, "padding_idx", self._padding())
        self._check_options(where)

    def row_options(self, options: EngineOptions) -> RowOptions:
        """The table's options in a module with ``options``.

        Raises:
            ConfigError: they cannot work together.
        """
        optimizer = None
        if self.trainable:
            optimizer = options.optimizer if self.optimizer is None else self.optimizer
        dtype = DTYPES[options.dtype if self.dtype is None else self.dtype]
        init = options.init if self.init is None else self.init
        if dtype == "int8" and optimizer is not None:
            raise ConfigError(
                f"table {self.name!r}: int8 rows are read-only: pass trainable=False, or another "
                "dtype"
            )
        if dtype == "int8" and options.max_norm is not None:
            raise ConfigError(
                f"table {self.name!r}: int8 rows are read-only, and max_norm would change them; "
                "leave max_norm out, or choose another dtype"
            )
        return RowOptions(
            optimizer, init, dtype, 1.0 if optimizer is None else float(self.lr_factor)
        )

    def brief_options(self) -> str:
        """What the table has of its own, as a module's ``repr`` shows it; empty for most."""
        own = [
            "" if self.optimizer is None else self.optimizer.brief(),
            "" if self.init is None else repr(self.init),
            "" if self.dtype is None else DTYPES[self.dtype],
            "" if self.lr_factor == 1.0 else f"lr_factor={self.lr_factor}",
            "" if self.trainable else "not trained",
        ]
        text = ", ".join(filter(None, own))
        return f" ({text})" if text else ""

    def _check_options(self, where: str) -> None:
        if self.optimizer is not None and not isinstance(self.optimizer, Optimizer):
            raise ConfigError(
                f"{where}: optimizer is {self.optimizer!r}; pass one of te.optim, or None for the "
                "module's"
            )
        if self.init is not None and not isinstance(self.init, (Uniform, Constant)):
            raise ConfigError(
                f"{where}: init is {self.init!r}; pass te.init.Uniform or te.init.Constant, or "
                "None for the module's"
            )
        if self.dtype is not None and not (
            isinstance(self.dtype, torch.dtype) and self.dtype in DTYPES
        ):
            raise ConfigError(
                f"{where}: dtype is {self.dtype}; rows are torch.float32, float16, bfloat16 or "
                "int8, or None for the module's"
            )
        factor = self.lr_factor
        if isinstance(factor, bool) or not isinstance(factor, (int, float)):
            raise ConfigError(f"{where}: lr_factor is {factor!r}; it must be a number")
        if not 0.0 <= factor < math.inf:
            raise ConfigError(f"{where}: lr_factor is {factor}; it must be finite and at least 0")
        if not isinstance(self.trainable, bool):
            raise ConfigError(f"{where}: trainable is {self.trainable!r}; pass True or False")

    def _padding(self) -> int | None:
        row, num_rows = self.padding_idx, self.num_embeddings
        if row is None:
            return None
        if isinstance(row, bool) or not isinstance(row, int):
            raise ConfigError(f"table {self.name!r}: padding_idx is {row!r}; it must be an integer")
        if num_rows is None:
            return row
        if not -num_rows <= row < num_rows:
            raise ConfigError(
                f"table {self.name!r}: padding_idx is {row}; it must be in "
                f"[{-num_rows}, {num_rows})"
            )
        return row % num_rows


def _positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63
