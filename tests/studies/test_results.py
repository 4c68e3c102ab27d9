"""A committed result: only that of the checkout's own study, checked whenever it is read, and shown in notebooks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv3lab.config import ConfigError, study_names
from dsv3lab.studies import StudyError, committed, figures, results, run
from dsv3lab.workbook import Stage
from tests.studies.fake import Trainer

pytestmark = pytest.mark.limit(60)  # Hydra composes every training, on a loaded machine for a while


@pytest.fixture
def made(runs: Path, trainer: Trainer) -> dict[str, Any]:
    """The result of a small scaling study, under the name of the whole one."""
    trainer.loss = lambda values, step: 6.0 - 0.01 * values["model"]["hidden_size"] - 0.02 * step
    assert run.main(["scaling", "--profile", "ci"]) == 0
    (path,) = runs.glob("studies/scaling/*/result.json")
    result = json.loads(path.read_text())
    return result | {"profile": "default", "code": result["code"] | {"uncommitted": []}}


def test_a_result_is_saved_and_read_again(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "uncommitted", lambda *_: [])
    assert committed("scaling", tmp_path) is None
    path = results.save(made, tmp_path)
    assert path.name == "study_scaling.json" and committed("scaling", tmp_path) == made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"profile": "ci"}, "--profile ci"),
        ({"overrides": ["train.seed=3"]}, "train.seed=3"),
        ({"code": {"uncommitted": ["conf/x.yaml"]}}, "not committed .conf/x.yaml"),
    ],
)
def test_only_the_committed_study_is_saved(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(results, "uncommitted", lambda *_: [])
    with pytest.raises(ConfigError, match=said):
        results.save(made | change, tmp_path)
    monkeypatch.setattr(results, "uncommitted", lambda *_: ["dsv3lab/cli.py"])
    with pytest.raises(ConfigError, match="dsv3lab/cli.py"):
        results.save(made, tmp_path)
    assert not list(tmp_path.glob("study_*"))


def test_save_with_overrides_is_refused_before_anything_runs(runs: Path, trainer: Trainer) -> None:
    for words in (["fp8", "--save", "--profile", "ci"], ["fp8", "--save", "train.tokens=1024"]):
        with pytest.raises(ConfigError, match="--save"):
            run.main(words)
    assert not trainer.ran


def test_save_of_code_that_is_not_committed_is_refused_before_anything_runs(
    runs: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "uncommitted", lambda *_: ["dsv3lab/cli.py"])
    with pytest.raises(ConfigError, match="--save: the code is not committed .dsv3lab/cli.py"):
        run.main(["fp8", "--save"])
    assert not trainer.ran


def _prediction(result: dict[str, Any]) -> None:
    result["prediction"]["loss"] += 0.01


def _late(result: dict[str, Any]) -> None:
    """The prediction and its hash were made after the training, and put in front of it in the log."""
    result["prediction"]["written"] = "2999" + result["prediction"]["written"][4:]
    previous = ""
    for event in result["log"]:
        event["previous"] = previous
        if event["event"] == "prediction":
            event["sha256"] = results.digest(result["prediction"])
        previous = results.sha256_text(json.dumps(event))


def _training(result: dict[str, Any]) -> None:
    result["trainings"][0]["validation_loss"] -= 0.5


def _summary(result: dict[str, Any]) -> None:
    result["summary"]["within"] = not result["summary"]["within"]


def _log(result: dict[str, Any]) -> None:
    result["log"][1]["time"] = "2020-01-01T00:00:00.000000Z"


def _without(result: dict[str, Any]) -> None:
    result["prediction"] = None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_prediction, "the prediction was changed after it was written"),
        (_late, "not written before its training began"),
        (_training, "'width 16, seed 0' was changed"),
        (_summary, "its summary is not what its trainings say"),
        (_log, "its log was changed"),
        (_without, "do not go together"),
    ],
)
def test_a_result_that_was_changed_by_hand_is_not_shown(
    made: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    change(made)
    (tmp_path / "study_scaling.json").write_text(json.dumps(made))
    with pytest.raises(StudyError, match=said):
        committed("scaling", tmp_path)


def test_every_study_has_a_whole_committed_result_of_its_present_settings() -> None:
    for name in study_names():
        result = committed(name)
        assert result is not None and result["study"] == name and result["profile"] == "default"
        assert results.outdated(result) == []


def test_a_result_of_other_settings_says_so(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result: Any = committed("fp8")
    changed = result | {"settings": result["settings"] | {"seeds": [7], "title": "other words"}}
    monkeypatch.setattr(results, "committed", lambda name: changed)
    results.show(Stage.open("phase1/fp8", overrides=["profile=ci"]), "fp8")
    assert "Made before conf/studies/fp8.yaml changed: seeds." in capsys.readouterr().out


def test_an_unknown_study_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'scaling'"):
        committed("scalling")


def test_a_notebook_shows_what_is_committed_or_says_that_nothing_is(
    made: dict[str, Any], runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Stage.open("phase1/routing", overrides=["profile=ci"])
    monkeypatch.setattr(results, "committed", lambda name: None)
    assert results.show(stage, "scaling") == []
    assert "No result of the study 'scaling' is committed yet" in capsys.readouterr().out
    monkeypatch.setattr(results, "committed", lambda name: made)
    shown = results.show(stage, "scaling")
    said = capsys.readouterr().out
    assert len(shown) == 2 and made["started"][:10] in said and "predicted" in said
    assert {path.stem for path in stage.folder.glob("figures/*.png")} == {"study_scaling_tokens", "study_scaling_law"}


@pytest.mark.parametrize("name", study_names())
def test_each_study_draws_its_figures(name: str, runs: Path, trainer: Trainer) -> None:
    trainer.loss = lambda values, step: 6.0 - 0.01 * values["model"]["hidden_size"] - 0.02 * step
    assert run.main([name, "--profile", "ci"]) == 0
    (path,) = runs.glob(f"studies/{name}/*/result.json")
    result = json.loads(path.read_text())
    drawn = figures.of(result)
    assert {file.stem for file in path.parent.glob("figures/*.png")} == set(drawn)
    for figure, _ in drawn.values():
        (axes,) = figure.axes
        assert axes.get_xlabel() and axes.get_ylabel() and axes.lines
