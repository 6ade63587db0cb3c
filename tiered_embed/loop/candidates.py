"""Finds the embedding modules of a model, and decides which can be replaced with nothing lost.

It changes nothing; :mod:`.swapping` replaces the candidates that it finds.

Threading: the caller's thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..spec import DTYPES

__all__ = ["CARRIED_HOOKS", "OWN_OPTIONS", "Candidate", "find", "is_embedding"]

ROW_DTYPES = tuple(dtype for dtype in DTYPES if dtype.is_floating_point)
# Hooks that the tiered module takes over. Modules with any of the others are left as they are.
CARRIED_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
OTHER_HOOKS = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
# TorchRec's classes of collections, and the attribute that holds the tables of each.
COLLECTIONS = {"EmbeddingBagCollection": "embedding_bags", "EmbeddingCollection": "embeddings"}
# Engine options that torch's modules have as arguments of their own. A tiered collection has one
# value of each for all tables, so the tables must agree.
OWN_ARGUMENTS = ("max_norm", "norm_type", "scale_grad_by_freq")
# All options that follow from the module that is replaced: these, and what its weight decides.
OWN_OPTIONS = (*OWN_ARGUMENTS, "dtype", "output_dtype", "init")


@dataclass
class Candidate:
    """A module that might be replaced.

    paths: its places in the model. tables: the embedding or bag of each table, by name.
    weight_paths: per path, the name of each table's parameter. reason: why the module is left;
    empty where it can be replaced.
    """

    module: nn.Module
    paths: list[str]
    tables: dict[str, nn.Module]
    weight_paths: list[list[str]]
    reason: str = ""

    @property
    def first(self) -> Any:
        """Any table, for what all of them agree in."""
        return next(iter(self.tables.values()))

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of its arguments that are engine options too."""
        return {name: getattr(self.first, name) for name in OWN_ARGUMENTS}

    @property
    def frozen(self) -> bool:
        return not self.first.weight.requires_grad

    def shape(self, table: str) -> tuple[int, int]:
        """(rows, D)."""
        module: Any = self.tables[table]
        weight = module._parameters.get("weight")
        if type(weight) is nn.Parameter and weight.dim() == 2:
            return weight.shape[0], weight.shape[1]
        return int(module.num_embeddings), int(module.embedding_dim)

    def weight_bytes(self, table: str) -> int:
        weight = self.tables[table]._parameters.get("weight")
        rows, dim = self.shape(table)
        return 0 if weight is None else rows * dim * weight.dtype.itemsize


def _torchrec(name: str) -> tuple[type[Any], ...]:
    """A class of TorchRec's; none unless the program has imported it, as it must to use it."""
    module = sys.modules.get("torchrec.modules.embedding_modules")
    found = getattr(module, name, None)
    return () if found is None else (found,)


def _children(collection: nn.Module) -> tuple[str, dict[str, nn.Module]]:
    """The attribute in which one of TorchRec's collections has its tables, and these by name."""
    for attribute in COLLECTIONS.values():
        children = getattr(collection, attribute, None)
        if isinstance(children, nn.ModuleDict):
            return attribute, dict(children.items())
    return "", {}


def is_embedding(module: nn.Module) -> bool:
    """Whether :func:`find` would take this for a candidate."""
    collections = [kind for name in COLLECTIONS for kind in _torchrec(f"{name}Interface")]
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag, *collections))


def find(
    modules: Mapping[str, nn.Module],
    include: Callable[[str, nn.Module], bool] | None,
    min_bytes: int,
    device: str = "cpu",
) -> list[Candidate]:
    """Every embedding, bag and collection among ``modules``, in the model's order.

    Args:
        modules: every module of the model by path; a shared one under each of its paths.
        include, min_bytes: as in :func:`~tiered_embed.swap`.
        device: the type of the device that the tiered modules compute on.
    """
    found: dict[int, Candidate] = {}
    inside: tuple[str, ...] = ()  # what is in a collection are its tables, not candidates
    for path, module in modules.items():
        if path.startswith(inside) or not is_embedding(module):
            continue
        tables, weights = {path: module}, {path: f"{path}.weight"}
        if not isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            inside = (*inside, f"{path}.")
            attribute, children = _children(module)
            tables = {f"{path}.{name}": child for name, child in children.items()}
            weights = {f"{path}.{name}": f"{path}.{attribute}.{name}.weight" for name in children}
        mine = found.setdefault(id(module), Candidate(module, [], tables, []))
        mine.paths.append(path)
        mine.weight_paths.append(list(weights.values()))
    tensors = _tensors(modules)
    for candidate in found.values():
        candidate.reason = _why_left(candidate, tensors, include, min_bytes, device)
    return list(found.values())


