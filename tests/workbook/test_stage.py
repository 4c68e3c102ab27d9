"""What a notebook can do with its stage, by hand and under the pipeline."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dsv3lab import plots
from dsv3lab.config import ConfigError
from dsv3lab.workbook import Stage, compose, files, gates, verdict
from dsv3lab.workbook import chain as chains
from dsv3lab.workbook.promotion import UpstreamError
from tests.workbook import samples


def prepare(folder: Path, name: str, *overrides: str, **request: Any) -> Path:
    """A stage folder as the pipeline makes it."""
    phase, short = name.split("/")
    home = folder / short
    home.mkdir(parents=True)
    _, resolved = samples.configuration(int(phase[5:]), *overrides)
    (folder / "config.resolved.yaml").write_text(compose.dump(resolved))
    content = {
        "schema": 1,
        "stage": name,
        "nonce": "n0nce",
        "config": "../config.resolved.yaml",
        "config_sha256": files.sha256_file(folder / "config.resolved.yaml"),
        "needs": {},
        "profile": "default",
    }
    (home / "request.json").write_text(json.dumps({**content, **request}))
    return home


@pytest.fixture
def stage(runs: Path) -> Stage:
    return Stage.open("phase1/mla", run_dir=str(prepare(runs / "phase1" / "run", "phase1/mla")))


def test_by_hand_it_composes_and_writes_below_standalone(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage.open("phase1/mla", overrides=["profile=ci"])
    assert stage.standalone and stage.config.profile.name == "ci"
    assert stage.folder.parent == runs / "standalone" / "phase1-mla"
    assert compose.load(stage.folder / "config.resolved.yaml") == stage.config
    assert "standalone" in capsys.readouterr().out


def test_under_the_pipeline_it_reads_the_request(stage: Stage) -> None:
    assert not stage.standalone and stage.config == samples.configuration(1)[0]
    stage.close()
    content = files.read_json(stage.folder / "stage.json")
    assert (content["nonce"], content["stage"], content["status"]) == ("n0nce", "phase1/mla", "closed")
    assert content["versions"]["jax"] != "absent" and content["wall_s"] > 0 and content["peak_rss_bytes"] > 2**20
    names = {point.name for point in gates.read_points(stage.folder / "metrics.jsonl")}
    assert names == {"stage/wall_s", "stage/peak_rss_bytes"}


def test_a_folder_for_something_else_is_refused(runs: Path) -> None:
    home = prepare(runs / "phase1" / "a", "phase1/mla")
    with pytest.raises(ConfigError, match="made for stage 'phase1/mla'"):
        Stage.open("phase1/routing", run_dir=str(home))
    (home.parent / "config.resolved.yaml").write_text("changed: true\n")
    with pytest.raises(ConfigError, match="not the configuration that"):
        Stage.open("phase1/mla", run_dir=str(home))
    home = prepare(runs / "phase1" / "recorded", "phase1/mla")
    (home / "metrics.jsonl").write_text("recorded")
    (home.parent / "record.json").write_text("{}")
    with pytest.raises(ConfigError, match="already recorded"):
        Stage.open("phase1/mla", run_dir=str(home))
    assert (home / "metrics.jsonl").read_text() == "recorded"
    with pytest.raises(ConfigError, match=r"request\.json: cannot be read"):
        Stage.open("phase1/mla", run_dir=str(runs))


@pytest.mark.parametrize("name", ["mla", "phase9/mla", "phase1/mlaa"])
def test_an_unknown_stage_is_refused(runs: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Stage.open(name)


def test_numbers_of_every_kind_are_written_and_read_back(stage: Stage) -> None:
    given = {"a": 1, "b": 0.1, "c": np.float32(2.5), "d": np.array(3), "e": True, "f": np.bool_(False), "g": 2**60 + 1}
    stage.metrics(given, step=np.int64(7))  # type: ignore[arg-type]
    points = gates.read_points(stage.folder / "metrics.jsonl")
    assert {p.name: p.value for p in points} == {"a": 1, "b": 0.1, "c": 2.5, "d": 3, "e": 1, "f": 0, "g": 2**60 + 1}
    assert {p.step for p in points} == {7} and all(not isinstance(p.value, bool) for p in points)


def test_values_that_are_not_finite_survive_and_never_pass(stage: Stage) -> None:
    stage.metrics({"x": math.nan, "y": math.inf, "z": -math.inf})
    values = {p.name: p.value for p in gates.read_points(stage.folder / "metrics.jsonl")}
    assert math.isnan(values["x"]) and values["y"] == math.inf and values["z"] == -math.inf
    json.loads((stage.folder / "metrics.jsonl").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("value", ["1.0x", None, [1.0], np.zeros(2), {}])
def test_what_is_not_one_number_is_refused(stage: Stage, value: Any) -> None:
    with pytest.raises(ValueError, match="metric 'x'"):
        stage.metric("x", value)
    assert not (stage.folder / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["", "a=b", "a(b)", "../x", "a\nb", "x" * 300])
def test_names_that_mlflow_refuses_are_refused(stage: Stage, name: str) -> None:
    with pytest.raises(ValueError, match="metric"):
        stage.metric(name, 1.0)


def test_figures_are_saved_and_shown(stage: Stage) -> None:
    figure = stage.figure(plots.bars({"ours": 1.0}, title="t", unit="u"), "bytes", title="Bytes")
    path = stage.folder / "figures" / "bytes.png"
    assert path.read_bytes().startswith(b"\x89PNG") and figure._repr_png_() == path.read_bytes()
    stage.close()
    listed = files.read_json(stage.folder / "stage.json")["figures"]
    assert listed == [{"name": "bytes", "title": "Bytes", "axes": ["u"]}]
    with pytest.raises(ValueError, match="names of files"):
        stage.figure(figure, "../x", title="no")


def test_labels_that_small_panels_share_are_noted(stage: Stage) -> None:
    panels = plots.multiples([1, 2], {"a": [0.0, 1.0]}, title="t", x="step", y="nats", control=[[0.0, 0.1]])
    stage.figure(panels, "panels", title="Panels")
    stage.close()
    assert [one["axes"] for one in files.read_json(stage.folder / "stage.json")["figures"]] == [["step", "nats"]]


def test_opening_again_starts_from_nothing(stage: Stage) -> None:
    stage.metric("x", 1.0)
    stage.progress("half")
    stage.figure(plots.bars({"ours": 1.0}, title="t", unit="u"), "old", title="Old")
    stage.close()
    again = Stage.open("phase1/mla", run_dir=str(stage.folder))
    assert sorted(path.name for path in again.folder.iterdir()) == ["request.json"]


def test_progress_is_one_line_each(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.progress("step 1\nof 2")
    stage.progress("step 2 of 2")
    assert (stage.folder / "progress.txt").read_text().splitlines() == ["step 1 of 2", "step 2 of 2"]
    assert "step 2 of 2" in capsys.readouterr().out


def test_needs_must_be_listed_and_are_recorded(runs: Path) -> None:
    _, two = samples.two_phases(runs)
    home = prepare(runs / "phase4" / "x", "phase4/restore", needs={"phase2/train": str(two / "train")})
    stage = Stage.open("phase4/restore", run_dir=str(home))
    assert stage.need("phase2/train") == two / "train"
    with pytest.raises(ConfigError, match="phase2/trane"):
        stage.need("phase2/trane")
    stage.close()
    recorded = files.read_json(home / "stage.json")["inputs"]["needs"]["phase2/train"]
    assert runs / recorded["folder"] == two / "train"
    assert recorded["sha256"] == files.sha256_file(two / "train" / "stage.json")


def test_by_hand_needs_come_from_the_promoted_record(runs: Path) -> None:
    with pytest.raises(UpstreamError, match=r"pipelines/phase2\.py"):
        Stage.open("phase4/restore").need("phase2/train")
    _, two = samples.two_phases(runs)
    assert Stage.open("phase4/restore").need("phase2/train") == two / "train"


def test_work_survives_a_kill_and_by_hand_it_moves_in_on_close(runs: Path) -> None:
    first = Stage.open("phase2/train")
    work = first.work("checkpoint")
    (work / "step").write_text("100")
    del first  # killed: never closed
    second = Stage.open("phase2/train", overrides=["eval.every=7"])
    assert second.work("checkpoint") == work and (work / "step").read_text() == "100"
    other = Stage.open("phase2/train", overrides=["train.tokens=4096"])
    assert other.work("checkpoint") != work
    second.close()
    assert (second.folder / "checkpoint" / "step").read_text() == "100" and not work.exists()


def test_what_it_uses_is_recorded(stage: Stage, runs: Path) -> None:
    folder = samples.dataset(runs)
    stage.uses("data", folder, "d1gest")
    stage.close()
    recorded = files.read_json(stage.folder / "stage.json")["inputs"]["uses"]["data"]
    assert recorded["digest"] == "d1gest" and runs / recorded["folder"] == folder
    with pytest.raises(ConfigError, match=r"manifest\.json: missing"):
        stage.uses("data", runs, "x")


def test_the_device_is_said_or_found(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100")
    monkeypatch.setitem(__import__("sys").modules, "jax", SimpleNamespace(devices=lambda: [device] * 2))
    stage.close()
    assert files.read_json(stage.folder / "stage.json")["device"] == {"kind": "NVIDIA H100", "count": 2}
    stage.device("cpu", 8)
    stage.close()
    assert files.read_json(stage.folder / "stage.json")["device"] == {"kind": "cpu", "count": 8}


def test_the_preview_is_the_judgement(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    mine = gates.stage_gates(stage.config.phase.gates, "mla")
    for gate in mine.values():
        stage.metric(gate.metric, gate.threshold + {"<": -0.5, ">": 0.5}.get(gate.op, 0.0))
    stage.device("cpu", 8)
    stage.close()
    results = gates.evaluate_folder(mine, stage.folder, executed=True, device=samples.CPU)
    elsewhere = {gate_id for gate_id, gate in mine.items() if gate.requires.device == "gpu"}
    assert all(r.status == ("skipped" if r.gate_id in elsewhere else "pass") for r in results)
    text = capsys.readouterr().out
    assert text.endswith(f"{verdict.table(results)}\n")
    assert all(gate_id in text for gate_id in mine) and f"{len(mine) - len(elsewhere)}/{len(mine)} gates pass" in text
    assert chains.CHAIN not in {path.name for path in stage.folder.iterdir()}
