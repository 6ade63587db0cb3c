"""Looks ahead in a loader's id stream so that rows are in memory when the loop needs them.

``te.prefetch`` pulls batches from the loader before the loop asks for them, shows their ids to the
modules, and yields the batches unchanged and in order. It owns no thread: pulling happens in the
loop's own calls, staging in the modules' pipelines.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Generic, TypeVar

from torch import nn

from ..engine import Engine, Stream, Ticket
from ..errors import ConfigError
from ..modules import TieredEmbeddingBagCollection, TieredModule, is_keyed_jagged

__all__ = ["Prefetch", "prefetch"]

B = TypeVar("B")
Place = tuple[Stream, Ticket]
IdsOf = Callable[[B], Mapping[nn.Module, Any]]


class Prefetch(Generic[B]):
    """An iterable over the loader's batches; made by :func:`prefetch`."""

    def __init__(self, loader: Iterable[B], model: nn.Module, ids: IdsOf[B] | None) -> None:
        self._loader = loader
        self._ids = ids or _find_ids(model)
        options = [m.engine.options for m in model.modules() if isinstance(m, TieredModule)]
        # While batch t trains, t + depth is staged with `lookahead` batches known behind it.
        self._ahead = max((o.lookahead + o.deepest for o in options), default=0)
        self._epochs = 0  # loops that went to their end
        self._given = 0  # batches of this loop that the caller was given, skipped ones included
        self._skip = 0  # batches that the next loop leaves out
        self._current: list[Place] | None = None  # of the batch now with the caller

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[B]:
        pending: deque[tuple[B, list[Place]]] = deque()
        self._given, self._skip = self._skip, 0
        streams: dict[Engine, Stream] = {}
        source = islice(iter(self._loader), self._given, None)
        failure: Exception | None = None
        ended = False
        try:
            while True:
                while not ended and len(pending) <= self._ahead:
                    try:
                        batch = next(source)
                        pending.append((batch, self._push(batch, streams)))
                    except StopIteration:
                        ended = True
                    except Exception as error:
                        # It belongs to a batch that the loop has not reached: good ones come first.
                        failure, ended = error, True
                    if ended:
                        for stream in streams.values():
                            stream.end()
                if not pending:
                    break
                batch, places = pending.popleft()
                for stream, ticket in places:
                    stream.give(ticket)
                self._given += 1
                self._current = places
                yield batch
                self._current = None
                for stream, ticket in places:
                    stream.finish(ticket)
            if failure is not None:
                raise failure
            self._epochs += 1
            self._given = 0
        finally:
            self._given = self._trained
            self._current = None
            for engine in streams:
                engine.close_stream()

    def state_dict(self) -> dict[str, int]:
        """The cursor: ``batches`` of this loop that were trained, and ``epochs`` before it.

        A batch counts once a forward has used its rows, however far the loader was pulled ahead:
        saved between a backward and the next forward, no batch is trained twice or left out.
        """
        return {"epochs": self._epochs, "batches": self._trained}

    @property
    def _trained(self) -> int:
        """Batches given, but for one that no forward has used yet."""
        waits = bool(self._current) and not any(t.answered for _, t in self._current or ())
        return self._given - waits

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """The next loop leaves out the first ``batches`` of the loader, which must give the same
        ones again: restore its generator's state as of the epoch's start before.

        Raises:
            ConfigError: no cursor, or a loop is running.
        """
        values = [state.get(n) for n in ("epochs", "batches")] if isinstance(state, Mapping) else []
        good = [type(v) is int and 0 <= v < 2**62 for v in values]
        if not values or not all(good):
            raise ConfigError(f"{state!r} is no cursor of te.prefetch")
        if self._current is not None:
            raise ConfigError("this te.prefetch loop is running; set its cursor before it starts")
        self._epochs, self._skip = state["epochs"], state["batches"]
        self._given = self._skip

    def _push(self, batch: B, streams: dict[Engine, Stream]) -> list[Place]:
        # Everything is checked before anything is staged.
        checked = []
        for module, value in self._ids(batch).items():
            if not isinstance(module, TieredModule):
                raise ConfigError(f"ids= names a {type(module).__name__}; name tiered modules")
            presented = module.present(value)
            checked.append((module.engine, module.check(presented), presented))
        for engine, _, _ in checked:
            if engine not in streams:
                streams[engine] = engine.open_stream()
        return [
            (streams[engine], engine.push(one, presented)) for engine, one, presented in checked
        ]


def _find_ids(model: nn.Module) -> IdsOf[Any]:
    collections = [m for m in model.modules() if isinstance(m, TieredEmbeddingBagCollection)]
    if len(collections) != 1:
        raise ConfigError(
            f"the model has {len(collections)} collections; tell te.prefetch which ids each module "
            "gets: ids=lambda batch: {model.emb: (batch.indices, batch.offsets)}"
        )
    collection = collections[0]

    def ids(batch: Any) -> Mapping[nn.Module, Any]:
        if is_keyed_jagged(batch):
            return {collection: batch}
        found = [v for v in getattr(batch, "__dict__", {}).values() if is_keyed_jagged(v)]
        if len(found) != 1:
            raise ConfigError(
                f"a {type(batch).__name__} has {len(found)} KeyedJaggedTensors; pass ids="
            )
        return {collection: found[0]}

    return ids


def prefetch(loader: Iterable[B], model: nn.Module, ids: IdsOf[B] | None = None) -> Prefetch[B]:
    """Yields the loader's batches while their rows are staged ahead.

    Args:
        loader: any iterable of batches; it is pulled ``lookahead + depth`` batches ahead.
        model: holds the tiered modules.
        ids: batch -> {module: what its forward will get}: a tensor, ``(indices, offsets)``, or a
            collection's mapping. May be omitted when a batch is (or has) a KeyedJaggedTensor and
            the model has one collection.

    Raises:
        ConfigError: ``ids`` omitted where it cannot be told. What the loader or a batch's check
            raises comes when the loop has reached that batch.
    """
    return Prefetch(loader, model, ids)