class _Held(NamedTuple):
    """A parameter or buffer of the model. span: as :func:`_span`."""

    path: str
    tensor: torch.Tensor
    span: tuple[int, int] | None


def _tensors(modules: Mapping[str, nn.Module]) -> list[_Held]:
    """Every parameter and buffer with its path; a shared one once per path."""
    return [
        _Held(f"{path}.{name}" if path else name, tensor, _span(tensor))
        for path, module in modules.items()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    ]


def _why_left(
    found: Candidate,
    tensors: Sequence[_Held],
    include: Callable[[str, nn.Module], bool] | None,
    min_bytes: int,
    device: str,
) -> str:
    if include is not None and not include(found.paths[0], found.module):
        return "include returned False"
    tables = found.tables.values()
    collections = [kind for name in COLLECTIONS for kind in _torchrec(name)]
    reason = _not_plain(found.module, collections)
    for table in tables:
        reason = reason or _not_plain(table) or _unfit_weight(table, device)
        # After a swap nobody calls a collection's tables: even hooks that could move would not run.
        carried = () if table is found.module else CARRIED_HOOKS
        reason = reason or _hooks(table, *OTHER_HOOKS, *carried)
    reason = reason or _hooks(found.module, *OTHER_HOOKS)
    if reason or not tables:
        return reason or "it has no tables"
    size = sum(found.weight_bytes(table) for table in found.tables)
    if size < min_bytes:
        return f"its {size} bytes are below min_bytes={min_bytes}"
    for i, table in enumerate(tables):
        mine = {paths[i] for paths in found.weight_paths}
        weight = _get(table, "weight")
        span = _span(weight)
        for other in tensors:
            if _overlap(weight, span, other) and other.path not in mine:
                return f"its weight is shared with {other.path!r}"
    for what in ("weight.dtype", "weight.requires_grad", *OWN_ARGUMENTS):
        values = {_get(table, what) for table in tables}
        if len(values) > 1:
            return f"its tables differ in {what}: {', '.join(sorted(map(str, values)))}"
    return ""


def _get(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _not_plain(module: nn.Module, collections: Sequence[type[Any]] = ()) -> str:
    """Why the module may do more than its class says."""
    if parametrize.is_parametrized(module):
        return "it is parametrized"
    if type(module) not in (nn.Embedding, nn.EmbeddingBag, *collections):
        return f"its class {type(module).__name__} may have a different forward"
    return "its forward was replaced" if "forward" in vars(module) else ""


def _hooks(module: nn.Module, *kinds: str) -> str:
    present = [kind for kind in kinds if getattr(module, kind)]
    return f"it has {present[0].strip('_').replace('_', ' ')}" if present else ""


def _unfit_weight(table: nn.Module, device: str) -> str:
    """Why the table's weight cannot become rows."""
    if set(table._parameters) != {"weight"} or table._buffers or table._modules:
        return "it is parametrized, or holds more than its weight"
    weight = table._parameters["weight"]
    if type(weight) is not nn.Parameter:
        return f"its weight is of type {type(weight).__name__}"
    if weight.device.type != device:
        return f"its weight is on {weight.device}, not on {device}"
    if weight.dtype not in ROW_DTYPES or weight.layout != torch.strided:
        return (
            f"its weight is {weight.dtype} with layout {weight.layout}; rows are dense float32, "
            "float16 or bfloat16"
        )
    if weight.dim() != 2 or not weight.numel():
        return f"its weight has shape {tuple(weight.shape)}; a table has rows and columns"
    if weight._backward_hooks or weight._post_accumulate_grad_hooks:
        return "its weight has gradient hooks"
    return ""


def _overlap(weight: nn.Parameter, span: tuple[int, int] | None, other: _Held) -> bool:
    """Whether the two may share memory, so that changing one changes the other."""
    if other.tensor is weight:
        return True
    if span is None or other.span is None:
        return False
    (a, b), (c, d) = span, other.span
    return a < d and c < b and other.tensor.device == weight.device


def _span(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Addresses of the first byte and of the one after the last; None where they say nothing."""
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return None
    if not tensor.numel():
        return None
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()
