"""The line of a running stage, on a terminal and in a file, and what is remembered of former runs."""

import io
from pathlib import Path

import pytest

from dsv3lab.config.text import clock
from dsv3lab.workbook.progress import PLAIN_S, REDRAW_S, Durations, StageLine


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (750, "12:30"), (3723, "1:02:03"), (-5, "0:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_in_a_file_there_are_plain_lines_when_the_stage_has_said_something(tmp_path: Path) -> None:
    out, now = io.StringIO(), Clock()
    line = StageLine("phase2/train", tmp_path, expected_s=60.0, out=out, now=now)
    assert "phase2/train" in out.getvalue() and "usually 1:00" in out.getvalue()
    now.time += PLAIN_S + 1
    line.update()
    assert len(out.getvalue().splitlines()) == 1  # nothing to say
    (tmp_path / "progress.txt").write_text("step 1\nstep 10/100, loss 5.1, 0:40 left\n")
    line.update()
    assert out.getvalue().splitlines()[-1].endswith("0:16, about 0:44 left  step 10/100, loss 5.1, 0:40 left")
    (tmp_path / "progress.txt").write_text("step 20/100\n")
    line.update()
    assert "20/100" not in out.getvalue()  # not more often than every few seconds
    now.time += 60
    line.update()
    assert "longer than usual (1:00)  step 20/100" in out.getvalue()
    line.end("ok", "3/3 gates pass")
    assert out.getvalue().splitlines()[-1].startswith("✓ phase2/train") and "1:16" in out.getvalue().splitlines()[-1]
    assert "\r" not in out.getvalue() and "\x1b" not in out.getvalue()


def test_on_a_terminal_one_line_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    out, now = Terminal(), Clock()
    line = StageLine("phase1/mla", tmp_path, expected_s=5.0, out=out, now=now)
    line.update()
    first = out.getvalue()
    assert "\n" not in first
    (tmp_path / "progress.txt").write_text("x" * 200 + "\n")
    now.time += REDRAW_S
    line.update()
    assert out.getvalue().startswith(first) and "\n" not in out.getvalue()
    assert all(len(part) <= 60 for part in out.getvalue().split("\r\x1b[2K"))
    line.say("over its limit")
    line.end("timeout", "timeout: too slow")
    assert out.getvalue().split("\r\x1b[2K")[-1].startswith("✗ phase1/mla") and out.getvalue().endswith("\n")


def test_durations_are_medians_by_profile_and_survive_junk(tmp_path: Path) -> None:
    durations = Durations(tmp_path, "default")
    assert durations.expected("phase1/mla", 30.0) == 30.0
    for seconds in (1.0, 100.0, 3.0, 2.0, 4.0, 5.0):
        durations.add("phase1/mla", seconds)
    assert durations.expected("phase1/mla", 30.0) == 4.0  # of the last five
    assert Durations(tmp_path, "ci").expected("phase1/mla", 30.0) == 30.0
    for junk in ("{", "[]", '{"default:phase1/mla": "x"}', '{"default:phase1/mla": [null]}'):
        (tmp_path / "cache" / "durations.json").write_text(junk)
        assert durations.expected("phase1/mla", 30.0) == 30.0
    durations.add("phase1/mla", 2.0)
    assert durations.expected("phase1/mla", 30.0) == 2.0
