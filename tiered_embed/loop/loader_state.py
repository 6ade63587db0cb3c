"""The state of a loader that ``te.prefetch`` has pulled ahead of the loop.

A loader with ``state_dict`` and ``load_state_dict``, such as ``StatefulDataLoader``, says how far
it was pulled. Under ``te.prefetch`` that is ahead of what was trained, so batches would be lost on
resuming. While a loop runs, and after one that was left early, the loader's ``state_dict`` gives
the state that it had after the last batch that was trained.

Threading: the thread that trains.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["LoaderState"]


class LoaderState:
    """Watches ``loader``; does nothing if it has no state.

    Args:
        loader: what the loop pulls from.
        waits: whether the batch that the loop has now is still to be trained.
    """

    def __init__(self, loader: Any, waits: Callable[[], bool]) -> None:
        self._loader = loader
        self._waits = waits
        self._own: Callable[..., Any] | None = None
        self._states: tuple[Any, Any] = (None, None)  # before and after the batch of the loop
        self._left_at: Any = None  # the loader's own state when the loop was left, in a list

    def begin(self) -> None:
        """The loop has an iterator of the loader, and has pulled nothing."""
        self.end()
        loader = self._loader
        own = getattr(loader, "state_dict", None)
        stateful = callable(own) and callable(getattr(loader, "load_state_dict", None))
        if not stateful or isinstance(loader, nn.Module):
            return
        with contextlib.suppress(AttributeError, TypeError):  # it takes no attributes
            loader.state_dict = self._of_trained
            self._own = own
            self._states = (None, self.pulled())

    def pulled(self) -> Any:
        """The state after the newest batch, to be handed to :meth:`given` with it."""
        return None if self._own is None else copy.deepcopy(self._own())  # it may be live

    def given(self, state: Any) -> None:
        """The loop has the batch after which the loader had this state."""
        self._states = (self._states[1], state)

    def leave(self) -> None:
        """The loop was left early."""
        if self._own is not None:
            if self._waits():
                self._states = (self._states[0], self._states[0])
            self._left_at = [self.pulled()]

    def end(self) -> None:
        """The loader speaks for itself again."""
        if self._own is not None and vars(self._loader).get("state_dict") == self._of_trained:
            del self._loader.state_dict
        self._own = self._left_at = None

    def _of_trained(self, *args: Any, **kwargs: Any) -> Any:
        own = self._own
        assert own is not None
        if self._left_at is not None:
            now = own(*args, **kwargs)
            # Whatever has used the loader since then knows better.
            return self._states[1] if _same(now, self._left_at[0]) else now
        before, after = self._states
        return before if self._waits() else after


def _same(a: Any, b: Any) -> bool:
    """Whether two states are equal; what cannot be compared is not."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    try:
        return bool(a == b)
    except Exception:
        return False
