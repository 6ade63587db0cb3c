"""How record bytes travel between the host and the device of an HBM tier.

:class:`Copies` is for a tier in host memory. :class:`StreamCopies` is for a CUDA device: it has its
own stream (the side stream), a bounded number of pinned buffers, and events. The rules of order:

- After every kernel that uses slots the trainer's stream records the event ``used``. The side
  stream waits for it, so no slot is read or overwritten while a kernel uses it.
- ``gather`` waits for its own copy and for nothing else.
- The trainer's stream waits for the newest write in :meth:`before_use` and nowhere else. The host
  never waits for the whole device.

Threading: any thread may call anything, except that only the trainer calls ``before_use`` and
``after_use``.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["PINNED_BYTES", "Copies", "Moves", "StreamCopies"]

PINNED_BYTES = 64 << 20  # of all pinned buffers of one pool together
NUM_BUFFERS = 4

Slots = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]


class Moves(Protocol):
    """``arrays`` are a tier's tensors, (slots, width) each; a record is one row of each, joined."""

    device: torch.device

    def zeros(self, num_slots: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        """An array for the other methods. Raises RuntimeError: not enough memory."""

    def gather(self, arrays: Sequence[torch.Tensor], slots: Slots) -> U8:
        """Copies of the records in ``slots`` (n,) -> (n, record_bytes), complete on return."""

    def scatter(self, arrays: Sequence[torch.Tensor], slots: Slots, records: U8) -> None:
        """Writes ``records`` (n, record_bytes) into ``slots`` (n,); done by :meth:`before_use`."""

    def move(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """Copies a whole array (m, width) into the first rows of a larger one."""

    def before_use(self) -> None:
        """The trainer is about to use slots."""

    def after_use(self) -> None:
        """The trainer is done with slots; they may be evicted now."""


class Copies:
    """For a tier in host memory: every method copies at once.

    NumPy copies, so that torch's threads stay free for the trainer.
    """

    device = torch.device("cpu")

    def zeros(self, num_slots: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros((num_slots, width), dtype=dtype, device=self.device)

    def gather(self, arrays: Sequence[torch.Tensor], slots: Slots) -> U8:
        parts = [_bytes(array)[slots] for array in arrays]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def scatter(self, arrays: Sequence[torch.Tensor], slots: Slots, records: U8) -> None:
        start = 0
        for array in map(_bytes, arrays):
            array[slots] = records[:, start : start + array.shape[1]]
            start += array.shape[1]

    def move(self, old: torch.Tensor, new: torch.Tensor) -> None:
        new[: len(old)] = old

    def before_use(self) -> None: ...

    def after_use(self) -> None: ...


def _bytes(array: torch.Tensor) -> U8:
    return array.view(torch.uint8).numpy()


def _record_bytes(arrays: Sequence[torch.Tensor]) -> int:
    return sum(array.shape[1] * array.element_size() for array in arrays)


class _Buffer:
    """Pinned bytes that may be used again once the event ``arrived`` has happened."""

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data
        self.arrived: Any = None


class StreamCopies:
    """For a tier on a CUDA device.

    Args:
        device: with its index.
        cuda: ``torch.cuda``, or a stand-in for tests.
        pinned_bytes: of all buffers together. Records travel in parts that fit into one.
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
        self._used: Any = None  # the trainer's newest event; replaced as a whole
        self._filled: Any = None  # the side stream's newest; replaced under _lock

    def zeros(self, num_slots: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        with self._aside():
            out = torch.zeros((num_slots, width), dtype=dtype, device=self.device)
            self._note_fill()
        return out

    def gather(self, arrays: Sequence[torch.Tensor], slots: Slots) -> U8:
        parts = []
        with self._aside():
            for block in self._blocks(arrays, len(slots)):
                where = self._slots_to_device(slots[block])
                columns = [a.index_select(0, where).view(torch.uint8) for a in arrays]
                parts.append(
                    self._to_host(columns[0] if len(columns) == 1 else torch.cat(columns, dim=1))
                )
        if not parts:
            return np.empty((0, _record_bytes(arrays)), np.uint8)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def scatter(self, arrays: Sequence[torch.Tensor], slots: Slots, records: U8) -> None:
        with self._aside():
            for block in self._blocks(arrays, len(slots)):
                where = self._slots_to_device(slots[block])
                moved = self._to_device(records[block].reshape(-1)).view(len(where), -1)
                start = 0
                for array in arrays:
                    width = array.shape[1] * array.element_size()
                    columns = moved[:, start : start + width].contiguous().view(array.dtype)
                    array.index_copy_(0, where, columns)
                    start += width
            self._note_fill()

    def move(self, old: torch.Tensor, new: torch.Tensor) -> None:
        with self._aside():
            new[: len(old)] = old
            self._note_fill()

    def before_use(self) -> None:
        filled = self._filled
        if filled is not None:
            self._cuda.current_stream(self.device).wait_event(filled)

    def after_use(self) -> None:
        self._used = self._cuda.current_stream(self.device).record_event()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Puts the work inside on the side stream, after the trainer's last use of slots."""
        with self._cuda.stream(self._stream):
            used = self._used
            if used is not None:
                self._stream.wait_event(used)
            yield

    def _note_fill(self) -> None:
        # Under the lock: an older event must not take the place of a newer one.
        with self._lock:
            self._filled = self._stream.record_event()

    def _blocks(self, arrays: Sequence[torch.Tensor], num_slots: int) -> Iterator[slice]:
        """Parts of ``num_slots`` whose records fit a pinned buffer."""
        step = max(1, self._buffer_bytes // max(_record_bytes(arrays), 8))
        for start in range(0, num_slots, step):
            yield slice(start, start + step)

    def _slots_to_device(self, slots: Slots) -> torch.Tensor:
        return self._to_device(slots.astype(np.int64).view(np.uint8)).view(torch.int64)

    def _to_host(self, tensor: torch.Tensor) -> U8:
        """A copy of uint8 ``tensor`` (n, m). Waits for this copy alone."""
        with self._pinned(tensor.numel()) as buffer:
            pinned = buffer.data[: tensor.numel()].view(tensor.shape)
            pinned.copy_(tensor, non_blocking=True)
            self._stream.record_event().synchronize()
            out: U8 = pinned.numpy().copy()
        return out

    def _to_device(self, data: U8) -> torch.Tensor:
        """A copy of ``data`` (m,), for later work on the side stream."""
        out = torch.empty(len(data), dtype=torch.uint8, device=self.device)
        with self._pinned(len(data)) as buffer:
            pinned = buffer.data[: len(data)]
            pinned.numpy()[:] = data
            out.copy_(pinned, non_blocking=True)
            buffer.arrived = self._stream.record_event()
        return out

    @contextmanager
    def _pinned(self, num_bytes: int) -> Iterator[_Buffer]:
        with self._lock:
            if self._num_buffers < NUM_BUFFERS:
                self._num_buffers += 1
                self._free.appendleft(_Buffer(self._pin(self._buffer_bytes)))
            while not self._free:
                self._lock.wait()
            buffer = self._free.popleft()
        try:
            if buffer.arrived is not None:
                buffer.arrived.synchronize()
                buffer.arrived = None
            if buffer.data.numel() < num_bytes:  # one record is longer than a buffer
                buffer.data = self._pin(num_bytes)
            yield buffer
        finally:
            with self._lock:
                self._free.append(buffer)
                self._lock.notify()

    def _pin(self, num_bytes: int) -> torch.Tensor:
        on_gpu = self.device.type == "cuda"
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=on_gpu)
