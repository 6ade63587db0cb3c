"""Public calls with arguments gone wrong: documented exceptions only, and nothing changes.

A call is a good one in which some arguments are replaced. Where it is refused, the module's digest
is what it was; now and then a good step shows that it still trains.
"""

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tiered_embed as te
from fuzz_values import Values
from report import Report

ROWS, DIM = 30, 4
TRAIN_ONE_IN = 50
RENEW_AFTER = 4000  # calls: the modules of a target are made anew

# Beside TieredEmbedError; load_state_dict is torch's own.
ALLOWED: dict[str, tuple[type[Exception], ...]] = {
    "load": (FileNotFoundError,),
    "verify": (FileNotFoundError,),
    "prune": (FileNotFoundError,),
    "load_state_dict": (TypeError, RuntimeError, AttributeError),  # nn.Module's own
}

Call = tuple[Callable[..., Any], dict[str, Any]]


class Target:
    """One module and the calls that it takes."""

    def __init__(self, name: str, folder: Path, draw: random.Random) -> None:
        self._draw = draw
        self.folder = folder
        self.module = _MODULES[name](te.Tiers(ddr=12 * 8 * DIM, ssd=folder / name, store="memory"))
        self.name = name

    def good_ids(self) -> torch.Tensor:
        return torch.tensor([self._draw.randrange(ROWS) for _ in range(6)])

    def forward_arguments(self) -> dict[str, Any]:
        ids, offsets = self.good_ids(), torch.tensor([0, 2, 2])
        if self.name == "bag":
            return {"input": ids, "offsets": offsets, "per_sample_weights": torch.ones(6)}
        if self.name == "embedding":
            return {"input": ids}
        pair = (ids, offsets)
        return {"features": {"viewer": pair, "author": pair, "item": pair}}

    def forward(self, **arguments: Any) -> Any:
        if self.name == "collection":
            return self.module(arguments["features"])
        return self.module(*arguments.values())

    def forward_and_backward(self, grad: Any, **arguments: Any) -> None:
        out = self.forward(**arguments)
        outs = list(out.values()) if isinstance(out, dict) else [out]
        number = float(grad) if isinstance(grad, (int, float)) else float("nan")
        grads = [torch.full(o.shape, number, dtype=torch.float64).to(o.dtype) for o in outs]
        torch.autograd.backward(outs, grads)

    def train(self) -> None:
        self.forward_and_backward(0.5, **self.forward_arguments())

    def loop(self, value: Any) -> None:
        for _ in te.prefetch([0], self.module, ids=lambda _: {self.module: value}):
            pass

    def prefetched(self) -> Any:
        arguments = self.forward_arguments()
        if self.name == "bag":
            return tuple(arguments.values())
        return next(iter(arguments.values()))

    def close(self) -> None:
        self.module.close()


def _bag(tiers: te.Tiers) -> te.TieredEmbeddingBag:
    return te.TieredEmbeddingBag(
        ROWS, DIM, tiers=tiers, optimizer=te.optim.Adagrad(lr=0.1), name="bag", num_threads=1
    )


def _embedding(tiers: te.Tiers) -> te.TieredEmbedding:
    return te.TieredEmbedding(
        None, DIM, tiers=tiers, optimizer=te.optim.SGD(lr=0.1), name="emb", num_threads=1
    )


def _collection(tiers: te.Tiers) -> te.TieredEmbeddingBagCollection:
    return te.TieredEmbeddingBagCollection(
        [
            te.TableConfig("user", ROWS, DIM, ["viewer", "author"]),
            te.TableConfig("item", None, DIM, mode="mean"),
        ],
        tiers=tiers,
        optimizer=te.optim.RowWiseAdagrad(lr=0.1),
        num_threads=1,
    )


_MODULES: dict[str, Callable[[te.Tiers], Any]] = {
    "bag": _bag,
    "embedding": _embedding,
    "collection": _collection,
}


