"""How a tier is shared among pools and tables."""

import pytest

import tiered_embed as te
from tiered_embed.residency.budgets import allocate


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
