"""The figures of studies: curves of several seeds as bands, and a power law with what it predicted."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dsv3lab.plots.style import COLOURS, figure, style


def bands(
    series: Mapping[str, tuple[Sequence[float], Any]],
    *,
    title: str,
    x: str,
    y: str,
    log_y: bool = False,
    references: Mapping[str, float] | None = None,
) -> Figure:
    """Curves of several seeds: the mean as a line, from the lowest to the highest as a band.

    Args:
        series: name -> (x values, [seeds, x values] numbers).
        title: what the reader should see.
        x: label of the horizontal axis, with its unit.
        y: label of the vertical axis, with its unit.
        log_y: logarithmic vertical axis.
        references: name -> height of a grey horizontal line.
    """
    with style():
        made, axes = figure()
        for name, (xs, rows) in series.items():
            values = np.asarray(rows, dtype=float)
            if values.ndim != 2 or values.shape[1] != len(xs):
                raise ValueError(f"series '{name}': {len(xs)} x values and rows of shape {values.shape}")
            (line,) = axes.plot(xs, values.mean(axis=0), label=name, marker="o" if len(xs) < 2 else None)
            if len(values) > 1:
                axes.fill_between(
                    xs, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2, linewidth=0
                )
        for name, height in (references or {}).items():
            axes.axhline(height, color="#777777", linewidth=1.0, linestyle=":")
            place: Any = ("axes fraction", "data")
            axes.annotate(name, (1.0, height), xycoords=place, ha="right", va="bottom", color="#555555", fontsize=8)
        if log_y:
            axes.set_yscale("log")
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.legend()
    return made


def power_law(
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    line: tuple[Sequence[float], Sequence[float]],
    *,
    predicted: tuple[float, float, float, float],
    measured: tuple[float, float] | None,
    title: str,
    x: str,
    y: str,
) -> Figure:
    """Points in log-log with the line through them, the range that it predicts, and what came out.

    Args:
        points: name -> (x values, y values) of what the line was fitted to.
        line: x and y values of the line.
        predicted: where the prediction stands: x, y, lower and upper end of its range.
        measured: x and y of what was measured there, or `None` before that.
        title: what the reader should see.
        x: label of the horizontal axis, with its unit.
        y: label of the vertical axis, with its unit.
    """
    at, centre, low, high = predicted
    with style():
        made, axes = figure()
        axes.plot(*line, color="#777777", linestyle="--", linewidth=1.2, label="fitted line")
        for colour, (name, (xs, ys)) in zip(COLOURS, points.items(), strict=False):
            axes.plot(xs, ys, marker="o", linestyle="", color=colour, label=name)
        error = [[centre - low], [high - centre]]
        axes.errorbar([at], [centre], yerr=error, fmt="_", color="#777777", capsize=5, markersize=12, label="predicted")
        if measured is not None:
            axes.plot(*[[value] for value in measured], marker="*", markersize=13, linestyle="", color="#000000")
            axes.lines[-1].set_label("measured afterwards")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:.3g}")
        axes.yaxis.set_minor_formatter("{x:.3g}")
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.legend()
    return made
