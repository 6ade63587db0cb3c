"""What is compared: each optimizer of ``te.optim`` with what its peers make of it.

One table, ``ENTRIES``; an optimizer that this build lacks is left out. ``torch.optim`` takes sparse
gradients in SGD (without momentum), Adagrad and SparseAdam alone. For every optimizer there is
also what a torch user would write: coalesce the sparse gradient, gather weights and state of the
touched rows, compute, copy back. Those formulas are here; they are exact, not tricks of the trade.
Legend: ``U`` touched rows, ``D`` dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import tiered_embed as te

__all__ = ["ENTRIES", "Entry"]

# (weights (U, D), states [(U, width)], gradient (U, D), spec, hyper): in place, states in order.
Formula = Callable[[Tensor, Sequence[Tensor], Tensor, Any, tuple[float, ...]], None]
Native = Callable[[Any, Any], torch.optim.Optimizer]


@dataclass(frozen=True)
class Entry:
    """One optimizer. ``fbgemm`` names its ``EmbOptimType`` where FBGEMM has it for CPU."""

    name: str
    formula: Formula
    options: dict[str, float] = field(default_factory=lambda: {"lr": 0.02})
    fbgemm: str | None = None
    native_name: str | None = None
    native: Native | None = None

    @property
    def spec(self) -> Any:
        return getattr(te.optim, self.name)(**self.options)

    def widths(self, dim: int) -> list[int]:
        return list(self.spec.state_layout(dim).values())


def _mean_square(g: Tensor) -> Tensor:
    return g.square().mean(1, keepdim=True)


def _norm(x: Tensor) -> Tensor:
    return x.norm(dim=1, keepdim=True)


def _sgd(w: Tensor, s: Sequence[Tensor], g: Tensor, spec: Any, h: tuple[float, ...]) -> None:
    w.add_(g, alpha=-h[0])


def _momentum(w: Tensor, s: Sequence[Tensor], g: Tensor, spec: Any, h: tuple[float, ...]) -> None:
    lr, momentum = h
    w.add_(s[0].mul_(momentum).add_(g), alpha=-lr)


def _adagrad(w: Tensor, s: Sequence[Tensor], g: Tensor, spec: Any, h: tuple[float, ...]) -> None:
    lr, eps = h
    w.addcdiv_(g, s[0].addcmul_(g, g).sqrt().add_(eps), value=-lr)


def _row_adagrad(
    w: Tensor, s: Sequence[Tensor], g: Tensor, spec: Any, h: tuple[float, ...]
) -> None:
    lr, eps = h
    w.addcdiv_(g, s[0].add_(_mean_square(g)).sqrt().add_(eps), value=-lr)


def _row_rmsprop(
    w: Tensor, s: Sequence[Tensor], g: Tensor, spec: Any, h: tuple[float, ...]
) -> None:
    lr, eps, alpha, rest = h
    w.addcdiv_(g, s[0].mul_(alpha).add_(_mean_square(g), alpha=rest).sqrt().add_(eps), value=-lr)


def _moments(s: Sequence[Tensor], g: Tensor, h: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Moves both moments on; returns the first, and the root of the second made unbiased."""
    _, eps, b1, c1, b2, c2, _, bias2 = h[:8]
    m, v = s
    m.mul_(b1).add_(g, alpha=c1)
    if v.shape[1] == g.shape[1]:
        v.mul_(b2).addcmul_(g, g, value=c2)
    else:
        v.mul_(b2).add_(_mean_square(g), alpha=c2)
    return m, (v / bias2).sqrt_().add_(eps)


def _adam(w: Tensor, s: Sequence[Tensor], g: Tensor, spec: Any, h: tuple[float, ...]) -> None:
    m, root = _moments(s, g, h)
    w.addcdiv_(m, root, value=-h[0] / h[6])


def _adamw(w: Tensor, s: Sequence[Tensor], g: Tensor, spec: Any, h: tuple[float, ...]) -> None:
    w.mul_(1 - spec.lr * spec.weight_decay)
    _adam(w, s, g, spec, h)


def _lamb(w: Tensor, s: Sequence[Tensor], g: Tensor, spec: Any, h: tuple[float, ...]) -> None:
    m, root = _moments(s, g, h)
    r = torch.div(m, root).div_(h[6])
    if spec.weight_decay:
        r.add_(w, alpha=spec.weight_decay)
    weight_norm, norm = _norm(w), _norm(r)
    ratio = torch.where((weight_norm > 0) & (norm > 0), weight_norm / norm, 1.0)
    w.addcmul_(r, ratio, value=-h[0])


def _lars(w: Tensor, s: Sequence[Tensor], g: Tensor, spec: Any, h: tuple[float, ...]) -> None:
    scaled, momentum, decay, lr = h
    weight_norm = _norm(w)
    norm = _norm(g).add_(weight_norm, alpha=decay)
    rate = torch.where((weight_norm > 0) & (norm > 0), scaled * weight_norm / norm, lr)
    if decay:
        g = g.add(w, alpha=decay)
    w.sub_(s[0].mul_(momentum).addcmul_(g, rate))


def _ftrl(w: Tensor, s: Sequence[Tensor], g: Tensor, spec: Any, h: tuple[float, ...]) -> None:
    lr, beta, l1, l2 = h
    z, n = s
    before = n.sqrt()
    root = n.addcmul_(g, g).sqrt()
    z.add_(g).addcmul_(root.sub(before), w, value=-1 / lr)
    divisor = root.add_(beta).div_(lr).add_(l2)
    torch.div(torch.nn.functional.softshrink(z, l1), divisor, out=w).neg_()


def _torch_sgd(params: Any, spec: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=spec.lr)


def _torch_adagrad(params: Any, spec: Any) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(params, lr=spec.lr, eps=spec.eps)


def _torch_sparse_adam(params: Any, spec: Any) -> torch.optim.Optimizer:
    betas = (spec.beta1, spec.beta2)
    return torch.optim.SparseAdam(params, lr=spec.lr, betas=betas, eps=spec.eps)


_ADAM = {"lr": 0.002}
_ALL = (
    Entry("RowWiseAdagrad", _row_adagrad, fbgemm="EXACT_ROWWISE_ADAGRAD"),
    Entry("SGD", _sgd, fbgemm="EXACT_SGD", native_name="SGD", native=_torch_sgd),
    Entry(
        "Adagrad", _adagrad, fbgemm="EXACT_ADAGRAD", native_name="Adagrad", native=_torch_adagrad
    ),
    Entry("Adam", _adam, _ADAM, native_name="SparseAdam", native=_torch_sparse_adam),
    Entry("AdamW", _adamw, _ADAM),
    Entry("PartialRowWiseAdam", _adam, _ADAM),
    Entry("LAMB", _lamb, _ADAM),
    Entry("PartialRowWiseLAMB", _lamb, _ADAM),
    Entry("MomentumSGD", _momentum),
    Entry("RowWiseRMSProp", _row_rmsprop),
    Entry("LARSSGD", _lars),
    Entry("FTRL", _ftrl),
)
ENTRIES = {entry.name: entry for entry in _ALL if hasattr(te.optim, entry.name)}