def calls_of(target: Target) -> dict[str, Call]:
    """Name -> (callable, good arguments)."""
    module, table = target.module, {"collection": "user"}.get(target.name)
    rows = np.arange(5)
    some = torch.zeros(5, DIM)
    forward = target.forward_arguments()
    saved = target.folder / "saved"
    return {
        "forward": (target.forward, forward),
        "backward": (target.forward_and_backward, {"grad": 0.5, **forward}),
        "rows": (module.rows, {"ids": rows, "table": table}),
        "optimizer_state": (module.optimizer_state, {"ids": rows, "table": table}),
        "load_rows": (
            module.load_rows,
            {"ids": rows, "weights": some, "state": None, "table": table},
        ),
        "import_rows": (module.import_rows, {"chunks": [(rows, some)], "table": table}),
        "prefetch": (target.loop, {"value": target.prefetched()}),
        "load_state_dict": (module.load_state_dict, {"state_dict": module.state_dict()}),
        "save": (
            te.checkpoint.save,
            {"model": module, "path": saved, "step": 10**9, "extra": {"a": some}},
        ),
        "load": (te.checkpoint.load, {"model": module, "path": saved, "step": None}),
        "verify": (te.checkpoint.verify, {"path": saved, "step": None}),
        "prune": (te.checkpoint.prune, {"path": saved, "keep": 1}),
    }


def constructors() -> dict[str, Call]:
    """Configuration and modules without files."""
    tiers = te.Tiers(ddr="1MiB")
    module = {
        "num_embeddings": ROWS,
        "embedding_dim": DIM,
        "tiers": tiers,
        "optimizer": te.optim.SGD(lr=0.1),
        "name": "table",
        "seed": 0,
        "init": te.init.Uniform(-0.1, 0.1),
        "dtype": torch.float32,
        "output_dtype": None,
        "rounding": "nearest",
        "policy": "lru",
        "lookahead": 2,
        "depth": 1,
        "bounds_check": "raise",
        "padding_idx": None,
        "max_norm": None,
        "norm_type": 2.0,
        "scale_grad_by_freq": False,
        "on_nonfinite": "raise",
    }
    return {
        "Tiers": (te.Tiers, {"hbm": None, "ddr": "1MiB", "ssd": None}),
        "TableConfig": (
            te.TableConfig,
            {
                "name": "t",
                "num_embeddings": ROWS,
                "embedding_dim": DIM,
                "feature_names": ("f",),
                "mode": "sum",
                "padding_idx": None,
            },
        ),
        "Uniform": (te.init.Uniform, {"lo": -0.1, "hi": 0.1}),
        "Constant": (te.init.Constant, {"value": 0.5}),
        "SGD": (te.optim.SGD, {"lr": 0.1, "weight_decay": 0.0}),
        "Adagrad": (te.optim.Adagrad, {"lr": 0.1, "eps": 1e-8}),
        "Adam": (te.optim.Adam, {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}),
        "TieredEmbeddingBag": (_bag_of, {**module, "mode": "sum", "include_last_offset": False}),
        "TieredEmbedding": (_embedding_of, module),
        "TieredEmbeddingBagCollection": (
            _collection_of,
            {
                "tables": [te.TableConfig("a", ROWS, DIM)],
                "tiers": tiers,
                "optimizer": te.optim.SGD(lr=0.1),
            },
        ),
    }


def _bag_of(**options: Any) -> None:
    te.TieredEmbeddingBag(**options).close()


def _embedding_of(**options: Any) -> None:
    te.TieredEmbedding(**options).close()


def _collection_of(**options: Any) -> None:
    te.TieredEmbeddingBagCollection(**options).close()


