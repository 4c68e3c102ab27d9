"""MLflow as a projection of the files: live, complete, never twice, and never in the way."""

import json
import math
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dsv3lab.config import ROOT
from dsv3lab.workbook import pipeline, record, sync, trackers, tracking
from dsv3lab.workbook import store as store_room
from dsv3lab.workbook.compose import compose, dump, load
from dsv3lab.workbook.files import write_atomic
from dsv3lab.workbook.record import StageOutcome
from tests.workbook import lab
from tests.workbook.lab import InProcess, fail, found, two_stages

pytestmark = pytest.mark.limit(60)  # importing MLflow takes seconds, on a loaded machine many


def test_a_phase_and_its_stages_are_reported(tmp_path: Path, runs: Path, child: type[InProcess], store: Any) -> None:
    conf = two_stages(tmp_path, tracking=True)

    def steps(stage: Any) -> None:
        for step in range(1500):  # more than one batch
            stage.metric("train/loss", 5.0 - step / 1000, step=step)
        stage.metrics({"perf/tokens_per_s": 1.0, "quality/error": float("inf")})

    child.acts = {"phase1/a": steps}
    assert pipeline.main(["phase1"], conf=conf) == 1
    name = lab.the_run(runs).name
    listed = found(store)
    assert set(listed) == {name, f"{name}/a", f"{name}/b"}
    phase, a, b = listed[name], listed[f"{name}/a"], listed[f"{name}/b"]
    assert {run.info.status for run in listed.values()} == {"FINISHED"}
    assert a.data.tags["mlflow.parentRunId"] == b.data.tags["mlflow.parentRunId"] == phase.info.run_id
    assert (a.data.tags["gate.a_speed"], a.data.tags["gate.a_error"], a.data.tags["gates"]) == ("fail", "error", "0/2")
    assert (b.data.tags["verdict"], phase.data.tags["verdict"], phase.data.tags["gates"]) == ("pass", "fail", "2/4")
    assert phase.data.tags["gate.b_error"] == "pass" and "| a_speed |" in phase.data.tags["mlflow.note.content"]
    common = {
        "perf/tokens_per_s",
        "quality/error",
        "stage/wall_s",
        "stage/peak_rss_bytes",
        "gates/passed",
        "gates/total",
    }
    assert common <= set(a.data.metrics) and common <= set(b.data.metrics)
    assert b.data.metrics["gate/b_speed/margin"] == 90.0 and math.isclose(a.data.metrics["train/loss"], 3.501)
    assert len(store.get_metric_history(a.info.run_id, "train/loss")) == 1500
    assert phase.data.params["train.seed"] == "0" and phase.data.params["profile"] == "default"
    files = {file.path for place in ("logs", "notebook") for file in store.list_artifacts(a.info.run_id, place)}
    assert {"logs/metrics.jsonl", "logs/stage.json"} <= files
    report = {file.path for file in store.list_artifacts(phase.info.run_id, "report")}
    assert report == {"report/report.html", "report/record.json"}
    assert store.get_experiment_by_name("dsv3lab").artifact_location == (runs / "mlartifacts").as_uri()
    assert sqlite3.connect(runs / "mlflow.db").execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert found(store, "tags.`gate.b_speed` = 'pass' and tags.level = 'stage'").keys() == {f"{name}/b"}


def test_failures_and_interruptions_have_their_status(
    tmp_path: Path, runs: Path, child: type[InProcess], store: Any
) -> None:
    conf = two_stages(tmp_path, tracking=True)
    child.acts = {"phase1/a": fail}
    assert pipeline.main(["phase1"], conf=conf) == 3
    name = lab.the_run(runs).name
    listed = found(store)
    assert [listed[key].info.status for key in (name, f"{name}/a", f"{name}/b")] == ["FAILED", "FAILED", "FINISHED"]
    assert "broken on purpose" in listed[f"{name}/a"].data.tags["failure"]
    folder = lab.the_run(runs)
    projection = tracking.Projection(folder, config=load(folder / "config.resolved.yaml"), runs=runs)
    projection.close_stage(StageOutcome(name="a", status="preempted", error="SIGTERM"))
    assert found(store)[f"{name}/a"].info.status == "KILLED"


def test_metrics_arrive_while_the_stage_runs(tmp_path: Path, runs: Path, store: Any) -> None:
    folder = runs / "phase1" / "20260101T000000Z-abcdef"
    conf = two_stages(tmp_path, tracking=True)
    config, resolved = compose([], phase=1, conf=conf)
    write_atomic(folder / "config.resolved.yaml", dump(resolved))
    tracker = trackers.Tracker(folder, config=config, runs=runs)
    tracker.start()
    tracker.stage_started("a")
    (folder / "a").mkdir()
    metrics = folder / "a" / "metrics.jsonl"

    def points() -> list[float]:
        run = found(store).get(f"{folder.name}/a")
        return [p.value for p in store.get_metric_history(run.info.run_id, "train/loss")] if run else []

    def write(text: str, expected: list[float]) -> None:
        with open(metrics, "a") as file:
            file.write(text)
        until = time.monotonic() + 50
        while points() != expected:
            assert time.monotonic() < until and not tracker.problem, (points(), tracker.problem)
            time.sleep(0.05)

    line = '{{"time":"2026-11-22T10:00:0{0}Z","step":{0},"metrics":{{"train/loss":{0}.5}}}}\n'
    write(line.format(1), [1.5])
    write("junk\n" + line.format(2) + line.format(3)[:20], [1.5, 2.5])  # the third line is torn
    write(line.format(3)[20:], [1.5, 2.5, 3.5])
    run = found(store)[f"{folder.name}/a"]
    assert run.info.status == "RUNNING"
    assert tracker.close(None, promoted=False, seconds=50.0) == ""
    assert {run.info.status for run in found(store).values()} == {"KILLED"}


