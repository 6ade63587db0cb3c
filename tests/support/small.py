"""A small module and ids for it, for tests of what happens around the rows."""

from typing import Any

import torch

import tiered_embed as te
from tiered_embed.optim.adam import Adam

ROWS, DIM = 30, 4
EVERY = range(ROWS)
TIERS = te.Tiers(ddr="1MiB")


def make(**options: Any) -> te.TieredEmbeddingBag:
    options = {"tiers": TIERS, "optimizer": Adam(lr=0.1), "num_threads": 1, **options}
    return te.TieredEmbeddingBag(ROWS, DIM, **options)


def random_ids(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, ROWS, shape or (6, 3), generator=generator)