class Fuzzer:
    def __init__(self, seed: int, folder: Path, report: Report) -> None:
        self._draw = random.Random(seed)
        self._values = Values(self._draw)
        self._folder = folder
        self._report = report
        self._targets: list[Target] = []
        self._digests: dict[str, str] = {}
        self._made = 0

    def _renew(self) -> None:
        self.close()
        folder = self._folder / str(self._made)
        self._made += 1
        self._targets = [Target(name, folder, self._draw) for name in _MODULES]
        for target in self._targets:
            target.train()
            used = te.checkpoint.list(folder / "saved")
            free = next(step for step in range(len(used) + 1) if step not in used)
            te.checkpoint.save(target.module, folder / "saved", step=free)
            self._digests[target.name] = target.module.digest()

    def _spoiled(self, arguments: dict[str, Any]) -> dict[str, Any]:
        out = dict(arguments)
        names = list(out)
        for name in self._draw.sample(names, min(len(names), self._draw.choice([1, 1, 1, 2, 3]))):
            out[name] = self._spoil(out[name])
        return out

    def _spoil(self, value: Any) -> Any:
        if isinstance(value, dict) and value and self._draw.random() < 0.8:
            return self._spoil_dict(value)
        if isinstance(value, (list, tuple)) and value and self._draw.random() < 0.8:
            parts = list(value)
            i = self._draw.randrange(len(parts))
            parts[i] = self._spoil(parts[i])
            return type(value)(parts) if self._draw.random() < 0.9 else parts[:-1]
        if isinstance(value, torch.Tensor) and value.numel() and self._draw.random() < 0.4:
            return self._spoil_tensor(value)
        return self._values.any()

    def _spoil_dict(self, value: dict[Any, Any]) -> dict[Any, Any]:
        out = dict(value)
        key = self._draw.choice(list(out))
        what = self._draw.random()
        if what < 0.7:
            out[key] = self._spoil(out[key])
        elif what < 0.85:
            del out[key]
        else:
            out[self._values.string()] = self._values.any()
        return out

    def _spoil_tensor(self, value: torch.Tensor) -> torch.Tensor:
        """One element of a good tensor is another."""
        out = value.clone()
        flat = out.reshape(-1)
        at = self._draw.randrange(flat.numel())
        if out.dtype.is_floating_point:
            flat[at] = torch.tensor(self._values.float(), dtype=torch.float64).to(out.dtype)
        elif out.dtype != torch.bool:
            number = self._values.number()
            flat[at] = (number + 2**63) % 2**64 - 2**63 if out.dtype == torch.int64 else 127
        return out

    def one_call(self) -> None:
        if self._draw.random() < 0.2:
            self._attempt(None, constructors())
        else:
            target = self._draw.choice(self._targets)
            self._attempt(target, calls_of(target))

    def _attempt(self, target: Target | None, calls: dict[str, Call]) -> None:
        name = self._draw.choice(list(calls))
        function, good = calls[name]
        arguments = self._spoiled(good)
        where = name if target is None else f"{target.name}.{name}"
        refused = True
        try:
            function(**arguments)
            refused = False
        except te.TieredEmbedError:
            pass
        except Exception as error:
            if not isinstance(error, ALLOWED.get(name, ())):
                self._unexpected(where, arguments, error)
        self._report.count("refused" if refused else "accepted")
        if target is None:
            return
        digest = target.module.digest()
        if refused and digest != self._digests[target.name]:
            self._report.fail(f"{where}({_shown(arguments)}) was refused, but changed rows")
        if self._draw.randrange(TRAIN_ONE_IN) == 0:
            self._good_step(target)
            digest = target.module.digest()
        self._digests[target.name] = digest

    def _good_step(self, target: Target) -> None:
        try:
            target.train()
        except te.NonFiniteError:  # rows that an accepted call has filled with NaN
            target.module.load_rows(np.arange(ROWS), torch.zeros(ROWS, DIM), table=_first(target))

    def _unexpected(self, where: str, arguments: dict[str, Any], error: Exception) -> None:
        self._report.fail(f"{where}({_shown(arguments)}): {type(error).__name__}: {error}"[:600])

    def run(self, count: int) -> None:
        for number in range(count):
            if number % RENEW_AFTER == 0:
                self._renew()
            self.one_call()
        self.close()

    def close(self) -> None:
        for target in self._targets:
            target.close()


def _first(target: Target) -> str:
    return "user" if target.name == "collection" else str(target.module.engine.tables[0].name)


def _shown(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{k}={str(v)[:120]!s}" for k, v in arguments.items())


def run(count: int, seed: int, folder: Path) -> Report:
    report = Report()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Fuzzer(seed, folder, report).run(count)
    return report
