"""The pipeline: order, failures, reuse, signals, limits, exit statuses, and what is recorded whatever happens."""

import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from dsv3lab.config import ConfigError, nearest
from dsv3lab.workbook import Stage, arguments, commands, notebook, pipeline, promotion, record, verify
from dsv3lab.workbook import chain as chains
from dsv3lab.workbook.compose import compose
from dsv3lab.workbook.process import Child, Interrupts, locked
from dsv3lab.workbook.progress import StageLine
from tests.workbook import lab
from tests.workbook.lab import InProcess, fail, four_phases, good, slow, two_stages


def read(runs: Path, phase: str = "phase1") -> record.PhaseRecord:
    return record.read(lab.the_run(runs, phase))


def test_all_pass_and_the_phase_is_promoted(conf: Path, runs: Path, child: type, capsys: Any) -> None:
    assert pipeline.main(["phase1"], conf=conf) == 0
    folder = lab.the_run(runs)
    assert (folder / "report.html").is_file() and (folder / "promotion.json").is_file()
    assert [line.phase for line in chains.read_chain(runs)] == ["phase1"]
    assert verify.verify(runs).problems == []
    out = capsys.readouterr().out
    assert re.search(r"✓ phase1/a +0:00  2/2 gates pass", out)
    assert "promoted for 1 x cpu" in out and "pipelines/phase2.py" in out and "make ui" in out


def test_a_failed_gate_is_1(conf: Path, runs: Path, child: type[InProcess], capsys: Any) -> None:
    child.acts = {"phase1/a": slow}
    assert pipeline.main(["phase1"], conf=conf) == 1
    assert lab.statuses(runs) == {"a": "ok", "b": "ok"} and chains.read_chain(runs) == []
    out = capsys.readouterr().out
    assert "not promoted: gate a_speed: fail" in out and "--only a" in out


def whole_gate(conf: Path, threshold: float, *, severity: str = "block") -> None:
    """Add a gate on the time of the whole phase to phase 1 of `conf`."""
    path = conf / "gates" / "phase1.yaml"
    mine = lab.gate("phase", "stage/wall_s", "<", threshold, role="other", severity=severity)
    path.write_text(path.read_text() + yaml.safe_dump({"iteration": mine}))


@pytest.mark.parametrize(("threshold", "status"), [(600.0, 0), (0.0, 1)])
def test_a_gate_on_the_whole_phase_is_judged_on_what_the_pipeline_measured(
    conf: Path, runs: Path, child: type[InProcess], capsys: Any, threshold: float, status: int
) -> None:
    whole_gate(conf, threshold)
    assert pipeline.main(["phase1"], conf=conf) == status
    written = read(runs)
    (result,) = written.whole or ()
    assert result.observed == sum(stage.seconds for stage in written.stages) and (result.status == "pass") == (
        not status
    )
    assert result == written.results[-1] and len(chains.read_chain(runs)) == 1 - status
    out = capsys.readouterr().out
    assert "iteration " in out and ("not promoted: gate iteration: fail: stage/wall_s is" in out) == bool(status)
    assert "iteration" in (lab.the_run(runs) / "report.html").read_text()


def test_a_gate_on_the_whole_phase_counts_reused_stages_and_warns_or_blocks_in_every_profile(
    conf: Path, runs: Path, child: type[InProcess]
) -> None:
    whole_gate(conf, 0.0, severity="warn")
    assert pipeline.main(["phase1"], conf=conf) == 0
    assert pipeline.main(["phase1", "--only", "a"], conf=conf) == 0
    assert lab.statuses(runs) == {"a": "ok", "b": "reused"}
    written = read(runs)
    assert (
        (written.whole or ())[0].observed == sum(stage.seconds for stage in written.stages) > written.stages[0].seconds
    )
    assert pipeline.main(["phase1", "profile=ci", "phase.gates.iteration.severity=block"], conf=conf) == 1


def test_a_gate_on_the_whole_phase_of_a_stage_that_broke_is_not_judged(
    conf: Path, runs: Path, child: type[InProcess]
) -> None:
    whole_gate(conf, 600.0)
    child.acts = {"phase1/a": fail}
    assert pipeline.main(["phase1"], conf=conf) == 3
    (result,) = read(runs).whole or ()
    assert (result.status, result.observed) == ("error", None)


