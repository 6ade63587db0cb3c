"""The charts of a study, drawn once, by matplotlib: a PNG for ``--plot``, inline SVG for the page.

``draw`` writes the picture; ``lines`` and ``bars`` return SVG for ``report``. Inside the page text
stays text, colours are the page's CSS variables (so that they follow its theme), and every point
and column shows its value under the pointer. Numbers come from ``study``; nothing is computed here.
Any thread may draw: no pyplot, no global figure.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from .curve import F64, MissRatioCurve, Within
from .study import Study

__all__ = [
    "LOOKUPS",
    "Chart",
    "bars",
    "draw",
    "estimate_series",
    "lines",
    "octaves",
    "policy_series",
    "short",
]

POINTS_PER_INCH = 72  # of SVG, and here of every figure: one unit of the view box
GRID_POINTS = 300  # of a curve
SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"

# The page's light theme, by CSS variable; series take c0 to c9.
INK, SOFT, LINE, MARK = "#1d2430", "#5b6575", "#dfe3e9", "#0b62c5"
SERIES = (
    *("#1d2431", "#0b62c4", "#c8401f", "#1b8a5a", "#8a4bbf"),
    *("#b7791f", "#0e8a9c", "#c2327a", "#5d7a12", "#6b7280"),
)
VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", MARK: "mark"}
VARIABLES |= {color: f"c{i}" for i, color in enumerate(SERIES)}

LOOKUPS: dict[Within, str] = {
    "batch": "by batch: rows are needed once per batch, so repeats in it are hits",
    "access": "by access: every id is a lookup by itself",
}
"""What a lookup is, in words."""

Kind = Literal["line", "dash", "dots"]
STYLES: dict[Kind, dict[str, object]] = {
    "line": {"linewidth": 2.0},
    "dash": {"linewidth": 1.6, "linestyle": (0, (5, 3))},
    "dots": {"linewidth": 1.1, "marker": "o", "markersize": 6.5, "alpha": 0.9},
}


@dataclass(frozen=True)
class Series:
    """One line: hit rates ``y`` (n,) of caches of ``x`` (n,) rows. color: 0 to 9."""

    name: str
    x: F64
    y: F64
    kind: Kind
    color: int


@dataclass(frozen=True)
class Chart:
    """A chart as SVG. cursor: per size that was asked for, how far right of the left border it
    lies, in units of the view box; None outside."""

    svg: str
    cursor: list[float | None]


def estimate_series(found: Study) -> list[Series]:
    """The exact curve, and its estimates with their mean errors."""
    sizes = _sizes(found)
    out = [Series("LRU, exact", sizes, found.curve.hit_rate(sizes), "line", 0)]
    for i, curve in enumerate(found.estimates, 1):
        name = f"{curve.method}, error {found.errors[curve.method].mean:.4f}"
        out.append(Series(name, sizes, curve.hit_rate(sizes), "dash", i))
    return out


def policy_series(found: Study, within: Within) -> list[Series]:
    """LRU's exact curve, and every policy that counts the same kind of lookups, at the study's
    sizes where it has room to work."""
    sizes = _sizes(found)
    out = [Series("LRU, exact", sizes, found.curve_of(within).hit_rate(sizes), "line", 0)]
    for i, policy in enumerate(found.policies):
        if policy.within != within:
            continue
        pairs = zip(found.sizes, policy.hit_rates, strict=True)
        points = np.array([(x, y) for x, y in pairs if y is not None], np.float64).reshape(-1, 2)
        out.append(Series(policy.policy, points[:, 0], points[:, 1], "dots", 1 + i % 9))
    return out


def octaves(curve: MissRatioCurve) -> tuple[list[str], list[float]]:
    """The reuse distances by doublings: labels, and shares of all lookups. The last column holds
    the first uses, which have no distance."""
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


def short(number: float) -> str:
    """12,345 as 12.3k: for axes."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"


def draw(found: Study, path: Path) -> None:
    """Writes a PNG: the curve with its estimates and policies, and the reuse distances. Policies
    that count another kind of lookups have a chart of their own."""
    kinds = found.kinds
    figure = Figure(figsize=(5 + 7 * len(kinds), 5), layout="constrained")
    FigureCanvasAgg(figure)
    *charts, right = figure.subplots(1, 1 + len(kinds), width_ratios=(*[3] * len(kinds), 2))
    for axes, within in zip(charts, kinds, strict=True):
        series = policy_series(found, within)
        if within == found.options.within:
            series = [*estimate_series(found), *series[1:]]
        _draw_lines(axes, series, (1.0, found.num_rows))
        title = f"{found.name}: hit rate per lookup,\n{LOOKUPS[within]}"
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    _draw_bars(right, *octaves(found.curve), SERIES[1], 8)
    right.set_title("reuse distances", loc="left", fontsize=11, color=INK)
    figure.savefig(path, dpi=130)


