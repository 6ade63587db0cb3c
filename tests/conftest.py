"""Fixtures of all tests. Plain modules that tests share are in ``tests/support``, on the path."""

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

from tiered_embed import traces
from tiered_embed.store import rocksdb

# Machines are shared: how long an example takes says nothing.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


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
def imported() -> Callable[[str], ModuleType]:
    """Import a package of the extra ``models``. Without it CI fails; elsewhere the test skips."""

    def find(name: str) -> ModuleType:
        package = name.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            message = f"{package} is not installed; tools/setup.sh installs it"
            if os.environ.get("CI"):
                pytest.fail(message)
            pytest.skip(message)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs, on import
            return importlib.import_module(name)

    return find


@pytest.fixture(scope="session")
def stores() -> list[str]:
    """Every backend that can run here; CI must have them all."""
    if rocksdb.available():
        return ["rocksdb", "rocksdb_py", "memory"]
    if os.environ.get("CI"):
        pytest.fail("CI must test the native RocksDB extension, but it is not built")
    return ["rocksdb_py", "memory"]
