"""The command line: every verb is listed, loads late, and fails in one sentence."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dsv3lab import cli
from dsv3lab.workbook import pipeline
from tests.conftest import ROOT


def test_help_lists_every_verb_and_loads_nothing() -> None:
    code = (
        "import sys\nfrom dsv3lab.cli import main\nstatus = main(['--help'])\n"
        "heavy = {'yaml', 'numpy', 'hydra', 'mlflow', 'papermill', 'psutil', 'jax'} & set(sys.modules)\n"
        "print(status, sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    *overview, last = done.stdout.splitlines()
    assert last == "0 []"
    (statuses,) = [line for line in overview if line.startswith("exit status: ")]
    readme = (ROOT / "README.md").read_text().partition("| exit status | means |")[2].partition("\n\n")[0]
    promised = {number for row in readme.splitlines()[2:] for number in re.findall(r"\d+", row.split(" | ")[0])}
    assert promised == {part.split()[0] for part in statuses.removeprefix("exit status: ").split(" · ")}
    for name, verb in cli.VERBS.items():
        assert any(line.split()[:1] == [name] and verb.summary in line for line in overview)


def test_no_verb_prints_the_list_and_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "verify" in capsys.readouterr().out


def test_an_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["vreify"]) == 2
    assert capsys.readouterr().err == "dsv3lab: no verb 'vreify'; did you mean 'verify'?\n"


@pytest.mark.parametrize("name", cli.VERBS)
def test_each_verb_explains_itself_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = cli.main([name, "--help"])
    except SystemExit as end:
        status = end.code
    out = capsys.readouterr().out
    assert status == 0
    assert cli.VERBS[name].example in out and cli.VERBS[name].example.startswith(f"dsv3lab {name}")
    assert "usage:" in out


@pytest.mark.parametrize("words", [["config", "train.sed=1"], ["train", "train.sed=1"], ["run", "1", "train.sed=1"]])
def test_a_mistyped_key_ends_with_2_and_the_nearest_name(
    words: list[str], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert "did you mean 'train.seed'?" in error and error.count("\n") == 1
    assert not list(runs.iterdir()), "nothing may be started"


def test_config_prints_what_overrides_compose_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--phase", "2", "profile=ci", "train.seed=7"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert (values["phase"]["number"], values["profile"]["name"], values["train"]["seed"]) == (2, "ci", 7)


def test_train_prepares_data_and_trains_in_processes_of_their_own(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []

    def child(module: str, *arguments: str, capture: bool = False) -> tuple[int, str]:
        calls.append((module, *arguments))
        return (75, "") if module == "dsv3lab.train" else (0, "preparing\n/data/folder\n")

    monkeypatch.setattr(cli, "child", child)
    assert cli.main(["train", "train.seed=3", "--directory", str(tmp_path / "here"), "--stop-after", "5"]) == 75
    config = tmp_path / "here" / "config.resolved.yaml"
    assert yaml.safe_load(config.read_text())["train"]["seed"] == 3
    train = ("--config", str(config), "--data", "/data/folder", "--directory", str(tmp_path / "here"))
    assert calls == [
        ("dsv3lab.data", "--config", str(config)),
        ("dsv3lab.train", *train, "--stop-after", "5"),
    ]
    assert cli.main(["train", "train.seed=3"]) == cli.main(["train", "train.seed=4"]) == 75
    assert len(list((runs / "train").iterdir())) == 2, "another configuration trains in another folder"


@pytest.mark.parametrize(("fails", "status"), [("dsv3lab.data", 3), ("dsv3lab.train", 2)])
def test_a_refused_training_leaves_the_configuration_of_the_directory(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, status: int
) -> None:
    monkeypatch.setattr(cli, "child", lambda module, *_, capture=False: (0, "/data/folder\n"))
    assert cli.main(["train", "train.seed=3", "--directory", str(tmp_path)]) == 0
    monkeypatch.setattr(cli, "child", lambda module, *_, capture=False: (status * (module == fails), "/data/folder\n"))
    assert cli.main(["train", "train.seed=4", "--directory", str(tmp_path)]) == status
    (left,) = tmp_path.glob("config*")
    assert yaml.safe_load(left.read_text())["train"]["seed"] == 3


@pytest.mark.parametrize("place", ["file/below", "file"])
def test_a_folder_that_cannot_be_made_is_the_users_mistake(
    place: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["train", "--directory", str(tmp_path / place)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"dsv3lab train: --directory: {tmp_path / 'file'}") and error.count("\n") == 1


@pytest.mark.parametrize(("said", "status"), [(0, 0), (1, 3), (2, 2), (3, 3), (75, 75)])
def test_a_child_ends_as_promised(said: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "program.py").write_text(f"import sys\nprint('said')\nsys.exit({said})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert cli.child("program", capture=True) == (status, "said\n")


def test_a_child_is_told_to_stop(tmp_path: Path) -> None:
    """SIGTERM to the command line reaches the training process, which saves and ends with 75."""
    (tmp_path / "program.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    code = "import sys; from dsv3lab.cli import child; sys.exit(child('program')[0])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""}
    )
    assert process.stdout is not None
    with process.stdout as stdout:
        assert stdout.readline() == b"ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=8) == 75


@pytest.mark.limit(60)  # five interpreters
@pytest.mark.parametrize(
    "words",
    [
        *(["-m", "dsv3lab", *words] for words in (["verify"], ["--help"], ["sweep", "--help"], [])),
        ["pipelines/phase1.py", "--plan"],
    ],
)
def test_a_reader_that_has_read_enough_is_no_error(tmp_path: Path, words: list[str]) -> None:
    """As in `dsv3lab verify | head -1`."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, *words]
    environment = {**os.environ, "DSV3LAB_RUNS": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_what_nobody_foresaw_is_an_execution_error_and_not_a_failed_gate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> int:
        raise RuntimeError("boom")

    monkeypatch.setattr("dsv3lab.workbook.verify.verify", broken)
    assert cli.main(["verify", "."]) == 3
    monkeypatch.setattr("dsv3lab.workbook.pipeline.parse", broken)
    assert pipeline.main(["phase1"]) == 3 and pipeline.main_all([]) == 3
    said = capsys.readouterr().err
    assert said.count("RuntimeError: boom") == 3 and said.count("dsv3lab stopped on RuntimeError, a defect") == 3
