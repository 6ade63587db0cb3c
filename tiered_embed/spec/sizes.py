"""Byte sizes as people write them.

Parsed here and not by ``pydantic.ByteSize``, which also takes ``"512MiB/s"``, ``"8G"``, bits and 0,
and rounds above 2^53: a budget that was mistyped should be refused. For every text that is accepted
here, up to 2^53, the two agree.
"""

from __future__ import annotations

import re
from decimal import Decimal

from ..errors import ConfigError

__all__ = ["parse_bytes"]

_UNITS = {"": 1, "b": 1}
for _i, _p in enumerate("kmgtp", start=1):
    _UNITS[f"{_p}b"] = 1000**_i
    _UNITS[f"{_p}ib"] = 1024**_i


def parse_bytes(value: int | str, what: str = "size") -> int:
    """A positive number of bytes from ``4096``, ``"512MiB"``, ``"1.5 GB"``, ``"1e9"``.

    Raises:
        ConfigError: not a number, an unknown unit, or not positive.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ConfigError(f"{what} is {value!r}; pass bytes as an int, or a string such as '8GiB'")
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)([eE]\+?\d{1,2})?\s*([a-zA-Z]*)\s*", value)
        unit = _UNITS.get(match[3].lower()) if match else None
        if match is None or unit is None:
            advice = "pass bytes, or a string such as '512MiB'"
            if match and f"{match[3].lower()}b" in _UNITS:
                p = match[3].upper()
                advice = f"write {match[1]}{p}iB for units of 1024, or {match[1]}{p}B for 1000"
            raise ConfigError(f"{what} is {value!r}; {advice}")
        if match[2]:
            size = int(Decimal(match[1] + match[2]) * unit)
        else:
            size = int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    else:
        size = value
    if size <= 0:
        raise ConfigError(f"{what} is {value!r}; it must be positive")
    return size
