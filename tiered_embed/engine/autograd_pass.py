"""What torch's autograd says of the backward pass that is running.

These are the calls by which torch's own wrappers (``DistributedDataParallel``, FSDP,
``torch.utils.checkpoint``) know the same things. torch does not document them, so they are used
here and nowhere else.

Threading: any thread; the answers are about the pass that runs in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["NO_PASS", "at_end_of_pass", "current_pass", "keeps_graph", "reaches"]

NO_PASS = -1


def current_pass() -> int:
    """The number of the running backward pass, which grows; ``NO_PASS`` where none runs."""
    number: int = torch._C._current_graph_task_id()
    return number


def keeps_graph() -> bool:
    """Whether the graph outlives the running pass (``retain_graph=True``)."""
    kept: bool = torch._C._autograd._get_current_graph_task_keep_graph()
    return kept


def reaches(node: Any) -> bool:
    """Whether the running pass goes on to ``node``.

    ``torch.autograd.grad`` and ``backward(inputs=...)`` leave out what was not asked for.
    """
    return torch._C._will_engine_execute_node(node)


def at_end_of_pass(call: Callable[[], None]) -> None:
    """Runs ``call`` when every node of the running pass has run, and before ``backward`` returns.

    A pass that fails calls nothing. What ``call`` raises, ``backward`` raises.
    """
    torch.autograd.Variable._execution_engine.queue_callback(call)
