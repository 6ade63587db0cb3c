"""Keeps ``torch.compile`` out of code that it cannot trace. Threading: as the code it wraps."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from .tracing import traced_error

__all__ = ["eager"]

F = TypeVar("F", bound=Callable[..., Any])


def eager(fn: F) -> F:
    """``torch.compiler.disable(fn)``: a graph break where a compiled model calls it.

    That call imports ``torch._dynamo``, which takes seconds. So it waits until something else has
    imported it: before that, nothing is compiled.
    """
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not disabled:
            if "torch._dynamo" not in sys.modules:
                return fn(*args, **kwargs)
            disabled.append(_disable(fn))
        return disabled[0](*args, **kwargs)

    return cast(F, run)


def _disable(fn: F) -> F:
    disable: Any = torch.compiler.disable
    if "reason" not in inspect.signature(disable).parameters:  # torch before 2.8
        return cast(F, disable(fn))
    # torch.export shows it when it refuses the module.
    return cast(F, disable(fn, reason=str(traced_error("a graph without breaks"))))
