"""The pictures of a report: curves drawn from a stage's metrics, and the figures of its notebook.

Each carries its units and the file that it was drawn from. Together they stay within a number of bytes, so that a report
can be sent as a letter; those of a long phase are recompressed for it.
"""

import base64
import dataclasses
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dsv3lab.workbook import gates
from dsv3lab.workbook.files import read_json

LIMIT_BYTES = 3_200_000
"""All pictures of a page; base64 makes them a third larger, and the page is to stay below 5 MB."""
_STEPS = ((1400, 256), (1000, 64), (800, 32), (600, 16))
"""Width in pixels and number of colours to which figures are reduced, one step after the other, until they fit."""
_SIZE = (4.8, 3.0)
"""Inches: two curves stand side by side on a screen, and on a telephone the letters keep their size."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A kind of curve: all metrics of a stage whose names end alike."""

    metric: str
    """The last part of their names."""
    title: str
    unit: str
    note: str = ""


CURVES = (
    Curve(metric="loss", title="Loss over training", unit="nats per token"),
    Curve(
        metric="tokens_per_s",
        title="Throughput over training",
        unit="tokens per second",
        note="a training reports the mean over its steps so far, compilation and validation left out",
    ),
)
_LABELS = {"train/loss": "training", "validation/loss": "held-out text", "perf/tokens_per_s": "training"}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture with what stands below it."""

    title: str
    units: str
    source: str
    """What drew it or what it was drawn from, a file relative to the run folder."""
    file: str = ""
    """The picture itself as a file of the run folder, if it is one."""
    note: str = ""
    kind: Literal["png", "svg+xml"] = "png"
    content: bytes
    """Empty for one that was left out, see `fit`."""


def collect(folder: Path, stages: Sequence[str]) -> dict[str, list[Picture]]:
    """Stage -> its curves and then the figures of its notebook, small enough for one page."""
    found = {stage: [*curves(folder / stage), *figures(folder / stage)] for stage in stages}
    png = [picture.content for pictures in found.values() for picture in pictures if picture.kind == "png"]
    drawn = sum(len(p.content) for pictures in found.values() for p in pictures if p.kind != "png")
    fitted = iter(fit(png, limit=LIMIT_BYTES - drawn))
    return {
        stage: [dataclasses.replace(p, content=next(fitted)) if p.kind == "png" else p for p in pictures]
        for stage, pictures in found.items()
    }


def curves(home: Path) -> list[Picture]:
    """The curves of `CURVES` over steps, for a stage that logged such metrics more than once."""
    try:
        points = gates.read_points(home / "metrics.jsonl")
    except gates.MetricsError:
        return []
    found = []
    for curve in CURVES:
        series = _series(points, curve.metric)
        if series:
            found.append(_drawn(curve, series, source=f"{home.name}/metrics.jsonl"))
    return found


def figures(home: Path) -> list[Picture]:
    """The figures of a stage's notebook; those of a stage that was never closed go by their files' names."""
    listed = [entry for entry in _listed(home / "stage.json") if (home / "figures" / f"{entry['name']}.png").is_file()]
    names = {entry["name"] for entry in listed}
    notebook = next((name for name in ("executed.html", "executed.ipynb") if (home / name).is_file()), "log.txt")
    paths = sorted((home / "figures").glob("*.png"))
    listed += [{"name": path.stem, "title": path.stem} for path in paths if path.stem not in names]
    return [
        Picture(
            title=str(entry["title"]),
            units=_units(entry.get("axes")),
            source=f"{home.name}/{notebook}",
            file=f"{home.name}/figures/{entry['name']}.png",
            content=(home / "figures" / f"{entry['name']}.png").read_bytes(),
        )
        for entry in listed
    ]


def fit(contents: Sequence[bytes], *, limit: int) -> list[bytes]:
    """Pictures (PNG) made smaller, all in the same way, until they take at most `limit` bytes together.

    What does not fit even then is left out, from the last one on: its place holds no bytes.
    """
    kept = list(contents)
    for width, colours in _STEPS:
        if sum(map(len, kept)) <= limit:
            return kept
        kept = [_reduced(content, width=width, colours=colours) for content in contents]
    total, fitting = 0, []
    for content in kept:
        total += len(content)
        fitting.append(content if total <= limit else b"")
    return fitting


def shown(picture: Picture) -> str:
    """The picture as HTML, with title, units and source below it."""
    words = [f"<strong>{_e(picture.title)}.</strong> Units: {_e(picture.units)}."]
    source = f"Source: <a href='{_e(picture.source)}'>{_e(picture.source)}</a>"
    words.append(f"{source}{f' ({_e(picture.note)})' if picture.note else ''}.")
    data = base64.b64encode(picture.content).decode()
    image = f"<img alt='{_e(picture.title)}' src='data:image/{picture.kind};base64,{data}'>"
    if not picture.content:
        image = "Left out, since this page would be too large: open the picture's file."
    if picture.file:
        image = f"<a href='{_e(picture.file)}'>{image}</a>"
    return f"<figure>{image}<figcaption>{' '.join(words)}</figcaption></figure>"


def _series(points: Sequence[gates.Point], metric: str) -> dict[str, tuple[list[float], list[float]]]:
    """Label -> (steps, values) of the metrics that end with `metric`; what is not finite is a gap."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for point in points:
        if point.name.rpartition("/")[2] == metric and point.step is not None:
            steps, values = found.setdefault(_LABELS.get(point.name, point.name), ([], []))
            value = gates.number(point.value)
            steps.append(float(point.step))
            values.append(math.nan if value is None else float(value))
    return {label: series for label, series in found.items() if len(series[0]) > 1}


def _drawn(curve: Curve, series: Mapping[str, tuple[list[float], list[float]]], *, source: str) -> Picture:
    from dsv3lab import plots  # matplotlib takes a while, and most stages have no curve

    figure = plots.lines(series, title=curve.title, x="optimizer step", y=curve.unit)
    figure.set_size_inches(*_SIZE)
    return Picture(
        title=curve.title,
        units=f"{curve.unit} over optimizer steps",
        source=source,
        note=curve.note,
        kind="svg+xml",
        content=plots.svg(figure),
    )


def _listed(path: Path) -> list[dict[str, Any]]:
    try:
        entries = read_json(path)["figures"]
        return [{**entry, "name": str(entry["name"]), "title": str(entry["title"])} for entry in entries]
    except (ValueError, KeyError, TypeError):
        return []


def _units(axes: Any) -> str:
    """What stands on the axes; records from before it was noted say nothing of it."""
    if not isinstance(axes, list):
        return "on the axes"
    return "; ".join(str(label) for label in axes) or "none on the axes"


def _reduced(content: bytes, *, width: int, colours: int) -> bytes:
    """A PNG at most `width` pixels wide with at most `colours` colours, if that makes it smaller."""
    from PIL import Image  # comes with matplotlib

    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = opened.convert("RGB")
    except OSError:  # no picture: whoever opens the page sees its title
        return content
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(colours, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return min(content, buffer.getvalue(), key=len)


def _e(text: Any) -> str:
    return html.escape(str(text), quote=True)
