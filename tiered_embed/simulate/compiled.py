"""Loops compiled by numba, which the extra ``sim`` installs; typed for mypy.

Compiled code is cached next to the source file, or in the user's cache directory where that is not
writable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

try:
    import numba
    from numba.core import types
    from numba.extending import intrinsic
except ImportError as error:
    raise ImportError(f"{error}; pip install 'tiered_embed[sim]'") from error

__all__ = ["compiled", "popcount"]

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """The function, compiled on first use; it runs without the GIL."""
    return cast(F, numba.njit(cache=True, nogil=True, boundscheck=False)(function))


@intrinsic
def _popcount(typing_context: Any, value: Any) -> Any:

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), generate


# The number of set bits of a uint64, in one instruction; numba does not offer it by name.
popcount = cast(Callable[[Any], int], _popcount)
