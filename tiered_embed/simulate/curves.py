"""Miss-ratio curves of a trace: the exact one of LRU, and four cheaper estimates.

=================== =========================================== ==============================
``lru_curve``        exact, all sizes                            one pass over every access
``shards``           samples rows by hash                        a hundredth of the work
``aet``              a model of eviction times                   needs reuse times only
``che``              a model of independent accesses             needs popularities only
``mini_simulation``  samples rows, for any policy                a hundredth per size
=================== =========================================== ==============================

``within`` says what a lookup is. ``"access"``: every id by itself. ``"batch"``: every unique row of
a batch, and all rows of a batch are looked up before any counts as used, as in the planner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np

from ..errors import ConfigError
from ..traces import Trace
from .compiled import compiled
from .curve import F64, MissRatioCurve, Within
from .distances import Bins, StackDistances
from .numbering import I32, I64, Accesses, Numbering, accesses, grown
from .policies import misses_of
from .sampling import sampled

__all__ = ["Within", "aet", "che", "lru_curve", "mini_simulation"]

Progress = Callable[[int], None]


def lru_curve(
    trace: Trace, within: Within = "access", *, progress: Progress | None = None
) -> MissRatioCurve:
    """LRU's misses for every size, exactly; those of each table to 0.4 % of the size.

    ``progress`` is called with the number of accesses so far. With ``"batch"``, misses are those of
    the planner's ``lru`` for every size that holds the rows of a batch and its ``depth``
    predecessors.

    Source: Mattson et al. 1970; see ``distances``.
    """
    numbering = Numbering(len(trace.tables))
    stack = StackDistances(len(trace.tables))
    for piece in accesses(trace, numbering):
        stack.push(as_within(piece, within), numbering.tables)
        if progress is not None:
            progress(int(stack.lookups.sum()))
    return _exact(trace, stack)


def as_within(piece: Accesses, within: Within) -> Accesses:
    if within not in get_args(Within):
        raise ConfigError(f"within is {within!r}; choose one of {', '.join(get_args(Within))}")
    if within == "batch":
        return piece
    return Accesses(piece.rows, np.arange(len(piece.rows) + 1, dtype=np.int64))


def _exact(trace: Trace, stack: StackDistances) -> MissRatioCurve:
    most = int(np.flatnonzero(stack.counts)[-1]) if stack.counts.any() else 0
    misses = _misses(stack.counts[: most + 1], int(stack.cold.sum()))
    edges, uses = Bins.last(), stack.by_table()
    tables = {}
    for t, table in enumerate(trace.tables):
        top = max(1, int(np.flatnonzero(uses[t])[-1]) if uses[t].any() else 1)
        tables[table.name] = MissRatioCurve(
            "exact LRU",
            edges[: top + 1],
            _misses(uses[t][: top + 1], int(stack.cold[t])),
            float(stack.lookups[t]),
            float(uses[t].sum() + stack.cold[t]),
            float(stack.cold[t]),
            bins=(edges[: top + 1], uses[t][: top + 1].astype(np.float64)),
        )
    top = int(Bins.of(np.array([max(most, 1)]))[0])
    return MissRatioCurve(
        "exact LRU",
        np.arange(most + 1, dtype=np.float64),
        misses,
        float(stack.lookups.sum()),
        float(stack.counts.sum() + stack.cold.sum()),
        float(stack.cold.sum()),
        by_table=tables,
        bins=(edges[: top + 1], uses.sum(axis=0)[: top + 1].astype(np.float64)),
    )


def _misses(uses: I64, cold: int) -> F64:
    """Misses for each size in rows: uses at a greater distance, and first uses."""
    return np.asarray(cold + uses.sum() - np.cumsum(uses), np.float64)


def aet(trace: Trace) -> MissRatioCurve:
    """LRU's misses per access, from reuse times alone.

    A row is evicted once it has moved down the LRU stack by the cache's size. It moves whenever an
    access has a longer reuse time than the row has waited. So a cache that keeps rows for a time t
    has as many rows as the sum of P(reuse time > x) over x < t, and misses with P(reuse time > t).

    Source: Hu, Wang, Zhou, Luo, Ding, Jiang, Wang, "Kinetic modeling of data eviction in cache",
    USENIX ATC 2016.
    """
    numbering = Numbering(len(trace.tables))
    last = np.full(1024, -1, np.int64)
    uses = np.zeros(Bins.NUM, np.int64)
    now = 0
    for piece in accesses(trace, numbering):
        last = grown(last, numbering.num_rows, -1)
        _reuse_times(piece.rows, last, uses, now)
        now += len(piece.rows)
    edges = Bins.last()
    top = int(np.flatnonzero(uses)[-1]) + 1 if uses.any() else 1
    longer = now - np.cumsum(uses[:top])  # P(reuse time > the bin's end) * now
    width = np.diff(edges[:top], prepend=-1.0)
    sizes = np.cumsum(np.append([now], longer[:-1]) * width) / max(now, 1)
    return MissRatioCurve(
        "AET",
        sizes,
        longer.astype(np.float64),
        float(now),
        float(now),
        float(numbering.num_rows),
        stepped=False,
    )


def che(trace: Trace, points: int = 512) -> MissRatioCurve:
    """LRU's misses per access, if accesses were drawn independently by popularity.

    Every row stays for one characteristic time T after its last use. The size is the sum of
    1 - exp(-p T) over rows, the hit rate the sum of p (1 - exp(-p T)).

    Source: Che, Tung, Wang, "Hierarchical web caching systems: modeling, design and experimental
    results", IEEE JSAC 2002; Fricker, Robert, Roberts, "A versatile and accurate approximation for
    LRU cache performance", ITC 2012.
    """
    numbering = Numbering(len(trace.tables))
    uses = np.zeros(0, np.int64)
    for piece in accesses(trace, numbering):
        counted = np.bincount(piece.rows, minlength=max(numbering.num_rows, len(uses)))
        counted[: len(uses)] += uses
        uses = counted
    often, rows = np.unique(uses, return_counts=True)
    total = float(uses.sum())
    chance = often / max(total, 1.0)
    times = np.geomspace(1.0, max(total, 1.0) * 1e3, points)
    stays = 1.0 - np.exp(-np.outer(times, chance))  # (points, popularities)
    return MissRatioCurve(
        "Che",
        stays @ rows,
        total * (1.0 - stays @ (rows * chance)),
        total,
        total,
        float(len(uses)),
        stepped=False,
    )


def mini_simulation(
    trace: Trace,
    sizes: Sequence[int],
    policy: str = "lookahead",
    rate: float = 0.01,
    *,
    seed: int = 0,
    **options: Any,
) -> MissRatioCurve:
    """Any policy's misses at a few sizes, from small caches over a sample of the rows.

    Both the cache and the rows are scaled by ``rate``. ``options`` go to
    :func:`~tiered_embed.simulate.misses_of`. Window and depth, which count batches, stay as they
    are, because the batches themselves shrink.

    Source: Waldspurger, Saemundson, Ahmad, Park, "Cache modeling and optimization using miniature
    simulations", USENIX ATC 2017.

    Raises:
        ConfigError: a size that comes to less than one row.
    """
    small = sampled(trace, rate, seed=seed)
    found, lookups, unique, cold = [], 0, 0, 0
    for size in sizes:
        slots = round(size * rate)
        if slots < 1:
            raise ConfigError(
                f"{size} rows at rate {rate:g} leave less than one row; raise the rate or the size"
            )
        counts = misses_of(small, slots, policy, **options)
        found.append(counts.misses / rate)
        lookups, unique, cold = counts.lookups, counts.unique, counts.cold
    return MissRatioCurve(
        f"mini-simulation of {policy}",
        np.asarray(sizes, np.float64),
        np.array(found),
        float(trace.num_accesses or lookups / rate),
        unique / rate,
        cold / rate,
        stepped=False,
    )


@compiled
def _reuse_times(rows: I32, last: I64, uses: I64, now: int) -> None:
    for i in range(len(rows)):
        row = rows[i]
        if last[row] >= 0:
            distance = now - last[row]
            octave = 0
            while distance >= 512:
                distance >>= 1
                octave += 1
            uses[distance + 256 * octave] += 1
        last[row] = now
        now += 1
