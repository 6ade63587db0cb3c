"""What a table is called where a name is too long, in keys of a store and in initial values; and
which names are one name to whoever reads them.

Pure functions; safe from any thread.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable

from ..errors import ConfigError

__all__ = ["refuse_lookalikes", "table_hash"]


def table_hash(name: str) -> bytes:
    """A table's identity in keys and initial values: 4 bytes of the SHA-256 of its name."""
    return hashlib.sha256(name.encode()).digest()[:4]


def refuse_lookalikes(names: Iterable[str], others: Iterable[str], where: str) -> None:
    """Unicode may write one name in several ways, and each would be a table of its own.

    Raises:
        ConfigError: one of ``names`` is one of ``others``, which are ``where``, in another Unicode
            normal form.
    """
    others = list(others)
    forms = {unicodedata.normalize("NFC", other): other for other in others}
    for name in names:
        other = forms.get(unicodedata.normalize("NFC", name), name)
        if other != name and name not in others:
            raise ConfigError(
                f"table {name!r} ({name!a}) is called {other!a} {where}: the same name in another "
                "Unicode normal form. Use one of them, or names that differ to the reader"
            )
