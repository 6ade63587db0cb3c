"""Reads text files of a known number of columns, most of which begin with a known header line."""

import os
from collections.abc import Iterator

from ..errors import ConfigError
from .fields import Fields, split_fields
from .files import StrPath, read_line_blocks

__all__ = ["read_table"]


_ONE_BYTE = b"\x1f"


def read_table(
    path: StrPath, separator: bytes, header: tuple[str, ...], *, has_header: bool = True
) -> Iterator[Fields]:
    """Yield the fields below the header, block by block; of all lines without ``has_header``.

    ``separator`` may have several bytes.

    Raises:
        ConfigError: the first line is not ``header``, a line has another number of fields, or the
            compression is damaged.
    """
    expected = separator.decode().join(header)
    line = 0
    for block in read_line_blocks(path):
        if has_header and line == 0:
            first, _, block = block.partition(b"\n")
            found = first.rstrip(b"\r").decode("utf-8", "backslashreplace")
            if found != expected:
                raise ConfigError(
                    f"{os.fspath(path)}, line 1: the header is {found[:80]!r}; it must be"
                    f" {expected!r}"
                )
            line = 1
        byte = separator
        if len(separator) > 1:
            block, byte = block.replace(separator, _ONE_BYTE), _ONE_BYTE
        fields = split_fields(path, block, byte, len(header), line + 1, f"{separator.decode()!r}")
        line += fields.num_lines
        yield fields
    if has_header and line == 0:
        raise ConfigError(
            f"{os.fspath(path)}: the file is empty; it must begin with the header {expected!r}"
        )
