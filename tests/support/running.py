"""Runs a ``Stream`` through the public modules."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import tiered_embed as te
from reference import Arrays, Bags, Batch, DenseTrainer, Stream, Table
from tiered_embed.optim.base import Optimizer
from tiered_embed.spec.row_formats import ITEM_BYTES

SEED = 2**40 + 11
INIT = te.init.Uniform(-0.5, 0.25)

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": te.optim.SGD(lr=0.03),
    "rowwise_adagrad": te.optim.RowWiseAdagrad(lr=0.05, eps=1e-6),
    "adagrad": te.optim.Adagrad(lr=0.04, eps=1e-6),
    "adam": te.optim.Adam(lr=0.02, beta1=0.8, beta2=0.95, eps=1e-5),
}


@dataclass(frozen=True)
class Recipe:
    """An optimizer, and how the rows that it trains are stored."""

    optimizer: Optimizer
    storage: str = "float32"
    rounding: str = "nearest"
    by_frequency: bool = False

    def trainer(
        self, tables: Sequence[Table], dtype: type[np.floating] = np.float32
    ) -> DenseTrainer:
        return DenseTrainer(
            tables,
            self.optimizer,
            init=INIT,
            seed=SEED,
            storage=self.storage,
            rounding=self.rounding,
            by_frequency=self.by_frequency,
            dtype=dtype,
        )

    def options(self) -> dict[str, Any]:
        """A module's. Outputs are float32 whatever the rows are, so that no bit hides."""
        return {
            "dtype": getattr(torch, self.storage),
            "output_dtype": torch.float32,
            "rounding": self.rounding,
            "scale_grad_by_freq": self.by_frequency,
        }

    def record_bytes(self, table: Table) -> int:
        return record_bytes(table, self.optimizer, self.storage)


RECIPES: dict[str, Recipe] = {
    **{kind: Recipe(optimizer) for kind, optimizer in OPTIMIZERS.items()},
    "momentum_sgd": Recipe(te.optim.MomentumSGD(lr=0.03, momentum=0.8, weight_decay=0.02)),
    "rowwise_rmsprop": Recipe(te.optim.RowWiseRMSProp(lr=0.02, alpha=0.9, clip_value=1.5)),
    "adamw": Recipe(te.optim.AdamW(lr=0.02, weight_decay=0.3), by_frequency=True),
    "partial_rowwise_adam": Recipe(
        te.optim.PartialRowWiseAdam(lr=0.02, weight_decay=0.1, clip_row_norm=2.0)
    ),
    "lamb": Recipe(te.optim.LAMB(lr=0.02, weight_decay=0.1, clip_global_norm=6.0)),
    "partial_rowwise_lamb": Recipe(te.optim.PartialRowWiseLAMB(lr=0.02)),
    "lars_sgd": Recipe(te.optim.LARSSGD(lr=1.0, eta=0.02, weight_decay=0.1)),
    "ftrl": Recipe(te.optim.FTRL(lr=0.1, beta=1.0, l1=0.1, l2_penalty=0.1, clip_global_norm=9.0)),
    "sgd_float16": Recipe(
        te.optim.SGD(lr=0.03, weight_decay=0.2, weight_decay_mode="decoupled"),
        "float16",
        "stochastic",
    ),
    "rowwise_adagrad_bfloat16": Recipe(
        te.optim.RowWiseAdagrad(lr=0.05, clip_global_norm=8.0), "bfloat16", "stochastic"
    ),
    "adam_bfloat16": Recipe(te.optim.Adam(lr=0.02, clip_value=1.0), "bfloat16", by_frequency=True),
    "adagrad_float16": Recipe(
        te.optim.Adagrad(
            lr=0.04, weight_decay=0.05, clip_value=2.0, clip_row_norm=3.0, clip_global_norm=9.0
        ),
        "float16",
    ),
}

BagArgs = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def bag_args(bags: Bags) -> BagArgs:
    """A feature as ``TieredEmbeddingBag`` takes it."""
    weights = None if bags.weights is None else torch.from_numpy(bags.weights)
    return torch.from_numpy(bags.ids), torch.from_numpy(bags.offsets[:-1]), weights


