"""Each study at the size of tests from end to end, with real trainings on real text."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import dsv3lab.data.__main__ as data
import dsv3lab.train.__main__ as train
from dsv3lab.studies import results, run


def in_this_process(words: Sequence[str], *, out: Path, line: Any, interrupts: Any) -> int:
    """`run.execute` without the seconds that a process needs to import JAX."""
    if words[0] == "dsv3lab.data":
        with out.open("a") as file, contextlib.redirect_stdout(file):
            return data.main(list(words[1:]))
    return train.main(list(words[1:]))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("balance", "scaling")]


@pytest.mark.limit(120)  # it compiles two trainings; the others, four
@pytest.mark.parametrize("name", ["fp8", *SLOW])
def test_a_study_from_end_to_end(name: str, runs: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs / "data").symlink_to(data_folder)
    monkeypatch.setattr(run, "execute", in_this_process)
    assert run.main([name, "--profile", "ci"]) == 0
    (path,) = runs.glob(f"studies/{name}/*/result.json")
    result = json.loads(path.read_text())
    results.check(result)
    assert result["device"] == {"kind": "cpu", "count": 1}
    for one in result["trainings"]:
        assert 5.5 < one["loss"] < 7 and 5.5 < one["validation_loss"] < 7, "ln 512 is 6.24"
        assert one["nonfinite_steps"] == 0 and one["curves"]["step"][-1] == one["steps"]
    losses = [one["loss"] for one in result["trainings"]]
    assert len(set(losses)) == len(losses), "what is compared makes a difference"


@pytest.mark.slow
def test_a_study_in_processes_of_its_own(runs: Path, data_folder: Path) -> None:
    (runs / "data").symlink_to(data_folder)
    assert run.main(["fp8", "--profile", "ci"]) == 0
    assert len(list(runs.glob("studies/fp8/*/trainings/*/result.json"))) == 2
