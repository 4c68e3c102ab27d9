"""When a training process is killed."""

import math
import signal
import sys
from pathlib import Path

import pytest

from dsv3lab import train
from dsv3lab.train import checkpoint, reports
from tests import builders


def test_a_step_is_reached_when_its_whole_line_is_there(tmp_path: Path) -> None:
    reached, path = train.reached(12), tmp_path / reports.NAME
    assert not reached(tmp_path)
    path.write_text('{"step": 2, "metrics": {}}\n{"step": 12, "metrics": {}}')  # the newline is still to come
    assert not reached(tmp_path)
    path.write_text('{"step": 2, "metrics": {}}\n{"step": 12, "metrics": {"a": {}')  # cut after an inner brace
    assert not reached(tmp_path)
    path.write_text('{"step": 2, "metrics": {}}\n{"step": 13, "metrics": {}}\n{"st')
    assert reached(tmp_path)


def test_a_save_lasts_until_the_checkpoint_has_its_name(tmp_path: Path) -> None:
    saving, unfinished = train.saving(4), tmp_path / f"{checkpoint.DEBRIS}step_00000004"
    assert not saving(tmp_path)
    unfinished.mkdir()
    assert saving(tmp_path) and not train.saving(2)(tmp_path)
    unfinished.rename(tmp_path / "step_00000004")
    assert not saving(tmp_path)


def fake_python(path: Path, lines: list[str]) -> str:
    """An executable that does `lines` in place of `python -m dsv3lab.train`, whose eighth argument is its folder."""
    path.write_text("\n".join(["#!/bin/sh", 'cd "$8" || exit 9', *lines]) + "\n")
    path.chmod(0o755)
    return str(path)


def test_the_first_step_is_that_of_the_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "run"
    (directory / "step_00000004").mkdir(parents=True)
    (directory / reports.NAME).write_text('{"step": 4, "metrics": {}}\n{"step": 5, "metrics": {}}\n')  # of a killed one
    script = [
        "sleep 0.3",  # while the killed process's step 5 still stands there
        """echo '{"step": 4, "metrics": {}}' > new && mv new metrics.jsonl""",
        "sleep 0.3",  # restored, nothing done yet
        """echo '{"step": 5, "metrics": {}}' >> metrics.jsonl""",
        "sleep 1.5",
    ]
    monkeypatch.setattr(sys, "executable", fake_python(tmp_path / "python", script))
    child = train.run(builders.run_config(), tmp_path, directory, stop_after=6)
    assert child.status == 0 and 0.6 <= child.first_step_s < 2.1


def test_a_process_that_did_no_step_has_no_time_to_its_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "run"
    monkeypatch.setattr(sys, "executable", fake_python(tmp_path / "python", ["exit 3"]))
    child = train.run(builders.run_config(), tmp_path, directory, stop_after=6)
    assert child.status == 3 and math.isnan(child.first_step_s)
    monkeypatch.setattr(sys, "executable", fake_python(tmp_path / "python", ["sleep 60"]))
    child = train.run(builders.run_config(), tmp_path, directory, stop_after=6, kill_when=lambda directory: True)
    assert child.status == -signal.SIGKILL and math.isnan(child.first_step_s)
