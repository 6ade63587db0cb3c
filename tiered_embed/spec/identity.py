"""What a table is called where a name is too long, in keys of a store and in initial values; and
which names are one name to whoever reads them.

Pure functions; safe from any thread.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable

from ..errors import ConfigError

__all__ = ["normal_form", "refuse_lookalikes", "table_hash"]


def table_hash(name: str) -> bytes:
    """A table's identity in keys and initial values: 4 bytes of the SHA-256 of its name."""
    return hashlib.sha256(name.encode()).digest()[:4]


def normal_form(name: str) -> str:
    """Equal for names that Unicode counts as one."""
    return unicodedata.normalize("NFC", name)


def refuse_lookalikes(names: Iterable[str], others: Iterable[str], where: str) -> None:
    """Unicode may write one name in several ways, and each would be a table of its own.

    Raises:
        ConfigError: one of ``names`` is one of ``others``, which are ``where``, in another Unicode
            normal form.
    """
    others = set(others)
    forms = {normal_form(other): other for other in others}
    for name in names:
        other = forms.get(normal_form(name), name)
        if other != name and name not in others:
            raise ConfigError(
                f"table {name!r} ({name!a}) is called {other!a} {where}: the same name in another "
                "Unicode normal form. Use one of them, or names that differ to the reader"
            )
