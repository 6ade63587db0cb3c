"""What ``layout.json`` says of a store: how its records look, and which tables it holds.

Format 2::

    {"format_version": 2, "backend": ..., "record_bytes": ...,
     "layout": {...},                    what every record has in common: dim, dtype, optimizer, ...
                                         (and "tables", for version 0.1 alone: see below)
     "tables": {"user": {...}, ...}}     what must agree per table

A table is added when it is first opened with the store and stays until it is dropped. Its facts are
``rows`` (None: any id), ``padding`` (None: no such row), ``seed`` and ``init`` (they define rows
that are absent), and ``shard`` (which part of the table lies here; always ``"whole"`` so far). A
fact that is not recorded is not compared.

Format 1, of version 0.1, has no facts per table: its layout lists the names as ``tables``, with one
``seed`` and one ``init`` for all. A store keeps format 1 while no table is added, and stores that
are created without tables are still written so.

Version 0.1 looks for its tables in the layouts of all stores in a directory, whatever their format.
So the layout of format 2 lists them once more, with one name that no table has: version 0.1 then
refuses the directory, instead of taking its tables for new ones.

Pure functions of plain data; safe from any thread.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, CorruptionError, StoreError
from ..spec import table_hash

__all__ = ["FORMAT_VERSION", "WHOLE", "Description", "StoreLayout", "Tables", "merged"]

FORMAT_VERSION = 2
WHOLE = "whole"  # the shard that is the whole table
NEWER = "(a newer version of tiered_embed wrote this)"

Tables = Mapping[str, Mapping[str, Any]]

_OF_TABLES = ("tables", "seed", "init")  # what the layout of format 1 says of tables


@dataclass(frozen=True)
class StoreLayout:
    """What a caller wants of a store: ``record`` and ``record_bytes`` as stored, ``tables`` in it.

    Two pools with equal ``record`` could exchange records.
    """

    record: Mapping[str, Any]
    record_bytes: int
    tables: Tables


@dataclass(frozen=True)
class Description:
    """The content of ``layout.json``."""

    backend: str
    record_bytes: Any  # as stored: an int, unless something else wrote the file
    layout: Mapping[str, Any]
    tables: Tables = field(default_factory=dict)
    version: int = 1

    @staticmethod
    def parse(content: Mapping[str, Any], where: str) -> Description:
        """``where`` names the store in messages.

        Raises:
            StoreError: of a format that this version does not read.
            CorruptionError: not what :meth:`content` gives.
        """
        version = content.get("format_version")
        if version not in (1, FORMAT_VERSION):
            raise StoreError(
                f"store '{where}' has format {version}, this version of tiered_embed reads 1 to "
                f"{FORMAT_VERSION}; use the version that wrote it"
            )
        layout, tables = content.get("layout"), content.get("tables")
        if version == 1:
            tables = {}
            if isinstance(layout, dict) and isinstance(layout.get("tables"), list):
                facts = {name: layout[name] for name in ("seed", "init") if name in layout}
                tables = {str(name): facts for name in layout["tables"]}
        elif isinstance(layout, dict):
            layout = {name: value for name, value in layout.items() if name != "tables"}
        if not isinstance(layout, dict):
            raise CorruptionError(f"the description of store '{where}' has no layout")
        if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
            raise CorruptionError(f"the description of store '{where}' has no list of its tables")
        return Description(
            str(content.get("backend")),
            content.get("record_bytes"),
            layout,
            tables,
            version,
        )

    def content(self) -> dict[str, Any]:
        """As it is stored."""
        content: dict[str, Any] = {
            "format_version": self.version,
            "backend": self.backend,
            "record_bytes": self.record_bytes,
            "layout": dict(self.layout),
        }
        if self.version > 1:
            content["layout"] = {**self.layout, "tables": [NEWER, *sorted(self.tables)]}
            content["tables"] = {name: dict(self.tables[name]) for name in sorted(self.tables)}
        return content

    @property
    def record(self) -> dict[str, Any]:
        """The layout of every record, without what format 1 says of tables."""
        if self.version > 1:
            return dict(self.layout)
        return {name: value for name, value in self.layout.items() if name not in _OF_TABLES}

    def with_tables(self, tables: Tables) -> Description:
        """The same store holding ``tables``, in the newest format."""
        return Description(
            self.backend, self.record_bytes, self.record, dict(tables), FORMAT_VERSION
        )

    def check(
        self,
        where: str,
        backend: str,
        record_bytes: int,
        layout: Mapping[str, Any],
        tables: Tables | None,
    ) -> None:
        """Compares with what a caller wants; ``tables`` None: ``layout`` is all that it knows.

        Raises:
            ConfigError: backend, record or layout differ.
        """
        stored = dict(self.layout) if tables is None else self.record
        differences = _differences(
            {"backend": self.backend, "record_bytes": self.record_bytes},
            {"backend": backend, "record_bytes": record_bytes},
        )
        differences += _differences(stored, _as_json(layout))
        if differences:
            raise ConfigError(
                f"store '{where}' has another record layout ({'; '.join(differences)}); "
                "open it with the stored values, or choose another directory"
            )


def merged(stored: Tables, wanted: Tables, where: str) -> dict[str, dict[str, Any]]:
    """The tables of a store once ``wanted`` are opened with those ``stored`` before.

    Raises:
        ConfigError: a fact differs, fewer rows are wanted than stored, or two names have the same
            4-byte identity in keys.
    """
    out = {name: dict(facts) for name, facts in stored.items()}
    for name, given in wanted.items():
        facts = _as_json(given)
        known = out.get(name)
        if known is None:
            out[name] = facts
            continue
        differences = [
            f"{fact}: stored {known[fact]!r}, wanted {value!r}"
            for fact, value in facts.items()
            if fact in known and fact != "rows" and known[fact] != value
        ]
        if differences:
            raise ConfigError(
                f"table {name!r} was stored in '{where}' with other values "
                f"({'; '.join(differences)}); use the stored values, choose another directory, or "
                f"remove its rows with te.drop_table(directory, {name!r})"
            )
        if "rows" in known and "rows" in facts and _fewer(facts["rows"], known["rows"]):
            unbounded = known["rows"] is None
            before = "any number of" if unbounded else known["rows"]
            remedy = "pass num_embeddings=None" if unbounded else "raise num_embeddings"
            raise ConfigError(
                f"table {name!r} was stored in '{where}' with {before} rows, and num_embeddings is "
                f"{facts['rows']}; {remedy}, or remove its rows with "
                f"te.drop_table(directory, {name!r})"
            )
        if known.keys() <= facts.keys():
            out[name] = facts
    _refuse_equal_hashes(out, wanted, where)
    return out


def _refuse_equal_hashes(tables: Tables, wanted: Tables, where: str) -> None:
    names: dict[bytes, str] = {}
    for name in (*wanted, *tables):
        other = names.setdefault(table_hash(name), name)
        if other != name:
            raise ConfigError(
                f"tables {other!r} and {name!r} have the same 4-byte identity "
                f"{table_hash(name).hex()}, and '{where}' would hold both; rename {other!r}, or "
                f"remove the rows of {name!r} with te.drop_table(directory, {name!r})"
            )


def _fewer(wanted: int | None, stored: int | None) -> bool:
    return wanted is not None and (stored is None or wanted < stored)


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back once stored: a tuple is the list that it becomes."""
    return dict(json.loads(json.dumps(dict(values))))


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    absent = "(absent)"
    return [
        f"{name}: stored {stored.get(name, absent)!r}, wanted {wanted.get(name, absent)!r}"
        for name in sorted({*stored, *wanted})
        if stored.get(name, absent) != wanted.get(name, absent)
    ]
