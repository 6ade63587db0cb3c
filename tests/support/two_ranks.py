"""A small model with a dense part, trained in one process or on a rank of two.

A process that ``torch.multiprocessing`` spawns imports what it runs by name; a test module has none
that it could find, so the ranks run from here.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tiered_embed as te
from tiered_embed.optim.adam import Adam

ROWS, DIM, STEPS = 40, 6, 3


def make(ssd: Path, kind: Any = te.TieredEmbeddingBag, **options: Any) -> Any:
    tiers = te.Tiers(ddr=8 * 4 * 3 * DIM, ssd=ssd, store="memory")
    options = {"optimizer": Adam(lr=0.1), "num_threads": 1, "rank_local": True, **options}
    return kind(ROWS, DIM, tiers=tiers, **options)


class Model(nn.Module):
    """Rows twice: with weights that are computed, and as they are."""

    def __init__(self, bag: nn.Module, embedding: nn.Module) -> None:
        super().__init__()
        self.bag, self.embedding = bag, embedding
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.top = nn.Linear(2 * DIM, 1)
        with torch.no_grad():
            self.top.weight.copy_(torch.linspace(-1, 1, 2 * DIM)[None])
            self.top.bias.zero_()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        weights = torch.sigmoid(self.scale * torch.ones(ids.shape))
        rows = torch.relu(self.embedding(ids).mean(1) + 1)
        return self.top(torch.cat([self.bag(ids, None, weights), rows], 1)).squeeze(1)


def ids_of(step: int, rank: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * rank + step)
    return torch.randint(0, ROWS, (5, 3), generator=generator)


def loss_of(model: nn.Module, step: int, rank: int = 0) -> torch.Tensor:
    return (model(ids_of(step, rank)) - 1).square().mean()


def train(model: nn.Module, rank: int = 0) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, step, rank).backward()
        optimizer.step()


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    try:
        with (
            make(folder / f"bag {rank}") as bag,
            make(folder / f"embedding {rank}", te.TieredEmbedding) as embedding,
        ):
            model = Model(bag, embedding)
            train(nn.parallel.DistributedDataParallel(model), rank)
            found = {
                "dense": [p.tolist() for p in model.parameters()],
                "digests": [bag.digest(), embedding.digest()],
            }
        (folder / f"{rank}.json").write_text(json.dumps(found))
    finally:
        torch.distributed.destroy_process_group()


def run_refused(rank: int, folder: Path) -> None:
    """Writes what each kind of module says to a training forward, wrapped or not."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    ids = ids_of(0, rank)
    told: dict[str, str] = {}

    def call(name: str, module: Any, *args: Any) -> None:
        try:
            out = module(*args)
            (next(iter(out.values())) if isinstance(out, dict) else out).sum().backward()
            told[name] = ""
        except te.ConfigError as error:
            told[name] = str(error)

    try:
        plain = {"tiers": te.Tiers(ddr="1MiB"), "optimizer": Adam(lr=0.1)}
        bag = te.TieredEmbeddingBag(ROWS, DIM, **plain)
        embedding = te.TieredEmbedding(ROWS, DIM, **plain)
        table = te.TableConfig("user", ROWS, DIM)
        collection = te.TieredEmbeddingBagCollection([table], **plain)
        model = Model(bag, embedding)
        call("bag", bag, ids)
        call("embedding", embedding, ids)
        call("collection", collection, {"user": ids})
        call("DistributedDataParallel", nn.parallel.DistributedDataParallel(model), ids)
        batches = te.prefetch([ids], bag, ids=lambda batch: {bag: batch})
        call("prefetch", lambda: bag(next(iter(batches))))
        with torch.no_grad():
            assert bag(ids).shape == (5, DIM)
        assert embedding.eval()(ids).shape == (5, 3, DIM)
        frozen = te.TieredEmbeddingBag(ROWS, DIM, **{**plain, "optimizer": None})
        assert frozen(ids).shape == (5, DIM)
        call("rank_local", te.TieredEmbedding(ROWS, DIM, rank_local=True, **plain), ids)
        (folder / f"{rank}.json").write_text(json.dumps(told))
    finally:
        torch.distributed.destroy_process_group()
