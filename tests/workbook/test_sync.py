"""`dsv3lab sync`: old folders are reported by the pipeline's code, completed and never duplicated."""

from pathlib import Path
from typing import Any

import pytest

from dsv3lab.config import ConfigError
from dsv3lab.workbook import pipeline, sync, verify
from dsv3lab.workbook.process import locked
from tests.workbook import lab
from tests.workbook.lab import InProcess, found, slow, two_stages

pytestmark = pytest.mark.limit(60)  # importing MLflow takes seconds, on a loaded machine many


def values(store: Any) -> dict[str, Any]:
    return {
        name: (run.info.status, {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"}, run.data.metrics)
        for name, run in found(store).items()
    }


def history(store: Any, name: str, metric: str) -> int:
    return len(store.get_metric_history(found(store)[name].info.run_id, metric))


def test_an_untracked_run_is_reported_once(
    tmp_path: Path, runs: Path, child: type[InProcess], store: Any, capsys: Any
) -> None:
    child.acts = {"phase1/a": slow}
    assert pipeline.main(["phase1"], conf=two_stages(tmp_path, tracking=False)) == 1
    assert found(store) == {}
    assert sync.main([]) == 0
    name = lab.the_run(runs).name
    first = values(store)
    assert set(first) == {name, f"{name}/a", f"{name}/b"}
    assert first[name][1]["verdict"] == "fail" and first[f"{name}/b"][1]["verdict"] == "pass"
    capsys.readouterr()
    assert sync.main([]) == 0 and "already reported" in capsys.readouterr().out
    assert sync.main(["--force", str(lab.the_run(runs))]) == 0
    assert values(store) == first and history(store, f"{name}/a", "gates/passed") == 1
    (lab.the_run(runs) / "tracking.json").unlink()  # forgotten here, not there
    assert sync.main([]) == 0
    assert values(store) == first and history(store, f"{name}/a", "quality/error") == 1
    assert verify.verify(runs).problems == []  # the record does not cover what sync writes


def test_a_tracked_run_needs_nothing_and_a_deleted_one_comes_back(
    tmp_path: Path, runs: Path, child: type[InProcess], store: Any, capsys: Any
) -> None:
    assert pipeline.main(["phase1"], conf=two_stages(tmp_path, tracking=True)) == 0
    before = values(store)
    capsys.readouterr()
    assert sync.main([]) == 0 and "already reported" in capsys.readouterr().out
    for run in found(store).values():
        store.delete_run(run.info.run_id)
    assert sync.main([]) == 0
    after = values(store)
    assert {name: value[0] for name, value in after.items()} == {name: value[0] for name, value in before.items()}
    assert {name: value[2] for name, value in after.items()} == {name: value[2] for name, value in before.items()}


def test_a_folder_without_a_record_was_killed_unless_it_is_running(
    tmp_path: Path, runs: Path, child: type[InProcess], store: Any, capsys: Any
) -> None:
    assert pipeline.main(["phase1"], conf=two_stages(tmp_path, tracking=False)) == 0
    (lab.the_run(runs) / "record.json").unlink()
    with locked(runs / "phase1" / ".lock", what="phase1"):
        assert sync.main([]) == 0 and "left alone" in capsys.readouterr().out
    assert sync.main([]) == 0
    assert {value[0] for value in values(store).values()} == {"KILLED"} and len(values(store)) == 3


def test_what_a_running_pipeline_may_still_report_is_left_to_it(
    tmp_path: Path, runs: Path, child: type[InProcess], store: Any, capsys: Any
) -> None:
    conf = two_stages(tmp_path, tracking=False)
    assert pipeline.main(["phase1"], conf=conf) == 0
    assert pipeline.main(["phase1"], conf=conf) == 0
    older, newest = sorted(path.name for path in (runs / "phase1").glob("2*"))
    capsys.readouterr()
    with locked(runs / "phase1" / ".lock", what="phase1"):
        assert sync.main([]) == 0
    said = capsys.readouterr().out
    assert f"{older}: reported" in said and f"{newest}: left alone: its pipeline is running" in said
    assert set(found(store)) == {older, f"{older}/a", f"{older}/b"}


def test_what_is_no_run_folder_is_refused(tmp_path: Path, runs: Path, capsys: Any) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        sync.main([str(tmp_path)])
    assert sync.main([]) == 0 and "nothing to report" in capsys.readouterr().out
