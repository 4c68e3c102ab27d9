"""Every figure renders from plain data, in one style, without touching the notebook's settings."""

import struct
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from dsv3lab import plots


def size(content: bytes) -> tuple[int, int]:
    """Width and height of a PNG, from its header."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


FIGURES: dict[str, Figure] = {
    "lines": plots.lines(
        {"a": ([0, 1, 2], [3.0, 2.0, 1.0]), "b": ([0], [2.0])}, title="t", x="x", y="y", references={"bigram": 2.5}
    ),
    "log": plots.lines({"a": ([1, 2], [1.0, 1e-6])}, title="t", x="x", y="y", log_y=True),
    "loss": plots.loss({"training": ([0, 10, 20], [7.0, float("nan"), 5.0]), "validation": ([20], [5.5])}),
    "heat": plots.heat(np.ones((5, 8)), steps=[0, 10, 20, 30, 40], title="t"),
    "heat_once": plots.heat([[1.0, 2.0]], steps=[3], title="t"),
    "bars": plots.bars({"ours": 1.8}, title="t", unit="bits per byte", references={"gzip": 2.3}, better="lower"),
    "bars_log": plots.bars({"a": 1e-4, "b": 10.0}, title="t", unit="of the largest", log_x=True),
    "strips": plots.strips({"coarse": [6.1, 6.3], "fine": [6.0]}, title="t", unit="nats per token"),
    "matrix": plots.matrix(
        np.eye(4), title="t", x="token", y="loss", unit="change", ticks=(list("abcd"), list("efgh"))
    ),
    "matrices": plots.matrices(
        {"a": np.eye(4), "b": np.full((4, 4), np.nan)},
        title="t",
        x="token",
        y="position",
        unit="change",
        marks={"a": [(0, 1), (1, 2)]},
    ),
    "log_both": plots.lines({"a": ([1, 100], [1.0, 1e-6])}, title="t", x="x", y="y", log_x=True, log_y=True),
    "panels": plots.panels([0, 1, 2], {"a (m)": [1.0, 2.0, 2.0], "b (s)": [0.0, 0.0, 3.0]}, title="t", x="x"),
    "bands": plots.bands(
        {"a": ([0, 1, 2], [[3.0, 2.0, 1.0], [3.1, 2.2, 1.4]]), "b": ([0, 1, 2], [[2.0, 2.0, 2.0]])},
        title="t",
        x="x",
        y="y",
        references={"none": 0.0},
    ),
    "power_law": plots.power_law(
        {"small": ([1e12, 1e12], [5.0, 5.1]), "large": ([1e13], [4.5])},
        ([1e12, 1e14], [5.05, 4.0]),
        predicted=(1e14, 4.0, 3.9, 4.1),
        measured=(1e14, 4.05),
        title="t",
        x="x",
        y="y",
    ),
    "multiples": plots.multiples(
        [1, 2], {name: [0.0, float(name)] for name in "12345"}, title="t", x="x", y="y", control=[[0.0, 0.1]]
    ),
    "wide": plots.matrix([[1.0, np.nan, 3.0]], title="t", x="x", y="y", unit="u"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_it_renders(name: str) -> None:
    width, height = size(plots.png(FIGURES[name]))
    assert 400 <= width <= 900 and 100 <= height <= 700


def test_the_same_data_give_the_same_picture() -> None:
    def make() -> bytes:
        return plots.png(plots.bars({"a": 1.0}, title="t", unit="u"))

    assert make() == make()


def test_the_notebooks_settings_stay() -> None:
    before = dict(mpl.rcParams)
    plots.bars({"a": 1.0}, title="t", unit="u")
    assert dict(mpl.rcParams) == before


def test_bars_show_their_numbers() -> None:
    (axes,) = plots.bars({"ours": 1.776}, title="t", unit="u", references={"gzip": 2.27}).axes
    assert {text.get_text() for text in axes.texts} == {"1.776", "2.27"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ours", "gzip"]


def test_matrices_share_their_colours_and_cross_only_the_places_named() -> None:
    drawn = plots.matrices(
        {"a": [[0.0, 1.0]], "b": [[2.0, np.nan]]}, title="t", x="x", y="y", unit="u", marks={"b": [(0, 1)]}
    )
    first, second, _ = drawn.axes
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0.0, 2.0)
    assert len(first.collections) == 0
    assert np.asarray(second.collections[0].get_offsets()).tolist() == [[1.0, 0.0]]


def test_strips_show_every_value_and_the_mean() -> None:
    (axes,) = plots.strips({"coarse": [1.0, 2.0, 6.0], "fine": [4.0]}, title="t", unit="u").axes
    points: Any = [points.get_offsets() for points in axes.collections]
    assert [row.tolist() for row in points] == [[[1.0, 0.0], [2.0, 0.0], [6.0, 0.0]], [[4.0, 1.0]]]
    assert [text.get_text() for text in axes.texts] == ["3", "4"]


def test_a_band_reaches_from_the_lowest_seed_to_the_highest_around_their_mean() -> None:
    rows = [[3.0, 2.0], [5.0, 2.5], [4.0, 1.0]]
    (axes,) = plots.bands({"a": ([0, 1], rows), "b": ([0, 1], rows[:1])}, title="t", x="x", y="y").axes
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == pytest.approx([4.0, 5.5 / 3])
    band: Any = axes.collections[0]
    assert len(axes.collections) == 1
    assert {tuple(point) for point in band.get_paths()[0].vertices.tolist()} == {(0, 3), (0, 5), (1, 2.5), (1, 1)}


def test_a_prediction_is_drawn_with_its_range_and_nothing_is_measured_before_it_was() -> None:
    def drawn(measured: Any) -> Any:
        points = {"small": ([1.0, 10.0], [5.0, 4.0])}
        line, predicted = ([1.0, 100.0], [5.0, 3.0]), (100.0, 3.0, 2.5, 3.7)
        return plots.power_law(points, line, predicted=predicted, measured=measured, title="t", x="x", y="y").axes[0]

    before, after = drawn(None), drawn((100.0, 3.2))
    (bar,) = before.collections
    assert bar.get_paths()[0].vertices.tolist() == [[100.0, 2.5], [100.0, 3.7]]
    labels = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in (before, after)]
    assert set(labels[1]) - set(labels[0]) == {"measured afterwards"}
    assert [100.0, 3.2] in [line.get_xydata()[0].tolist() for line in after.lines]


def test_loss_leaves_gaps_where_nothing_is_finite() -> None:
    (axes,) = plots.loss({"training": ([0, 1, 2], [1.0, float("inf"), 2.0])}).axes
    drawn: Any = axes.lines[0].get_ydata()
    assert np.isnan(drawn[1]) and drawn[2] == 2.0


def test_multiples_draw_the_control_and_one_curve_into_each_panel_and_leave_gaps() -> None:
    made = plots.multiples(
        [1, 2], {"a": [0.5, float("nan")], "b": [0.0, 0.0]}, title="t", x="x", y="y", control=[[0.0, 0.1]], columns=3
    )
    assert [axes.get_title(loc="left") for axes in made.axes if axes.get_visible()] == ["a", "b"]
    grey, blue = made.axes[0].lines
    assert np.asarray(grey.get_ydata()).tolist() == [0.0, 0.1]
    assert np.isnan(np.asarray(blue.get_ydata())).tolist() == [False, True]


@pytest.mark.parametrize(("control", "edge"), [(0.03, 0.05), (0.7, 1.0), (2e-9, 1e-6)])
def test_multiples_show_at_least_three_ticks_however_small_the_differences(control: float, edge: float) -> None:
    series, missing = {"a": [0.0, control / 100]}, [[float("nan"), control]]
    made = plots.multiples([1, 2], series, title="t", x="x", y="y", control=missing)
    (low, high), ticks = made.axes[0].get_ylim(), made.axes[0].get_yticks()
    np.testing.assert_allclose([tick for tick in ticks if low <= tick <= high], [-edge, 0.0, edge])


@pytest.mark.parametrize(
    "make",
    [
        lambda: plots.multiples([1], {"a": [1.0, 2.0]}, title="t", x="x", y="y", control=[[0.0]]),
        lambda: plots.lines({"a": ([1], [1.0, 2.0])}, title="t", x="x", y="y"),
        lambda: plots.heat(np.ones((2, 3)), steps=[1], title="t"),
        lambda: plots.matrix(np.ones(3), title="t", x="x", y="y", unit="u"),
        lambda: plots.bands({"a": ([1, 2], [[1.0]])}, title="t", x="x", y="y"),
        lambda: plots.matrices({"a": np.eye(2), "b": np.eye(3)}, title="t", x="x", y="y", unit="u"),
        lambda: plots.panels([1], {"a": [1.0, 2.0]}, title="t", x="x"),
        lambda: plots.strips({"a": []}, title="t", unit="u"),
    ],
)
def test_shapes_that_do_not_fit_are_named(make: Any) -> None:
    with pytest.raises(ValueError, match="series 'a'|loads|values|tables"):
        make()


def test_neighbouring_colours_differ_in_lightness() -> None:
    def lightness(colour: str) -> float:
        red, green, blue = to_rgb(colour)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    values = [lightness(colour) for colour in plots.COLOURS]
    assert len(set(plots.COLOURS)) == len(plots.COLOURS) and max(values) < 0.75


def test_the_roofline_names_every_part_once_and_apart() -> None:
    points = {f"part {i}": [(100.0 + i, 1e9), (200.0 + i, 2e9 + i)] for i in range(9)}
    made = plots.roofline(points, peak=1e11, bandwidth=1e10, kinds=("forward", "both"), title="t")
    plots.png(made)
    (axes,) = made.axes
    assert "FLOP per byte" in axes.get_xlabel() and "GFLOP/s" in axes.get_ylabel()
    names = [text for text in axes.texts if text.get_text() in points]
    boxes = sorted((Text.get_window_extent(text) for text in names), key=lambda box: box.y0)  # without its line
    assert len(names) == 9
    assert all(low.y1 <= high.y0 for low, high in zip(boxes, boxes[1:], strict=False))


@pytest.mark.parametrize("points", [{}, {"a": [(1.0, 1.0)]}, {"a": [(0.0, 1.0), (1.0, 1.0)]}])
def test_a_roofline_without_its_points_is_refused(points: Any) -> None:
    with pytest.raises(ValueError, match="parts: expected 2 points"):
        plots.roofline(points, peak=1.0, bandwidth=1.0, kinds=("forward", "both"), title="t")
