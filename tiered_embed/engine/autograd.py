"""The autograd function of a forward: its backward is the optimizer."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from ..errors import ConfigError
from .autograd_pass import reaches
from .step import Step

__all__ = ["look_up_and_train"]

Context = torch.autograd.function.FunctionCtx


class Trains(Protocol):
    """What an engine does in the two directions."""

    def look_up(self, step: Step) -> torch.Tensor: ...

    def backward(
        self, step: Step, grad: torch.Tensor, needs_weight_grad: bool, trains: bool
    ) -> torch.Tensor | None: ...


class _LookUp(torch.autograd.Function):
    """Pools rows; its backward updates them."""

    @staticmethod
    def forward(
        ctx: Context,
        anchor: torch.Tensor | None,
        sample_weights: torch.Tensor | None,
        engine: Trains,
        step: Step,
    ) -> torch.Tensor:
        ctx.engine, ctx.step = engine, step  # type: ignore[attr-defined]
        ctx.has_anchor = anchor is not None  # type: ignore[attr-defined]
        return engine.look_up(step)

    @staticmethod
    def jvp(ctx: Context, *tangents: torch.Tensor | None) -> torch.Tensor:
        raise ConfigError(
            "a tiered module has no forward-mode derivative; use backward, or detach "
            "per_sample_weights from their dual level"
        )

    @staticmethod
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Gradients are on where the caller asks for a graph of this backward.
        return _differentiable(ctx, grad) if torch.is_grad_enabled() else _update(ctx, grad)


def _update(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    if torch._C._functorch.is_legacy_batchedtensor(grad):
        raise ConfigError(
            "this backward takes several gradients at once (is_grads_batched), and would update "
            "each row several times; take one gradient at a time"
        )
    # torch.autograd.grad(loss, others) gives the rows nothing, as it would a parameter.
    trains = ctx.has_anchor and reaches(ctx.next_functions[0][0])
    weight_grad = ctx.engine.backward(ctx.step, grad, ctx.needs_input_grad[1], trains)
    return None, weight_grad, None, None


_differentiable = torch.autograd.function.once_differentiable(_update)


def look_up_and_train(
    anchor: torch.Tensor | None, sample_weights: torch.Tensor | None, engine: Trains, step: Step
) -> torch.Tensor:
    """The step's pooled rows (B, columns); differentiating them updates the rows.

    ``anchor``: a leaf that stands for the rows, so that autograd calls the backward.
    """
    return _LookUp.apply(anchor, sample_weights, engine, step)  # type: ignore[no-any-return,no-untyped-call]