@pytest.mark.parametrize("damage", ["garbage", "folder"])
def test_a_store_that_is_down_is_said_once_and_synced_later(
    tmp_path: Path, runs: Path, child: type[InProcess], database: Path, damage: str, capsys: Any
) -> None:
    conf = two_stages(tmp_path, tracking=True)
    broken = runs / "mlflow.db"
    broken.mkdir() if damage == "folder" else broken.write_bytes(b"this is no database" * 100)
    assert pipeline.main(["phase1"], conf=conf) == 0
    output = capsys.readouterr()
    assert output.out.count("tracking is down") == 1 and "dsv3lab sync" in output.out
    assert "Traceback" not in output.out + output.err
    assert sync.main([]) == 3 and "not reported" in capsys.readouterr().out
    broken.rmdir() if damage == "folder" else broken.unlink()
    shutil.copy(database, broken)
    assert sync.main([]) == 0 and ": reported" in capsys.readouterr().out
    client = store_room.import_mlflow()(tracking_uri=f"sqlite:///{broken}")
    listed = found(client)
    assert {run.info.status for run in listed.values()} == {"FINISHED"} and len(listed) == 3
    assert record.read(lab.the_run(runs)).passed


def test_a_store_that_never_answers_does_not_hold_the_run(
    tmp_path: Path, runs: Path, child: type[InProcess], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    release = threading.Event()
    monkeypatch.setattr(tracking, "prepare", lambda *_: release.wait(50))
    close = trackers.Tracker.close
    monkeypatch.setattr(trackers.Tracker, "close", lambda *args, **kw: close(*args, **{**kw, "seconds": 0.2}))
    assert pipeline.main(["phase1"], conf=two_stages(tmp_path, tracking=True)) == 0
    assert "did not answer" in capsys.readouterr().out
    release.set()


def test_runs_left_running_by_a_killed_pipeline_are_closed(
    tmp_path: Path, runs: Path, child: type[InProcess], store: Any
) -> None:
    conf = two_stages(tmp_path, tracking=True)
    config, resolved = compose([], phase=1, conf=conf)
    folder = runs / "phase1" / "20260101T000000Z-abcdef"
    write_atomic(folder / "config.resolved.yaml", dump(resolved))
    dead = tracking.Projection(folder, config=config, runs=runs)
    dead.open_phase()
    dead.open_stage("a")
    assert {run.info.status for run in found(store).values()} == {"RUNNING"}
    assert pipeline.main(["phase1"], conf=conf) == 0
    listed = found(store)
    assert listed[folder.name].info.status == listed[f"{folder.name}/a"].info.status == "KILLED"
    assert listed[lab.the_run(runs).name].info.status == "FINISHED"


def test_the_note_fits() -> None:
    text = tracking._note("\n".join(["| gate | row |"] * 2000), "")
    assert len(text) < 8000 and "report.html" in text
    assert tracking._note("short", "why") == "**why**\n\nshort"


def test_nothing_is_printed_and_nothing_is_left_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    store_room.prepare(tmp_path, "fresh")  # the whole migration
    store_room.prepare(tmp_path, "fresh")
    output = capfd.readouterr()
    assert output.out + output.err == ""
    assert list((tmp_path / "here").iterdir()) == []


def test_the_store_offers_a_view_of_all_stages_with_common_columns(tmp_path: Path) -> None:
    client, experiment = store_room.prepare(tmp_path, "fresh")
    assert (
        store_room.view_address(tmp_path / "mlflow.db") == f"/#/experiments/{experiment}/runs?viewStateShareKey=stages"
    )
    columns = json.loads(client.get_experiment(experiment).tags[store_room.VIEW_TAG])["selectedColumns"]
    shown = {column.split("`")[1] for column in columns if column.startswith("metrics.")}
    notebooks = "".join(path.read_text() for path in (ROOT / "notebooks").rglob("*.ipynb"))
    assert all(name in notebooks for name in shown if not name.startswith("stage/"))
    client.set_experiment_tag(experiment, store_room.VIEW_TAG, "{}")  # of another version of this project
    store_room.prepare(tmp_path, "fresh")
    assert json.loads(client.get_experiment(experiment).tags[store_room.VIEW_TAG])["selectedColumns"] == columns


def test_without_an_experiment_there_is_no_view(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    assert store_room.view_address(tmp_path / "mlflow.db") == ""


def test_values_that_mlflow_cannot_hold_stay_out() -> None:
    metrics = {"a": "text", "b": True, "c": None, "d": 10**400, "e": "nan", "f": 2}
    line = json.dumps({"time": "never", "step": None, "metrics": metrics})
    points = list(tracking._points(f"{line}\nnot json\n[]\n".encode()))
    assert [point.key for point in points] == ["d", "e", "f"]
    assert points[0].value == math.inf and math.isnan(points[1].value) and points[2].step == 0
