"""A study as one self-contained page: charts inline, no external resource, readable without script.

The page is ``report.html.j2``; here is what it shows. A small inline script adds a size slider; the
numbers that it picks from are in the page as JSON.
"""

from __future__ import annotations

import json
import math
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from .curve import F64, MissRatioCurve
from .study import PolicyResult, Study, table_rows
from .svg import Frame, Series, bars, lines, short

__all__ = ["html", "octaves", "size_text"]

SLIDER_STEPS = 160
MOST_HISTOGRAMS = 12


def html(found: Study) -> str:
    """The page."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(short=short, size=size_text)
    source = files(__package__).joinpath("report.html.j2").read_text()
    frame = Frame(1.0, _above(found.num_rows))
    near = Frame(max(1.0, found.sizes[0] / 3), max(2.0, min(frame.high, found.sizes[-1] * 3)))
    series = _curves(found)
    policies = _policies(found)
    return environment.from_string(source).render(
        found=found,
        curve_chart=_safe(
            lines(frame, series, "cache size, rows", "hit rate", "Hit rate of LRU by cache size")
        ),
        curve_legend=[(s.name, s.color, s.kind) for s in series],
        policy_chart=_safe(
            lines(near, policies, "cache size, rows", "hit rate", "Hit rate by policy")
        ),
        policy_legend=[(s.name, s.color, s.kind) for s in policies],
        policy_rows=_policy_rows(found),
        histograms=_histograms(found),
        tables=table_rows(found),
        slider=_safe(json.dumps(_slider(found, [frame, near])).replace("<", "\\u003c")),
        last_step=SLIDER_STEPS - 1,
    )


def size_text(num_bytes: float) -> str:
    """1.5 GiB."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if num_bytes >= 1024**power:
            return f"{num_bytes / 1024**power:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def octaves(curve: MissRatioCurve) -> tuple[list[str], list[float]]:
    """The reuse-distance histogram by doublings: labels, and shares of all lookups; the last is the
    first uses, which have no distance."""
    assert curve.bins is not None
    last, uses = curve.bins
    shares: list[float] = []
    labels: list[str] = []
    doubling = np.floor(np.log2(np.maximum(last, 1.0))).astype(int)
    for octave in range(int(doubling[-1]) + 1):
        part = uses[(doubling == octave) & (last > 0)]
        labels.append(short(2.0**octave) if octave < 10 else f"2^{octave}")
        shares.append(float(part.sum()) / max(1.0, curve.lookups))
    return [*labels, "first"], [*shares, curve.cold / max(1.0, curve.lookups)]


def _safe(text: str) -> Any:
    return Markup(text)


def _above(rows: int) -> float:
    """The next of 10, 20, 50, 100, ..."""
    power = 10.0 ** math.floor(math.log10(max(10, rows)))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= rows)


def _grid(found: Study) -> F64:
    return np.asarray(np.geomspace(1.0, max(2.0, found.num_rows), SLIDER_STEPS))


def _points(curve: MissRatioCurve, sizes: F64) -> list[tuple[float, float]]:
    return list(zip(sizes.tolist(), curve.hit_rate(sizes).tolist(), strict=True))


def _curves(found: Study) -> list[Series]:
    sizes = _grid(found)
    out = [Series("LRU, exact", _points(found.curve, sizes), "line", 0)]
    out += [
        Series(f"{c.method}, error {found.errors[c.method].mean:.4f}", _points(c, sizes), "dash", i)
        for i, c in enumerate(found.estimates, 1)
    ]
    return out


def _rates(found: Study, policy: PolicyResult) -> list[tuple[float, float]]:
    pairs = zip(found.sizes, policy.hit_rates, strict=True)
    return [(float(size), rate) for size, rate in pairs if rate is not None]


def _policies(found: Study) -> list[Series]:
    out = [Series("LRU, exact", _points(found.curve, _grid(found)), "line", 0)]
    out += [
        Series(p.policy, _rates(found, p), "dots", 1 + i % 9) for i, p in enumerate(found.policies)
    ]
    return out


def _policy_rows(found: Study) -> list[dict[str, Any]]:
    best = [
        max((p.hit_rates[i] or 0.0 for p in _achievable(found)), default=0.0)
        for i in range(len(found.sizes))
    ]
    return [
        {
            "policy": p.policy,
            "bound": p.policy.startswith("belady"),
            "cells": [
                {"rate": rate, "best": rate is not None and rate == best[i], "counts": p.counts[i]}
                for i, rate in enumerate(p.hit_rates)
            ],
        }
        for p in found.policies
    ]


def _achievable(found: Study) -> list[PolicyResult]:
    return [p for p in found.policies if not p.policy.startswith("belady")]


def _histograms(found: Study) -> list[dict[str, Any]]:
    curves = [("all tables", found.curve)]
    if len(found.curve.by_table) > 1:
        ordered = sorted(found.curve.by_table.items(), key=lambda item: -item[1].lookups)
        curves += ordered[:MOST_HISTOGRAMS]
    width = 760 if len(curves) == 1 else 470  # one a line, or two
    out = []
    for name, curve in curves:
        labels, shares = octaves(curve)
        repeats = 1 - curve.unique / max(1.0, curve.lookups)
        title = f"Reuse distances: {name}"
        chart = bars(labels, shares, 1, "reuse distance, rows", title, width)
        out.append({"name": name, "chart": _safe(chart), "repeats": repeats})
    return out


def _slider(found: Study, frames: list[Frame]) -> dict[str, Any]:
    sizes = _grid(found)
    policies = []
    for policy in found.policies:
        points = _rates(found, policy)
        if len(points) < 2:
            continue
        x, y = np.array(points).T
        inside = (sizes >= x[0]) & (sizes <= x[-1])
        rates = np.interp(np.log(sizes), np.log(x), y)
        policies.append(
            {
                "name": policy.policy,
                "rates": [
                    round(r, 5) if ok else None
                    for r, ok in zip(rates.tolist(), inside, strict=True)
                ],
            }
        )
    return {
        "sizes": [round(s) for s in sizes.tolist()],
        "start": int(np.searchsorted(sizes, found.sizes[len(found.sizes) // 2])),
        "x": [
            [round(frame.x(s), 1) if frame.low <= s <= frame.high else None for s in sizes.tolist()]
            for frame in frames
        ],
        "lru": [round(r, 5) for r in found.curve.hit_rate(sizes).tolist()],
        "lookups": found.curve.lookups / max(1, found.steps),
        "record_bytes": found.record_bytes,
        "rows": found.num_rows,
        "policies": policies,
    }
