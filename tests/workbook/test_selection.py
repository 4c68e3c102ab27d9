"""What is reused with `--only`, `--from` and `resume=true`, why not, and what is refused before anything runs."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsv3lab.workbook import Stage, commands, inputs, pipeline, record, reuse, verify
from dsv3lab.workbook import chain as chains
from dsv3lab.workbook.gates import Device
from tests.workbook import lab, samples
from tests.workbook.lab import InProcess, fail, four_phases, good, slow


def test_only_reuses_what_is_still_valid(conf: Path, runs: Path, child: type[InProcess], capsys: Any) -> None:
    child.acts = {"phase1/b": fail}
    assert pipeline.main(["phase1"], conf=conf) == 3
    first = lab.the_run(runs)
    child.acts, child.calls = {}, []
    assert pipeline.main(["phase1", "--only", "b"], conf=conf) == 0
    assert child.calls == ["phase1/b"] and lab.statuses(runs) == {"a": "reused", "b": "ok"}
    assert f"reused from {first.name}" in capsys.readouterr().out
    assert os.path.samefile(first / "a" / "stage.json", lab.the_run(runs) / "a" / "stage.json")
    assert verify.verify(runs).problems == [] and len(chains.read_chain(runs)) == 1
    child.calls = []
    assert pipeline.main(["phase1", "--from", "phase1/a"], conf=conf) == 0
    assert child.calls == ["phase1/a", "phase1/b"]


def refused(conf: Path, runs: Path, child: type[InProcess], capsys: Any, *words: str) -> str:
    """Why the pipeline refuses `words`; nothing may have been run or written."""
    before, child.calls = sorted((runs / "phase1").glob("2*")), []
    capsys.readouterr()
    assert pipeline.main(["phase1", *words], conf=conf) == 2
    assert child.calls == [] and sorted((runs / "phase1").glob("2*")) == before
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


def test_only_never_reuses_what_differs_or_did_not_pass(
    conf: Path, runs: Path, child: type[InProcess], capsys: Any
) -> None:
    error = refused(conf, runs, child, capsys, "--only", "b")
    assert "stage a was not asked for and cannot be reused: there is no earlier execution of it" in error
    child.acts = {"phase1/a": slow}
    assert pipeline.main(["phase1"], conf=conf) == 1
    error = refused(conf, runs, child, capsys, "--only", "b")
    assert "does not pass (gate a_speed" in error and error.endswith(f"run `{commands.pipeline('phase1')}`\n")
    child.acts = {}
    assert pipeline.main(["phase1"], conf=conf) == 0
    error = refused(conf, runs, child, capsys, "--only", "b", "train.seed=5")
    assert "train.seed 0 -> 5;" in error and error.endswith("pipelines/phase1.py train.seed=5`\n")
    damaged = lab.the_run(runs)
    with open(damaged / "a" / "metrics.jsonl", "a") as file:
        file.write("\n")
    for path in (runs / "phase1").glob("*/record.json"):
        if path.parent != damaged:
            path.unlink()
    assert "a/metrics.jsonl changed since it was recorded" in refused(conf, runs, child, capsys, "--only", "b")


def test_a_stage_that_reads_another_is_not_reused_when_that_one_runs(
    tmp_path: Path, runs: Path, child: type[InProcess], capsys: Any
) -> None:
    notebooks = {name: lab.write_notebook(tmp_path / f"{name}.ipynb", []) for name in ("a", "b", "c")}
    conf = lab.write_conf(tmp_path, notebooks, needs={"c": ["phase1/b"]})
    child.acts = {"phase1/c": lambda stage: (stage.need("phase1/b"), good(stage))[1]}
    assert pipeline.main(["phase1"], conf=conf) == 0
    error = refused(conf, runs, child, capsys, "--only", "b")
    assert "it reads phase1/b, which is to be run anew" in error and "pipelines/phase1.py --from b`" in error
    child.calls = []
    assert pipeline.main(["phase1", "--from", "b"], conf=conf) == 0
    assert lab.statuses(runs) == {"a": "reused", "b": "ok", "c": "ok"}
    assert pipeline.main(["phase1", "--only", "a"], conf=conf) == 0
    assert lab.statuses(runs) == {"a": "ok", "b": "reused", "c": "reused"}
    child.acts = {"phase1/b": fail}
    assert pipeline.main(["phase1"], conf=conf) == 3
    assert "pipelines/phase1.py --from b" in capsys.readouterr().out


def ran(conf: Path, child: type[InProcess], *words: str, status: int = 0) -> list[str]:
    """The stages of phase 1 that `words` execute."""
    child.calls = []
    assert pipeline.main(["phase1", *words], conf=conf) == status
    return child.calls


def of(runs: Path, stage: str, phase: str = "phase1") -> record.StageOutcome:
    return next(one for one in record.read(lab.the_run(runs, phase)).stages if one.name == stage)


@pytest.mark.limit(60)  # importing MLflow takes seconds, on a loaded machine many
def test_resume_reuses_what_stands_and_says_so_everywhere(
    conf: Path, runs: Path, child: type[InProcess], store: Any, capsys: Any
) -> None:
    (conf / "tracking" / "mlflow.yaml").write_text("{enabled: true, experiment: dsv3lab, flush_s: 0.2, also: []}")
    assert ran(conf, child, "resume=true") == ["phase1/a", "phase1/b"]
    assert of(runs, "a").inputs["anew"] == "there is no earlier execution of it"
    first = lab.the_run(runs)
    child.acts = {"phase1/b": fail}
    ran(conf, child, "--only", "b", status=3)
    child.acts = {}
    capsys.readouterr()
    assert ran(conf, child, "resume=true") == []
    out, origin = capsys.readouterr().out, f"phase1/{first.name}"
    for name in ("a", "b"):
        assert f"↺ phase1/{name}" in out
        assert of(runs, name).status == "reused" and of(runs, name).inputs["reused_from"] == origin, "who computed it"
        assert lab.found(store)[f"{lab.the_run(runs).name}/{name}"].data.tags["reused_from"] == origin
    assert out.count(f"reused from {first.name}, same inputs; 2/2 gates pass") == 2
    assert f"computed by {origin}" in (lab.the_run(runs) / "report.html").read_text()
    assert verify.verify(runs).problems == [] and len(chains.read_chain(runs)) == 2


@pytest.mark.limit(60)
def test_resume_runs_what_changed_and_names_the_input(
    tmp_path: Path, runs: Path, child: type[InProcess], store: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    notebooks = {name: lab.write_notebook(tmp_path / f"{name}.ipynb", []) for name in ("a", "b", "c")}
    conf = lab.write_conf(tmp_path, notebooks, needs={"c": ["phase1/b"]}, tracking=True)
    child.acts = {"phase1/c": lambda stage: (stage.need("phase1/b"), good(stage))[1]}
    ran(conf, child)
    now = inputs.read_inputs(1)
    edited = dataclasses.replace(now, code={**now.code, str(notebooks["b"]): "0" * 64})
    monkeypatch.setattr(pipeline, "read_inputs", lambda phase: edited)
    monkeypatch.setattr(record, "read_inputs", lambda phase: edited)
    capsys.readouterr()
    assert ran(conf, child, "resume=true") == ["phase1/b", "phase1/c"]
    why = {"b": f"{notebooks['b']} added", "c": "it reads phase1/b, which is to be run anew"}
    out, page = capsys.readouterr().out, (lab.the_run(runs) / "report.html").read_text()
    for name, words in why.items():
        assert of(runs, name).inputs["anew"].endswith(words) and words in page
        assert f"phase1/{name:<17} runs anew: {of(runs, name).inputs['anew']}" in out
        tags = lab.found(store)[f"{lab.the_run(runs).name}/{name}"].data.tags
        assert tags["anew"] == of(runs, name).inputs["anew"]
    assert ran(conf, child, "resume=true") == [], "and now everything stands"


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("train.tokens=5120", "train.tokens 800000 -> 5120"),
        ("data.shuffle_seed=9", "data.shuffle_seed 0 -> 9"),
        ("profile.bench_repeats=9", "profile.bench_repeats 7 -> 9"),
        ("study.moe_batch_size=1", "study.moe_batch_size"),
    ],
)
def test_another_configuration_is_named(
    conf: Path, runs: Path, child: type[InProcess], word: str, named: str, capsys: Any
) -> None:
    ran(conf, child)
    calls = ran(conf, child, "resume=true", word, status=1 if word[0] in "ps" else 0)
    assert calls == ["phase1/a", "phase1/b"] and "runs anew: in the latest execution, " in capsys.readouterr().out
    assert named in of(runs, "a").inputs["anew"]


def test_what_no_stage_computes_with_changes_nothing(conf: Path, runs: Path, child: type[InProcess]) -> None:
    ran(conf, child)
    words = ("phase.stages.a.limit_s=99", "+profile.time_factors.a=2.0", "tracking.flush_s=1.0", "phase.question=Why?")
    assert ran(conf, child, "resume=true", *words, status=1) == []  # the phase is overridden, so it is not promoted
    path = conf / "phase" / "phase1.yaml"
    phase = yaml.safe_load(path.read_text())
    phase["stages"]["b"]["title"] = "Another"
    path.write_text(yaml.safe_dump(phase))
    assert ran(conf, child, "resume=true") == []


def test_a_reused_stage_is_judged_by_the_gates_of_today(
    conf: Path, runs: Path, child: type[InProcess], capsys: Any
) -> None:
    child.acts = {"phase1/a": slow}
    ran(conf, child, status=1)
    path = conf / "gates" / "phase1.yaml"
    text = path.read_text()
    path.write_text(text.replace("threshold: 10.0", "threshold: 1.0"))
    assert ran(conf, child, "resume=true") == [], "what was recorded passes now"
    (speed, _) = of(runs, "a").results
    assert (speed.status, speed.observed, speed.threshold) == ("pass", 1.0, 1.0)
    path.write_text(text)
    assert ran(conf, child, "resume=true", status=1) == ["phase1/a"]
    assert "it does not pass (gate a_speed: fail" in of(runs, "a").inputs["anew"]


def test_data_that_changed_or_an_execution_that_was_tampered_with_is_not_reused(
    conf: Path, runs: Path, child: type[InProcess]
) -> None:
    shards = samples.dataset(runs)
    child.acts = {"phase1/a": lambda stage: (stage.uses("data", shards, "d"), good(stage))[1]}
    ran(conf, child)
    manifest = shards / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    assert ran(conf, child, "resume=true") == ["phase1/a"]
    assert "its input data changed" in of(runs, "a").inputs["anew"]
    folder = lab.the_run(runs)
    (folder / "config.resolved.yaml").write_text((folder / "config.resolved.yaml").read_text() + "# edited\n")
    assert "its configuration cannot be compared" in str(reused(conf, child, runs))


def reused(conf: Path, child: type[InProcess], runs: Path) -> str:
    """Why the first of the newest executions is not reused; others are put out of the way."""
    for path in sorted((runs / "phase1").glob("*/record.json"), key=lambda path: path.stat().st_mtime_ns)[:-1]:
        path.unlink()
    assert "phase1/a" in ran(conf, child, "resume=true")
    return of(runs, "a").inputs["anew"]


def test_what_ran_while_the_code_changed_is_not_reused(
    conf: Path, runs: Path, child: type[InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edit may have been taken back since: nobody knows which version a stage saw."""
    now = inputs.read_inputs(1)
    with monkeypatch.context() as patch:
        edited = dataclasses.replace(now, code={**now.code, "dsv3lab/measure.py": "0" * 64})
        patch.setattr(record, "read_inputs", lambda phase: edited)
        ran(conf, child, status=1)
    assert "dsv3lab/measure.py changed while it ran" in reused(conf, child, runs)


