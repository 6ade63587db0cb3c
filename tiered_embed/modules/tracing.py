"""Refuses what would record a forward to run it without us: rows would become constants.

Threading: any thread.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from ..errors import ConfigError

__all__ = ["refuse_tracing", "traced_error"]


_FAKE = torch._C._TorchDispatchModeKey.FAKE


def traced_error(what: str) -> ConfigError:
    """The one message of all of them."""
    return ConfigError(
        f"{what} cannot contain a tiered module: its rows live outside of tensors, and would be "
        "missing or constant in what is recorded. Call the module outside, and record the part of "
        "the model that takes its output; te.checkpoint.export writes the rows for serving"
    )


def refuse_tracing(tensors: tuple[Any, ...]) -> None:
    """Raises ConfigError if a forward with these arguments is recorded or transformed."""
    if torch._C._get_tracing_state() is not None:
        raise traced_error("torch.jit.trace")
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise traced_error("a transform of torch.func (vmap, grad, vjp, jvp)")
    if torch._C._get_dispatch_mode(_FAKE) is not None:
        raise traced_error("torch.export, or a mode of fake tensors,")
    if _records():
        raise traced_error("a graph of torch.fx or torch.export")
    for tensor in tensors:
        kind = type(tensor)
        if kind is torch.Tensor or tensor is None:
            continue
        if kind.__module__.startswith("torch.fx"):
            raise traced_error("torch.fx.symbolic_trace")
        if kind.__module__.startswith("torch._subclasses"):
            raise traced_error("torch.export, or a mode of fake tensors,")


def _records() -> bool:
    """Whether ``make_fx``, which ``torch.export`` uses too, is at work."""
    # It is a dispatch mode; to ask whether there is any is cheaper.
    modes = torch._C._len_torch_dispatch_stack()
    if not modes and not torch._ops._len_torch_dispatch_stack_pre_dispatch():  # type: ignore[no-untyped-call]
        return False
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")
    return tracer is not None and tracer.get_proxy_mode() is not None
