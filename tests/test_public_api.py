"""What a user may rely on, pinned."""

import tiered_embed as te


def test_public_names() -> None:
    assert sorted(te.__all__) == [
        "CapacityError",
        "ClosedError",
        "ConfigError",
        "CorruptionError",
        "EngineOptions",
        "IdRangeError",
        "NonFiniteError",
        "NotCopyableError",
        "Stats",
        "StoreError",
        "SwapEntry",
        "SwapReport",
        "TableConfig",
        "TieredEmbedError",
        "TieredEmbedding",
        "TieredEmbeddingBag",
        "TieredEmbeddingBagCollection",
        "TieredEmbeddingCollection",
        "Tiers",
        "accumulate",
        "checkpoint",
        "close_all",
        "drop_table",
        "errors",
        "init",
        "joined",
        "lr_optimizer",
        "optim",
        "prefetch",
        "row_optimizer",
        "swap",
    ]
    for name in te.__all__:
        assert getattr(te, name) is not None


def test_exception_tree() -> None:
    assert issubclass(te.ConfigError, ValueError)
    assert issubclass(te.IdRangeError, IndexError)
    assert issubclass(te.CorruptionError, te.StoreError)
    assert issubclass(te.NonFiniteError, ArithmeticError)
    assert issubclass(te.NotCopyableError, TypeError)
    for error in (
        te.ConfigError,
        te.IdRangeError,
        te.CapacityError,
        te.StoreError,
        te.ClosedError,
        te.NonFiniteError,
        te.NotCopyableError,
    ):
        assert issubclass(error, te.TieredEmbedError)
        assert error.__doc__
