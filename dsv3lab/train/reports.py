"""What a run has reported, kept beside its checkpoints: a run that was killed still shows all of its steps.

    <directory>/metrics.jsonl   one line for each report: {"step": 30, "metrics": {"train/loss": 5.1}}

A line without its newline was being written when the process died; it is not read.
"""

import json
import os
from pathlib import Path

from dsv3lab.config.disk import flush

NAME = "metrics.jsonl"
Point = tuple[int, dict[str, float]]
"""Steps done when something was reported, and what."""


def read(directory: Path) -> list[Point]:
    """The reports of the run in `directory`, oldest first.

    Raises:
        ValueError: for a whole line that is not a report; names file and line.
    """
    path = directory / NAME
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    return [_point(path, number, line) for number, line in enumerate(lines, 1)]


class Reports:
    """The file of one run; one process at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / NAME

    def keep(self, step: int) -> list[Point]:
        """Drop what was reported beyond `step`, since those steps are run again; returns the rest, oldest first."""
        kept = [point for point in read(self.directory) if point[0] <= step]
        # A new file in place of the old one, which may be linked into the folder of a finished stage.
        temporary = self.path.with_name(f"{NAME}.new")
        temporary.write_text("".join(map(_line, kept)))
        os.replace(temporary, self.path)
        return kept

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Append one report; a kill from here on does not lose it."""
        with self.path.open("a") as file:
            file.write(_line((step, metrics)))

    def flush(self) -> None:
        """Wait until the reports are on the disk, so that no checkpoint is there without them."""
        flush(self.path)
        flush(self.directory)


def _line(point: Point) -> str:
    return json.dumps({"step": point[0], "metrics": point[1]}) + "\n"


def _point(path: Path, number: int, line: bytes) -> Point:
    try:
        entry = json.loads(line)
        return int(entry["step"]), dict(entry["metrics"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}:{number}: not a report (step and metrics); delete this line to go on") from None