@pytest.mark.parametrize("threshold", [0.1, 1000.0])
def test_gates_of_the_command_line_are_judged_and_never_promote(
    conf: Path, runs: Path, child: type[InProcess], capsys: Any, threshold: float
) -> None:
    child.acts = {"phase1/a": slow}
    assert pipeline.main(["phase1", f"phase.gates.a_speed.threshold={threshold}"], conf=conf) == 1
    said = f"gate a_speed.threshold is {threshold} on the command line, 10.0 in conf/gates/phase1.yaml"
    out = capsys.readouterr().out
    assert f"will not be promoted: {said}" in out and f"  not promoted: {said}: promoted records are judged by" in out
    assert chains.read_chain(runs) == []
    written = read(runs)
    assert written.overridden == (said,) and not written.passed
    assert written.results[0].status == ("pass" if threshold < 1 else "fail")
    assert said in (lab.the_run(runs) / "report.html").read_text()
    with pytest.raises(record.RecordError, match="judged by what is committed"):
        promotion.promote(lab.the_run(runs), written, runs)


def test_a_gate_that_was_edited_and_not_committed_does_not_promote(
    conf: Path, runs: Path, child: type, capsys: Any
) -> None:
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *words], cwd=conf, check=True)
    (conf / "model" / "nano.yaml").write_text((conf / "model" / "nano.yaml").read_text() + "# another model\n")
    gates = conf / "gates" / "phase1.yaml"
    gates.write_text(gates.read_text().replace("threshold: 10.0", "threshold: 1.0"))
    assert pipeline.main(["phase1"], conf=conf) == 1
    out = capsys.readouterr().out
    assert "will not be promoted: gates/phase1.yaml is not committed" in out and "nano.yaml" not in out
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "b"], cwd=conf, check=True)
    assert pipeline.main(["phase1"], conf=conf) == 0


def test_a_profile_that_promotes_on_the_command_line_only_is_not_promoted(
    conf: Path, runs: Path, child: type, capsys: Any
) -> None:
    assert pipeline.main(["phase1", "profile=ci", "profile.promotes=true"], conf=conf) == 1
    assert "profile.promotes is True on the command line, False in conf/profile/ci.yaml" in capsys.readouterr().out
    assert chains.read_chain(runs) == []


def test_a_broken_stage_is_3_and_the_others_still_run(
    conf: Path, runs: Path, child: type[InProcess], capsys: Any
) -> None:
    child.acts = {"phase1/a": fail, "phase1/b": slow}
    assert pipeline.main(["phase1", "train.seed=7"], conf=conf) == 3
    assert lab.statuses(runs) == {"a": "failed", "b": "ok"}
    out = capsys.readouterr().out
    for words in ("fail(stage)", "last lines", "pipelines/phase1.py --only a train.seed=7", "RuntimeError: broken"):
        assert words in out
    assert {result.status for result in read(runs).results} == {"error", "fail", "pass"}
    assert (lab.the_run(runs) / "report.html").is_file()


def test_needs_come_first_and_a_missing_one_stops_only_who_needs_it(
    tmp_path: Path, runs: Path, child: type[InProcess], capsys: Any
) -> None:
    notebooks = {name: lab.write_notebook(tmp_path / f"{name}.ipynb", []) for name in ("a", "b", "c")}
    needs = {"a": ["phase1/b"]}
    conf = lab.write_conf(tmp_path, notebooks, needs=needs)
    child.acts = {"phase1/a": lambda stage: (stage.need("phase1/b"), good(stage))[1]}
    assert pipeline.main(["phase1"], conf=conf) == 0
    assert child.calls == ["phase1/b", "phase1/a", "phase1/c"]
    child.acts = {"phase1/b": fail}
    assert pipeline.main(["phase1"], conf=conf) == 3
    assert lab.statuses(runs) == {"a": "not_run", "b": "failed", "c": "ok"}
    assert "needs phase1/b, which is failed" in capsys.readouterr().out


