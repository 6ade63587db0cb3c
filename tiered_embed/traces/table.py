"""Reads text files that begin with a known header line."""

import os
from collections.abc import Iterator

from ..errors import ConfigError
from .fields import Fields, split_fields
from .files import StrPath, read_line_blocks

__all__ = ["read_table"]


def read_table(path: StrPath, separator: bytes, header: tuple[str, ...]) -> Iterator[Fields]:
    """Yield the fields below the header, block by block.

    Raises:
        ConfigError: the first line is not ``header``, a line has another number of fields, or the
            compression is damaged.
    """
    expected = separator.decode().join(header)
    line = 0
    for block in read_line_blocks(path):
        if line == 0:
            first, _, block = block.partition(b"\n")
            found = first.rstrip(b"\r").decode("utf-8", "backslashreplace")
            if found != expected:
                raise ConfigError(
                    f"{os.fspath(path)}, line 1: the header is {found[:80]!r}; it must be"
                    f" {expected!r}"
                )
            line = 1
        fields = split_fields(path, block, separator, len(header), line + 1)
        line += fields.num_lines
        yield fields
    if line == 0:
        raise ConfigError(
            f"{os.fspath(path)}: the file is empty; it must begin with the header {expected!r}"
        )