@pytest.mark.parametrize(
    ("here", "named"),
    [
        (Device(kind="NVIDIA H100", count=1), "it ran on 1 x cpu, and here is 1 x NVIDIA H100"),
        ("no answer within 120 s", "nobody knows what JAX computes on here (no answer within 120 s)"),
        (Device(kind="cpu", count=8), ""),
    ],
)
def test_another_device_is_not_the_same(
    conf: Path, runs: Path, child: type[InProcess], monkeypatch: pytest.MonkeyPatch, here: Device | str, named: str
) -> None:
    ran(conf, child)
    monkeypatch.setattr(reuse, "here", lambda: here)
    assert ran(conf, child, "resume=true") == (["phase1/a", "phase1/b"] if named else [])
    assert named in of(runs, "a").inputs.get("anew", "")


def test_another_count_of_accelerators_or_cores_is_not_the_same() -> None:
    two, one = Device(kind="NVIDIA H100", count=2), Device(kind="NVIDIA H100", count=1)
    assert reuse._other_device(two, one) and not reuse._other_device(two, two)
    environment = inputs.read_environment()
    more = dataclasses.replace(environment, cores=environment.cores + 1, system="Plan9 vax")
    assert len(inputs.machine_changes(environment, more)) == 2 and not inputs.machine_changes(environment, environment)