def test_stages_that_need_each_other_are_refused(tmp_path: Path, runs: Path, capsys: Any) -> None:
    conf = two_stages(tmp_path, needs={"a": ["phase1/b"], "b": ["phase1/a"]})
    assert pipeline.main(["phase1"], conf=conf) == 2
    assert "need each other" in capsys.readouterr().err
    two_stages(tmp_path, needs={"a": ["phase1/bb"]})
    assert pipeline.main(["phase1"], conf=conf) == 2
    assert "did you mean 'b'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["phase1", "--plna"], "did you mean '--plan'"),
        (["phase1", "--only", "aa"], "did you mean 'a'"),
        (["phase1", "--from=bb"], "did you mean 'b'"),
        (["phase1", "--only"], "name the stage"),
        (["phase1", "--only", "a", "--from", "b"], "exclude each other"),
        (["phase1", "trian.seed=1"], "did you mean 'train'"),
        (["phase1", "train.sede=1"], "did you mean 'train.seed'"),
        (["phase1", "train.seed=abc"], "train.seed"),
        (["phase1", "plan"], "'--plan'"),
        (["phase1", "seed"], "key=value"),
        (["phse1"], "did you mean 'phase1'"),
        ([], "phase1"),
    ],
)
def test_what_is_mistyped_is_2_with_the_nearest_name(
    conf: Path, runs: Path, words: list[str], hint: str, capsys: Any
) -> None:
    assert pipeline.main(words, conf=conf) == 2
    error = capsys.readouterr().err
    assert hint in error and "Traceback" not in error and len(error.splitlines()) == 1
    assert list(runs.iterdir()) == []


def test_the_plan_shows_everything_and_runs_nothing(
    conf: Path, runs: Path, child: type[InProcess], capsys: Any
) -> None:
    assert pipeline.main(["phase1", "--plan"], conf=conf) == 0
    out = capsys.readouterr().out
    for words in ("1. phase1/a", "a_speed", "perf/tokens_per_s >= 10 1", "source: policy: a test", "target: It runs"):
        assert words in out
    assert child.calls == [] and list(runs.iterdir()) == []


def test_without_its_upstream_a_phase_is_4(tmp_path: Path, runs: Path, child: type[InProcess], capsys: Any) -> None:
    notebooks = {"a": lab.write_notebook(tmp_path / "a.ipynb", [])}
    conf = lab.write_conf(tmp_path, notebooks, number=2)
    assert pipeline.main(["phase2"], conf=conf) == 4
    assert "phase1 is not promoted" in capsys.readouterr().err
    assert child.calls == [] and not list((runs / "phase2").glob("2*"))


@pytest.mark.limit(40)  # three calls, each of which composes
def test_a_profile_for_a_gpu_says_so_before_it_starts(
    runs: Path, conf: Path, child: type[InProcess], capsys: Any
) -> None:
    warning = "profile default is for a GPU: on a CPU its stages do not finish"
    assert pipeline.main(["phase1", "--plan", "profile.device=gpu"], conf=conf) == 0
    planned = capsys.readouterr().out
    assert warning in planned and "usually" not in planned and "ended after" in planned
    pipeline.main(["phase1", "profile.device=gpu"], conf=conf)
    assert capsys.readouterr().out.splitlines()[1].strip().startswith(warning)
    pipeline.main(["phase1", "--plan"], conf=conf)
    planned = capsys.readouterr().out
    assert "GPU" not in planned.partition("What the seed")[0] and "usually" in planned


def test_a_profile_that_never_promotes_is_0_when_all_passes(
    conf: Path, runs: Path, child: type[InProcess], capsys: Any
) -> None:
    assert pipeline.main(["phase1", "profile=ci"], conf=conf) == 0
    assert "never promoted" in capsys.readouterr().out
    assert not (runs / "promotions.jsonl").exists()
    child.acts = {"phase1/b": slow}
    assert pipeline.main(["phase1", "profile=ci"], conf=conf) == 1


def test_a_second_pipeline_is_refused_and_a_dead_ones_lock_is_not(
    conf: Path, runs: Path, child: type[InProcess], capsys: Any
) -> None:
    lock = runs / "phase1" / ".lock"
    with locked(lock, what="phase1"):
        assert pipeline.main(["phase1"], conf=conf) == 2
    error = capsys.readouterr().err
    assert "already running" in error and len(error.splitlines()) == 1 and child.calls == []
    lock.write_text("999999\n")
    assert pipeline.main(["phase1"], conf=conf) == 0


