"""What a stage has worked out survives a kill at any moment, until a record holds it."""

import json
import os
import signal
from pathlib import Path

import pytest

from dsv3lab.workbook import Stage, files, pipeline, record, reuse, verify
from dsv3lab.workbook import stage as stages
from tests.workbook import lab
from tests.workbook.lab import InProcess, good


class Killed(BaseException):
    """Ends the pipeline where it stands, as `kill -9` does."""


def trains(stage: Stage) -> None:
    """Trains for a long time, unless that is done."""
    done = stage.work("checkpoints") / "steps"
    stage.metric("trained", 0 if done.exists() else 1)
    done.write_text("100")
    good(stage)


def dies(stage: Stage) -> None:
    raise Killed


def work(runs: Path) -> list[Path]:
    return list((runs / "work").glob("*/phase1-a/checkpoints"))


def trained(runs: Path) -> int:
    lines = (lab.the_run(runs) / "a" / "metrics.jsonl").read_text().splitlines()
    return next(
        metrics["trained"] for metrics in (json.loads(line)["metrics"] for line in lines) if "trained" in metrics
    )


def test_the_pipeline_dies_in_the_next_stage_and_the_next_start_does_not_train_again(
    conf: Path, runs: Path, child: type[InProcess]
) -> None:
    child.acts = {"phase1/a": trains, "phase1/b": dies}
    with pytest.raises(Killed):
        pipeline.main(["phase1"], conf=conf)
    first = lab.the_run(runs)
    assert not (first / record.NAME).exists() and (first / "a" / "checkpoints" / "steps").read_text() == "100"
    child.acts = {"phase1/a": trains}
    assert pipeline.main(["phase1"], conf=conf) == 0
    assert lab.the_run(runs) != first and trained(runs) == 0
    assert "a/checkpoints/steps" in record.read(lab.the_run(runs)).files and work(runs) == []
    assert verify.verify(runs).problems == []


def test_a_phase_that_was_asked_to_stop_keeps_what_it_has(conf: Path, runs: Path, child: type[InProcess]) -> None:
    def stopped(stage: Stage) -> None:
        trains(stage)
        os.kill(os.getpid(), signal.SIGTERM)

    child.acts = {"phase1/a": stopped}
    assert pipeline.main(["phase1"], conf=conf) == 75
    assert len(work(runs)) == 1
    child.acts = {"phase1/a": trains}
    assert pipeline.main(["phase1"], conf=conf) == 0
    assert trained(runs) == 0 and work(runs) == []


def test_a_reused_stage_takes_no_work_away(conf: Path, runs: Path, child: type[InProcess]) -> None:
    child.acts = {"phase1/a": trains}
    assert pipeline.main(["phase1"], conf=conf) == 0
    listed = runs / files.read_json(lab.the_run(runs) / "a" / "stage.json")["work"][0]
    listed.mkdir(parents=True)  # another process begins the same training
    assert pipeline.main(["phase1", "--only", "b"], conf=conf) == 0
    assert [stage.status for stage in record.read(lab.the_run(runs)).stages] == ["reused", "ok"] and listed.is_dir()


def test_killed_between_the_files_and_stage_json_it_is_still_there(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage.open("phase2/train")
    folder = stage.work("checkpoints")
    (folder / "steps").write_text("100")

    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(stages, "write_atomic", die)
    with pytest.raises(Killed):
        stage.close()
    assert (folder / "steps").read_text() == "100"
    assert os.path.samefile(folder / "steps", stage.folder / "checkpoints" / "steps")


def test_only_folders_below_work_are_removed(conf: Path, runs: Path, child: type[InProcess]) -> None:
    assert pipeline.main(["phase1"], conf=conf) == 0
    folder = lab.the_run(runs)
    (runs / "work" / "key").mkdir(parents=True)
    listed = ["data", "../elsewhere", "work", "work/../data", "work/key"]
    for path in (runs / name for name in listed):
        path.mkdir(exist_ok=True)
    (folder / "a" / "stage.json").write_text(json.dumps({"work": listed}))
    (folder / "b" / "stage.json").write_text("[")
    reuse.clear_work(folder, record.read(folder), runs=runs)
    assert [name for name in listed if not (runs / name).exists()] == ["work/key"]


def test_folders_that_a_removed_work_leaves_empty_go_with_it(conf: Path, runs: Path, child: type[InProcess]) -> None:
    assert pipeline.main(["phase1"], conf=conf) == 0
    folder = lab.the_run(runs)
    for name in ("one/phase1-a/checkpoints", "two/phase1-a/checkpoints", "two/phase1-b/checkpoints"):
        (runs / "work" / name).mkdir(parents=True)
    listed = ["work/one/phase1-a/checkpoints", "work/two/phase1-a/checkpoints"]
    (folder / "a" / "stage.json").write_text(json.dumps({"work": listed}))
    reuse.clear_work(folder, record.read(folder), runs=runs)
    left = sorted(path.relative_to(runs / "work").as_posix() for path in (runs / "work").rglob("*"))
    assert left == ["two", "two/phase1-b", "two/phase1-b/checkpoints"]
