"""Sizes, tables and how a tier is shared."""

from dataclasses import fields

import pytest

import tiered_embed as te
from tiered_embed.residency.budgets import allocate
from tiered_embed.spec import EngineOptions, option_help
from tiered_embed.spec.sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *((1, 1), ("1", 1), ("8 B", 8), ("1.5KiB", 1536), ("2GB", 2 * 10**9), ("1TiB", 2**40)),
        *(("9007199254740993 b", 2**53 + 1), (" 3pib ", 3 * 2**50)),
    ],
)
def test_parse_bytes(text: int | str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "bad", [0, -1, "0", "x", "1 XB", 1.5, True, None, "-4MB", "", "8G", "1 Gbit", "5MiB/s", "1_0"]
)
def test_bad_bytes(bad: object) -> None:
    with pytest.raises(te.ConfigError, match="ddr is"):
        parse_bytes(bad, "ddr")  # type: ignore[arg-type]


def test_every_option_is_documented() -> None:
    for field in fields(EngineOptions):
        text = option_help(field.name)
        assert text[0].isupper(), text
        assert text.endswith("."), text
        assert "`" not in text, text
        assert "\n" not in text, text
    with pytest.raises(KeyError):
        option_help("no_such_option")


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


@pytest.mark.parametrize(
    "arguments",
    [
        ("", 1, 1),
        ("a", 0, 1),
        ("a", -1, 1),
        ("a", 1.5, 1),
        ("a", 1, 0),
        ("a", 1, -4),
        ("a", 1, 1, ["f", "f"]),
        ("a", 1, 1, "f"),
        ("a", 1, 1, ["f"], "median"),
    ],
)
def test_bad_tables(arguments: tuple[object, ...]) -> None:
    with pytest.raises(te.ConfigError):
        te.TableConfig(*arguments)  # type: ignore[arg-type]
