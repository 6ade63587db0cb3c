"""How record bytes travel between the host and the device of an HBM tier.

:class:`Copies` is for a tier in host memory. :class:`StreamCopies` uses a stream of its own beside
the trainer's, pinned buffers with a bound, and events. What must be ordered, and how:

- The side stream works behind ``used``, the event that the trainer's stream records when a batch
  has been updated: no slot is read or overwritten while a kernel uses it.
- ``to_host`` returns when its own copy has arrived; nothing else is waited for.
- The trainer's stream waits for the newest fill in :meth:`before_use` and nowhere else. The host
  never waits for the device as a whole.

Threading: any thread may call anything. ``before_use`` and ``after_use`` are the trainer's.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["PINNED_BYTES", "Copies", "Moves", "StreamCopies"]

PINNED_BYTES = 64 << 20  # of all pinned buffers of one pool
NUM_BUFFERS = 4

Array = npt.NDArray[Any]
U8 = npt.NDArray[np.uint8]


class Moves(Protocol):
    device: torch.device

    def aside(self) -> AbstractContextManager[None]:
        """Device work inside runs beside the trainer's, behind its last update."""

    def to_host(self, tensor: torch.Tensor) -> U8:
        """A copy of uint8 ``tensor`` (n, m); it has arrived on return. Inside :meth:`aside`."""

    def to_device(self, array: Array) -> torch.Tensor:
        """A copy of ``array`` (n, ...), for work inside the same :meth:`aside`."""

    def filled(self) -> None:
        """Slots have been written: what uses them from now on runs behind that."""

    def before_use(self) -> None:
        """The trainer is about to use slots."""

    def after_use(self) -> None:
        """The trainer has used slots, which may be evicted now."""


class Copies:
    """A tier in host memory: a move is a copy, and done at once."""

    device = torch.device("cpu")

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def to_host(self, tensor: torch.Tensor) -> U8:
        return tensor.numpy()

    def to_device(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))

    def filled(self) -> None: ...

    def before_use(self) -> None: ...

    def after_use(self) -> None: ...


class _Buffer:
    """Pinned bytes, free once ``arrived`` has happened."""

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data
        self.arrived: Any = None


class StreamCopies:
    """A tier on a CUDA device.

    Args:
        device: with its index.
        cuda: ``torch.cuda``, or what stands for it in tests.
        pinned_bytes: of all buffers; longer arrays travel in parts.
    """

    def __init__(
        self, device: torch.device, *, cuda: Any = torch.cuda, pinned_bytes: int = PINNED_BYTES
    ) -> None:
        self.device = device
        self._cuda = cuda
        self._stream = cuda.Stream(device=device)
        self._buffer_bytes = max(1, pinned_bytes // NUM_BUFFERS)
        self._lock = threading.Condition()
        self._free: deque[_Buffer] = deque()  # guarded by _lock; longest free first
        self._num_buffers = 0  # guarded by _lock
        self._used: Any = None  # events; each replaced as a whole
        self._filled: Any = None

    @contextmanager
    def aside(self) -> Iterator[None]:
        with self._cuda.stream(self._stream):
            used = self._used
            if used is not None:
                self._stream.wait_event(used)
            yield

    def to_host(self, tensor: torch.Tensor) -> U8:
        flat = tensor.contiguous().view(-1)
        out = np.empty(flat.numel(), np.uint8)
        for start in range(0, len(out), self._buffer_bytes):
            part = flat[start : start + self._buffer_bytes]
            with self._pinned() as buffer:
                pinned = buffer.data[: len(part)]
                pinned.copy_(part, non_blocking=True)
                arrived = self._stream.record_event()
                arrived.synchronize()
                out[start : start + len(part)] = pinned.numpy()
        return out.reshape(tuple(tensor.shape))

    def to_device(self, array: Array) -> torch.Tensor:
        array = np.ascontiguousarray(array)
        out = torch.empty(array.shape, dtype=_TORCH[array.dtype], device=self.device)
        flat = out.view(-1).view(torch.uint8)
        given = torch.from_numpy(array.reshape(-1).view(np.uint8))
        for start in range(0, len(given), self._buffer_bytes):
            part = given[start : start + self._buffer_bytes]
            with self._pinned() as buffer:
                pinned = buffer.data[: len(part)]
                pinned.copy_(part)
                flat[start : start + len(part)].copy_(pinned, non_blocking=True)
                buffer.arrived = self._stream.record_event()
        return out

    def filled(self) -> None:
        self._filled = self._stream.record_event()

    def before_use(self) -> None:
        filled = self._filled
        if filled is not None:
            self._cuda.current_stream(self.device).wait_event(filled)

    def after_use(self) -> None:
        self._used = self._cuda.current_stream(self.device).record_event()

    @contextmanager
    def _pinned(self) -> Iterator[_Buffer]:
        with self._lock:
            if not self._free and self._num_buffers < NUM_BUFFERS:
                self._num_buffers += 1
                data = torch.empty(
                    self._buffer_bytes, dtype=torch.uint8, pin_memory=self.device.type == "cuda"
                )
                self._free.append(_Buffer(data))
            while not self._free:
                self._lock.wait()
            buffer = self._free.popleft()
        try:
            if buffer.arrived is not None:
                buffer.arrived.synchronize()
                buffer.arrived = None
            yield buffer
        finally:
            with self._lock:
                self._free.append(buffer)
                self._lock.notify()


_TORCH = {np.dtype(np.uint8): torch.uint8, np.dtype(np.int64): torch.int64}
