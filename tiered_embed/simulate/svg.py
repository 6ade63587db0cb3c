"""Charts as inline SVG: a line chart over a logarithmic size axis, and bars. No dependency.

Coordinates are those of the view box; the page scales them. Colours come from the page's classes
``s0`` to ``s9``, so that they follow its theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Frame", "Series", "bars", "lines", "short"]


@dataclass(frozen=True)
class Series:
    """points: (x, y), x positive and y in [0, 1]. kind: ``"line"``, ``"dash"`` or ``"dots"``,
    which are joined by a thin line. color: 0 to 9."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str
    color: int


@dataclass(frozen=True)
class Frame:
    """Where the plot lies in the view box, and what its axes span."""

    low: float
    high: float
    top: float = 1.0
    width: int = 760
    height: int = 380
    left: int = 52
    right: int = 16
    above: int = 14
    below: int = 46

    def x(self, value: float) -> float:
        share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return self.left + share * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        return self.above + (1 - value / self.top) * (self.height - self.above - self.below)


def short(number: float) -> str:
    """12,345 as 12.3k: for axes."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"


def lines(frame: Frame, series: Sequence[Series], x_label: str, y_label: str, title: str) -> str:
    """One chart; an empty group ``class="cursor"`` waits for a script to move it."""
    parts = [
        f'<svg class="chart" viewBox="0 0 {frame.width} {frame.height}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>'
    ]
    parts += _grid(frame, x_label, y_label)
    for one in series:
        shown = [(x, y) for x, y in one.points if frame.low <= x <= frame.high]
        if not shown:
            continue
        places = [(frame.x(x), frame.y(y)) for x, y in shown]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path class="{one.kind} s{one.color}" d="{path}"/>')
        if one.kind == "dots":
            parts += [
                f'<circle class="dot s{one.color}" cx="{x:.1f}" cy="{y:.1f}" r="3.6">'
                f"<title>{escape(one.name)}: {short(at)} rows, {rate:.2%}</title></circle>"
                for (x, y), (at, rate) in zip(places, shown, strict=True)
            ]
    bottom = frame.height - frame.below
    parts.append(
        f'<g class="cursor" hidden><line x1="0" x2="0" y1="{frame.above}" y2="{bottom}"/></g></svg>'
    )
    return "".join(parts)


def _grid(frame: Frame, x_label: str, y_label: str) -> list[str]:
    out = []
    bottom, right = frame.height - frame.below, frame.width - frame.right
    for i in range(6):
        value = frame.top * i / 5
        y = frame.y(value)
        out.append(f'<line class="grid" x1="{frame.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(
            f'<text class="tick" x="{frame.left - 7}" y="{y + 4:.1f}" text-anchor="end">'
            f"{value:.0%}</text>"
        )
    for at in _marks(frame.low, frame.high):
        x = frame.x(at)
        out.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.above}" y2="{bottom}"/>'
        )
        out.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">'
            f"{short(at)}</text>"
        )
    middle = (frame.left + right) / 2
    out.append(
        f'<text class="axis" x="{middle:.0f}" y="{frame.height - 8}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    y = (frame.above + bottom) / 2
    out.append(
        f'<text class="axis" transform="translate(13 {y:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return out


def _marks(low: float, high: float) -> list[float]:
    """Powers of ten, with their doubles and fives where the axis is short."""
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) < 3.5 else (1,)
    marks = [step * 10.0**power for power in powers for step in steps]
    return [mark for mark in marks if low <= mark <= high]


def bars(
    labels: Sequence[str],
    values: Sequence[float],
    color: int,
    x_label: str,
    title: str,
    width: int = 760,
) -> str:
    """Shares in [0, 1] as columns; each tells its value under the pointer."""
    height, left, above, below = 230, 52, 14, 46
    top = max([*values, 1e-9])
    step = (width - left - 16) / max(1, len(values))
    floor = height - below
    out = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>'
    ]
    for i in range(5):
        y = floor - i / 4 * (floor - above)
        out.append(f'<line class="grid" x1="{left}" x2="{width - 16}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(
            f'<text class="tick" x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">'
            f"{top * i / 4:.1%}</text>"
        )
    every = max(1, math.ceil(len(labels) / (width / 54)))
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        x, tall = left + i * step, value / top * (floor - above)
        out.append(
            f'<rect class="bar s{color}" x="{x + 1:.1f}" y="{floor - tall:.1f}" '
            f'width="{max(1.0, step - 2):.1f}" height="{tall:.1f}">'
            f"<title>{escape(label)}: {value:.2%}</title></rect>"
        )
        if i % every == 0:
            out.append(
                f'<text class="tick" x="{x + step / 2:.1f}" y="{floor + 17}" '
                f'text-anchor="middle">{escape(label)}</text>'
            )
    out.append(
        f'<text class="axis" x="{(left + width - 16) / 2:.0f}" y="{height - 8}" '
        f'text-anchor="middle">{escape(x_label)}</text></svg>'
    )
    return "".join(out)