def lines(
    name: str,
    title: str,
    series: Sequence[Series],
    ends: tuple[float, float],
    sizes: Sequence[float] = (),
) -> Chart:
    """A line chart over cache sizes from ``ends[0]`` to ``ends[1]``, with a hidden cursor.

    name: unique in the page. sizes: where the cursor may stand; see :class:`Chart`.
    """
    figure = _figure(760, 420)
    axes = figure.add_subplot()
    _draw_lines(axes, series, ends)
    axes.axvline(axes.get_xlim()[0], color=MARK, linewidth=1.5, gid="cursor")
    figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=10.5, labelcolor=INK)
    titles = {}
    for i, one in enumerate(series):
        if one.kind == "dots":
            points = zip(*_inside(one, ends), strict=True)
            titles[f"series-{i}"] = [f"{one.name}: {short(x)} rows, {y:.2%}" for x, y in points]
    svg = _inline(figure, name, title, titles)
    left = axes.transData.transform((ends[0], 0.0))[0]
    cursor = [
        round(float(axes.transData.transform((size, 0.0))[0] - left), 1)
        if ends[0] <= size <= ends[1]
        else None
        for size in sizes
    ]
    return Chart(svg, cursor)


def bars(name: str, title: str, curve: MissRatioCurve, width: int) -> str:
    """The reuse distances of a curve as columns: SVG, ``width`` units wide."""
    figure = _figure(width, 230)
    labels, shares = octaves(curve)
    _draw_bars(figure.add_subplot(), labels, shares, SERIES[1], width // 54)
    titles = {
        f"bar-{i}": [f"{label}: {share:.2%}"]
        for i, (label, share) in enumerate(zip(labels, shares, strict=True))
    }
    return _inline(figure, name, title, titles)


def _sizes(found: Study) -> F64:
    return np.asarray(np.geomspace(1.0, max(2.0, found.num_rows), GRID_POINTS), np.float64)


def _figure(width: int, height: int) -> Figure:
    inches = (width / POINTS_PER_INCH, height / POINTS_PER_INCH)
    figure = Figure(figsize=inches, dpi=POINTS_PER_INCH, layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    return figure


def _inside(one: Series, ends: tuple[float, float]) -> tuple[F64, F64]:
    shown = (one.x >= ends[0]) & (one.x <= ends[1])
    return one.x[shown], one.y[shown]


def _draw_lines(axes: Axes, series: Sequence[Series], ends: tuple[float, float]) -> None:
    for i, one in enumerate(series):
        x, y = _inside(one, ends)
        if len(x):
            style = STYLES[one.kind]
            axes.plot(x, y, color=SERIES[one.color], label=one.name, gid=f"series-{i}", **style)  # type: ignore[arg-type]
    axes.set(xscale="log", xlim=ends, ylim=(0, 1))
    axes.xaxis.set_minor_locator(NullLocator())
    marks = _marks(*ends)
    axes.set_xticks(marks, [short(mark) for mark in marks])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _finish(axes, "cache size, rows", "hit rate", "both")


def _draw_bars(
    axes: Axes, labels: Sequence[str], shares: Sequence[float], color: str, most_labels: int
) -> None:
    for i, bar in enumerate(axes.bar(range(len(shares)), shares, color=color)):
        bar.set_gid(f"bar-{i}")
    every = max(1, math.ceil(len(labels) / max(1, most_labels)))
    named = range(len(labels) - 1, -1, -every)  # the last one always
    axes.set_xticks(named, [labels[i] for i in named])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.1%}"))
    axes.set_xlim(-0.7, len(labels) - 0.3)
    _finish(axes, "reuse distance, rows", "share of lookups", "y")


def _finish(axes: Axes, x_label: str, y_label: str, grid: Literal["both", "y"]) -> None:
    axes.set_xlabel(x_label, color=SOFT)
    axes.set_ylabel(y_label, color=SOFT)
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=LINE, linewidth=1)
    axes.tick_params(length=0, pad=6, colors=SOFT, labelsize=10)
    axes.spines[:].set_visible(False)


def _marks(low: float, high: float) -> list[float]:
    """Powers of ten, with their doubles and fives where the axis is short."""
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) < 3.5 else (1,)
    marks = [step * 10.0**power for power in powers for step in steps]
    return [mark for mark in marks if low <= mark <= high]


def _inline(figure: Figure, name: str, title: str, titles: dict[str, list[str]]) -> str:
    """The figure as an element of a page.

    titles: by the ``gid`` of an artist, what its points or its shape say under the pointer.
    """
    out = io.StringIO()
    # Text stays text; markers are shared by ids, which the salt makes unique in the page.
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    fonts = ["DejaVu Sans"]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.sans-serif": fonts}):
        figure.savefig(out, format="svg", metadata=nothing)
    root = ElementTree.fromstring(out.getvalue())
    for size in ("width", "height"):
        root.attrib.pop(size)
    root.attrib |= {"class": "chart", "role": "img", "aria-label": title}
    used = {element.get(HREF, "")[1:] for element in root.iter()}
    for element in list(root.iter()):
        element.attrib.pop("clip-path", None)  # nothing is drawn outside the axes
        gid = element.get("id", "")
        if gid not in used:
            element.attrib.pop("id", None)
        if gid == "cursor":
            element.attrib |= {"class": "cursor", "hidden": ""}
        shapes = [e for e in element.iter() if e.get(HREF)] or [element]
        for shape, text in zip(shapes, titles.get(gid, ()), strict=False):
            ElementTree.SubElement(shape, f"{SVG}title").text = text
    for parent in list(root.iter()):
        for child in list(parent):
            # What clips is not needed; a style sheet in a page would apply to all of it.
            if child.tag in (f"{SVG}clipPath", f"{SVG}style"):
                parent.remove(child)
    root.insert(0, ElementTree.Element(f"{SVG}title"))
    root[0].text = title
    ElementTree.register_namespace("", SVG[1:-1])
    ElementTree.register_namespace("xlink", HREF[1:-5])
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r">\s+<", "><", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    return text
