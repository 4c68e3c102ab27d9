"""The light MLflow UI: loopback only, a free port, gone when it is told to go."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from dsv3lab import cli
from dsv3lab.workbook import ui


def test_a_taken_port_is_left_alone() -> None:
    with socket.socket() as taken:
        taken.bind((ui.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert ui.free_port(port) != port
    assert ui.free_port(port) == port


def test_the_server_is_light_and_local(tmp_path: Path) -> None:
    words = ui.command(tmp_path / "mlflow.db", 5151)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--workers") + 1] == "1"
    assert f"sqlite:///{tmp_path / 'mlflow.db'}" in words
    environment = ui.environment()
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_without_a_run_it_says_what_to_do(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ui"]) == 2
    assert "make run" in capsys.readouterr().err


def test_a_server_that_ends_by_itself_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ui, "command", lambda database, port: [sys.executable, "-c", "raise SystemExit('no database')"])
    assert ui.serve(tmp_path / "mlflow.db", 1, log=tmp_path / "ui.log") == 3
    assert str(tmp_path / "ui.log") in capsys.readouterr().err
    assert "no database" in (tmp_path / "ui.log").read_text()


@pytest.mark.limit(240)  # MLflow's server takes 8 s to answer on two idle cores, ten times that on busy ones
def test_it_serves_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()  # SQLite takes an empty file for an empty database
    environment = {**os.environ, "DSV3LAB_RUNS": str(tmp_path)}
    command = [sys.executable, "-m", "dsv3lab", "ui", "--port", str(ui.free_port(0))]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as stdout:
        assert "Starting" in stdout.readline()
        link = re.search(r"http://127\.0\.0\.1:\d+", stdout.readline())
        assert link is not None
        with urllib.request.urlopen(link[0], timeout=20) as page:
            assert page.status == 200
        below = psutil.Process(process.pid).children(recursive=True)
        assert 1 <= len(below) <= 3, [child.cmdline() for child in below]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    assert not psutil.wait_procs(below, timeout=5)[1]
