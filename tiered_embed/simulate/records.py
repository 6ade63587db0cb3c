"""What a simulation must know of rows other than their ids: how many bytes a record takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import ConfigError
from ..optim import Optimizer, RowWiseAdagrad
from ..spec import ITEM_BYTES, Uniform
from ..tiers import PoolLayout
from ..traces import TraceTable

__all__ = ["RecordPool", "Records"]


@dataclass(frozen=True)
class RecordPool:
    """Tables of one record layout. members: their positions in the trace."""

    members: tuple[int, ...]
    tables: tuple[tuple[str, int | None], ...]
    record_bytes: int


@dataclass(frozen=True)
class Records:
    """What a module would store for each row of a trace's tables.

    Args:
        dim: columns, one number for all tables or by table name.
        optimizer: its state is part of the record, after the weights.
        dtype: type of the weights: ``"float32"``, ``"float16"`` or ``"bfloat16"``.

    Raises:
        ConfigError: a dim below 1, an unknown dtype, or something that is not an optimizer.
    """

    dim: int | Mapping[str, int] = 64
    optimizer: Optimizer = field(default_factory=lambda: RowWiseAdagrad(lr=0.02))
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not isinstance(self.optimizer, Optimizer):
            raise ConfigError(f"optimizer is {self.optimizer!r}; pass one of te.optim")
        choices = [name for name in ITEM_BYTES if name != "int8"]
        if self.dtype not in choices:
            raise ConfigError(f"dtype is {self.dtype!r}; choose one of {', '.join(choices)}")
        dims = self.dim.values() if isinstance(self.dim, Mapping) else (self.dim,)
        for dim in dims:
            if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
                raise ConfigError(f"dim is {dim!r}; it must be a positive integer")

    def dim_of(self, table: str) -> int:
        """Columns of a table; raises ConfigError where its dim was not given."""
        if not isinstance(self.dim, Mapping):
            return self.dim
        if table not in self.dim:
            raise ConfigError(
                f"the trace has table {table!r}, but dim names only {sorted(self.dim)}; add its dim"
            )
        return self.dim[table]

    def pools(self, tables: Sequence[TraceTable]) -> list[RecordPool]:
        """The pools that a module would make of these tables, in the same order."""
        groups: dict[int, list[int]] = {}
        for t, table in enumerate(tables):
            groups.setdefault(self.dim_of(table.name), []).append(t)
        pools = []
        for dim, members in groups.items():
            shapes = tuple((tables[t].name, tables[t].num_rows) for t in members)
            layout = PoolLayout(shapes, dim, self.optimizer, Uniform(0.0, 0.0), 0, self.dtype)
            pools.append(RecordPool(tuple(members), shapes, layout.record_bytes))
        return pools
