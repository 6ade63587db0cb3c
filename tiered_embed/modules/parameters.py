"""How a module owns the parameters of its touched rows, and to whom it shows them.

``parameters()`` has them: whoever freezes, clips, unscales or zeroes a model's gradients reaches
the rows. They are the rows of one step and differ between ranks, so three places do not get them:
a state_dict, a conversion of dtype, and what asks each module for its own parameters in order to
share them among ranks, as ``DistributedDataParallel`` and FSDP do.

Threading: as all tiered modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from ..engine import Engine, tables_of_parameter

__all__ = ["RowParameters"]

M = TypeVar("M", bound="RowParameters")
NAME = "touched_rows"


class RowParameters(nn.Module):
    """Base of a module with an engine. One parameter (U, D) for each pool whose rows train:
    ``touched_rows``, or ``touched_rows_0`` and so on where there are several."""

    engine: Engine

    def _own_parameters(self) -> None:
        touched = [one for one in self.engine.touched if one is not None]
        for i, one in enumerate(touched):
            name = NAME if len(touched) == 1 else f"{NAME}_{i}"
            self.register_parameter(name, one.parameter)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """As in ``nn.Module``; with ``recurse=False``, without those of the touched rows."""
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if recurse or tables_of_parameter(parameter) is None:
                yield name, parameter

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients of the touched rows, whatever ``set_to_none`` says."""
        super().zero_grad(set_to_none)
        if self.engine.passes is not None:
            self.engine.passes.drop()

    @contextmanager
    def _without_rows(self) -> Iterator[None]:
        """Inside the context the module has no parameters of touched rows."""
        mine = {n: p for n, p in self._parameters.items() if n.startswith(NAME)}
        for name in mine:
            del self._parameters[name]
        try:
            yield
        finally:
            self._parameters.update(mine)

    def _apply(self: M, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> M:
        with self._without_rows():
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        with self._without_rows():
            super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        with self._without_rows():
            super()._load_from_state_dict(*args, **kwargs)
