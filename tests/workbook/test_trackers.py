"""TensorBoard and Weights & Biases as projections of the same files: what is read back is what the stages wrote."""

import importlib.util
import json
import math
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dsv3lab.config import ConfigError
from dsv3lab.workbook import Stage, compose, pipeline, sync, trackers, verify
from dsv3lab.workbook.trackers import folder as folders
from dsv3lab.workbook.trackers.wandb import _environment, identity
from tests.workbook import lab
from tests.workbook.lab import InProcess, fail, two_stages

pytestmark = pytest.mark.limit(90)  # both packages take seconds to import


def act(stage: Stage) -> None:
    from matplotlib.figure import Figure

    for step, loss in ((10, 5.0), (20, float("inf")), (30, 4.0)):
        stage.metric("train/loss", loss, step=step)
    lab.good(stage)
    stage.figure(Figure(figsize=(1, 1)), "loss", title="Loss over training")


def run(tmp_path: Path, child: type[InProcess], *also: str, status: int = 0) -> Path:
    child.acts = {"phase1/a": act, "phase1/b": lab.good if status == 0 else fail}
    assert pipeline.main(["phase1"], conf=two_stages(tmp_path, tracking=bool(also), also=also)) == status
    return lab.the_run(tmp_path / "runs")


@pytest.fixture
def tensorboard() -> Any:
    """TensorBoard's own reader of a folder of events."""
    reason = "make setup installs it; without: pip install -e '.[tensorboard]'"
    module = "tensorboard.backend.event_processing.event_accumulator"
    reader = pytest.importorskip(module, reason=reason).EventAccumulator

    def read(folder: Path) -> Any:
        assert len(list(folder.glob("events.out.tfevents.*"))) == 1, "one file of events for each stage"
        return reader(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()

    return read


@pytest.fixture
def wandb() -> Any:
    return pytest.importorskip("wandb", reason="make setup installs it; without: pip install -e '.[wandb]'")


def scalars(events: Any) -> dict[str, list[tuple[int, float]]]:
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: LevelDB's log format behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, content = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        if position % 32768 > 32768 - 7:  # too little of the block is left for a header
            position += -position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        content += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            content = b""
            yield record


def wandb_run(runs: Path, name: str) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    """Description, history and summary of the one offline run with this id."""
    (path,) = (runs / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb")
    about, history, summary = None, [], {}
    for record in wandb_records(path):
        about = record.run if record.WhichOneof("record_type") == "run" else about
        if record.WhichOneof("record_type") == "history":
            history.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
        for item in record.summary.update if record.WhichOneof("record_type") == "summary" else ():
            summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return about, history, summary


def test_tensorboard_shows_what_the_stages_wrote(
    tmp_path: Path, runs: Path, child: type[InProcess], store: Any, tensorboard: Any
) -> None:
    folder = run(tmp_path, child, "tensorboard")
    place = runs / "tensorboard" / "phase1" / folder.name
    a, phase = tensorboard(place / "a"), tensorboard(place)
    found = scalars(a)
    assert found["train/loss"] == [(10, 5.0), (20, math.inf), (30, 4.0)]
    assert found["perf/tokens_per_s"] == [(0, 100.0)] and found["gate/a_speed/margin"] == [(0, 90.0)]
    written = folders.rows((folder / "a" / "metrics.jsonl").read_bytes())
    assert [e.wall_time for e in a.Scalars("train/loss")] == [row.time / 1000 for row in written][:3]
    (picture,) = a.Images("figures/loss")
    assert picture.encoded_image_string == (folder / "a" / "figures" / "loss.png").read_bytes()
    assert a.SummaryMetadata("figures/loss").display_name == "Loss over training"
    (note,) = a.Tensors("verdict")
    assert b"| a_speed |" in note.tensor_proto.string_val[0]
    assert scalars(phase)["gates/passed"] == [(0, 4.0)]
    assert phase.Tensors("verdict")[0].tensor_proto.string_val[0].startswith(b"**promoted**")
    assert b"    model:" in phase.Tensors("config")[0].tensor_proto.string_val[0]
    assert verify.verify(runs).problems == []


@pytest.mark.parametrize("status", [0, 3])
def test_an_old_run_is_shown_once_however_often_it_is_asked_for(
    tmp_path: Path, runs: Path, child: type[InProcess], tensorboard: Any, capsys: Any, status: int
) -> None:
    folder = run(tmp_path, child, status=status)
    assert not (runs / "tensorboard").exists()
    assert sync.main(["--to", "tensorboard"]) == 0
    place = runs / "tensorboard" / "phase1" / folder.name
    first = scalars(tensorboard(place / "a"))
    assert len(first["train/loss"]) == 3
    error = tensorboard(place / "b").Tensors("verdict")[0].tensor_proto.string_val[0]
    assert (b"broken on purpose" in error) == (status == 3)
    capsys.readouterr()
    assert sync.main(["--to", "tensorboard"]) == 0 and "to tensorboard: already reported" in capsys.readouterr().out
    assert sync.main(["--to", "tensorboard", "--force"]) == 0
    assert scalars(tensorboard(place / "a")) == first
    assert not (runs / "mlflow.db").exists() and verify.verify(runs).problems == []


def test_what_a_killed_pipeline_left_is_written_anew(
    tmp_path: Path, runs: Path, child: type[InProcess], tensorboard: Any
) -> None:
    folder = run(tmp_path, child)
    config = compose.load(folder / "config.resolved.yaml")
    live = trackers.project("tensorboard", folder, config=config, runs=runs)
    live.open_phase()
    live.open_stage("a")
    assert live.push("a") == 7 and live.push("a") == 0
    with open(folder / "a" / "metrics.jsonl", "a") as file:
        file.write('{"time":"2026-11-22T10:00:00Z","step":40,"metrics":{"train/loss":3.0}}\n{"time":"2026')
    assert live.push("a") == 1
    again = trackers.project("tensorboard", folder, config=config, runs=runs)
    assert not again.complete
    (folder / "record.json").unlink()
    assert sync.main(["--to", "tensorboard", str(folder)]) == 0 and again.complete
    place = runs / "tensorboard" / "phase1" / folder.name
    assert [step for step, _ in scalars(tensorboard(place / "a"))["train/loss"]] == [10, 20, 30, 40]
    assert tensorboard(place).Tensors("verdict")[0].tensor_proto.string_val[0].startswith(b"**killed**")


def test_wandb_gets_an_offline_run_for_each_stage_and_one_for_the_phase(
    tmp_path: Path, runs: Path, child: type[InProcess], store: Any, wandb: Any
) -> None:
    folder = run(tmp_path, child, "wandb")
    about, history, summary = wandb_run(runs, identity(folder, "a"))
    assert (about.project, about.run_group, about.job_type) == ("dsv3lab", f"phase1/{folder.name}", "stage")
    assert (about.display_name, about.host) == (f"phase1/{folder.name}/a", "-")
    steps = [(row["step"], row["train/loss"]) for row in history if "train/loss" in row]
    assert steps == [(10, 5.0), (20, math.inf), (30, 4.0)]
    written = list(folders.rows((folder / "a" / "metrics.jsonl").read_bytes()))
    assert [row["_timestamp"] for row in history][: len(written)] == [row.time / 1000 for row in written]
    assert summary["gate.a_speed"] == "pass" and summary["gate/a_speed/margin"] == 90.0
    pictures = [json.dumps(row) for row in history if any(key.startswith("figures/loss") for key in row)]
    assert len(pictures) == 1 and "Loss over training" in pictures[0]
    about, _, summary = wandb_run(runs, identity(folder))
    assert about.job_type == "phase" and summary["verdict"] == "promoted" and summary["gates/passed"] == 4
    assert '"tokens"' in next(update.value_json for update in about.config.update if update.key == "train")
    assert verify.verify(runs).problems == []
    assert {path.name.split("-")[0] for path in (runs / "wandb").iterdir()} == {"offline"}


def test_wandb_is_written_once_and_never_leaves_the_machine(
    tmp_path: Path, runs: Path, child: type[InProcess], monkeypatch: pytest.MonkeyPatch, wandb: Any, capsys: Any
) -> None:
    folder = run(tmp_path, child)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        names = ("WANDB_BASE_URL", "HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "ALL_PROXY")
        for name in names:  # whatever is sent anywhere comes here
            monkeypatch.setenv(name, address)
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        assert sync.main(["--to", "wandb"]) == 0
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
    _, first, _ = wandb_run(runs, identity(folder, "a"))
    capsys.readouterr()
    assert sync.main(["--to", "wandb"]) == 0 and "to wandb: already reported" in capsys.readouterr().out
    assert sync.main(["--to", "wandb", "--force"]) == 0
    _, second, _ = wandb_run(runs, identity(folder, "a"))  # still one run of this id
    values = [[{k: v for k, v in row.items() if k != "_runtime"} for row in rows] for rows in (first, second)]
    assert values[0] == values[1] and len(first) == 6


def test_wandb_sees_nothing_that_was_set_for_another_project(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_ENTITY", "WANDB_RUN_ID", "WANDB_MODE"):
        monkeypatch.setenv(name, "theirs")
    given = {name: value for name, value in _environment().items() if name.startswith("WANDB_")}
    assert given == {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}


def test_a_run_is_synced_to_the_trackers_of_its_own_configuration(
    tmp_path: Path, runs: Path, child: type[InProcess], store: Any, tensorboard: Any, capsys: Any
) -> None:
    conf = two_stages(tmp_path, tracking=False, also=["tensorboard"])
    assert pipeline.main(["phase1"], conf=conf) == 0
    capsys.readouterr()
    assert sync.main([]) == 0
    name = lab.the_run(runs).name
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("phase1/")]
    assert said == [f"phase1/{name}: reported", f"phase1/{name} to tensorboard: reported"]


def test_a_tracker_that_fails_does_not_hold_up_the_others(
    tmp_path: Path, runs: Path, child: type[InProcess], tensorboard: Any, capsys: Any
) -> None:
    (runs / "mlflow.db").mkdir()
    folder = run(tmp_path, child, "tensorboard")
    said = capsys.readouterr().out
    assert said.count("tracking is down (mlflow: ") == 1 and "dsv3lab sync" in said
    assert len(scalars(tensorboard(runs / "tensorboard" / "phase1" / folder.name / "a"))["train/loss"]) == 3


def test_an_unknown_tracker_is_refused_with_the_nearest(runs: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.also\[0\].*did you mean 'tensorboard'"):
        compose.compose(["tracking.also=[tensorbord]"])
    with pytest.raises(ConfigError, match="no tracker 'wanb'; did you mean 'wandb'"):
        sync.main(["--to", "tensorboard,wanb"])


def test_a_missing_extra_is_refused_before_anything_runs(
    tmp_path: Path, runs: Path, child: type[InProcess], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else real(name, *rest)
    )
    conf = two_stages(tmp_path, tracking=True)
    assert pipeline.main(["phase1", "tracking.also=[tensorboard]"], conf=conf) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install -c constraints.txt -e '.[tensorboard]'" in said
    assert child.calls == [] and not (runs / "phase1").exists()
    with pytest.raises(ConfigError, match="is not installed"):
        sync.main(["--to", "tensorboard"])
    assert pipeline.main(["phase1", "tracking.also=[tensorboard]", "tracking.enabled=false"], conf=conf) == 0
