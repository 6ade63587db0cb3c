"""How an engine's features and tables map to pools and to the columns of its output.

Plain data, computed once from the tables and the options; nothing here holds memory or files.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..errors import ConfigError
from ..residency import require_countable
from ..spec import (
    EngineOptions,
    RowOptions,
    TableConfig,
    normal_form,
    refuse_lookalikes,
    table_hash,
)
from ..tiers import PoolLayout

__all__ = ["Wiring", "wire"]


@dataclass(frozen=True)
class Wiring:
    """Where everything is.

    tables: all tables of the engine. features: (feature name, table index) in output order.
    pooled: bags, or one row per id. widths: columns of each feature. columns: where each starts in
    a pooled output, and the end. layouts: of each pool. places: per table, (pool, index in the
    pool). pool_features: per pool, indices of its features.
    """

    tables: tuple[TableConfig, ...]
    features: tuple[tuple[str, int], ...]
    pooled: bool
    widths: tuple[int, ...]
    columns: tuple[int, ...]
    layouts: tuple[PoolLayout, ...]
    places: tuple[tuple[int, int], ...]
    pool_features: tuple[tuple[int, ...], ...]

    @cached_property
    def num_columns(self) -> int:
        return self.columns[-1]

    @cached_property
    def feature_tables(self) -> tuple[TableConfig, ...]:
        """The table of each feature."""
        return tuple(self.tables[t] for _, t in self.features)

    @cached_property
    def feature_places(self) -> tuple[int, ...]:
        """The index of each feature's table in its pool."""
        return tuple(self.places[t][1] for _, t in self.features)

    @cached_property
    def feature_parts(self) -> tuple[tuple[int, int], ...]:
        """(pool, place among the pool's features) of each feature."""
        found = {f: (p, i) for p, mine in enumerate(self.pool_features) for i, f in enumerate(mine)}
        return tuple(found[f] for f in range(len(found)))

    def pooling(self, feature: int) -> str:
        return self.feature_tables[feature].mode if self.pooled else "sum"

    @cached_property
    def has_maximum(self) -> tuple[bool, ...]:
        """Per pool, whether one of its features takes the maximum of a bag's rows."""
        return tuple(any(self.pooling(f) == "max" for f in mine) for mine in self.pool_features)

    def outputs(self, pool: int) -> tuple[list[tuple[int, str]], int]:
        """(first column, pooling) of the pool's features in what it writes into, and the columns
        of that. Unpooled, all its features are one: a row for each of their ids."""
        if not self.pooled:
            return [(0, "sum")], self.layouts[pool].dim
        mine = self.pool_features[pool]
        return [(self.columns[f], self.pooling(f)) for f in mine], self.num_columns

    @cached_property
    def rows_dtype(self) -> torch.dtype:
        """The dtype that torch would give all rows together; int8 rows read as float32."""
        types = [
            torch.float32 if layout.dtype == "int8" else getattr(torch, layout.dtype)
            for layout in self.layouts
        ]
        return functools.reduce(torch.promote_types, types)


def wire(
    tables: Sequence[TableConfig],
    features: Sequence[tuple[str, int]],
    options: EngineOptions,
    *,
    pooled: bool,
) -> Wiring:
    """Groups the tables into pools: those whose rows are alike and train alike share a pool.

    Raises:
        ConfigError: two table names with the same 4-byte identity, or options of a table that
            cannot work in this engine.
    """
    _refuse_colliding_names(tables)
    groups: dict[tuple[int, RowOptions], list[int]] = {}
    for t, table in enumerate(tables):
        groups.setdefault((table.embedding_dim, table.row_options(options)), []).append(t)
    for members in groups.values():
        require_countable([tables[t].name for t in members])
    places = [(0, 0)] * len(tables)
    for p, members in enumerate(groups.values()):
        for i, t in enumerate(members):
            places[t] = (p, i)
    pool_features: list[list[int]] = [[] for _ in groups]
    for f, (_, t) in enumerate(features):
        pool_features[places[t][0]].append(f)
    layouts = [
        PoolLayout(
            tuple((tables[t].name, tables[t].num_embeddings) for t in members),
            dim,
            rows.optimizer,
            rows.init,
            options.seed,
            rows.dtype,
            tuple(tables[t].padding_idx for t in members),
            rows.lr_factor,
        )
        for (dim, rows), members in groups.items()
    ]
    widths = [tables[t].embedding_dim for _, t in features]
    return Wiring(
        tuple(tables),
        tuple(features),
        pooled,
        tuple(widths),
        tuple(np.cumsum([0, *widths]).tolist()),
        tuple(layouts),
        tuple(places),
        tuple(map(tuple, pool_features)),
    )


def _refuse_colliding_names(tables: Sequence[TableConfig]) -> None:
    seen: dict[bytes, str] = {}
    forms: dict[str, str] = {}
    for table in tables:
        before = forms.setdefault(normal_form(table.name), table.name)
        refuse_lookalikes([table.name], [before], "before")
        other = seen.setdefault(table_hash(table.name), table.name)
        if other != table.name:
            raise ConfigError(
                f"tables {other!r} and {table.name!r} have the same 4-byte identity "
                f"{table_hash(table.name).hex()}; rename one of them"
            )
