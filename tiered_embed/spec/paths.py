"""Paths as users give them, made absolute at once: the working directory may change later.

Pure functions, but for the working directory and the home directories.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigError

__all__ = ["absolute_path"]

# Of one part, in bytes: file systems allow 255, and some of our names add a suffix.
LONGEST_NAME = 200
LONGEST_PATH = 3800  # in bytes: Linux allows 4095, and stores and steps add some to it


def absolute_path(value: object, what: str) -> Path:
    """The absolute path that ``value`` names, with ``~`` and ``~user`` expanded.

    Args:
        what: the path is, for messages: ``"ssd"``.

    Raises:
        ConfigError: this is no path, or one that no file system takes.
    """
    try:
        name = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        name = None
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{what} is {value!r}; pass a path, such as '/data/embeddings'")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{what} is {name!r}, which is not valid UTF-8; rename the directory, or link to it "
            "under another name"
        ) from None
    if "\0" in name:
        raise ConfigError(f"{what} is {name!r}; a path cannot contain a null character")
    path = Path(name)
    if name.startswith("~"):
        try:
            path = path.expanduser()
        except RuntimeError:
            raise ConfigError(
                f"{what} is {name!r}, and there is no home directory of that user; pass an "
                f"absolute path, or './{name}' if the name begins with '~'"
            ) from None
    try:
        path = path.absolute()
    except FileNotFoundError:
        raise ConfigError(
            f"{what} is {name!r}, but the working directory was removed; pass an absolute path"
        ) from None
    try:
        too_long = max(len(part.encode()) for part in path.parts) > LONGEST_NAME
        too_long |= len(str(path).encode()) > LONGEST_PATH
    except UnicodeEncodeError:
        raise ConfigError(
            f"{what} is {name!r}, and the working directory's name, {os.getcwd()!r}, is not valid "
            "UTF-8; rename the directory, or link to it under another name"
        ) from None
    if too_long:
        raise ConfigError(
            f"{what} is {name[:60]!r}... of {len(name.encode())} bytes; a name in it may have "
            f"{LONGEST_NAME} bytes, and all of it {LONGEST_PATH}"
        )
    return path
