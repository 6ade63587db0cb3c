"""Trains small modules under a kernel and prints what came of it, as JSON: for ``test_triton.py``.

Run with TRITON_INTERPRET=1 in the environment, which must be there before Triton is imported.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import tiered_embed as te
from running import INIT, RECIPES, Recipe

DIMS = (8, 24, 7, 130)


class Draw:
    """The same batches and gradients for every kernel."""

    def __init__(self) -> None:
        self.numbers = np.random.default_rng(7)

    def floats(self, *shape: int) -> torch.Tensor:
        return torch.from_numpy(self.numbers.standard_normal(shape).astype(np.float32))

    def feature(self, num_ids: int, rows: int, weighted: bool = False) -> tuple[torch.Tensor, ...]:
        ids = np.minimum(self.numbers.zipf(1.3, num_ids), rows) - 1
        cuts = np.sort(self.numbers.integers(0, num_ids + 1, 5))
        bags = (torch.from_numpy(ids), torch.from_numpy(np.array([0, *cuts])))
        return (*bags, self.floats(num_ids)) if weighted else bags


def options_of(recipe: Recipe, dim: int, kernel: str, folder: str) -> dict[str, Any]:
    size = 4 * dim + 4 * recipe.optimizer.state_floats(dim)
    tiers = te.Tiers(hbm=30 * size, ddr=40 * size, ssd=folder, store="memory")
    placed = {"device": "cpu", "kernel": kernel, "num_threads": 1, "init": INIT}
    return {"tiers": tiers, "optimizer": recipe.optimizer, **placed, **recipe.options()}


def pooled(recipe: Recipe, dim: int, kernel: str, folder: str) -> tuple[str, list[torch.Tensor]]:
    """Two features of one table, one with weights, and means of another; a hot row."""
    draw = Draw()
    tables = [
        te.TableConfig("a", None, dim, ["f", "g"]),
        te.TableConfig("b", 50, dim, ["h"], "mean"),
    ]
    batches = [
        {
            "f": draw.feature(20, 100),
            "g": draw.feature(900 if i == 2 else 15, 100),
            "h": draw.feature(12, 50),
        }
        for i in range(4)
    ]
    seen = []
    with te.TieredEmbeddingBagCollection(
        tables, lookahead=4, depth=1, **options_of(recipe, dim, kernel, folder)
    ) as module:
        for batch in te.prefetch(batches, module, ids=lambda b: {module: b}):
            out = torch.cat(list(module(batch).values()), dim=1)
            seen.append(out.detach().clone())
            out.backward(draw.floats(*out.shape))
        module.eval()
        seen.append(torch.cat(list(module(batches[0]).values()), dim=1))
        return module.digest(), seen


def weighted(recipe: Recipe, dim: int, kernel: str, folder: str) -> tuple[str, list[torch.Tensor]]:
    """Weights with a gradient, and gradients that are accumulated."""
    draw = Draw()
    seen = []
    with te.TieredEmbeddingBag(None, dim, **options_of(recipe, dim, kernel, folder)) as module:
        for _ in range(3):
            ids, offsets, weights = draw.feature(40, 60, weighted=True)
            weights.requires_grad_()
            out = module(ids, offsets, weights)
            out.backward(draw.floats(*out.shape))
            assert weights.grad is not None
            seen += [out.detach().clone(), weights.grad.clone()]
        with te.accumulate(module):
            for _ in range(2):
                module(*draw.feature(30, 60)).backward(draw.floats(6, dim))
        return module.digest(), seen


def single(recipe: Recipe, dim: int, kernel: str, folder: str) -> tuple[str, list[torch.Tensor]]:
    """Rows without bags, and a bound on their norms."""
    draw = Draw()
    seen = []
    with te.TieredEmbedding(
        90, dim, max_norm=0.7, **options_of(recipe, dim, kernel, folder)
    ) as module:
        for _ in range(3):
            out = module(draw.feature(40, 90)[0].view(8, 5))
            seen.append(out.detach().clone())
            out.backward(draw.floats(*out.shape))
        return module.digest(), seen


SHAPES: tuple[Callable[..., tuple[str, list[torch.Tensor]]], ...] = (pooled, weighted, single)


def main() -> None:
    found = {}
    for i, (kind, recipe) in enumerate(RECIPES.items()):
        if recipe.rounding != "nearest":
            continue
        for shape in SHAPES if i % 4 == 0 else SHAPES[:1]:
            dim = DIMS[i % len(DIMS)]
            results = []
            for kernel in ("native", "triton"):
                with tempfile.TemporaryDirectory() as folder:
                    results.append(shape(recipe, dim, kernel, folder))
            (digest, outputs), (other, others) = results
            same = all(torch.equal(a, b) for a, b in zip(outputs, others, strict=True))
            found[f"{kind} {shape.__name__} {dim}"] = [digest == other, same]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
