"""`dsv3lab sweep`: every combination once, in its own record, compared by a metric, and never promoted."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dsv3lab import cli
from dsv3lab.config import ROOT, ConfigError
from dsv3lab.workbook import Stage, combination, grid, pipeline, record, sweep, sync, verify
from dsv3lab.workbook.process import Interrupts, locked
from tests.workbook import lab
from tests.workbook.lab import InProcess, four_phases, gate, two_stages, write_conf, write_notebook

pytestmark = pytest.mark.limit(90)  # importing MLflow takes seconds, on a loaded machine many


def learn(stage: Stage) -> None:
    """A training whose loss depends on what is swept."""
    train = stage.config.train
    if train.seed == 9:
        raise RuntimeError("seed 9 is broken on purpose")
    loss = abs(train.schedule.peak_lr - 3e-3) * 1000 + train.seed / 10
    stage.metrics({"perf/tokens_per_s": 100.0, "quality/error": 0.001, "train/loss": loss + 1}, step=1)
    stage.metric("train/loss", loss, step=2)


@pytest.fixture
def here(child: type[InProcess], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Combinations run in this process; returns the overrides of each that was run."""
    ran: list[list[str]] = []

    def execute(words: Sequence[str], *, log: Path, line: Any, interrupts: Interrupts) -> int:
        ran.append([word for word in words if "=" in word])
        return combination.main(list(words))

    monkeypatch.setattr(sweep, "execute", execute)
    monkeypatch.setattr(grid, "logged", lambda prepared, runs: {"train/loss"})  # as if it had run before
    child.acts = {"phase1/a": learn, "phase1/b": lab.good}
    return ran


def content(runs: Path) -> dict[str, Any]:
    (path,) = runs.glob("sweeps/*/sweep.json")
    return json.loads(path.read_text())


LOSS = ["--metric", "train/loss", "--mode", "min"]


def test_every_combination_runs_once_and_is_ranked(
    tmp_path: Path, runs: Path, here: list[list[str]], child: type[InProcess], capsys: Any
) -> None:
    conf = two_stages(tmp_path)
    words = ["1", "train.schedule.peak_lr=1e-3,3e-3", "train.seed=0,1", "profile=ci", *LOSS]
    assert sweep.main(words, conf=conf) == 0
    said = capsys.readouterr().out
    rates = ["train.schedule.peak_lr=0.001", "train.schedule.peak_lr=0.003"]
    assert here == [["profile=ci", rate, f"train.seed={seed}"] for rate in rates for seed in (0, 1)]
    assert "4 combinations, 0 ran before, 4 to run" in said and "[3/4] peak_lr=0.003 seed=0" in said
    assert "3 to run, about" in said and "train/loss: smaller is better; 0 to 2.1" in said
    lines = said[said.index("peak_lr  seed  train/loss") :].splitlines()
    assert [line.split()[:3] for line in lines[2:6]] == [
        ["0.003", "0", "0"],
        ["0.003", "1", "0.1"],
        ["0.001", "0", "2"],
        ["0.001", "1", "2.1"],
    ]
    folders = list(runs.glob("sweeps/*/phase1/*"))
    assert len(folders) == 4 and not (runs / "promotions.jsonl").exists()
    assert sweep.main(words, conf=conf) == 0 and len(here) == 4
    assert "4 ran before, 0 to run" in capsys.readouterr().out
    assert sweep.main([*words[:2], "train.seed=0,1,2", *words[3:]], conf=conf) == 0  # only what is new
    assert [one[-1] for one in here[4:]] == ["train.seed=2"] * 2
    assert len(list(runs.glob("sweeps/*"))) == 1
    assert sweep.main([*words[:2], "train.seed=0,1", *words[3:], "--mode", "max"], conf=conf) == 0
    best = capsys.readouterr().out.rpartition("seed  train/loss")[2].splitlines()[2]
    assert best.split()[:2] == ["0.001", "1"] and len(here) == 6


