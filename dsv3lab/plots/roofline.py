"""The roofline: achieved rate over arithmetic intensity, under the two roofs of a machine."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from dsv3lab.plots.style import COLOURS, figure, style

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GAP = 0.075
"""Distance of two labels, as a fraction of the height of the axes: more than a line of text."""


def roofline(
    parts: Mapping[str, Sequence[tuple[float, float]]],
    *,
    peak: float,
    bandwidth: float,
    kinds: Sequence[str],
    title: str,
) -> Figure:
    """Points under the roofs min(peak, bandwidth x intensity), each part named beside its last point.

    The names stand in a column right of the axes, moved apart, with a line to their points.

    Args:
        parts: name -> (FLOPs for each byte, FLOP/s) of each kind of measurement.
        peak: FLOP/s of the flat roof.
        bandwidth: bytes/s of the sloping roof.
        kinds: what the points of a part are, in their order, e.g. forward and both directions: all but the last hollow.
        title: what the reader should see.

    Raises:
        ValueError: if there is nothing to draw, a part has not one point for each kind, or a value is not above 0.
    """
    points = np.array([point for values in parts.values() for point in values], float).reshape(-1, 2)
    if not len(points) or not (points > 0).all() or any(len(values) != len(kinds) for values in parts.values()):
        raise ValueError(f"parts: expected {len(kinds)} points above 0 for each part, got {dict(parts)}")
    ridge = peak / bandwidth
    left, right = min(points[:, 0].min(), ridge) / 2, max(points[:, 0].max(), ridge) * 3
    bottom, top = min(points[:, 1].min(), peak) / 2.5, max(points[:, 1].max(), peak) * 2.5
    with style():
        made, axes = figure(size=(7.0, 4.4))
        axes.plot(
            [left, ridge, right], [bandwidth * left / 1e9, peak / 1e9, peak / 1e9], color="#777777", linestyle="-"
        )
        axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom / 1e9, top / 1e9), title=title)
        axes.set(xlabel="arithmetic intensity (FLOP per byte)", ylabel="achieved rate of products (GFLOP/s)")
        axes.annotate(
            f"matmul peak {peak / 1e9:.3g} GFLOP/s, ridge at {ridge:.3g} FLOP per byte (copy {bandwidth / 1e9:.3g} GB/s)",
            (0.02, 0.97),
            xycoords="axes fraction",
            va="top",
            color="#555555",
            fontsize=8,
        )
        heights = {name: _share(values[-1][1], bottom, top) for name, values in parts.items()}
        places = _apart(heights)
        for number, (name, values) in enumerate(parts.items()):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            for index, (x, y) in enumerate(values):
                fill = colour if index == len(values) - 1 else "white"
                axes.plot(x, y / 1e9, marker=marker, color=colour, markerfacecolor=fill, linestyle="", markersize=7)
            x, y = values[-1]
            axes.annotate(
                name,
                (x, y / 1e9),
                xytext=(1.03, places[name]),
                textcoords="axes fraction",
                va="center",
                color=colour,
                fontsize=9,
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkB": 4},
            )
        hollow = ", ".join(kinds[:-1])
        if hollow:
            axes.annotate(
                f"hollow: {hollow}; filled: {kinds[-1]}",
                (0.02, 0.03),
                xycoords="axes fraction",
                color="#555555",
                fontsize=8,
            )
    return made


def _share(value: float, low: float, high: float) -> float:
    """Where `value` stands between `low` and `high` on a logarithmic axis, 0 to 1."""
    return float(np.log(value / low) / np.log(high / low))


def _apart(heights: Mapping[str, float]) -> dict[str, float]:
    """The same heights in the same order, at least `GAP` apart, moved as a column into 0 to 1 if they fit there."""
    names = sorted(heights, key=lambda name: heights[name])
    placed: list[float] = []
    for name in names:
        placed.append(max(heights[name], placed[-1] + GAP) if placed else heights[name])
    ceiling = 1.0
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - GAP
    return dict(zip(names, placed, strict=True))
