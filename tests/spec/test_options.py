"""The options of an engine: documented once, passed on as typed keywords."""

from dataclasses import fields
from typing import get_type_hints

import pytest

import tiered_embed as te
from tiered_embed.spec import EngineKeywords, EngineOptions, option_help


def test_every_option_is_documented() -> None:
    for field in fields(EngineOptions):
        text = option_help(field.name)
        assert text[0].isupper(), text
        assert text.endswith("."), text
        assert "`" not in text, text
        assert "\n" not in text, text
    with pytest.raises(KeyError):
        option_help("no_such_option")


def test_the_typed_keywords_are_the_options() -> None:
    assert get_type_hints(EngineKeywords) == get_type_hints(EngineOptions)
    required = {"tiers", "optimizer"}
    assert EngineKeywords.__required_keys__ == required


MAKERS = [
    lambda **options: te.TieredEmbeddingBag(10, 4, **options),
    lambda **options: te.TieredEmbedding(10, 4, **options),
    lambda **options: te.TieredEmbeddingBagCollection([te.TableConfig("t", 10, 4)], **options),
]
GIVEN = {"tiers": te.Tiers(ddr="1MiB"), "optimizer": te.optim.SGD(lr=0.1)}


@pytest.mark.parametrize("make", MAKERS)
def test_an_unknown_or_missing_keyword_is_named(make) -> None:
    with pytest.raises(
        TypeError, match=r"Tiered\w+\(\) got an unexpected keyword argument 'polcy'"
    ):
        make(polcy="lru", **GIVEN)
    with pytest.raises(TypeError, match=r"needs the keyword argument optimizer"):
        make(tiers=GIVEN["tiers"])
    with pytest.raises(te.ConfigError, match="policy"):
        make(policy="polcy", **GIVEN)
