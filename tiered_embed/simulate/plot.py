"""A study as a picture: the curve with its estimates and policies, and the reuse distances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .report import octaves
from .study import Study

__all__ = ["draw"]


def draw(found: Study, path: Path) -> None:
    """Writes a PNG."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    axes, right = figure.subplots(1, 2, width_ratios=(3, 2))
    sizes = np.geomspace(1, max(2, found.num_rows), 300)
    axes.plot(sizes, found.curve.hit_rate(sizes), color="black", label="LRU, exact")
    for curve in found.estimates:
        error = found.errors[curve.method].mean
        label = f"{curve.method}, error {error:.4f}"
        axes.plot(sizes, curve.hit_rate(sizes), "--", linewidth=1.2, label=label)
    for policy in found.policies:
        pairs = zip(found.sizes, policy.hit_rates, strict=True)
        points = [(size, rate) for size, rate in pairs if rate is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", linewidth=0.8, label=policy.policy)
    axes.set(xscale="log", xlabel="cache size, rows", ylabel="hit rate", ylim=(0, 1))
    axes.set_title(f"{found.name}: hit rate per lookup", loc="left", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    labels, shares = octaves(found.curve)
    right.bar(range(len(labels)), shares, color="#0b62c4")
    right.set_xticks(range(len(labels)), labels, rotation=60, fontsize=8)
    right.set(xlabel="reuse distance, rows", ylabel="share of lookups")
    right.set_title("reuse distances", loc="left", fontsize=11)
    for panel in (axes, right):
        panel.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=130)
