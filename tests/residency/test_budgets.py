"""How a tier is shared among pools and tables."""

import numpy as np
import pytest
import torch

import tiered_embed as te
from tiered_embed import _native
from tiered_embed.residency import (
    MAX_TABLES,
    Planner,
    PoolSlots,
    Segments,
    allocate,
    allocate_tiers,
)
from tiered_embed.simulate.numbering import Numbering
from tiered_embed.spec import table_hash
from tiered_embed.spec.init import reference


def test_a_pool_that_fits_is_whole() -> None:
    (slots,) = allocate([[("a", 100), ("b", 50)]], [8], 1200, backed=True, tier="DDR")
    assert slots.first_slot == (50, 0)
    assert (slots.whole, slots.cached, slots.overflow) == (150, 0, 0)


def test_small_tables_are_whole_up_to_a_quarter() -> None:
    tables = [("big", None), ("small", 20), ("middle", 60)]
    (slots,) = allocate([tables], [8], 800, backed=True, tier="DDR")
    assert slots.first_slot == (-1, 0, -1)
    assert (slots.whole, slots.cached) == (20, 80)


def test_pools_get_fair_shares() -> None:
    pools = [[("tiny", 10)], [("a", None)], [("b", 1000)]]
    tiny, a, b = allocate(pools, [8, 16, 8], 8 * 10 + 2000, backed=True, tier="DDR")
    assert tiny.whole == 10
    assert a.cached * 16 == 992
    assert (b.whole + b.cached) * 8 == 1000


def test_a_share_below_one_record_is_refused() -> None:
    with pytest.raises(te.ConfigError, match="7 bytes for table 'a', less than one record of 8"):
        allocate([[("a", 10)]], [8], 7, backed=True, tier="DDR")


def test_slots_beyond_what_a_pool_can_have_are_told(caplog) -> None:
    most = 2**31 - 1 - 2**24
    (slots,) = allocate([[("a", None)]], [8], 8 * (most + 5), backed=True, tier="DDR")
    assert slots.cached == most
    (record,) = caplog.records
    assert "at most 2130706431 slots" in record.message
    assert "40 bytes stay unused" in record.message
    caplog.clear()
    allocate([[("a", 2**40)]], [8], 8 * most, backed=True, tier="DDR")
    allocate([[("a", 100)]], [8], 2**50, backed=True, tier="DDR")  # it wants no more
    assert not caplog.records
    tiers = te.Tiers(hbm=8 * most, ddr=2**30, ssd="unused")
    with pytest.raises(te.ConfigError, match="2147483647 slots in all tiers"):
        allocate_tiers([[("a", None)]], [8], tiers)


# --- what is counted in fewer bits ----------------------------------------------------------------


def names_without_collisions(num: int) -> list[str]:
    """A table's identity in keys has 4 bytes, and of so many names two are likely to share one."""
    names = {table_hash(name): name for name in (f"t{i}" for i in range(num + num // 10))}
    return list(names.values())[:num]


def test_more_tables_than_rows_can_name_are_refused() -> None:
    names = names_without_collisions(MAX_TABLES + 1)
    options = {"tiers": te.Tiers(ddr="16MiB"), "optimizer": te.optim.SGD(lr=0.1)}
    many = [te.TableConfig(name, 3, 2) for name in names]
    with pytest.raises(te.ConfigError, match=r"65537 tables, .* at most 65536; deal them"):
        te.TieredEmbeddingBagCollection(many, **options)
    with pytest.raises(te.ConfigError, match="65537 tables"):
        Planner(
            [(name, 3) for name in names],
            PoolSlots((-1,) * len(names), 0, 10, 0),
            policy="lru",
            backed=True,
            tier="DDR",
        )
    with pytest.raises(ValueError, match="65537 tables in one pool"):
        native_planner([(3, -1)] * (MAX_TABLES + 1))
    with pytest.raises(te.ConfigError, match="65537 tables"):
        Numbering(MAX_TABLES + 1)
    # The last that there can be is a table of its own, and another dim makes another pool.
    tables = [*many[:MAX_TABLES], te.TableConfig("other", 3, 4)]
    with te.TieredEmbeddingBagCollection(tables, **options) as module:
        assert len(module.engine.pools) == 2
        seen = [module.rows(torch.arange(3), name) for name in (names[0], names[MAX_TABLES - 1])]
    for name, rows in zip((names[0], names[MAX_TABLES - 1]), seen, strict=True):
        wanted = reference(te.init.Uniform(), 0, name, np.arange(3), 2)
        assert np.array_equal(rows.numpy(), wanted)


def native_planner(tables: list[tuple[int, int]], **slots: int) -> _native.Planner:
    counts = {"whole_slots": 0, "cached_slots": 4, "overflow_slots": 0, "lower_slots": 0, **slots}
    return _native.Planner(
        tables, policy="lru", backed=True, num_partitions=1, num_threads=1, **counts
    )


@pytest.mark.parametrize("kind", ["cached_slots", "overflow_slots", "lower_slots"])
def test_slots_that_32_bits_cannot_count_are_refused(kind) -> None:
    for num_slots in (2**31, 2**31 - 1, -1, 2**62):
        with pytest.raises(ValueError, match="2147483647 slots"):
            native_planner([(-1, -1)], **{"whole_slots": 1, kind: num_slots})


@pytest.mark.parametrize("num_partitions", [1, 2])
def test_more_ids_than_32_bits_count_are_refused(num_partitions, monkeypatch) -> None:
    monkeypatch.setattr(
        "tiered_embed.residency.planner.num_partitions", lambda *_, **__: num_partitions
    )
    planner = Planner(
        [("a", None)], PoolSlots((-1,), 0, 8, 8), policy="lru", backed=True, tier="DDR"
    )
    assert planner.num_partitions == num_partitions
    ids = np.zeros(2**26, np.int64)  # never touched: no memory
    batch = Segments([(0, ids)] * 33)
    for call in (planner.push, planner.plan_now, planner.find_all):
        with pytest.raises(te.ConfigError, match=f"{33 * 2**26} ids .* smaller batches"):
            call(batch)
    planner.push([(0, ids[:3])])
    assert planner.plan(0).keys.tolist() == [0]
