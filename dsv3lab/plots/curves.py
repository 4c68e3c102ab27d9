"""The figures of the notebooks and reports. Each takes plain data and returns a matplotlib figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dsv3lab.plots.style import COLOURS, MAP, SIZE, figure, grid, paired, style

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Name -> (x, y), of equal lengths."""


def lines(
    series: Series,
    *,
    title: str,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    references: Mapping[str, float] | None = None,
) -> Figure:
    """Curves over one axis, each named at its end or in the legend.

    Args:
        series: name -> (x values, y values).
        title: what the reader should see.
        x: label of the horizontal axis, with its unit.
        y: label of the vertical axis, with its unit.
        log_x: logarithmic horizontal axis.
        log_y: logarithmic vertical axis.
        references: name -> height of a grey horizontal line.
    """
    with style():
        made, axes = figure()
        for name, (xs, ys) in series.items():
            paired(name, xs, ys)
            axes.plot(xs, ys, label=name, marker="o" if len(xs) < 2 else None)
        for name, height in (references or {}).items():
            axes.axhline(height, color="#777777", linewidth=1.0, linestyle=":")
            axes.annotate(
                name,
                (1.0, height),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                color="#555555",
                fontsize=8,
            )
        if log_x:
            axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
        axes.set(title=title, xlabel=x, ylabel=y)
        if len(series) > 1:
            axes.legend()
    return made


def loss(
    series: Series, *, title: str = "Loss over training", unit: str = "nats per token", step: str = "optimizer step"
) -> Figure:
    """Loss curves over steps; values that are not finite leave gaps."""
    finite = {name: (xs, [v if np.isfinite(v) else np.nan for v in ys]) for name, (xs, ys) in series.items()}
    return lines(finite, title=title, x=step, y=unit)


def panels(xs: Sequence[float], series: Mapping[str, Sequence[float]], *, title: str, x: str) -> Figure:
    """Quantities of different units over the same axis, one below the other; a value holds until the next one.

    Args:
        xs: where the values stand.
        series: label with its unit -> values, one for each of `xs`.
        title: what the reader should see.
        x: what `xs` are, with their unit.
    """
    with style():
        made, table = grid(len(series), 1, size=(SIZE[0], 0.9 + 1.15 * len(series)), sharex=True)
        rows = table[:, 0]
        for number, (axes, (name, ys)) in enumerate(zip(rows, series.items(), strict=True)):
            paired(name, xs, ys)
            axes.step(xs, ys, where="post", color=COLOURS[number % len(COLOURS)], linestyle="-")
            axes.set_ylabel(name, fontsize=9)
            axes.set_ylim(bottom=0, top=1.12 * max(ys))
        rows[0].set_title(title)
        rows[-1].set_xlabel(x)
    return made


def heat(
    loads: Any, *, steps: Sequence[float], title: str, rows: str = "expert", unit: str = "load over the mean"
) -> Figure:
    """Load of each expert over steps, as a map.

    Args:
        loads: [steps, experts] numbers; 1.0 is a balanced expert when given relative to the mean.
        steps: the step of each row of `loads`.
        title: what the reader should see.
        rows: what a row of the map is.
        unit: what the colour means.
    """
    values = np.asarray(loads, dtype=float)
    if values.ndim != 2 or values.shape[0] != len(steps):
        raise ValueError(f"loads: expected [steps, experts] with {len(steps)} steps, got shape {values.shape}")
    with style():
        made, axes = figure(size=(SIZE[0], 2.0 + 0.12 * min(values.shape[1], 24)))
        edges = (
            float(steps[0]),
            float(steps[-1]) if len(steps) > 1 else float(steps[0]) + 1,
            -0.5,
            values.shape[1] - 0.5,
        )
        image = axes.imshow(values.T, aspect="auto", origin="lower", cmap=MAP, extent=edges, interpolation="nearest")
        axes.grid(False)
        axes.set(title=title, xlabel="optimizer step", ylabel=rows)
        made.colorbar(image, ax=axes, label=unit)
    return made


def bars(
    values: Mapping[str, float],
    *,
    title: str,
    unit: str,
    references: Mapping[str, float] | None = None,
    better: str = "",
    log_x: bool = False,
) -> Figure:
    """Horizontal bars: ours in colour, references in grey, each with its number.

    Args:
        values: name -> value, ours.
        title: what the reader should see.
        unit: what the numbers are.
        references: name -> value of what ours is compared with.
        better: "lower" or "higher", said on the axis.
        log_x: logarithmic numbers.
    """
    others = dict(references or {})
    names = [*values, *others]
    heights = [*values.values(), *others.values()]
    with style():
        made, axes = figure(size=(SIZE[0], 1.2 + 0.36 * len(names)))
        colours = [COLOURS[0]] * len(values) + ["#a8a8a8"] * len(others)
        drawn = axes.barh(range(len(names)), heights, color=colours, height=0.66)
        axes.bar_label(drawn, labels=[f"{height:.4g}" for height in heights], padding=4, fontsize=9)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        if log_x:
            axes.set_xscale("log")
        axes.margins(x=0.12)
        axes.grid(axis="y", visible=False)
        axes.set(title=title, xlabel=f"{unit} ({better} is better)" if better else unit)
    return made


