"""The first run: what is offered, what is asked, how it is called off, and that nothing starts unasked."""

import functools
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dsv3lab import cli
from dsv3lab.config import ConfigError
from dsv3lab.workbook import commands, doctor, quickstart
from dsv3lab.workbook.compose import compose
from dsv3lab.workbook.progress import Durations
from tests.conftest import ROOT

CPU: dict[str, object] = {"backend": "cpu", "devices": ["cpu"]}
GPU: dict[str, object] = {"backend": "gpu", "devices": ["NVIDIA H100", "NVIDIA H100"]}
pytestmark = pytest.mark.limit(60)  # some compose the configuration two dozen times


class Asked(list[str]):
    """The questions; each is answered by the next of the given answers, and then the input ends."""

    def __init__(self, *answers: str | type[BaseException]) -> None:
        super().__init__()
        self._answers: Iterator[str | type[BaseException]] = iter(answers)

    def __call__(self, question: str) -> str:
        self.append(question)
        answer = next(self._answers, EOFError)
        if isinstance(answer, str):
            return answer
        raise answer


@functools.cache
def _composed(overrides: tuple[str, ...], conf: Path) -> Any:
    return compose(overrides, conf=conf)


def composed(overrides: Any, *, conf: Path) -> Any:
    """`compose`, which takes a quarter of a second, once for each set of overrides."""
    return _composed(tuple(overrides), conf)


Ask = Callable[..., tuple[int, Asked]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, runs: Path) -> list[Any]:
    """What would have been run: the overrides and the platform; nothing is."""
    calls: list[Any] = []

    def main_all(words: Any, *, conf: Path) -> int:
        calls.append((tuple(words), os.environ.get("JAX_PLATFORMS")))
        return 7

    monkeypatch.setattr(quickstart.pipeline, "main_all", main_all)
    monkeypatch.setattr(quickstart, "compose", composed)
    monkeypatch.setattr(doctor, "ask_jax", lambda: CPU)
    monkeypatch.setenv("JAX_PLATFORMS", "as it was")  # and put back
    return calls


@pytest.fixture
def at_terminal(monkeypatch: pytest.MonkeyPatch, started: list[Any]) -> Ask:
    def run(*answers: str | type[BaseException], words: tuple[str, ...] = ()) -> tuple[int, Asked]:
        asked = Asked(*answers)
        monkeypatch.setattr("builtins.input", asked)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        return cli.main(["quickstart", *words]), asked

    return run


def test_three_questions_lead_to_a_command_that_is_started_when_confirmed(
    at_terminal: Ask, started: list[Any], capsys: Any
) -> None:
    status, asked = at_terminal("default", "ci", "y")
    assert status == 7 and started == [(("profile=default", "data=ci"), "as it was")]
    assert [question.split()[0] for question in asked] == ["profile,", "data,", "start"]  # one device: nothing to ask
    out = capsys.readouterr().out
    assert f"command: {commands.pipeline('all', 'profile=default', 'data=ci')}" in out
    assert re.search(r"that is with data=local; data=ci takes less \(\S+ MB of training text instead of \S+ MB\)", out)
    for words in ("1  ci ", "3  long ", "device: cpu: 1 x cpu", "less than 1 GiB in", "GiB are free"):
        assert words in out


def test_enter_takes_the_defaults_but_does_not_start(at_terminal: Ask, started: list[Any], capsys: Any) -> None:
    status, asked = at_terminal("", "", "")
    assert (status, started, len(asked)) == (0, [], 3)
    out = capsys.readouterr().out
    assert "that is with" not in out
    assert out.endswith("nothing was started\n") and commands.pipeline("all", "profile=default") + "\n" in out


def test_an_answer_that_is_none_is_asked_again(at_terminal: Ask, started: list[Any], capsys: Any) -> None:
    status, asked = at_terminal("0", "4", "huge", " 1 ", "maybe", "yes")
    assert status == 7 and started[0][0] == ("profile=ci",)
    assert len(asked) == 6, "the short profile has one data set that fits, which is not asked for"
    out = capsys.readouterr().out
    for wrong in ("0", "4", "huge"):
        assert f"'{wrong}' is none of them; give a number from 1 to 3, or a name" in out
    assert "'maybe' is neither yes nor no" in out


@pytest.mark.parametrize("answers", [(), ("1",), (KeyboardInterrupt,), ("", "", KeyboardInterrupt)])
def test_end_of_input_and_ctrl_c_end_with_one_line(
    at_terminal: Ask, started: list[Any], capsys: Any, answers: tuple[Any, ...]
) -> None:
    status, _ = at_terminal(*answers)
    assert (status, started) == (130, [])
    assert capsys.readouterr().err == "\nquickstart: called off, nothing was started\n"