def test_records_of_a_sweep_are_whole_and_never_promoted(
    tmp_path: Path, runs: Path, here: list[list[str]], child: type[InProcess]
) -> None:
    conf = two_stages(tmp_path)
    assert sweep.main(["1", "train.seed=0,1", *LOSS], conf=conf) == 0  # with a profile that promotes
    found = [record.read(folder) for folder in runs.glob("sweeps/*/phase1/*")]
    assert [one.passed for one in found] == [False, False] and found[0].overridden[0].startswith(
        "it belongs to the sweep"
    )
    assert not (runs / "promotions.jsonl").exists()
    checked = verify.verify(runs)
    assert (checked.records, checked.problems) == (2, [])
    (next(runs.glob("sweeps/*/phase1/*")) / "a" / "added.txt").write_text("x")
    (problem,) = verify.verify(runs).problems
    assert problem.endswith("added.txt: added")
    assert pipeline.main(["phase1"], conf=conf) == 0 and verify.verify(runs).promotions == 1


def test_a_failed_combination_does_not_stop_the_others_and_is_tried_again(
    tmp_path: Path, runs: Path, here: list[list[str]], capsys: Any
) -> None:
    conf = two_stages(tmp_path)
    words = ["1", "train.seed=9,1", *LOSS]
    assert sweep.main(words, conf=conf) == 3
    said = capsys.readouterr().out
    assert "stage a: failed: RuntimeError: seed 9 is broken on purpose; the sweep goes on" in said
    rows = [line.split()[:2] for line in said.splitlines() if line[:2] in ("1 ", "9 ")]
    assert rows == [["1", "3.1"], ["9", "failed:"]]
    assert content(runs)["state"] == "failed" and [bool(c["problem"]) for c in content(runs)["combinations"]] == [1, 0]
    assert sweep.main(words, conf=conf) == 3 and [one[-1] for one in here] == [
        "train.seed=9",
        "train.seed=1",
        "train.seed=9",
    ]


def test_a_changed_input_repeats_a_combination(tmp_path: Path, runs: Path, here: list[list[str]]) -> None:
    conf = two_stages(tmp_path)
    assert sweep.main(["1", "train.seed=0,1", *LOSS], conf=conf) == 0
    folder = next(runs.glob("sweeps/*/phase1/*"))
    held = json.loads((folder / "record.json").read_text())
    held["inputs"]["code"]["dsv3lab/train/step.py"] = "0" * 64
    (folder / "record.json").write_text(json.dumps(held))
    assert sweep.main(["1", "train.seed=0,1", *LOSS, "--name", "another"], conf=conf) == 0 and len(here) == 4
    assert sweep.main(["1", "train.seed=0,1", *LOSS], conf=conf) == 0 and len(here) == 5


def test_one_stage_runs_with_those_that_it_reads(
    tmp_path: Path, runs: Path, here: list[list[str]], child: type[InProcess]
) -> None:
    notebooks = {name: write_notebook(tmp_path / f"{name}.ipynb", []) for name in ("a", "b", "c")}
    conf = write_conf(tmp_path, notebooks, needs={"b": ["phase1/a"]})
    assert sweep.main(["1", "train.seed=0,1", "--only", "b", *LOSS], conf=conf) == 0
    assert child.calls == ["phase1/a", "phase1/b"] * 2
    statuses = {stage.name: stage.status for stage in record.read(next(runs.glob("sweeps/*/phase1/*"))).stages}
    assert statuses == {"a": "ok", "b": "ok", "c": "not_run"}