def test_the_limit_ends_a_stage(tmp_path: Path, runs: Path, child: type[InProcess], capsys: Any) -> None:
    conf = two_stages(tmp_path, limit_s=1.0)
    child.hangs = True
    assert pipeline.main(["phase1"], conf=conf) == 3
    assert set(lab.statuses(runs).values()) == {"timeout"}
    assert "not done within its limit of 1 s" in capsys.readouterr().out


def test_a_missing_notebook_is_a_failure(conf: Path, runs: Path, child: type, tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").unlink()
    assert pipeline.main(["phase1"], conf=conf) == 3
    assert "there is no such notebook" in read(runs).stages[0].error


def test_a_disk_that_fails_in_the_middle_is_recorded(
    conf: Path, runs: Path, child: type[InProcess], capsys: Any
) -> None:
    def full(stage: Stage) -> None:
        raise OSError(28, "No space left on device")

    child.acts = {"phase1/b": full}
    assert pipeline.main(["phase1"], conf=conf) == 3
    assert lab.statuses(runs) == {"a": "ok", "b": "not_run"} and chains.read_chain(runs) == []
    assert "No space left" in capsys.readouterr().err


def test_all_four_phases_end_in_one_table(tmp_path: Path, runs: Path, child: type[InProcess], capsys: Any) -> None:
    conf = four_phases(tmp_path)
    child.acts = {"phase4/only": lambda stage: (stage.need("phase2/only"), good(stage))[1]}
    assert pipeline.main_all([], conf=conf) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"phase\d: promoted for 1 x cpu", out)) == 4
    assert out.count("compare: make ui") == out.count("next:    ") == out.count("8/8 gates pass") == 1
    assert out.count("report: ") == 4 and f"next:    {commands.verb('verify')}" in out
    assert [line.phase for line in chains.read_chain(runs)] == list(arguments.PHASES)
    assert verify.verify(runs).problems == []


def test_another_kind_of_device_than_upstream_is_1(
    tmp_path: Path, runs: Path, child: type[InProcess], capsys: Any
) -> None:
    conf = four_phases(tmp_path)
    child.acts = {"phase1/only": lambda stage: (good(stage), stage.device("NVIDIA H100", 8))[0]}
    assert pipeline.main(["phase1"], conf=conf) == 0
    assert pipeline.main(["phase2"], conf=conf) == 1
    said = "ran on 1 x cpu, but phase1 stands for 8 x NVIDIA H100"
    assert f"not promoted: {said}" in capsys.readouterr().out
    assert [line.phase for line in chains.read_chain(runs)] == ["phase1"]
    page = (lab.the_run(runs, "phase2") / "report.html").read_text()
    assert "Passed, but not promoted" in page and said in page


def test_all_stops_at_the_first_phase_that_fails(
    tmp_path: Path, runs: Path, child: type[InProcess], capsys: Any
) -> None:
    conf = four_phases(tmp_path)
    child.acts = {"phase2/only": slow}
    assert pipeline.main_all(["profile=ci"], conf=conf) == 1
    out = capsys.readouterr().out
    assert child.calls == ["phase1/only", "phase2/only"]
    assert "phase3: not started" in out and "--from phase2 profile=ci" in out
    child.acts, child.calls = {}, []
    assert pipeline.main_all(["--from", "phase2", "profile=ci"], conf=conf) == 0
    assert child.calls == ["phase2/only", "phase3/only", "phase4/only"]


@pytest.mark.parametrize("words", [["--only", "mla"], ["--from", "phase5"], ["trian.seed=1"]])
def test_all_refuses_before_anything_runs(tmp_path: Path, runs: Path, child: type[InProcess], words: list[str]) -> None:
    assert pipeline.main_all(words, conf=four_phases(tmp_path)) == 2
    assert child.calls == []


def test_flags_have_nearest_names() -> None:
    with pytest.raises(ConfigError, match=re.escape(nearest("--form", arguments.FLAGS))):
        arguments.parse(["--form", "a"])
    assert arguments.parse(["--only=a", "x.y=1", "~z"]) == arguments.Arguments(overrides=("x.y=1", "~z"), only="a")


def test_the_real_configuration_has_an_order() -> None:
    for number in (1, 2, 3, 4):
        config, _ = compose([], phase=number)
        assert sorted(arguments.stage_order(config)) == sorted(config.phase.stages)


