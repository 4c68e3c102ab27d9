"""The one style of all figures: readable at 100 dpi, in print and for the colour-blind."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette (2008), which the common kinds of colour blindness tell apart; yellow left out on white."""
DASHES = ("-", "--", "-.", ":", "-", "--", "-.")
"""Lines differ in dashes too, for print without colour."""
MAP = "cividis"
"""Sequential colours that change in lightness only, in the same way for every kind of sight."""
SIZE = (7.0, 3.6)
"""Width and height of a figure, in inches."""
DPI = 100


@contextmanager
def style() -> Iterator[None]:
    """Figures made inside have the style; settings of the notebook outside stay as they are."""
    settings: Any = {
        "figure.figsize": SIZE,
        "figure.dpi": DPI,
        "figure.facecolor": "white",
        "figure.constrained_layout.use": True,
        "savefig.dpi": DPI,
        "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=DASHES),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.labelsize": 10,
        "grid.color": "#dddddd",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
        "font.size": 10,
        "image.cmap": MAP,
    }
    with mpl.rc_context(settings):
        yield


def figure(*, size: tuple[float, float] = SIZE) -> tuple[Figure, Any]:
    """An empty figure with one pair of axes, apart from pyplot's list of open figures."""
    made = Figure(figsize=size, dpi=DPI, layout="constrained")
    return made, made.add_subplot()


def grid(
    rows: int, columns: int, *, size: tuple[float, float], sharex: bool = False, sharey: bool = False
) -> tuple[Figure, Any]:
    """An empty figure as that of `figure`, and its axes [rows, columns]."""
    made = Figure(figsize=size, dpi=DPI, layout="constrained")
    return made, made.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False)


def paired(name: str, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Refuse a series that has not one value for each place.

    Raises:
        ValueError: names the series and both lengths.
    """
    if len(xs) != len(ys):
        raise ValueError(f"series '{name}': {len(xs)} x values and {len(ys)} y values")


def png(fig: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI, facecolor="white", bbox_inches="tight")
    return buffer.getvalue()


def svg(fig: Figure) -> bytes:
    """The figure as SVG, letters drawn as shapes: the same on every machine, and sharp at every size."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "dsv3lab"}):  # the same bytes for the same data
        fig.savefig(buffer, format="svg", facecolor="white", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()
