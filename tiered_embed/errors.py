"""Every exception that the package raises on purpose.

::

    TieredEmbedError
    ├── ConfigError (ValueError)      an argument or a configuration that cannot work
    ├── IdRangeError (IndexError)     a row id outside its table
    ├── CapacityError                 a tier has no room and nothing below it
    ├── StoreError                    the SSD store failed or cannot be opened
    │   └── CorruptionError           stored bytes do not match their checksum or format
    ├── NonFiniteError (ArithmeticError)  a row's gradient is infinite or NaN
    ├── NotCopyableError (TypeError)  a module that cannot be copied or pickled
    └── ClosedError                   the object was closed, or belongs to another process

A message says the fact, the numbers, and the remedy. Exceptions of third parties are mapped where
they enter (``store/``); none of them leaves the package.
"""

__all__ = [
    "CapacityError",
    "ClosedError",
    "ConfigError",
    "CorruptionError",
    "IdRangeError",
    "NonFiniteError",
    "NotCopyableError",
    "StoreError",
    "TieredEmbedError",
]


class TieredEmbedError(Exception):
    """Base of all errors raised by tiered_embed."""


class ConfigError(TieredEmbedError, ValueError):
    """An argument or a configuration that cannot work."""


class IdRangeError(TieredEmbedError, IndexError):
    """A row id lies outside its table."""


class CapacityError(TieredEmbedError):
    """A tier has no room for a row and there is no tier below it."""


class StoreError(TieredEmbedError):
    """The SSD store failed, is opened elsewhere, or cannot be opened."""


class CorruptionError(StoreError):
    """Stored bytes do not match their checksum or their format."""


class ClosedError(TieredEmbedError):
    """The object was closed, or was opened by another process (before a fork)."""


class NonFiniteError(TieredEmbedError, ArithmeticError):
    """A row's gradient is infinite or NaN; no row was changed."""


class NotCopyableError(TieredEmbedError, TypeError):
    """A module owns files and threads: it is neither copied nor pickled."""
