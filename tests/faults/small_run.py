"""A small training run with checkpoints, the same bits however often it is killed.

Three tables in two pools below a dense layer with momentum and noise from torch's generator, so
that a checkpoint has rows, optimizer state, dense weights and a generator to bring back.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import tiered_embed as te

NUM_BAGS, LR, MOMENTUM = 6, 0.05, 0.5
FEATURES = ("user", "item", "tag")


@dataclass(frozen=True)
class Shape:
    """What may differ between two runs of the same bits."""

    ddr: int | str = 3000
    policy: str = "lookahead"
    lookahead: int = 3
    depth: int = 1
    store: str = "auto"
    hbm: int | None = None


SHAPES = (
    Shape(),
    Shape(ddr=6000, policy="lru", lookahead=0, depth=0),
    Shape(ddr="1MiB", policy="s3fifo"),
    Shape(ddr=4500, policy="lfu", lookahead=2, depth=2),
    Shape(hbm=1800, ddr=2500),
    Shape(hbm=3000, ddr="1MiB", policy="lru", lookahead=2, depth=2),
)


class Model(nn.Module):
    """``folder``: the working directory of its SSD tier."""

    def __init__(self, folder: Path, shape: Shape = SHAPES[0]) -> None:
        super().__init__()
        self.emb = te.TieredEmbeddingBagCollection(
            [
                te.TableConfig("user", None, 8),
                te.TableConfig("item", 700, 8, mode="mean"),
                te.TableConfig("tag", 90, 4, mode="max"),
            ],
            tiers=te.Tiers(shape.hbm, shape.ddr, folder, store=shape.store),  # type: ignore[arg-type]
            device="cpu",
            kernel="native",
            optimizer=te.optim.Adagrad(lr=0.05),
            policy=shape.policy,
            lookahead=shape.lookahead,
            depth=shape.depth,
            num_threads=1,
        )
        generator = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.randn(20, generator=generator) * 0.1)
        self.velocity = torch.zeros(20)

    def forward(self, args: Any) -> torch.Tensor:
        out = self.emb(args)
        return torch.cat([out[f] for f in FEATURES], dim=1) @ self.weight

    def close(self) -> None:
        self.emb.close()


@cache
def batch(number: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """ids and offsets per feature of batch ``number``, from 1."""
    rng = np.random.default_rng(number)
    out = {}
    for feature, high in zip(FEATURES, (2000, 700, 90), strict=True):
        ids = (rng.random(24) ** 3 * high).astype(np.int64)
        if feature == "user":
            ids = ids * -7919
        offsets = np.sort(rng.integers(0, 24, NUM_BAGS))
        offsets[0] = 0
        out[feature] = (torch.from_numpy(ids), torch.from_numpy(offsets))
    return out


def start(model: Model) -> None:
    """What a fresh run begins with beside its tables."""
    torch.manual_seed(11)


def train_one(model: Model, number: int) -> str:
    """One step; returns the loss's bits."""
    target = torch.linspace(-1, 1, NUM_BAGS) * (1 + number % 5)
    loss = ((model(batch(number)) + 0.1 * torch.rand(NUM_BAGS) - target) ** 2).mean()
    loss.backward()
    with torch.no_grad():
        assert model.weight.grad is not None
        model.velocity.mul_(MOMENTUM).add_(model.weight.grad)
        model.weight -= LR * model.velocity
        model.weight.grad = None
    return float(loss).hex()


def numbers(model: Model, first: int, last: int) -> Iterable[int]:
    """Batch numbers first … last, with their rows staged ahead."""
    return te.prefetch(range(first, last + 1), model, ids=lambda n: {model.emb: batch(n)})


def extra_of(model: Model) -> dict[str, Any]:
    """Everything of a run that is not rows."""
    return {
        "dense": {"weight": model.weight.detach().clone(), "velocity": model.velocity.clone()},
        "rng": torch.get_rng_state(),
        "note": {"who": "small run", "numbers": [1, 2.5, None, True]},
    }


def restore(model: Model, extra: Any) -> None:
    with torch.no_grad():
        model.weight.copy_(extra["dense"]["weight"])
        model.velocity.copy_(extra["dense"]["velocity"])
    torch.set_rng_state(extra["rng"])


def resume(model: Model, saved: Path) -> int:
    """Brings the last committed step back; returns it."""
    found = te.checkpoint.load(model, saved)
    restore(model, found["extra"])
    return int(found["step"])


def state_bits(model: Model) -> str:
    """Of everything that a run carries on: rows, dense weights, generator."""
    dense = torch.cat([model.weight.detach(), model.velocity]).numpy().tobytes().hex()
    return f"{model.emb.digest()} {dense} {torch.rand(1, generator=_copy_of_generator()).item()}"


def _copy_of_generator() -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    return generator


@dataclass(frozen=True)
class Truth:
    """Of an uninterrupted run: losses and states by step, from 1; state 0 is the fresh one."""

    losses: list[str]
    states: list[str]


def truth(folder: Path, num_steps: int) -> dict[str, list[str]]:
    """Runs without interruption; what ``Truth`` is made of."""
    model = Model(folder)
    start(model)
    losses, states = [""], [state_bits(model)]
    for number in numbers(model, 1, num_steps):
        losses.append(train_one(model, number))
        states.append(state_bits(model))
    model.close()
    return {"losses": losses, "states": states}


class Log:
    """Lines that outlive a kill, appended whole."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *words: object) -> None:
        os.write(self._fd, (" ".join(map(str, words)) + "\n").encode())


def read_log(path: Path) -> list[list[str]]:
    return [line.split(" ", 2) for line in path.read_text().splitlines()] if path.exists() else []


Check = Callable[[str], None]


def check_log(lines: list[list[str]], expected: Truth, fail: Check) -> int:
    """Compares ``state N bits`` and ``loss N bits`` lines; returns the last saved step, or 0."""
    saved = 0
    for what, step_text, *rest in lines:
        step = int(step_text)
        if what == "saved":
            saved = max(saved, step)
        elif what == "loss" and rest[0] != expected.losses[step]:
            fail(f"the loss of step {step} is {rest[0]}, not {expected.losses[step]}")
        elif what == "state" and rest[0] != expected.states[step]:
            fail(f"the state after step {step} differs from the uninterrupted run's")
    return saved
