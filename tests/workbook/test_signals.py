"""Signals to a pipeline: the first asks to save, the second kills, and the words at the end say which it was."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from dsv3lab.workbook import chain as chains
from dsv3lab.workbook import notebook, pipeline, record
from tests.workbook import lab
from tests.workbook.lab import InProcess, good


def test_sigterm_saves_records_and_is_75(conf: Path, runs: Path, child: type[InProcess], capsys: Any) -> None:
    child.hangs = True
    child.acts = {"phase1/a": lambda stage: os.kill(os.getpid(), signal.SIGTERM)}
    assert pipeline.main(["phase1"], conf=conf) == 75
    assert lab.statuses(runs) == {"a": "preempted", "b": "not_run"}
    out = capsys.readouterr().out
    assert "asked the notebook to save" in out and "interrupted by SIGTERM" in out
    assert "preempted: saved, run it again" in out
    assert (lab.the_run(runs) / "report.html").is_file() and chains.read_chain(runs) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_signal_kills(
    conf: Path, runs: Path, child: type[InProcess], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    child.hangs = True
    monkeypatch.setattr(child, "ask_to_save", lambda self: os.kill(os.getpid(), signal.SIGINT))
    child.acts = {"phase1/a": lambda stage: os.kill(os.getpid(), signal.SIGINT)}
    assert pipeline.main(["phase1"], conf=conf) == 75
    assert record.read(lab.the_run(runs)).stages[0].error == "killed by a second signal before it had saved"
    out = capsys.readouterr().out
    assert "preempted: a ended before it had saved" in out and "preempted: saved" not in out


def test_a_stage_that_does_not_save_in_time_is_killed_and_said_so(
    conf: Path, runs: Path, child: type[InProcess], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    child.hangs = True
    monkeypatch.setattr(child, "ask_to_save", lambda self: None)
    monkeypatch.setattr(notebook, "SAVE_GRACE_S", 0.2)
    child.acts = {"phase1/a": lambda stage: os.kill(os.getpid(), signal.SIGTERM)}
    assert pipeline.main(["phase1"], conf=conf) == 75
    assert record.read(lab.the_run(runs)).stages[0].error == "killed, since it had not saved within 0.2 s"
    assert "preempted: a ended before it had saved" in capsys.readouterr().out


def test_a_signal_between_two_stages_stops_before_the_next(
    conf: Path, runs: Path, child: type[InProcess], capsys: Any
) -> None:
    child.acts = {"phase1/a": lambda stage: (good(stage), os.kill(os.getpid(), signal.SIGTERM))[0]}
    assert pipeline.main(["phase1"], conf=conf) == 75
    assert lab.statuses(runs) == {"a": "ok", "b": "not_run"}
    assert "preempted between two stages: run it again" in capsys.readouterr().out
