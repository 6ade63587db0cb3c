"""What a table is called where a name is too long: in keys of a store, and in initial values.

A pure function; safe from any thread.
"""

from __future__ import annotations

import hashlib

__all__ = ["table_hash"]


def table_hash(name: str) -> bytes:
    """A table's identity in keys and initial values: 4 bytes of the SHA-256 of its name."""
    return hashlib.sha256(name.encode()).digest()[:4]
