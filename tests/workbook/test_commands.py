"""Printed commands run with this interpreter, wherever it lies and whether or not its environment is active."""

import ast
import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3lab.config import ROOT
from dsv3lab.workbook import commands
from tests.workbook import samples


def interpreter(monkeypatch: pytest.MonkeyPatch, folder: Path, *, active: bool = False, script: bool = True) -> None:
    """Let this process look as if it ran with `folder/bin/python`."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    for name in ("python", *(["dsv3lab"] if script else [])):
        (folder / "bin" / name).write_text("#!/bin/sh\n")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setattr(commands.sys, "executable", str(folder / "bin" / "python"))
    monkeypatch.setenv("PATH", str(folder / "bin") if active else "/nowhere")


def test_an_interpreter_in_the_checkout_is_named_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    interpreter(monkeypatch, tmp_path / ".venv")
    assert commands.pipeline("phase2", "--only", "train", "a=b c") == (
        ".venv/bin/python pipelines/phase2.py --only train 'a=b c'"
    )
    assert commands.verb("verify") == ".venv/bin/dsv3lab verify"


def test_an_interpreter_elsewhere_is_named_in_full_unless_it_is_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter(monkeypatch, tmp_path / "my env")
    quoted = shlex.quote(str(tmp_path / "my env" / "bin" / "python"))
    assert commands.python() == quoted
    assert commands.verb("sync") == f"{quoted.replace('/python', '/dsv3lab')} sync"
    interpreter(monkeypatch, tmp_path / "my env", active=True)
    assert (commands.python(), commands.verb("sync")) == ("python", "dsv3lab sync")


def test_without_its_script_the_package_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    interpreter(monkeypatch, tmp_path / "env", script=False)
    assert commands.verb("sync") == "env/bin/python -m dsv3lab sync"


def test_what_is_printed_here_runs_in_the_checkout() -> None:
    done = subprocess.run(
        ["sh", "-c", f"{commands.python()} -c 'import sys; print(sys.prefix)'"], cwd=ROOT, capture_output=True
    )
    assert done.stdout.decode().strip() == sys.prefix


def test_a_stage_that_others_read_is_run_again_with_them() -> None:
    phase = samples.configuration(2)[0].phase
    assert commands.rerun(phase, "train", []).endswith("pipelines/phase2.py --only train")
    reads = dataclasses.replace(phase.stages["resume"], needs=("phase2/train",))
    phase = dataclasses.replace(phase, stages={**phase.stages, "resume": reads})
    assert commands.rerun(phase, "train", ["a=1"]).endswith("pipelines/phase2.py --from train a=1")
    assert commands.rerun(phase, "resume", []).endswith("--only resume")


def test_no_message_leaves_the_interpreter_to_chance() -> None:
    """Usage lines name the program (`prog=`), docstrings explain; what a message tells somebody to run is made here."""
    rooms = [ROOT / "dsv3lab" / room for room in ("config", "workbook", "studies")]
    for path in sorted(path for room in rooms for path in room.rglob("*.py")):
        tree = ast.parse(path.read_text())
        owners = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
        docstrings = {id(n.body[0].value) for n in owners if n.body and isinstance(n.body[0], ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                told = re.search(r"python pipelines/|(run|then|;) dsv3lab |[`(]dsv3lab [a-z]", node.value)
                assert told is None, f"{path.name}:{node.lineno}: {node.value!r}"
