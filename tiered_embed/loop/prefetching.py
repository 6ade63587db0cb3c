"""``te.prefetch``: looks ahead in a loader, so that rows are in memory when the loop needs them.

It pulls batches from the loader before the loop asks for them, shows their ids to the modules, and
yields the batches unchanged and in order.

Threading: the thread that trains. The loop's own calls pull batches; the engines stage rows in
their own threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

from torch import nn

from ..engine import (
    CheckedBatch,
    Engine,
    EvaluationStream,
    EvaluationTicket,
    Presented,
    Stream,
    Ticket,
)
from ..errors import ConfigError
from ..modules import TieredCollection, TieredModule, is_keyed_jagged
from .contents import Contents
from .loader_state import LoaderState

__all__ = ["Prefetch", "prefetch"]

B = TypeVar("B")
IdsOf = Callable[[B], Mapping[nn.Module, Any]]


@dataclass(frozen=True)
class Place:
    """A batch's place in the stream of one engine, which trains or evaluates."""

    stream: Stream | EvaluationStream
    ticket: Ticket | EvaluationTicket

    def give(self) -> None:
        self.stream.give(self.ticket)  # type: ignore[arg-type]

    def finish(self) -> None:
        self.stream.finish(self.ticket)  # type: ignore[arg-type]


@dataclass
class Streams:
    """The streams that one loop has opened."""

    training: dict[Engine, Stream] = field(default_factory=dict)
    evaluation: dict[Engine, EvaluationStream] = field(default_factory=dict)

    def push(
        self, engine: Engine, batch: CheckedBatch, presented: Presented, stages: bool
    ) -> Place:
        """Makes a future batch known to ``engine``. ``stages``: its forward will."""
        if stages:
            return Place(self.training[engine], engine.push(batch, presented))
        return Place(self.evaluation[engine], self.evaluation[engine].push(batch))

    def open(self, engine: Engine, stages: bool) -> None:
        """Opens a stream, unless it is open."""
        if stages and engine not in self.training:
            self.training[engine] = engine.open_stream()
        elif not stages and engine not in self.evaluation:
            self.evaluation[engine] = engine.evaluation.open_stream()

    def end(self) -> None:
        """No further batch will come."""
        for stream in self.training.values():
            stream.end()

    def close(self) -> None:
        for engine in self.training:
            engine.close_stream()
        for engine in self.evaluation:
            engine.evaluation.close_stream()


