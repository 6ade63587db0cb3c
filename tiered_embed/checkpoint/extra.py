"""``extra``: what a user stores in addition to the rows, as JSON and safetensors. Never a pickle.

What comes back equals what was given, type by type, or the save refuses it: None, bool, int, float,
str; NumPy scalars and arrays; tensors and parameters, which come back dense, detached and on the
CPU; list, tuple, ``torch.Size``; dict, Counter, and OrderedDict, to which a ``state_dict`` gives an
attribute ``_metadata`` that comes back, too. Keys are None, bool, int, float or str. Subclasses of
these, such as named tuples, enumerations and masked arrays, are refused: to bring them back would
take a pickle.

``extra.json`` holds the structure, in which every container is tagged
(``{"dict": [[key, value], ...]}``); ``extra.safetensors`` holds the tensors, by number.

Threading: pure functions, but for the random generators that ``restore_rng`` sets.
"""

from __future__ import annotations

import functools
import json
import random
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from ..errors import ConfigError, CorruptionError
from ..store import os_errors

__all__ = ["encode", "read", "restore_rng", "rng_state"]

JSON, TENSORS = "extra.json", "extra.safetensors"
SCALARS = (str, int, float, bool, type(None))
MOST_DEPTH = 64  # containers in containers

_MAPPINGS: dict[type, str] = {dict: "dict", OrderedDict: "ordered", Counter: "counter"}
_SEQUENCES: dict[type, str] = {list: "list", tuple: "tuple", torch.Size: "size"}


def encode(extra: Any) -> dict[str, bytes]:
    """The files of ``extra``, name -> content. Tensors are copied, so later changes do not matter.

    Raises:
        ConfigError: a value of another type, a sparse or quantised tensor, or a dtype that
            safetensors lacks.
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
            f"the extra in '{folder}' is not readable ({error!r}); restore an earlier step, or the "
            "rows alone with te.checkpoint.load(model, path, extra=False)"
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


_REMEDIES = {
    tuple: "pass tuple(...) of it, or a dict of its fields",
    list: "pass list(...) of it",
    dict: "pass dict(...) of it",
    str: "pass str(...) of it, or its .value",
    float: "pass float(...) of it, or its .value",
    int: "pass int(...) of it, or its .value",
    np.ndarray: "pass numpy.asarray(...) of its parts",
    torch.Tensor: "pass a plain tensor of its values",
}


def _refused(value: Any, where: str) -> ConfigError:
    """Of a value that would not come back as it is."""
    kind = type(value)
    for base, remedy in _REMEDIES.items():
        if isinstance(value, base):
            return ConfigError(
                f"{where} is a {kind.__name__}, which would come back as a plain "
                f"{base.__name__}; {remedy}"
            )
    return ConfigError(
        f"{where} is a {kind.__name__}; extra takes dicts, lists, tuples, tensors, arrays, strings "
        "and numbers"
    )


def _tree(value: Any, tensors: dict[str, torch.Tensor], where: str, depth: int) -> Any:
    if depth > MOST_DEPTH:
        raise ConfigError(f"extra is nested deeper than {MOST_DEPTH}, or contains itself")
    kind = type(value)
    if kind in SCALARS:
        return {"value": value}
    if kind in _MAPPINGS:
        tag, pairs = _MAPPINGS[kind], _pairs(value, tensors, where, depth)
        metadata = getattr(value, "_metadata", None)  # a state_dict has it
        if metadata is None:
            return {tag: pairs}
        inner = _tree(metadata, tensors, f"{where}._metadata", depth + 1)
        return {"state_dict": [pairs, inner]}
    if kind in _SEQUENCES:
        items = [_tree(v, tensors, f"{where}[{i}]", depth + 1) for i, v in enumerate(value)]
        return {_SEQUENCES[kind]: items}
    if kind is np.ndarray or isinstance(value, np.generic):
        name = _add(_array(value, where), tensors)
        return {"array" if kind is np.ndarray else "scalar": name}
    if kind is torch.Tensor:
        return {"tensor": _add(_tensor(value, where), tensors)}
    if kind is nn.Parameter:
        return {"parameter": [_add(_tensor(value, where), tensors), value.requires_grad]}
    raise _refused(value, where)


def _pairs(
    value: dict[Any, Any], tensors: dict[str, torch.Tensor], where: str, depth: int
) -> list[Any]:
    for key in value:
        if type(key) not in SCALARS:
            raise ConfigError(
                f"{where} has the key {key!r}, a {type(key).__name__}; keys must be plain strings "
                "or numbers"
            )
    return [[k, _tree(v, tensors, f"{where}[{k!r}]", depth + 1)] for k, v in value.items()]


def _add(tensor: torch.Tensor, tensors: dict[str, torch.Tensor]) -> str:
    name = str(len(tensors))
    tensors[name] = tensor
    return name


def _array(value: Any, where: str) -> torch.Tensor:
    try:
        array = np.array(value, order="C")
        tensor = torch.from_numpy(array)
        if tensor.numpy().dtype != array.dtype or not _is_storable(tensor.dtype):
            raise TypeError(f"dtype {array.dtype}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{where}, of dtype {value.dtype}, cannot be stored: {error}") from error
    return tensor


def _tensor(value: torch.Tensor, where: str) -> torch.Tensor:
    try:
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise TypeError(f"layout {value.layout}, device {value.device}")
        if not _is_storable(value.dtype):
            raise TypeError(
                f"safetensors has no {value.dtype}; pass x.view(torch.uint8), or x.float()"
            )
        # Conjugates, negated views and zeros without memory become the values they stand for.
        plain = value.detach().resolve_conj().resolve_neg().cpu()
        copy = torch.empty(plain.shape, dtype=plain.dtype, device="cpu")
        return copy.copy_(plain)
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(f"{where} cannot be stored as a dense tensor: {error}") from error


@functools.cache
def _is_storable(dtype: torch.dtype) -> bool:
    """Whether a tensor comes back: safetensors writes some dtypes that it cannot read."""
    try:
        one = torch.zeros(16, dtype=torch.uint8, device="cpu").view(dtype)
        return bool(safetensors.torch.load(safetensors.torch.save({"x": one}))["x"].dtype == dtype)
    except (TypeError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError):
        return False


def _value(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    ((kind, inner),) = tree.items()
    if kind == "value":
        return inner
    if kind == "tensor":
        return tensors[inner]
    if kind == "parameter":
        name, requires_grad = inner
        return nn.Parameter(tensors[name], bool(requires_grad))
    if kind == "array":
        return tensors[inner].numpy()
    if kind == "scalar":
        return tensors[inner].numpy()[()]
    if kind == "state_dict":
        pairs, metadata = inner
        out = _mapping(OrderedDict, pairs, tensors)
        out._metadata = _value(metadata, tensors)
        return out
    for mapping, tag in _MAPPINGS.items():
        if kind == tag:
            return _mapping(mapping, inner, tensors)
    for sequence, tag in _SEQUENCES.items():
        if kind == tag:
            return sequence([_value(v, tensors) for v in inner])
    raise ValueError(f"unknown kind {kind!r}")


def _mapping(kind: Any, pairs: list[Any], tensors: dict[str, torch.Tensor]) -> Any:
    out = kind()
    for key, value in pairs:
        out[key] = _value(value, tensors)
    return out