def strips(values: Mapping[str, Sequence[float]], *, title: str, unit: str) -> Figure:
    """Repeated measurements of each name as points on a line of its own, with their mean as a bar and a number.

    Args:
        values: name -> one number for each repeat, say each seed; the same place in two of them is the same repeat.
        title: what the reader should see.
        unit: what the numbers are.
    """
    with style():
        made, axes = figure(size=(SIZE[0], 1.3 + 0.5 * len(values)))
        for row, (name, numbers) in enumerate(values.items()):
            if not len(numbers):
                raise ValueError(f"strips '{name}': no values")
            mean = float(np.mean(numbers))
            colours = [COLOURS[place % len(COLOURS)] for place in range(len(numbers))]
            axes.scatter(numbers, [row] * len(numbers), color=colours, s=36, zorder=3)
            axes.plot([mean, mean], [row - 0.25, row + 0.25], color="#555555", linestyle="-")
            axes.annotate(f"{mean:.4g}", (mean, row - 0.28), ha="center", va="bottom", fontsize=9, color="#555555")
        axes.set_yticks(range(len(values)), list(values))
        axes.set_ylim(len(values) - 0.5, -0.7)
        axes.margins(x=0.08)
        axes.grid(axis="y", visible=False)
        axes.set(title=title, xlabel=unit)
    return made


def matrix(
    values: Any, *, title: str, x: str, y: str, unit: str, ticks: tuple[Sequence[str], Sequence[str]] | None = None
) -> Figure:
    """A matrix as a map, first row on top: attention weights, or which loss term a token moves.

    Args:
        values: [rows, columns] numbers; NaN stays white.
        title: what the reader should see.
        x: what a column is.
        y: what a row is.
        unit: what the colour means.
        ticks: labels of rows and columns.
    """
    table = np.asarray(values, dtype=float)
    if table.ndim != 2:
        raise ValueError(f"values: expected [rows, columns], got shape {table.shape}")
    with style():
        made, axes = figure(size=(SIZE[0], 4.4))
        image = axes.imshow(table, cmap=MAP, aspect="equal" if table.shape[0] == table.shape[1] else "auto")
        axes.grid(False)
        if ticks is not None:
            axes.set_yticks(range(len(ticks[0])), ticks[0])
            axes.set_xticks(range(len(ticks[1])), ticks[1])
        axes.set(title=title, xlabel=x, ylabel=y)
        made.colorbar(image, ax=axes, label=unit)
    return made


def matrices(
    tables: Mapping[str, Any],
    *,
    title: str,
    x: str,
    y: str,
    unit: str,
    marks: Mapping[str, Sequence[tuple[int, int]]] | None = None,
) -> Figure:
    """Matrices of equal shape side by side, under one scale of colours.

    Args:
        tables: name -> [rows, columns] numbers; NaN stays white.
        title: what the reader should see.
        x: what a column is.
        y: what a row is.
        unit: what the colour means.
        marks: name -> (row, column) of the places that get a cross.
    """
    arrays = {name: np.asarray(table, dtype=float) for name, table in tables.items()}
    shapes = {table.shape for table in arrays.values()}
    if len(shapes) != 1 or any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"tables: expected matrices of one shape, got {sorted(shapes)}")
    finite = np.concatenate([table[np.isfinite(table)] for table in arrays.values()])
    with style():
        made, (panels,) = grid(1, len(arrays), size=(SIZE[0] + 1.0, 3.1), sharey=True)
        for axes, (name, table) in zip(panels, arrays.items(), strict=True):
            image = axes.imshow(table, cmap=MAP, vmin=finite.min(), vmax=finite.max(), interpolation="nearest")
            axes.grid(False)
            axes.set_title(name, fontsize=10)
            axes.set(xlabel=x)
            if places := (marks or {}).get(name):
                rows, columns = zip(*places, strict=True)
                axes.scatter(columns, rows, marker="x", s=12, linewidths=0.9, color=COLOURS[1])
        panels[0].set(ylabel=y)
        made.suptitle(title, x=0.01, ha="left", fontsize=11)
        made.colorbar(image, ax=list(panels), label=unit, shrink=0.8)
    return made
