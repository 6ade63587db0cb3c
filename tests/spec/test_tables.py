"""Sizes and tables: what is parsed, what is refused."""

import pytest

import tiered_embed as te
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