def test_without_a_terminal_nothing_is_asked_or_started(
    started: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("builtins.input", Asked())  # ends at the first question
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert cli.main(["quickstart", "--profile", "long"]) == 0 and started == []
    out = capsys.readouterr().out
    assert f"command: {commands.pipeline('all', 'profile=long')}\n" in out and "no --yes" in out
    assert cli.main(["quickstart", "--yes", "--profile", "ci"]) == 7
    assert started == [(("profile=ci",), "as it was")]
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main(["quickstart"]) == 0 and len(started) == 1


def test_a_gpu_is_offered_beside_the_processor(
    at_terminal: Ask, started: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(doctor, "ask_jax", lambda: GPU)
    status, _ = at_terminal("ci", "", "y")
    out = capsys.readouterr().out
    assert "1  gpu       2 x NVIDIA H100 (backend gpu)" in out and "on this device it may be another" in out
    assert status == 7 and started[-1] == (("profile=ci",), "as it was")
    at_terminal("ci", "cpu", "y")
    assert f"command: JAX_PLATFORMS=cpu {commands.pipeline('all', 'profile=ci')}" in capsys.readouterr().out
    assert started[-1] == (("profile=ci",), "cpu")


def test_a_profile_for_a_gpu_is_offered_only_where_there_is_one(
    at_terminal: Ask, started: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Any, runs: Path
) -> None:
    assert at_terminal("ci")[0] == 130
    assert "tiny" not in capsys.readouterr().out
    assert at_terminal(words=("--profile", "tiny"))[0] == 2
    assert "--profile: 'tiny' needs a GPU" in capsys.readouterr().err
    monkeypatch.setattr(doctor, "ask_jax", lambda: GPU)
    status, asked = at_terminal("tiny", "", "y")
    out = capsys.readouterr().out
    assert "4  tiny      for a GPU, its time is not known yet;" in out and "time:    for a GPU" in out
    assert (status, started[-1][0]) == (7, ("profile=tiny",))
    assert not any(question.startswith("device") for question in asked), "the processor is no choice"
    for stage in quickstart._stages(quickstart.CONF):
        Durations(runs, "tiny").add(stage, 60.0)
    at_terminal("ci")
    assert "tiny      about" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--profile", "lnog"), "did you mean 'long'"),
        (("--profile", "ci", "--data", "local"), "no 'local' here; known: ci"),  # its tokens do not fit the model
        (("--device", "vector"), "no 'vector' here; known: cpu"),
    ],
)
def test_only_what_there_is_can_be_chosen(
    at_terminal: Ask, started: list[Any], capsys: Any, words: tuple[str, ...], hint: str
) -> None:
    status, _ = at_terminal("", "", "y", words=words)
    error = capsys.readouterr().err
    assert (status, started) == (2, []) and hint in error and error.count("\n") == 1


def test_a_jax_that_does_not_start_is_named(at_terminal: Ask, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(doctor, "ask_jax", lambda: "no such library")
    assert at_terminal("ci")[0] == 2
    assert "jax does not start: no such library" in capsys.readouterr().err


def test_every_offered_combination_composes(runs: Path) -> None:
    profiles = quickstart._names(quickstart.CONF / "profile")
    assert {"ci", "default", "long"} <= set(profiles)
    for profile in profiles:
        offered = [option.name for option in quickstart._data(profile, quickstart.CONF)]
        assert compose([f"profile={profile}"])[0].data.name in offered
        for data in offered:
            assert compose([f"profile={profile}", f"data={data}"])[0].data.name == data
    with pytest.raises(ConfigError):
        compose(["profile=ci", "data=local"])


def test_the_time_is_that_of_earlier_runs_where_there_are_any(runs: Path) -> None:
    phases = [compose(["profile=ci"], phase=number)[0] for number in (1, 2, 3, 4)]
    stages = quickstart._stages(quickstart.CONF)
    written = sum(config.expected_s(name) for config in phases for name in config.phase.stages)
    assert quickstart._seconds(stages, phases[0]) == pytest.approx(written)
    Durations(runs, "ci").add("phase2/train", 1000.0)
    expected = written - phases[1].expected_s("train") + 1000.0
    assert quickstart._seconds(stages, phases[0]) == pytest.approx(expected)


@pytest.mark.limit(90)  # a process that asks another one about JAX
def test_at_a_real_terminal(runs: Path) -> None:
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "dsv3lab", "quickstart"], stdin=terminal, stdout=terminal, stderr=terminal, cwd=ROOT
    )
    os.close(terminal)
    said = ""

    def until(words: str) -> None:
        nonlocal said
        end = time.monotonic() + 80
        while words not in said:
            assert time.monotonic() < end, said
            said += os.read(controller, 4096).decode()

    until("profile, by number or name [default]: ")
    os.write(controller, b"7\n")
    until("'7' is none of them")
    os.write(controller, b"ci\n")
    until("start it now? [y/N]: ")
    os.write(controller, b"\x04")  # Ctrl-D
    until("called off, nothing was started")
    assert process.wait(timeout=20) == 130 and "Traceback" not in said
    os.close(controller)
    assert not list(runs.iterdir())
