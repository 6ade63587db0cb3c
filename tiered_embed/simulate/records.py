"""What a simulation must know of rows other than their ids: how many bytes a record takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import ConfigError
from ..optim import Optimizer, RowWiseAdagrad
from ..spec import ITEM_BYTES, EngineOptions, RowOptions, TableConfig, Uniform
from ..tiers import PoolLayout
from ..traces import TraceTable

__all__ = ["RecordPool", "Records"]


@dataclass(frozen=True)
class RecordPool:
    """Tables that share slots. members: their positions in the trace. trains: a batch changes the
    rows that it names."""

    members: tuple[int, ...]
    tables: tuple[tuple[str, int | None], ...]
    record_bytes: int
    trains: bool = True


@dataclass(frozen=True)
class Records:
    """What a module would store for each row of a trace's tables.

    :meth:`of` takes it from the module's tables and options, which may differ from table to table.

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
    own: Mapping[str, tuple[TableConfig, RowOptions]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, tables: Sequence[TableConfig], options: EngineOptions) -> Records:
        """The records of a module with these tables and options, of which each table may have its
        own: ``Records.of(module.engine.tables, module.engine.options)``.

        Raises:
            ConfigError: options that cannot work together.
        """
        own = {table.name: (table, table.row_options(options)) for table in tables}
        return cls({table.name: table.embedding_dim for table in tables}, own=own)

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
        common = RowOptions(self.optimizer, Uniform(0.0, 0.0), self.dtype, 1.0)
        groups: dict[tuple[int, RowOptions], list[int]] = {}
        for t, table in enumerate(tables):
            dim = self.dim_of(table.name)
            _, rows = self.own.get(table.name, (None, common))
            groups.setdefault((dim, rows), []).append(t)
        pools = []
        for (dim, rows), members in groups.items():
            shapes = tuple((tables[t].name, self._num_rows(tables[t])) for t in members)
            layout = PoolLayout(shapes, dim, rows.optimizer, rows.init, 0, rows.dtype)
            pools.append(RecordPool(tuple(members), shapes, layout.record_bytes, layout.trains))
        return pools

    def _num_rows(self, table: TraceTable) -> int | None:
        """As the module has it: recorded ids may come from a file that does not say."""
        found = self.own.get(table.name)
        return table.num_rows if found is None else found[0].num_embeddings
