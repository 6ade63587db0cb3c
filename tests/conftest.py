"""Shared by all tests; its folder is on the path, so they can import ``reference``, ``streams``."""

import os
from pathlib import Path

import pytest

from tiered_embed import traces
from tiered_embed.store import rocksdb


@pytest.fixture(scope="session")
def data_file():
    """Path of a file of the real data. Without it CI fails; elsewhere the test skips, saying so."""

    def find(name: str) -> Path:
        root = traces.data_root()
        if root is None or not (root / name).is_file():
            message = f"{name} is not in {traces.DATA_VARIABLE} (now: {root})"
            if os.environ.get("CI"):
                pytest.fail(message)
            pytest.skip(message)
        return root / name

    return find


@pytest.fixture(scope="session")
def stores() -> list[str]:
    """Every backend that can run here; CI must have them all."""
    if rocksdb.available():
        return ["rocksdb", "rocksdb_py", "memory"]
    if os.environ.get("CI"):
        pytest.fail("CI must test the native RocksDB extension, but it is not built")
    return ["rocksdb_py", "memory"]
