"""``extra``: what a user stores in addition to the rows, as JSON and safetensors. Never a pickle.

Nested dicts (with str, int, float, bool or None keys), lists, tuples, tensors, NumPy arrays and
JSON scalars come back as they were given. ``extra.json`` holds the structure, in which every
container is tagged (``{"dict": [[key, value], ...]}``); ``extra.safetensors`` holds the tensors, by
number.

Threading: pure functions, but for the random generators that ``restore_rng`` sets.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from ..errors import ConfigError, CorruptionError
from ..store import os_errors

__all__ = ["encode", "read", "restore_rng", "rng_state"]

JSON, TENSORS = "extra.json", "extra.safetensors"
SCALARS = (str, int, float, bool, type(None))
MOST_DEPTH = 64  # containers in containers


def encode(extra: Any) -> dict[str, bytes]:
    """The files of ``extra``, name -> content. Tensors are copied, so later changes do not matter.

    Raises:
        ConfigError: a value of another type, or a sparse or quantised tensor.
    """
    tensors: dict[str, torch.Tensor] = {}
    try:
        text = json.dumps(_tree(extra, tensors, "extra", 0))
        packed = safetensors.torch.save(tensors)
        return {JSON: text.encode(), TENSORS: packed}
    except (ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"extra cannot be stored: {error!r}") from error


def read(folder: Path) -> Any:
    """What :func:`encode` was given. REQUIRES: the files match their digests."""
    try:
        with os_errors(f"cannot read '{folder / JSON}'"):
            tree = json.loads((folder / JSON).read_bytes())
        with os_errors(f"cannot read '{folder / TENSORS}'"):
            tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
        return _value(tree, tensors)
    except (
        *(ValueError, KeyError, TypeError, AttributeError, RecursionError),
        safetensors.SafetensorError,
    ) as error:
        raise CorruptionError(
            f"the extra in '{folder}' is not readable ({error!r}); restore an earlier step"
        ) from error


def rng_state() -> dict[str, Any]:
    """The states of the generators of Python, NumPy (the global one) and torch (CPU)."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 (the global generator, which loaders use)
        "torch": torch.random.get_rng_state(),
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Sets the generators to the states that :func:`rng_state` returned.

    Raises:
        ConfigError: ``state`` does not come from there.
    """
    try:
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])  # noqa: NPY002
        torch.random.set_rng_state(state["torch"])
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"this state was not made by te.checkpoint.rng_state: {error!r}"
        ) from error


def _tree(value: Any, tensors: dict[str, torch.Tensor], where: str, depth: int) -> Any:
    if depth > MOST_DEPTH:
        raise ConfigError(f"extra is nested deeper than {MOST_DEPTH}, or contains itself")
    if isinstance(value, (np.ndarray, torch.Tensor)):
        name = str(len(tensors))
        tensors[name] = _tensor(value, where)
        return {"array" if isinstance(value, np.ndarray) else "tensor": name}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, SCALARS):
        return {"value": value}
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, SCALARS):
                raise ConfigError(f"{where} has the key {key!r}; keys must be strings or numbers")
        pairs = [[k, _tree(v, tensors, f"{where}[{k!r}]", depth + 1)] for k, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_tree(v, tensors, f"{where}[{i}]", depth + 1) for i, v in enumerate(value)]}
    raise ConfigError(
        f"{where} is a {type(value).__name__}; extra takes dicts, lists, tuples, tensors, arrays, "
        "strings and numbers"
    )


def _tensor(value: np.ndarray[Any, Any] | torch.Tensor, where: str) -> torch.Tensor:
    try:
        tensor = torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise TypeError(f"layout {tensor.layout}, device {tensor.device}")
        return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(f"{where} cannot be stored as a dense tensor: {error}") from error


def _value(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    ((kind, inner),) = tree.items()
    if kind == "value":
        return inner
    if kind == "tensor":
        return tensors[inner]
    if kind == "array":
        return tensors[inner].numpy()
    if kind == "dict":
        return {k: _value(v, tensors) for k, v in inner}
    if kind in ("list", "tuple"):
        items = [_value(v, tensors) for v in inner]
        return tuple(items) if kind == "tuple" else items
    raise ValueError(f"unknown kind {kind!r}")
