"""The exceptions that the package raises on purpose.

::

    TieredEmbedError
    ├── ConfigError (ValueError)          an argument or a configuration that cannot work
    ├── IdRangeError (IndexError)         a row id outside its table
    ├── CapacityError                     a tier has no room, and there is no tier below it
    ├── StoreError                        the SSD store failed or cannot be opened
    │   └── CorruptionError               stored bytes do not match their checksum or format
    ├── NonFiniteError (ArithmeticError)  a row's gradient is infinite or NaN
    ├── NotCopyableError (TypeError)      a module was copied or pickled
    └── ClosedError                       the object was closed, or belongs to another process

A message gives the fact, the numbers and the remedy. Exceptions of third parties are mapped in one
place, where they enter (``store/``); none of them leaves the package.
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
    """The base of all errors that tiered_embed raises."""


class ConfigError(TieredEmbedError, ValueError):
    """An argument or a configuration that cannot work."""


class IdRangeError(TieredEmbedError, IndexError):
    """A row id lies outside its table."""


class CapacityError(TieredEmbedError):
    """A tier has no room for a row, and there is no tier below it."""


class StoreError(TieredEmbedError):
    """The SSD store failed, is open elsewhere, or cannot be opened."""


class CorruptionError(StoreError):
    """Stored bytes do not match their checksum or format."""


class ClosedError(TieredEmbedError):
    """The object was closed, or was opened before a fork, by the parent process."""


class NonFiniteError(TieredEmbedError, ArithmeticError):
    """A row's gradient is infinite or NaN; no row was changed."""


class NotCopyableError(TieredEmbedError, TypeError):
    """A module was copied or pickled; it owns files and threads, so it cannot be."""
