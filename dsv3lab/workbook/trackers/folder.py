"""What a run folder holds, as every tracker reads it: new lines of metrics, figures with their titles, stages."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv3lab.workbook import gates
from dsv3lab.workbook.files import read_json, relative
from dsv3lab.workbook.gates import GateResult
from dsv3lab.workbook.store import to_ms

NOTE_LIMIT = 7900  # MLflow cuts tags at 8000 characters without an error


@dataclass(frozen=True, kw_only=True)
class Row:
    """The numbers of one line of `metrics.jsonl`."""

    time: int
    """Milliseconds since 1970."""
    step: int | None
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One picture of a stage."""

    name: str
    title: str
    path: Path


def lines_after(path: Path, offset: int) -> tuple[bytes, int]:
    """The complete lines of a file behind byte `offset`, and where they end; a file that became shorter is read anew."""
    size = path.stat().st_size if path.is_file() else 0
    offset = 0 if size < offset else offset  # the stage was opened again and started from nothing
    if size == offset:
        return b"", offset
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read()
    data = data[: data.rfind(b"\n") + 1]
    return data, offset + len(data)


def rows(data: bytes) -> Iterator[Row]:
    """The numbers in complete lines of `metrics.jsonl`; what is no number is left to the gates to refuse."""
    for line in data.decode("utf-8", "replace").splitlines():
        try:
            points = gates.parse_line(line)
        except (ValueError, RecursionError):
            continue
        values = {
            point.name: _float(point.value)
            for point in points
            if isinstance(point.value, (int, float)) and not isinstance(point.value, bool)
        }
        if values:
            yield Row(time=to_ms(points[0].time) or now(), step=points[0].step, values=values)


def figures(folder: Path) -> list[Figure]:
    """The pictures of a stage, each with the title that its notebook gave it."""
    try:
        titles = {str(figure["name"]): str(figure["title"]) for figure in read_json(folder / "stage.json")["figures"]}
    except (ValueError, KeyError, TypeError):  # the stage did not get as far as closing
        titles = {}
    found = sorted((folder / "figures").glob("*.png"))
    return [Figure(name=path.stem, title=titles.get(path.stem, path.stem), path=path) for path in found]


def stages(folder: Path) -> list[str]:
    """The stages that have a folder in a run folder, in the order in which they were begun."""
    found = [path for name in ("request.json", "metrics.jsonl") for path in folder.glob(f"*/{name}")]
    return list(dict.fromkeys(path.parent.name for path in sorted(found, key=lambda path: path.stat().st_mtime_ns)))


def title(folder: Path, runs: Path) -> str:
    """The name of a run folder below the runs folder: `phase2/<run>`."""
    return relative(folder, runs).lstrip("/")


def gate_numbers(results: Sequence[GateResult]) -> dict[str, float]:
    """What the gates of a stage or a phase said, as metrics."""
    numbers: dict[str, float] = {"gates/passed": sum(r.status == "pass" for r in results), "gates/total": len(results)}
    for result in results:
        values = {"observed": result.observed, "threshold": result.threshold, "margin": result.margin}
        numbers |= {f"gate/{result.gate_id}/{key}": value for key, value in values.items() if value is not None}
    return numbers


def now() -> int:
    """The time in milliseconds since 1970."""
    return int(time.time() * 1000)


def modified(path: Path) -> int:
    """When a file was last written, in milliseconds since 1970; now, if it is not there."""
    try:
        return int(path.stat().st_mtime * 1000)
    except OSError:
        return now()


def started(folder: Path) -> int | None:
    """When a stage was opened, in milliseconds since 1970, if it says so."""
    try:
        return to_ms(str(json.loads((folder / "stage.json").read_text(encoding="utf-8"))["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
