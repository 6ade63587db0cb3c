"""What is computed of the rows that a step holds: its output, and its weights' gradient.

Threading: as the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..spec import EngineOptions
from .outputs import empty_output, pool_parts
from .step import Step
from .updates import Updates
from .wiring import Wiring

__all__ = ["look_up", "weight_gradient"]


def look_up(
    step: Step, wiring: Wiring, options: EngineOptions, updates: Updates | None
) -> torch.Tensor:
    """The step's rows as ``outputs.py`` lays them out, float32. With ``max_norm``, those that train
    are scaled for good.

    ``updates``: will train them; None where they are only read.
    """
    out = empty_output(wiring, step.batch, options.compute_device)
    if options.max_norm is not None and updates is not None:
        for pool in step.pools:
            if pool.layout.trains:
                pool.mark_training()
        step.changed = True
    number = 1 if updates is None else updates.steps + 1
    with _renormalised(step, options, trained=True):
        parts = pool_parts(wiring, step.batch, out)
        step.looked_up = [
            pool.kernel.lookup(
                lease.plan,
                bags,
                pool.kernel.values(part),
                number,
                None if updates is None else updates.optimizer_of(pool.layout),
            )
            for pool, part, bags, lease in zip(
                step.pools, parts, step.bags, step.leases, strict=True
            )
        ]
    return out


def weight_gradient(
    step: Step, grad: torch.Tensor, wiring: Wiring, options: EngineOptions
) -> torch.Tensor:
    """The gradient of each occurrence's sample weight (N,), feature after feature, at the rows that
    the step's forward read. ``grad``: of its output."""
    weights = step.batch.sample_weights
    assert weights is not None
    features = step.batch.features
    parts = [torch.empty(0, dtype=torch.float32, device=options.compute_device)] * len(features)
    with step.as_read(), _renormalised(step, options, trained=False):
        for pool, bags, lease, mine in zip(
            step.pools, step.bags, step.leases, wiring.pool_features, strict=True
        ):
            values = pool.kernel.values(grad)
            flat = pool.kernel.sample_weight_gradient(lease.plan, bags, values)
            start = 0
            for f in mine:
                end = start + len(features[f].ids)
                parts[f] = flat[start:end]
                start = end
    return torch.cat(parts).to(weights.device)


@contextmanager
def _renormalised(step: Step, options: EngineOptions, *, trained: bool) -> Iterator[None]:
    """The step's rows are as ``max_norm`` has them: those that train for good, and only where
    ``trained``; the others meanwhile."""
    if options.max_norm is None:
        yield
        return
    own = step.records(only_read=True)
    for pool, lease in zip(step.pools, step.leases, strict=True):
        if trained or not pool.layout.trains:
            pool.kernel.renormalise(lease.plan, options.max_norm, options.norm_type)
    try:
        yield
    finally:
        step.put(own)
