"""What stands for ``torch.cuda`` where there is none: streams that run what they are given at once,
and note the order that they were told to keep."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Event:
    def __init__(self, cuda: "Cuda", stream: str, number: int) -> None:
        self.cuda, self.name, self.number = cuda, f"{stream} {number}", number

    def synchronize(self) -> None:
        self.cuda.log.append(f"host waits for {self.name}")


class Stream:
    def __init__(self, cuda: "Cuda", name: str) -> None:
        self.cuda, self.name = cuda, name

    def record_event(self) -> Event:
        event = Event(self.cuda, self.name, next(self.cuda.numbers))
        self.cuda.log.append(f"{self.name} records {event.number}")
        self.cuda.recorded(event.number)
        return event

    def wait_event(self, event: Event) -> None:
        self.cuda.log.append(f"{self.name} waits for {event.name}")


class Cuda:
    """What :class:`StreamCopies` uses, and no more: anything else is an AttributeError.

    recorded: is called with the number of every event.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.numbers = itertools.count(1)
        self.recorded: Callable[[int], None] = lambda number: None
        self.trainer = Stream(self, "trainer")
        self.here = threading.local()

    def Stream(self, device: torch.device) -> Stream:
        return Stream(self, "side")

    def current_stream(self, device: torch.device | None = None) -> Stream:
        return getattr(self.here, "stream", self.trainer)

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = self.current_stream()
        self.here.stream = stream
        try:
            yield
        finally:
            self.here.stream = before