def test_mlflow_nests_the_combinations_under_the_sweep(
    tmp_path: Path, runs: Path, here: list[list[str]], store: Any, capsys: Any
) -> None:
    conf = two_stages(tmp_path, tracking=True)
    words = ["1", "train.loss.bias_update_speed=0.01,0.02", "train.seed=0", *LOSS]
    assert sweep.main(words, conf=conf) == 0

    def state() -> dict[str, Any]:
        (folder,) = runs.glob("sweeps/*")
        names = {path.name for path in (folder / "phase1").iterdir()}
        listed = lab.found(store)
        parent = listed[folder.name]
        assert parent.info.status == "FINISHED" and "| 0.01 | 2.1 |" not in parent.data.tags["mlflow.note.content"]
        children = {name: listed[name] for name in names}
        assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
        for name, run in children.items():
            assert listed[f"{name}/a"].data.tags["mlflow.parentRunId"] == run.info.run_id
            assert len(store.get_metric_history(run.info.run_id, "train/loss")) == 1
        values = {
            c.data.params["train.loss.bias_update_speed"]: c.data.metrics["train/loss"] for c in children.values()
        }
        return {"parent": parent.data.metrics, "values": values, "count": len(listed)}

    first = state()
    assert first["values"] == {"0.01": 3.0, "0.02": 3.0} and first["parent"] == {"best/train/loss": 3.0}
    assert first["count"] == 1 + 2 + 4
    assert sync.main([]) == 0 and state() == first
    for run in lab.found(store).values():
        store.delete_run(run.info.run_id)
    capsys.readouterr()
    assert sync.main([]) == 0 and state() == first  # the files are the truth
    assert ": reported" in capsys.readouterr().out
    (path,) = runs.glob("sweeps/*/sweep.json")
    path.write_text(path.read_text().replace('"state": "finished"', '"state": "running"'))
    for held, status in ((True, "RUNNING"), (False, "KILLED")):  # by kill -9, which leaves no word
        with locked(runs / ("phase1" if held else "phase2") / ".lock", what="a phase"):
            assert sync.main([]) == 0 and lab.found(store)[path.parent.name].info.status == status


def test_what_cannot_run_is_refused_before_anything_starts(tmp_path: Path, runs: Path, here: list[list[str]]) -> None:
    conf = two_stages(tmp_path)
    for words, said in {
        ("train.sede=0,1",): "did you mean 'train.seed'",
        ("train.seed=0,one",): "train.seed: expected int",
        ("train.seed=0",): "nothing is swept",
        ("train.seed=0,1", "train.seed=2,3"): "swept twice",
        ("train.seed=interval(0,1)",): "write train.seed=a,b",
        ("train.seed=0,1", "--only", "aa"): "no stage 'aa'",
        ("train.seed=0,1", "--name", "../x"): "no name of a folder",
        ("train.seed=0,1", "phase=phase2"): "leave the override out",
    }.items():
        with pytest.raises(ConfigError, match=said):
            sweep.main(["1", *words], conf=conf)
    assert here == [] and list(runs.iterdir()) == []


def test_a_plan_lists_the_combinations_and_runs_nothing(
    tmp_path: Path, runs: Path, here: list[list[str]], capsys: Any
) -> None:
    assert sweep.main(["1", "train.seed=range(0,3)", "--plan"], conf=two_stages(tmp_path)) == 0
    said = capsys.readouterr().out
    assert said.count("  seed=") == 3 and "usually 0:30 in all" in said and here == [] and list(runs.iterdir()) == []


def test_the_metric_is_that_of_a_gate_unless_named(
    tmp_path: Path, runs: Path, here: list[list[str]], capsys: Any
) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", [])
    gates = {
        "speed": gate("a", "perf/tokens_per_s", ">=", 1.0, role="throughput"),
        "loss": gate("a", "train/loss", "<", 9.0, role="loss"),
    }
    conf = write_conf(tmp_path, {"a": notebook}, gates=gates)
    checked = grid.check("phase1", ["train.seed=1"], only="", sweep="x", conf=conf)
    found = grid.choose(checked, metric="", mode="", runs=runs)
    assert found == grid.Metric(name="train/loss", mode="min", stages=("a",))
    assert grid.choose(checked, metric="perf/tokens_per_s", mode="", runs=runs).mode == "max"
    rare = grid.Metric(name="moe/rare", mode="max", stages=("a",))
    assert "did you mean 'moe/rarer'?" in grid.missing(rare, [logging(runs, "a", "moe/rarer")])


