"""The children of the suites here; see ``children.py``."""

from collections.abc import Iterator

import pytest

from children import Children


@pytest.fixture(scope="session")
def children() -> Iterator[Children]:
    with Children() as made:
        yield made
