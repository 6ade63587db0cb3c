"""Runs the command line as a shell does, in this process: words in, exit code and texts out."""

import io
import json
import sys
from typing import Any, NamedTuple

import pytest

from tiered_embed.cli import main

WIDE = 200


class Ran(NamedTuple):
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code in (0, 1), self.err
        return json.loads(self.out)


def shell(*words: object, stdin: bytes = b"", columns: int = WIDE) -> Ran:
    """Run ``tiered-embed`` with these words in a terminal of so many columns."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setattr(sys, "argv", ["tiered-embed", *map(str, words)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
    out, err = (s.buffer.getvalue().decode() for s in streams)  # type: ignore[attr-defined]
    return Ran(0 if code is None else code, out, err)


def shape(value: Any, names: tuple[str, ...] = ()) -> Any:
    """Keys and types of JSON: what a script relies on. A dictionary below a key in ``names`` is
    keyed by the user's own names, and a list has the shapes of its entries."""
    if isinstance(value, dict):
        return {key: _below(key, each, names) for key, each in sorted(value.items())}
    if isinstance(value, list):
        found = []
        for each in value:
            own = shape(each, names)
            if own not in found:
                found.append(own)
        return found
    return "null" if value is None else type(value).__name__


def _below(key: str, value: Any, names: tuple[str, ...]) -> Any:
    if key in names and isinstance(value, dict):
        return {"<name>": shape(list(value.values()), names)}
    return shape(value, names)
