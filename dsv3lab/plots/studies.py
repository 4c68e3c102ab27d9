"""The figures of studies: curves of several seeds as bands, and a power law with what it predicted."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from dsv3lab.plots.style import COLOURS, SIZE, figure, grid, paired, style


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


def multiples(
    xs: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    x: str,
    y: str,
    control: Sequence[Sequence[float]],
    columns: int = 4,
) -> Figure:
    """Differences around zero, a small panel for each over the same axes, with differences that mean nothing in grey.

    The vertical axis is linear as far as `control` reaches, rounded up, and logarithmic beyond. Values that are not finite
    leave gaps.

    Args:
        xs: where the values stand.
        series: name -> values, one for each of `xs`.
        title: what the reader should see.
        x: what `xs` are, with their unit.
        y: what the values are, with their unit.
        control: curves of what makes no difference, drawn into every panel.
        columns: panels in a row.
    """
    grey = {f"control {number}": ys for number, ys in enumerate(control)}
    for name, ys in {**series, **grey}.items():
        paired(name, xs, ys)
    rows = -(-len(series) // columns)
    with style():
        made, table = grid(rows, columns, size=(SIZE[0], 0.9 + 0.95 * rows), sharex=True, sharey=True)
        marker = "o" if len(xs) < 2 else None
        for axes, (name, ys) in zip(table.ravel(), series.items(), strict=False):
            for plain in control:
                axes.plot(xs, plain, color="#aaaaaa", linewidth=0.8, linestyle="-", marker=marker)
            axes.plot(xs, np.where(np.isfinite(ys), ys, np.nan), color=COLOURS[0], linestyle="-", marker=marker)
            axes.set_title(name, fontsize=8)
            axes.tick_params(labelsize=7)
        for axes in table.ravel()[len(series) :]:
            axes.set_visible(False)
        edge = _rounded_up(max(float(np.nanmax(np.abs(np.asarray(control, dtype=float)))), 1e-6))
        table[0, 0].set_yscale("symlog", linthresh=edge)
        # Ticks within the linear part would stand on each other; those at its edges are always in view.
        table[0, 0].yaxis.set_major_locator(FixedLocator([-10 * edge, -edge, 0.0, edge, 10 * edge]))
        low, high = table[0, 0].get_ylim()
        table[0, 0].set_ylim(min(low, -1.1 * edge), max(high, 1.1 * edge))
        made.suptitle(title, fontsize=11, x=0.01, ha="left")
        made.supxlabel(x, fontsize=9)
        made.supylabel(y, fontsize=9)
    return made


def _rounded_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


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
