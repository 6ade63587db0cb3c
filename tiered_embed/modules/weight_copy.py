"""``module.weight``: a copy of the rows that says so when it is written or differentiated.

``nn.Embedding.weight`` is the table itself, so programs write into it and differentiate through it.
Here either would have no effect on the rows, which an error says in time.

Threading: as tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from ..errors import ConfigError

__all__ = ["WeightCopy", "weight_copy"]

_IN_PLACE = {
    f"__i{name}__"
    for name in (
        *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
        *("and", "or", "xor", "lshift", "rshift"),
    )
}
_DETACH = (torch.Tensor.detach, torch.Tensor.data.__get__, torch.detach)  # type: ignore[attr-defined]
_IS_LEAF = torch.Tensor.is_leaf.__get__  # type: ignore[attr-defined]


class WeightCopy(torch.Tensor):
    """A copy of a table's rows, or what was computed from one.

    It cannot be written as long as it shares the copy's memory, and meets no tensor that requires a
    gradient as long as torch would have given the rows one: until ``detach()``.
    """

    _is_memory: bool  # of the copy itself: a write would look like one of the rows
    _trains: bool  # torch's weight would get a gradient through this

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors((args, kwargs)))
        copies = [tensor for tensor in given if isinstance(tensor, WeightCopy)]
        trains = any(copy._trains for copy in copies)
        name = getattr(func, "__name__", "")
        for target in _written(name, args, kwargs):
            # A parameter made of it would train, and the rows would not.
            if isinstance(target, WeightCopy) and (target._is_memory or name == "requires_grad_"):
                raise _written_error(name)
        if trains and name == "backward":
            raise _differentiated_error()
        if func == _IS_LEAF and trains:
            return False  # so that torch's optimizers refuse it
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **kwargs)
        if trains and torch.is_grad_enabled() and any(t.requires_grad for t in _tensors(out)):
            raise _differentiated_error()
        memory = {_memory(copy) for copy in copies if copy._is_memory}
        if func in _DETACH:
            return _marked(out, memory, False, keep=True)  # nn.Parameter asks for its own type
        return _marked(out, memory, trains)

    def __deepcopy__(self, memo: object) -> torch.Tensor:
        return self._plain().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._plain().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def _plain(self) -> torch.Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(torch.Tensor)


def weight_copy(rows: torch.Tensor, *, trains: bool) -> torch.Tensor:
    """``rows`` as a :class:`WeightCopy`. ``trains``: the table has an optimizer."""
    return _marked(rows, {_memory(rows)}, trains)  # type: ignore[no-any-return]


def _marked(out: Any, memory: set[int], trains: bool, *, keep: bool = False) -> Any:
    """``out`` with its tensors marked by what they are of the copy.

    ``keep``: they stay marked even if nothing is refused to them.
    """
    if isinstance(out, (tuple, list)) and any(isinstance(part, torch.Tensor) for part in out):
        parts = [_marked(part, memory, trains) for part in out]
        return parts if isinstance(out, list) else tuple(parts)
    if not isinstance(out, torch.Tensor) or not out.is_floating_point():
        return out
    is_memory = _memory(out) in memory
    with torch._C.DisableTorchFunctionSubclass():
        if not (is_memory or trains or keep):
            return out.as_subclass(torch.Tensor)
        marked = out.as_subclass(WeightCopy)
    marked._is_memory, marked._trains = is_memory, trains
    return marked


def _memory(tensor: torch.Tensor) -> int:
    with torch._C.DisableTorchFunctionSubclass():
        return 0 if tensor.is_meta else tensor.untyped_storage().data_ptr()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


def _written(name: str, args: Any, kwargs: Mapping[str, Any]) -> Iterable[torch.Tensor]:
    """The tensors that a function of this name writes."""
    if "out" in kwargs:
        yield from _tensors(kwargs["out"])
    writes = name.endswith("_") and not name.endswith("__")
    if name in ("embedding", "embedding_bag") and kwargs.get("max_norm") is not None:
        yield from _tensors((args, kwargs))  # torch scales the rows that it looks up
    if writes or name in _IN_PLACE or name in ("__setitem__", "__set__", "__delete__"):
        first = args[0] if args else kwargs.get("tensor", kwargs.get("input"))
        yield from _tensors(first)


def _written_error(name: str) -> ConfigError:
    return ConfigError(
        f"weight is a copy of the rows, and writing it ({name}) would not change them; write rows "
        "with load_rows(ids, weights), choose initial values with init=, train them with "
        "optimizer= or not at all with optimizer=None, or write into weight.detach().clone()"
    )


def _differentiated_error() -> ConfigError:
    return ConfigError(
        "weight is a copy of the rows, and no gradient reaches them through it. Look rows up by "
        "calling the module; for a penalty pass weight_decay= to the optimizer in te.optim; keep a "
        "module whose weight the model reads as torch's (te.swap takes include=); use "
        "weight.detach() if no gradient is meant"
    )