def test_what_this_machine_computes_on_is_asked_of_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reuse.here() == Device(kind="cpu", count=1)  # JAX_PLATFORMS says so: nobody is asked
    monkeypatch.delenv("JAX_PLATFORMS")
    ask = reuse.here.__wrapped__
    answer: Any = {"backend": "gpu", "devices": ["NVIDIA H100", "NVIDIA H100"]}
    monkeypatch.setattr(reuse.doctor, "ask_jax", lambda: answer)
    assert ask() == Device(kind="NVIDIA H100", count=2)
    answer = "jax is broken"
    assert ask() == "jax is broken"


def test_resume_over_all_phases_reuses_all(tmp_path: Path, runs: Path, child: type[InProcess]) -> None:
    """A stage of another phase that was reused is still the one that was read, though its record is another."""
    conf = four_phases(tmp_path)
    child.acts = {"phase4/only": lambda stage: (stage.need("phase2/only"), good(stage))[1]}
    assert pipeline.main_all([], conf=conf) == 0
    child.calls = []
    assert pipeline.main_all(["resume=true"], conf=conf) == 0 and child.calls == []
    assert pipeline.main(["phase2"], conf=conf) == pipeline.main(["phase3"], conf=conf) == 0
    child.calls = []
    assert pipeline.main(["phase4", "resume=true"], conf=conf) == 0 and child.calls == ["phase4/only"]
    assert "it read another execution of phase2/only" in of(runs, "only", "phase4").inputs["anew"]
    assert verify.verify(runs).problems == []


