"""Whether a batch still holds what it held when the loader yielded it.

``te.prefetch`` pulls batches long before the loop gets them. A loader that fills the same memory
again and again, or puts new tensors into the same container, has then changed the batches that are
waiting. :class:`Contents` notes what a batch holds, and tells later what has changed.

It reads tensors and arrays in host memory: whole up to 4 KiB, and some 512 elements beyond, since a
loader that fills a buffer changes most of them. Of a batch with very many, it reads some, drawn by
lot: a loader that fills one buffer again fills the others, too. Of tensors on a device, which
cannot be read without waiting for it, it compares torch's version count.

Threading: the thread that trains.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from itertools import islice
from random import Random
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["Contents"]

WHOLE_BYTES = 4096
SAMPLES = 512
MOST_READ = 64  # tensors and arrays of a batch
MOST_LEAVES = 4096
DEEPEST = 6
# Dtypes that NumPy lacks, of one and two bytes.
WITHOUT_NUMPY = {
    torch.bfloat16,
    *(t for t in vars(torch).values() if isinstance(t, torch.dtype) and "float8" in str(t)),
}
SCALARS = (int, float, complex, str, bytes, type(None))


class Contents:
    """What ``batch`` holds now."""

    def __init__(self, batch: object) -> None:
        found = list(_found(batch))
        arrays = [path for path, leaf in found if isinstance(leaf, (torch.Tensor, np.ndarray))]
        self._unread: set[str] = set()
        if len(arrays) > MOST_READ:
            self._unread = set(arrays) - set(Random(0).sample(arrays, MOST_READ))
        self._held = {path: (leaf, self._marked(path, leaf)) for path, leaf in found}

    def _marked(self, path: str, leaf: Any) -> Hashable:
        return None if path in self._unread else _mark(leaf)

    def changed(self, batch: object) -> str | None:
        """Where the same batch differs from what it held: None, or the place and how."""
        now = dict(_found(batch))
        for path, (leaf, mark) in self._held.items():
            if path not in now:
                return f"{path} is gone"
            if isinstance(leaf, (torch.Tensor, np.ndarray)) and now[path] is not leaf:
                return f"{path} is another {type(now[path]).__name__}"
            if self._marked(path, now[path]) != mark:
                return f"{path} holds other values"
        return None


def _found(batch: object) -> Iterator[tuple[str, Any]]:
    return islice(_leaves(batch, "batch", 0), MOST_LEAVES)


def _leaves(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    """(where, tensor, array, scalar or flat list of scalars) inside ``value``."""
    if isinstance(value, (torch.Tensor, np.ndarray, *SCALARS)):
        yield path, value
        return
    if depth == DEEPEST or isinstance(value, (type, nn.Module)):
        return
    if isinstance(value, Mapping):
        parts = [(f"{path}[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, (list, tuple)):
        if len(value) > 2 and all(isinstance(part, SCALARS) for part in value[:SAMPLES]):
            yield path, value
            return
        parts = [(f"{path}[{i}]", part) for i, part in enumerate(value)]
    else:
        # An object may count things of its own, so its scalars are not compared.
        attributes = getattr(value, "__dict__", {})
        parts = [
            (f"{path}.{name}", part)
            for name, part in attributes.items()
            if not isinstance(part, SCALARS)
        ]
    for where, part in parts:
        yield from _leaves(part, where, depth + 1)


def _mark(leaf: Any) -> Hashable:
    """Differs, in all likelihood, when the contents do."""
    if isinstance(leaf, torch.Tensor):
        return _tensor_mark(leaf)
    if isinstance(leaf, np.ndarray):
        return _array_mark(leaf)
    if isinstance(leaf, SCALARS):
        return repr(leaf)  # not itself: NaN differs from NaN
    return len(leaf), repr(leaf[:: -(-len(leaf) // SAMPLES)])


def _tensor_mark(tensor: torch.Tensor) -> Hashable:
    if tensor.layout is torch.sparse_coo:
        return tensor.shape, *map(_tensor_mark, (tensor._indices(), tensor._values()))
    if tensor.layout is torch.sparse_csr:
        parts = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
        return tensor.shape, *map(_tensor_mark, parts)
    if not tensor.is_cpu or tensor.layout is not torch.strided or tensor.is_quantized:
        # The count is shared by all views of one tensor, so for a view it says nothing of its own.
        known = not tensor.is_inference() and not tensor._is_view()
        return int(tensor._version) if known else 0
    plain = tensor.detach()
    if plain.is_complex():
        plain = torch.view_as_real(plain.resolve_conj())
    if plain.is_neg():
        plain = plain.resolve_neg()
    if plain.dtype in WITHOUT_NUMPY:
        plain = plain.view(torch.uint8 if plain.itemsize == 1 else torch.int16)
    return _array_mark(plain.numpy())


def _array_mark(array: np.ndarray[Any, Any]) -> Hashable:
    shape: Hashable = array.shape
    if array.dtype.hasobject:
        return shape
    if array.nbytes > WHOLE_BYTES:
        flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
        array = flat[:: -(-array.size // SAMPLES)]
    return shape, hash(array.tobytes())
