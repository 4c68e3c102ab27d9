"""One line for each stage: elapsed time, what is left by former runs, and the stage's own words.

On a terminal the line is rewritten in place; elsewhere (a file, CI) a plain line is printed when the stage says something
new, at most every few seconds.
"""

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from dsv3lab.config.text import clock
from dsv3lab.workbook.files import write_atomic

REDRAW_S = 0.5
PLAIN_S = 15.0
KEPT = 5
_MARKS = {"ok": "✓", "reused": "↺", "not_run": "–"}


class Durations:
    """How long stages took in former runs, by profile: `runs/cache/durations.json` (safe to delete)."""

    def __init__(self, runs: Path, profile: str) -> None:
        self._path = runs / "cache" / "durations.json"
        self._profile = profile

    def expected(self, stage: str, default: float) -> float:
        """Median of the last runs of `stage` in seconds, or `default`."""
        known = self._read().get(f"{self._profile}:{stage}", [])
        return statistics.median(known) if known else default

    def add(self, stage: str, seconds: float) -> None:
        """Remember one more run."""
        table = self._read()
        key = f"{self._profile}:{stage}"
        table[key] = [*table.get(key, []), round(seconds, 1)][-KEPT:]
        write_atomic(self._path, json.dumps(table, indent=1, sort_keys=True) + "\n")

    def _read(self) -> dict[str, list[float]]:
        try:
            table = json.loads(self._path.read_text(encoding="utf-8"))
            return {str(k): [float(x) for x in v] for k, v in table.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}


class StageLine:
    """The line of one running stage; its words are the last line of the newest file that `words` matches below `folder`."""

    def __init__(
        self,
        stage: str,
        folder: Path,
        *,
        expected_s: float,
        words: str = "progress.txt",
        out: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = out or sys.stdout
        self._live = self._out.isatty()
        self._stage, self._folder, self._expected, self._now = stage, folder, expected_s, now
        self._words = words
        self._started = now()
        self._shown, self._text = self._started, ""
        if self._live:
            self._draw()
        else:
            self._write(f"  {stage:<24} started, usually {clock(expected_s)}\n")

    @property
    def elapsed(self) -> float:
        """Seconds since the stage was started."""
        return self._now() - self._started

    def update(self) -> None:
        """Show the time and the stage's last words, if it is time to."""
        interval = REDRAW_S if self._live else PLAIN_S
        if self._now() - self._shown < interval:
            return
        text = self._own_words()
        if self._live:
            self._text = text
            self._draw()
        elif text != self._text:
            self._text = text
            self._write(f"  {self._stage:<24} {self._times()}  {text}\n")
        else:
            return
        self._shown = self._now()

    def say(self, text: str) -> None:
        """Print a line of its own, above the running one."""
        self._erase()
        self._write(f"  {self._stage:<24} {text}\n")

    def end(self, status: str, detail: str) -> None:
        """Replace the running line by how the stage ended."""
        self._erase()
        mark = _MARKS.get(status, "✗")
        self._write(f"{mark} {self._stage:<24} {clock(self.elapsed):>7}  {detail}\n")

    def _times(self) -> str:
        elapsed, left = self.elapsed, self._expected - self.elapsed
        rest = f"about {clock(left)} left" if left > 0 else f"longer than usual ({clock(self._expected)})"
        return f"{clock(elapsed)}, {rest}"

    def _own_words(self) -> str:
        try:
            newest = max(self._folder.glob(self._words), key=lambda path: path.stat().st_mtime_ns)
            lines = newest.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except (OSError, ValueError):  # ValueError: nobody has said anything yet
            return ""
        return lines[-1] if lines else ""

    def _draw(self) -> None:
        self._shown = self._now()
        width = shutil.get_terminal_size((100, 24)).columns - 1
        line = f"  {self._stage:<24} {self._times()}" + (f"  {self._text}" if self._text else "")
        self._write(f"\r\x1b[2K{line[:width]}")

    def _erase(self) -> None:
        if self._live:
            self._write("\r\x1b[2K")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