def test_force_reuses_nothing_not_even_unfinished_work(
    conf: Path, runs: Path, child: type[InProcess], capsys: Any
) -> None:
    found: list[bool] = []

    def train(stage: Stage) -> None:
        work = stage.work("checkpoints")
        found.append((work / "step").exists())
        (work / "step").write_text("saved")
        assert stage.work("checkpoints") == work and (work / "step").exists(), "only what was there before is removed"
        os.kill(os.getpid(), signal.SIGTERM)

    child.acts, child.hangs = {"phase1/a": train}, True
    ran(conf, child, status=75)
    assert f"next:    {commands.pipeline('phase1', 'resume=true')}" in capsys.readouterr().out
    ran(conf, child, "resume=true", status=75)
    ran(conf, child, "force=true", status=75)
    assert found == [False, True, False]
    child.hangs, child.acts = False, {}
    assert ran(conf, child, "force=true") == ran(conf, child, "force=true") == ["phase1/a", "phase1/b"]
    request = json.loads((lab.the_run(runs) / "a" / "request.json").read_text())
    assert request["force"] is True


def test_resume_reuses_what_a_preempted_phase_had_finished(conf: Path, runs: Path, child: type[InProcess]) -> None:
    child.acts = {"phase1/a": lambda stage: (good(stage), os.kill(os.getpid(), signal.SIGTERM))[0]}
    ran(conf, child, status=75)
    child.acts = {}
    assert ran(conf, child, "resume=true") == ["phase1/b"] and len(chains.read_chain(runs)) == 1


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["resume=true", "force=true"], "give one of them"),
        (["resume=true", "--only", "b"], "resume=true chooses the stages by itself"),
        (["force=true", "--from", "b"], "force=true chooses the stages by itself"),
        (["resume=maybe"], "give true or false"),
        (["resum=true"], "did you mean 'resume'"),
        (["forc=true"], "did you mean 'force'"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    conf: Path, runs: Path, child: type[InProcess], capsys: Any, words: list[str], hint: str
) -> None:
    assert hint in refused(conf, runs, child, capsys, *words)
    if "force=true" in words and "resume=true" in words:
        assert pipeline.main_all(words, conf=conf) == 2


def test_options_are_no_part_of_the_configuration(conf: Path, runs: Path, child: type[InProcess]) -> None:
    ran(conf, child)
    before = record.read(lab.the_run(runs)).config_sha256
    ran(conf, child, "force=true", "resume=false")
    assert record.read(lab.the_run(runs)).config_sha256 == before