class Prefetch(Generic[B]):
    """An iterable over the loader's batches; made by :func:`prefetch`."""

    def __init__(self, loader: Iterable[B], model: nn.Module, ids: IdsOf[B] | None) -> None:
        self._loader = loader
        self._ids = ids or _find_ids(model)
        options = [m.engine.options for m in model.modules() if isinstance(m, TieredModule)]
        # While batch t trains, batch t + depth is planned, with `lookahead` batches after it known.
        self._ahead = max((o.lookahead + o.deepest for o in options), default=0)
        self._epochs = 0  # loops that reached their end
        self._given = 0  # batches of this loop that the caller has got, skipped ones included
        self._skip = 0  # batches that the next loop skips
        self._current: list[Place] | None = None  # of the batch that the caller has now
        self._state = LoaderState(loader, lambda: self._waits)

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[B]:
        pending: deque[tuple[B, list[Place], Contents | None, Any]] = deque()
        self._given, self._skip = self._skip, 0
        streams = Streams()
        source = islice(iter(self._loader), self._given, None)
        self._state.begin()
        failure: Exception | None = None
        ended = False
        try:
            while True:
                while not ended and len(pending) <= self._ahead:
                    try:
                        batch = next(source)
                        places = self._push(batch, streams)
                        # After ids=, which may change the batch. None: it is given at once.
                        contents = Contents(batch) if self._ahead else None
                        pending.append((batch, places, contents, self._state.pulled()))
                    except StopIteration:
                        ended = True
                    except Exception as error:
                        # Its batch is still ahead of the loop: the good ones before it come first.
                        failure, ended = error, True
                    if ended:
                        streams.end()
                if not pending:
                    break
                batch, places, contents, state = pending.popleft()
                if contents is not None:
                    self._refuse_changed(contents, batch)
                for place in places:
                    place.give()
                self._given += 1
                self._current = places
                self._state.given(state)
                yield batch
                self._current = None
                for place in places:
                    place.finish()
            if failure is not None:
                raise failure
            self._epochs += 1
            self._given = 0
            self._state.end()
        finally:
            self._state.leave()
            self._given = self._trained
            self._current = None
            streams.close()

    def state_dict(self) -> dict[str, int]:
        """The cursor: how many ``batches`` of this loop were trained, and ``epochs`` before it.

        A batch counts once a forward has used its rows, however far ahead the loader was pulled.
        With a cursor that is saved between a backward and the next forward, no batch is trained
        twice or left out.
        """
        return {"epochs": self._epochs, "batches": self._trained}

    @property
    def _trained(self) -> int:
        """Batches that the caller has got, without the current one if no forward has used it."""
        return self._given - self._waits

    @property
    def _waits(self) -> bool:
        """The caller has a batch that no forward has used."""
        return bool(self._current) and not any(p.ticket.answered for p in self._current or ())

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Makes the next loop skip the ``batches`` that were trained.

        The loader must yield the same batches again: before the loop, restore the state that its
        random generator had at the start of the epoch.

        Raises:
            ConfigError: not a cursor, or a loop is running.
        """
        values = [state.get(n) for n in ("epochs", "batches")] if isinstance(state, Mapping) else []
        good = [type(v) is int and 0 <= v < 2**62 for v in values]
        if not values or not all(good):
            raise ConfigError(
                f"{state!r} is not a cursor of te.prefetch; pass what state_dict() returned"
            )
        if self._current is not None:
            raise ConfigError(
                "this te.prefetch loop is already running; set its cursor before it starts"
            )
        self._epochs, self._skip = state["epochs"], state["batches"]
        self._given = self._skip

    def _refuse_changed(self, contents: Contents, batch: B) -> None:
        changed = contents.changed(batch)
        if changed is not None:
            raise ConfigError(
                f"batch {self._given} changed after te.prefetch had pulled it from the loader, up "
                f"to {self._ahead} batches before its turn: {changed} now. The loader reuses its "
                "memory; let it yield new tensors (tensor.clone()), or look ahead no batch: "
                "lookahead=0, depth=0"
            )

    def _push(self, batch: B, streams: Streams) -> list[Place]:
        # Everything is checked before anything is staged.
        checked = []
        for module, value in self._ids(batch).items():
            if not isinstance(module, TieredModule):
                raise ConfigError(
                    f"ids= returned a {type(module).__name__} as a key; its keys must be tiered "
                    "modules"
                )
            presented = module.present(value)
            stages = module.engine.stages(training=module.training)
            checked.append((module.engine, module.check(presented), presented, stages))
        for engine, _, _, stages in checked:
            streams.open(engine, stages)
        return [streams.push(*one) for one in checked]


def _find_ids(model: nn.Module) -> IdsOf[Any]:
    collections = [m for m in model.modules() if isinstance(m, TieredCollection)]
    if len(collections) != 1:
        raise ConfigError(
            f"the model has {len(collections)} tiered collections, so te.prefetch cannot tell "
            "which ids each module gets; pass "
            "ids=lambda batch: {model.emb: (batch.indices, batch.offsets)}"
        )
    collection = collections[0]

    def ids(batch: Any) -> Mapping[nn.Module, Any]:
        if is_keyed_jagged(batch):
            return {collection: batch}
        found = [v for v in getattr(batch, "__dict__", {}).values() if is_keyed_jagged(v)]
        if len(found) != 1:
            raise ConfigError(
                f"a batch, of type {type(batch).__name__}, has {len(found)} KeyedJaggedTensors "
                "where te.prefetch expects one; pass ids="
            )
        return {collection: found[0]}

    return ids


def prefetch(loader: Iterable[B], model: nn.Module, ids: IdsOf[B] | None = None) -> Prefetch[B]:
    """Yields the loader's batches, and stages their rows ahead of the loop.

    Args:
        loader: any iterable of batches; it is pulled ``lookahead + depth`` batches ahead. If it has
            a ``state_dict``, that gives the state after the last batch that was trained, during
            the loop and after one that was left early.
        model: contains the tiered modules.
        ids: maps a batch to {module: what its forward will get}, which is a tensor,
            ``(indices, offsets)``, or a collection's mapping. May be omitted when a batch is (or
            has) a KeyedJaggedTensor and the model has one collection.

    Raises:
        ConfigError: ``ids`` is needed here and was omitted. In the loop: a batch's tensors were
            written after the loader had yielded it, so the loader reuses its memory. An error of
            the loader, or of a batch's check, is raised when the loop reaches that batch.
    """
    return Prefetch(loader, model, ids)