def make_module(
    tables: Sequence[Table], tiers: te.Tiers, optimizer: Optimizer, **options: Any
) -> te.TieredEmbeddingBag | te.TieredEmbeddingBagCollection:
    """A bag for one table, a collection for more."""
    options = {"seed": SEED, "init": INIT, "num_threads": 1, **options}
    if len(tables) == 1 and len(tables[0].feature_names) == 1:
        (t,) = tables
        return te.TieredEmbeddingBag(
            t.num_embeddings,
            t.dim,
            t.mode,
            tiers=tiers,
            optimizer=optimizer,
            name=t.name,
            **options,
        )
    configs = [te.TableConfig(t.name, t.num_embeddings, t.dim, t.features, t.mode) for t in tables]
    return te.TieredEmbeddingBagCollection(configs, tiers=tiers, optimizer=optimizer, **options)


def record_bytes(table: Table, optimizer: Optimizer, storage: str = "float32") -> int:
    return ITEM_BYTES[storage] * table.dim + 4 * optimizer.state_floats(table.dim)


def budget(stream: Stream, recipe: Recipe, percent: float) -> int:
    """A share of the bytes that the stream touches, but a record for every pool at least."""
    touched = stream.touched()
    sizes = [recipe.record_bytes(t) for t in stream.tables]
    total = sum(touched[t.name] * size for t, size in zip(stream.tables, sizes, strict=True))
    pools = len({t.dim for t in stream.tables})
    return max(math.ceil(total * percent / 100), pools * max(sizes))


def reference(stream: Stream, recipe: Recipe) -> tuple[str, tuple[Arrays, ...], DenseTrainer]:
    """Digest, outputs of every batch, and the dense trainer that a stream and a recipe lead to."""
    trainer = recipe.trainer(stream.tables)
    outputs = []
    for batch, gradients in zip(stream.batches, stream.gradients, strict=True):
        outputs.append(trainer.forward(batch))
        trainer.backward(batch, gradients)
    return trainer.digest(), tuple(outputs), trainer


class Prepared:
    """A stream's batches as torch takes them, made once for many runs."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.single = len(stream.tables) == 1 and len(stream.tables[0].feature_names) == 1
        self.args = [self._args(batch) for batch in stream.batches]
        self.gradients = [
            {name: torch.from_numpy(g) for name, g in grads.items()} for grads in stream.gradients
        ]

    def _args(self, batch: Batch) -> Any:
        args = {name: bag_args(bags) for name, bags in batch.items()}
        return next(iter(args.values())) if self.single else args

    def call(self, module: torch.nn.Module, args: Any) -> dict[str, torch.Tensor]:
        if not self.single:
            return module(args)
        return {self.stream.tables[0].feature_names[0]: module(*args)}

    def batches(self, module: Any, *, prefetch: bool) -> Iterator[int]:
        numbers = range(len(self.args))
        if not prefetch:
            yield from numbers
            return
        yield from te.prefetch(numbers, module, ids=lambda i: {module: self.args[i]})

    def train(
        self, module: Any, outputs: Sequence[Arrays] | None = None, *, prefetch: bool = True
    ) -> None:
        """Trains on all batches; every forward must give ``outputs`` bit for bit."""
        by_step = module.engine.options.update == "step"
        rows = te.row_optimizer(module) if by_step else None
        for i in self.batches(module, prefetch=prefetch):
            self.step(module, i, outputs[i] if outputs else {})
            if rows is not None:
                rows.step()
                rows.zero_grad()

    def step(self, module: Any, i: int, outputs: Arrays) -> None:
        """Forward and backward of batch ``i``."""
        out = self.call(module, self.args[i])
        for name, expected in outputs.items():
            got = out[name].detach().numpy()
            assert np.array_equal(got.view(np.int32), expected.view(np.int32)), (
                f"batch {i}, feature {name!r}: the forward differs"
            )
        torch.autograd.backward(list(out.values()), [self.gradients[i][f] for f in out])


def train(
    stream: Stream,
    recipe: Recipe,
    tiers: te.Tiers,
    outputs: tuple[Arrays, ...] | None,
    **options: Any,
) -> tuple[str, te.Stats]:
    """Digest and counts of a module on the CPU that trained a stream ahead of the loop."""
    with make_module(
        stream.tables, tiers, recipe.optimizer, device="cpu", **recipe.options(), **options
    ) as module:
        Prepared(stream).train(module, outputs)
        assert module.stats().steps == len(stream.batches)
        return module.digest(), module.stats()
