"""Shapes byte budgets into slots: what every pool, and every table in it, gets of a tier."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from ..spec import Tiers

__all__ = [
    "MAX_TABLES",
    "PoolSlots",
    "allocate",
    "allocate_tiers",
    "fair_shares",
    "num_partitions",
    "require_countable",
]

_log = logging.getLogger("tiered_embed")

MAX_SLOTS = 2**31 - 1
MAX_TABLES = 2**16  # of one pool
OVERFLOW_SLOTS = 2**24
PARTITIONS = 32  # of a pool that is planned in parallel
PARTITIONED_SLOTS = 2**20  # a pool whose tables share at least this many slots is partitioned
WHOLE_SHARE = 4  # small tables may take a quarter of a tier that does not hold everything


@dataclass(frozen=True)
class PoolSlots:
    """How one pool's share of a tier is divided.

    first_slot: per table, where a whole table starts, or -1 for one that shares `cached` slots.
    """

    first_slot: tuple[int, ...]
    whole: int
    cached: int
    overflow: int


def allocate(
    tables: Sequence[Sequence[tuple[str, int | None]]],
    record_bytes: Sequence[int],
    tier_bytes: int,
    *,
    backed: bool,
    tier: str,
) -> list[PoolSlots]:
    """Shares a tier among pools, and each pool's share among its tables.

    Pools get max-min fair shares of the bytes. Inside a pool every table is whole when all fit;
    otherwise the smallest are, up to a quarter of the slots, and the others share the rest.

    Args:
        tables: per pool, its tables' (name, rows or None for unbounded).
        record_bytes: per pool.
        tier_bytes: the tier's budget.
        backed: a tier below takes evicted rows.
        tier: its name, for messages.

    Raises:
        ConfigError: a share too small for one record.
    """
    wanted: list[float] = [
        sum(float("inf") if rows is None else float(rows) for _, rows in pool) * size
        for pool, size in zip(tables, record_bytes, strict=True)
    ]
    shares = fair_shares(wanted, tier_bytes)
    return [
        _share_among_tables(pool, size, share, backed=backed, tier=tier)
        for pool, size, share in zip(tables, record_bytes, shares, strict=True)
    ]


def allocate_tiers(
    tables: Sequence[Sequence[tuple[str, int | None]]],
    record_bytes: Sequence[int],
    tiers: Tiers,
) -> tuple[list[PoolSlots], list[int]]:
    """Shares the memory tiers among pools: of each, its slots in the topmost one, and how many it
    has in DDR below that (0 where DDR is the topmost). Arguments and errors as :func:`allocate`.
    """
    if tiers.hbm is None:
        assert tiers.ddr is not None
        only = allocate(tables, record_bytes, tiers.ddr, backed=tiers.ssd is not None, tier="DDR")
        return only, [0] * len(only)
    backed = tiers.ddr is not None or tiers.ssd is not None
    upper = allocate(tables, record_bytes, tiers.hbm, backed=backed, tier="HBM")
    if tiers.ddr is None:
        return upper, [0] * len(upper)
    # A row is in one tier at a time: DDR gets what HBM does not hold.
    left = [
        [
            (name, rows)
            for (name, rows), first in zip(pool, slots_above.first_slot, strict=True)
            if first < 0
        ]
        for pool, slots_above in zip(tables, upper, strict=True)
    ]
    rows_left = [
        float("inf")
        if any(rows is None for _, rows in pool)
        else sum(rows or 0 for _, rows in pool)
        for pool in left
    ]
    wanted = [
        max(0.0, rows - slots_above.cached) * size
        for rows, slots_above, size in zip(rows_left, upper, record_bytes, strict=True)
    ]
    lower = []
    shares = fair_shares(wanted, tiers.ddr)
    for pool, want, share, size, slots_above in zip(
        left, wanted, shares, record_bytes, upper, strict=True
    ):
        most = MAX_SLOTS - slots_above.whole - slots_above.cached - slots_above.overflow
        slots = _at_most(most, share, size, [name for name, _ in pool], "DDR")
        if want and slots < 1:
            raise _too_small("DDR", share, [name for name, _ in pool], size)
        lower.append(slots)
    return upper, lower


def fair_shares(wanted: Sequence[float], total: int) -> list[int]:
    """Max-min fair shares of ``total``: what one does not want goes to the others."""
    shares = [0] * len(wanted)
    left = total
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    for taken, i in enumerate(order):
        fair = left // (len(order) - taken)
        shares[i] = int(min(wanted[i], fair))
        left -= shares[i]
    return shares


def _share_among_tables(
    tables: Sequence[tuple[str, int | None]],
    record_bytes: int,
    share: int,
    *,
    backed: bool,
    tier: str,
) -> PoolSlots:
    names = [name for name, _ in tables]
    most = MAX_SLOTS - OVERFLOW_SLOTS
    slots = _at_most(most, share, record_bytes, names, tier)
    if slots < 1:
        raise _too_small(tier, share, names, record_bytes)
    everything = sum(MAX_SLOTS if rows is None else rows for _, rows in tables)
    whole_limit = slots if everything <= slots else slots // WHOLE_SHARE
    first_slot = [-1] * len(tables)
    whole = 0
    rest: int | None = 0
    for i in sorted(range(len(tables)), key=lambda i: (tables[i][1] is None, tables[i][1] or 0)):
        rows = tables[i][1]
        if rows is not None and whole + rows <= whole_limit:
            first_slot[i] = whole
            whole += rows
        else:
            rest = None if rows is None or rest is None else rest + rows
    cached = slots - whole if rest is None else min(slots - whole, rest)
    overflow = OVERFLOW_SLOTS if backed and cached else 0
    return PoolSlots(tuple(first_slot), whole, cached, overflow)


def require_countable(tables: Sequence[str]) -> None:
    """Raises ConfigError where so many tables cannot share a pool."""
    if len(tables) > MAX_TABLES:
        raise ConfigError(
            f"{len(tables)} tables, {tables[0]!r} to {tables[-1]!r}, have the same row layout, and "
            f"one pool holds at most {MAX_TABLES}; deal them to several modules"
        )


def _at_most(most: int, share: int, record_bytes: int, tables: Sequence[str], tier: str) -> int:
    """The slots that a share of a tier makes, at most ``most``; tells where memory is left over."""
    slots = share // record_bytes
    if slots > most and most < 1:
        raise ConfigError(
            f"one pool has at most {MAX_SLOTS} slots in all tiers, and HBM takes those of table "
            f"{tables[0]!r}; deal the tables to several modules, or lower hbm"
        )
    if slots > most:
        names = ", ".join(map(repr, tables[:4])) + (", ..." if len(tables) > 4 else "")
        _log.warning(
            "%s has room for %d rows of table %s, but one pool has at most %d slots there: %d "
            "bytes stay unused. Deal the tables to several modules, or lower %s",
            tier,
            slots,
            names,
            most,
            (slots - most) * record_bytes,
            tier.lower(),
        )
    return min(slots, most)


def _too_small(tier: str, share: int, tables: Sequence[str], record_bytes: int) -> ConfigError:
    names = ", ".join(map(repr, tables))
    return ConfigError(
        f"{tier} has {share} bytes for table {names}, less than one record of {record_bytes}; "
        f"raise {tier.lower()}"
    )


def num_partitions(slots: PoolSlots, lower_slots: int, *, backed: bool) -> int:
    """How many partitions plan a pool, in parallel; 1 unless it is large and has a store below.

    The number decides which rows are evicted, so it depends on nothing but the pool's shape.
    """
    large = slots.cached >= max(PARTITIONS, PARTITIONED_SLOTS) and (
        lower_slots == 0 or lower_slots >= PARTITIONS
    )
    return PARTITIONS if backed and large else 1