# From here on through papermill, with a pipeline in a process of its own.

RUN = """
import sys
from pathlib import Path
from dsv3lab.workbook import pipeline, progress
first = progress.StageLine.__init__
def seen(*args, **kwargs):
    first(*args, **kwargs)
    heavy = {"jax", "mlflow", "papermill", "matplotlib", "pandas", "nbconvert"} & set(sys.modules)
    print("heavy at the first line:", sorted(heavy), flush=True)
progress.StageLine.__init__ = seen
status = pipeline.main(sys.argv[2:], conf=Path(sys.argv[1]))
print("jax at the end:", "jax" in sys.modules)
sys.exit(status)
"""


def start(conf: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, str(conf), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.limit(90)  # two kernels
def test_real_notebooks_raise_and_write_nan(tmp_path: Path, runs: Path) -> None:
    bodies = {"nan": lab.GOOD + '\nstage.metric("quality/error", float("nan"))', "bad": "1/0"}
    notebooks = {
        name: lab.write_notebook(tmp_path / f"{name}.ipynb", lab.stage_cells(name, body))
        for name, body in bodies.items()
    }
    process = start(lab.write_conf(tmp_path, notebooks), "phase1")
    output, _ = process.communicate(timeout=85)
    assert process.returncode == 3, output
    assert "heavy at the first line: []" in output and "jax at the end: False" in output
    assert "ZeroDivisionError: division by zero" in output and "executed notebook: " in output
    results = {result.gate_id: result.status for result in read(runs).results}
    assert (results["nan_speed"], results["nan_error"], results["bad_error"]) == ("pass", "error", "error")
    page = (lab.the_run(runs) / "nan" / "executed.html").read_text()
    assert "1/2 gates pass" in page  # the notebook's own preview


@pytest.mark.limit(60)  # a kernel
def test_a_hanging_notebook_and_its_children_are_ended(tmp_path: Path, runs: Path) -> None:
    body = """
    import os, pathlib, subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    pathlib.Path(run_dir, "pids.part").write_text(f"{os.getpid()} {child.pid}")
    os.rename(pathlib.Path(run_dir, "pids.part"), pathlib.Path(run_dir, "pids"))
    time.sleep(600)
    """
    path = lab.write_notebook(tmp_path / "hang.ipynb", [body, "never = 1"])
    folder, said = runs / "phase1" / "run" / "hang", io.StringIO()
    folder.mkdir(parents=True)
    child = Child(folder, path, runs=runs, stage="phase1/hang")
    until = time.monotonic() + 50
    while not (folder / "pids").exists():
        assert time.monotonic() < until and child.wait(0.1) is None
    processes = [psutil.Process(int(pid)) for pid in (folder / "pids").read_text().split()]
    line = StageLine("phase1/hang", folder, expected_s=1.0, out=said)
    how = notebook.supervise(child, limit_s=0.2, line=line, interrupts=Interrupts(), tick=lambda: None)
    child.end()
    assert how == "timeout" and "over its limit of 0.2 s" in said.getvalue()
    assert not [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["cell"]["index"]) == ("dead_kernel", 3)
    assert "time.sleep(600)" in notebook.failure_text(folder, error="", command="again")
    assert (folder / "executed.html").is_file()


@pytest.mark.limit(90)  # a kernel that saves
def test_sigterm_to_the_pipeline_reaches_training(tmp_path: Path, runs: Path) -> None:
    body = """
    import pathlib, signal, time
    class Preempted(Exception): pass
    def save(*_):
        pathlib.Path(run_dir, "checkpoint").write_text("saved")
        raise Preempted("saved at step 3")
    signal.signal(signal.SIGTERM, save)
    pathlib.Path(run_dir, "ready").touch()
    time.sleep(600)
    """
    path = lab.write_notebook(tmp_path / "train.ipynb", [body])
    process = start(lab.write_conf(tmp_path, {"train": path}), "phase1")
    until = time.monotonic() + 60
    while not list(runs.glob("phase1/*/train/ready")):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert lab.statuses(runs) == {"train": "preempted"} and "saved at step 3" in output
    assert (lab.the_run(runs) / "train" / "checkpoint").read_text() == "saved"