def logging(runs: Path, stage: str, metric: str) -> Path:
    """A run folder of phase 1 in which a stage has logged a metric."""
    folder = runs / "phase1" / "20260101T000000Z"
    (folder / stage).mkdir(parents=True)
    line = {"time": "2026-01-01T00:00:00Z", "step": 1, "metrics": {metric: 1.0}}
    (folder / stage / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return folder


@pytest.mark.parametrize("words", [[], ["--plan"]])
def test_a_metric_that_nothing_has_logged_is_refused_before_anything_runs(
    tmp_path: Path, runs: Path, capsys: Any, words: list[str]
) -> None:
    conf = two_stages(tmp_path)
    assert cli.main(["sweep", "1", "train.seed=0,1", "--metric", "quality/eror", *words]) == 2
    assert "has 'quality/eror'" in capsys.readouterr().err
    prepared = grid.check("phase1", ["train.seed=1"], only="", sweep="x", conf=conf)
    with pytest.raises(ConfigError, match="has 'quality/eror'; did you mean 'quality/error'"):
        grid.choose(prepared, metric="quality/eror", mode="", runs=runs)
    with pytest.raises(ConfigError, match="has 'train/loss'"):
        grid.choose(prepared, metric="train/loss", mode="min", runs=runs)
    logging(runs, "b", "train/loss")
    with pytest.raises(ConfigError, match="--mode: no gate says which 'train/loss' is better"):
        grid.choose(prepared, metric="train/loss", mode="", runs=runs)
    assert grid.choose(prepared, metric="train/loss", mode="max", runs=runs).mode == "max"
    with pytest.raises(ConfigError, match="did you mean 'train/loss'"):
        grid.choose(prepared, metric="train/los", mode="min", runs=runs)


def test_what_reads_another_phase_takes_its_newest_record(
    tmp_path: Path, runs: Path, here: list[list[str]], child: type[InProcess], capsys: Any
) -> None:
    conf = four_phases(tmp_path)
    assert sweep.main(["4", "train.seed=0,1", "--metric", "quality/error"], conf=conf) == 4
    assert "phase2 is not promoted" in capsys.readouterr().err and here == []
    assert pipeline.main_all([], conf=conf) == 0
    seen: list[Path] = []
    child.acts = {"phase4/only": lambda stage: (seen.append(stage.need("phase2/only")), lab.good(stage))[0]}
    assert sweep.main(["4", "train.seed=1,2", "--metric", "quality/error"], conf=conf) == 0
    assert seen == [lab.the_run(runs, "phase2") / "only"] * 2
    assert verify.verify(runs).problems == []


def test_a_phase_that_runs_is_not_disturbed(tmp_path: Path, runs: Path, here: list[list[str]], capsys: Any) -> None:
    with locked(runs / "phase1" / ".lock", what="phase1"):
        assert sweep.main(["1", "train.seed=0,1", *LOSS], conf=two_stages(tmp_path)) == 2
    assert "phase1 is already running" in capsys.readouterr().err and here == []


SLOW = 'stage.metric("perf/tokens_per_s", 100.0)\nstage.metric("quality/error", stage.config.train.seed / 1000)'


@pytest.mark.limit(120)  # three starts of a kernel
def test_processes_of_their_own_end_with_the_sweep_and_it_goes_on(tmp_path: Path, runs: Path) -> None:
    """Real notebooks: interrupted in the second combination, and continued by the same command."""
    marker = tmp_path / "slow"
    wait = f"if stage.config.train.seed == 2 and not pathlib.Path({str(marker)!r}).exists():\n"
    wait += f"    pathlib.Path({str(marker)!r}).touch()\n    time.sleep(60)"
    notebook = write_notebook(tmp_path / "a.ipynb", lab.stage_cells("a", SLOW, wait))
    conf = write_conf(tmp_path, {"a": notebook})
    code = "import sys, pathlib; from dsv3lab.workbook import sweep\n"
    code += f"sys.exit(sweep.main(sys.argv[1:], conf=pathlib.Path({str(conf)!r})))"
    command = [sys.executable, "-c", code, "1", "train.seed=1,2", "--metric", "quality/error"]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "DSV3LAB_RUNS": str(runs)}, stdout=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not marker.exists():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "interrupted: run the same command again" in said
    assert content(runs)["state"] == "interrupted"
    assert [one["value"] for one in content(runs)["combinations"]] == [0.001, None]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "DSV3LAB_RUNS": str(runs)}, capture_output=True, text=True
    )
    assert done.returncode == 0 and "1 ran before, 1 to run" in done.stdout
    assert [one["value"] for one in content(runs)["combinations"]] == [0.001, 0.002]
