"""A study as one self-contained page: charts inline, no external resource, readable without script.

The page is ``report.html.j2``, its charts are from ``charts``; this module gathers what it shows. A
small inline script adds a size slider; the numbers that it picks from are in the page as JSON.
"""

from __future__ import annotations

import json
import math
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from .charts import LOOKUPS, Chart, bars, estimate_series, lines, policy_series, short
from .curve import F64, Within
from .study import PolicyResult, Study, table_rows

__all__ = ["html", "size_text"]

SLIDER_STEPS = 160
MOST_HISTOGRAMS = 12


def html(found: Study) -> str:
    """The page, as HTML."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(short=short, size=size_text)
    source = files(__package__).joinpath("report.html.j2").read_text()
    sizes = _grid(found)
    high = _above(found.num_rows)
    near = (max(1.0, found.sizes[0] / 3), max(2.0, min(high, found.sizes[-1] * 3)))
    curves = lines(
        "curves",
        "Hit rate of LRU by cache size",
        estimate_series(found),
        (1.0, high),
        sizes.tolist(),
    )
    groups, charts = [], [curves]
    for within in found.kinds:
        if not found.policies_of(within):
            continue
        chart = lines(
            f"policies-{within}",
            f"Hit rate by policy, {LOOKUPS[within]}",
            policy_series(found, within),
            near,
            sizes.tolist(),
        )
        charts.append(chart)
        rows = _policy_rows(found, within)
        groups.append({"lookups": LOOKUPS[within], "chart": _safe(chart.svg), "rows": rows})
    return environment.from_string(source).render(
        found=found,
        curve_chart=_safe(curves.svg),
        groups=groups,
        histograms=_histograms(found),
        tables=table_rows(found),
        slider=_safe(json.dumps(_slider(found, charts)).replace("<", "\\u003c")),
        last_step=len(sizes) - 1,
    )


def size_text(num_bytes: float) -> str:
    """A number of bytes as ``"1.5 GiB"``."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        number = num_bytes / 1024**power
        if number >= 1:
            return f"{number:.3g} {unit}" if number < 999.5 else f"{number:.0f} {unit}"
    return f"{num_bytes:.0f} B"


def _safe(text: str) -> Any:
    return Markup(text)


def _above(rows: int) -> float:
    """The next of 10, 20, 50, 100, ..."""
    power = 10.0 ** math.floor(math.log10(max(10, rows)))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= rows)


def _grid(found: Study) -> F64:
    """The sizes that the slider can show: whole rows, the simulated ones among them."""
    even = np.round(np.geomspace(1.0, max(2.0, found.num_rows), SLIDER_STEPS))
    inside = [size for size in found.sizes if size <= even[-1]]
    return np.unique(np.concatenate([even, np.asarray(inside, np.float64)]))


def _rates(found: Study, policy: PolicyResult) -> list[tuple[float, float]]:
    pairs = zip(found.sizes, policy.hit_rates, strict=True)
    return [(float(size), rate) for size, rate in pairs if rate is not None]


def _policy_rows(found: Study, within: Within) -> list[dict[str, Any]]:
    mine = found.policies_of(within)
    real = [p for p in mine if not _is_bound(p)]
    best = [
        max((p.hit_rates[i] or 0.0 for p in real), default=0.0) for i in range(len(found.sizes))
    ]
    return [
        {
            "policy": p.policy,
            "bound": _is_bound(p),
            "cells": [
                {"rate": rate, "best": rate is not None and rate == best[i], "counts": p.counts[i]}
                for i, rate in enumerate(p.hit_rates)
            ],
        }
        for p in mine
    ]


def _is_bound(policy: PolicyResult) -> bool:
    return policy.policy.startswith("belady")


def _histograms(found: Study) -> list[dict[str, Any]]:
    curves = [("all tables", found.curve)]
    if len(found.curve.by_table) > 1:
        ordered = sorted(found.curve.by_table.items(), key=lambda item: -item[1].lookups)
        curves += ordered[:MOST_HISTOGRAMS]
    width = 760 if len(curves) == 1 else 470  # one or two in a line
    out = []
    for i, (name, curve) in enumerate(curves):
        repeats = 1 - curve.unique / max(1.0, curve.lookups)
        chart = bars(f"distances-{i}", f"Reuse distances: {name}", curve, width)
        out.append({"name": name, "chart": _safe(chart), "repeats": repeats})
    return out


def _slider(found: Study, charts: list[Chart]) -> dict[str, Any]:
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
                "name": policy.policy + (f", by {policy.within}" * (len(found.kinds) > 1)),
                "rates": [
                    round(r, 5) if ok else None
                    for r, ok in zip(rates.tolist(), inside, strict=True)
                ],
            }
        )
    return {
        "sizes": [round(s) for s in sizes.tolist()],
        "simulated": [size in found.sizes for size in sizes.tolist()],
        "start": min(
            len(sizes) - 1, int(np.searchsorted(sizes, found.sizes[len(found.sizes) // 2]))
        ),
        "x": [chart.cursor for chart in charts],
        "lookups_by": found.options.within,
        "lru": [round(r, 5) for r in found.curve.hit_rate(sizes).tolist()],
        "lookups": found.curve.lookups / max(1, found.steps),
        "record_bytes": found.record_bytes,
        "rows": found.num_rows,
        "policies": policies,
    }
