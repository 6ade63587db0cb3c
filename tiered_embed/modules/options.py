"""What all tiered modules take, checked once."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from ..config import Tiers
from ..errors import ConfigError
from ..init import Constant, Init, Uniform
from ..optim import Optimizer
from .inputs import BOUNDS_CHECKS

__all__ = ["RuntimeOptions"]


@dataclass(frozen=True)
class RuntimeOptions:
    """What all modules take. See :class:`~tiered_embed.TieredEmbeddingBag` for the meanings."""

    tiers: Tiers
    optimizer: Optimizer
    init: Init
    seed: int = 0
    dtype: torch.dtype = torch.float32
    policy: str = "lookahead"
    lookahead: int = 32
    depth: int = 2
    num_threads: int | None = None
    bounds_check: str = "raise"

    def __post_init__(self) -> None:
        if not isinstance(self.tiers, Tiers):
            raise ConfigError(f"tiers is {self.tiers!r}; pass te.Tiers(ddr=..., ssd=...)")
        if self.tiers.hbm is not None:
            raise ConfigError("this version computes on the CPU: leave hbm out of te.Tiers")
        if self.tiers.ddr is None:
            raise ConfigError("on the CPU the topmost tier is DDR: pass te.Tiers(ddr=...)")
        if not isinstance(self.optimizer, Optimizer):
            raise ConfigError(f"optimizer is {self.optimizer!r}; pass one of te.optim")
        if not isinstance(self.init, (Uniform, Constant)):
            raise ConfigError(f"init is {self.init!r}; pass te.init.Uniform or te.init.Constant")
        if self.dtype != torch.float32:
            raise ConfigError(f"dtype is {self.dtype}; rows are torch.float32")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigError(f"seed is {self.seed!r}; it must be an integer")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed is {self.seed}; it must be in [0, 2**64)")
        for name, low in (("lookahead", 0), ("depth", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ConfigError(f"{name} is {value!r}; it must be an integer of at least {low}")
        if self.depth > self.lookahead:
            raise ConfigError(
                f"depth is {self.depth} but lookahead is {self.lookahead}: only batches in the "
                "window can be staged; raise lookahead or lower depth"
            )
        threads = self.num_threads
        if threads is not None and (
            isinstance(threads, bool) or not isinstance(threads, int) or threads < 1
        ):
            raise ConfigError(f"num_threads is {threads!r}; it must be a positive integer or None")
        if self.bounds_check not in BOUNDS_CHECKS:
            raise ConfigError(
                f"bounds_check is {self.bounds_check!r}; choose one of {', '.join(BOUNDS_CHECKS)}"
            )

    @property
    def threads(self) -> int:
        return self.num_threads or len(os.sched_getaffinity(0))
