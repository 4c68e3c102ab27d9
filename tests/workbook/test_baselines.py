"""Baselines: which figures are accepted, what the difference shows, and when a gate compares with them at all."""

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsv3lab import cli
from dsv3lab.config import ConfigError, GateConfig, build, read_yaml
from dsv3lab.config.workbook import BaselineConfig
from dsv3lab.workbook import accept, baselines, gates, outline, pipeline, promotion, record
from dsv3lab.workbook.compose import compose
from dsv3lab.workbook.gates import Device
from tests.workbook import lab, samples
from tests.workbook.lab import InProcess, good, slow

COMPARES = {**samples.GATE, "threshold": "baseline", "tolerance": 0.25, "severity": "warn"}


def gate(**changes: Any) -> GateConfig:
    return build(GateConfig, {**COMPARES, **changes})


def judged(chosen: GateConfig, value: float, *, config: Any, device: Device = samples.CPU) -> gates.GateResult:
    points = samples.points(value)
    return gates.evaluate(chosen, "g", points=points, executed=True, device=device, config=config)


def accepted(chosen: GateConfig, **changes: Any) -> Any:
    """The configuration of phase 2 with `chosen` as a gate, and its figures (2.0) accepted."""
    config, _ = samples.configuration(2)
    phase = dataclasses.replace(config.phase, gates={"g": chosen}, baseline=None)
    return samples.with_baseline(dataclasses.replace(config, phase=phase), **changes)


@pytest.mark.parametrize(
    ("op", "bound", "good_value", "bad_value"), [("<=", 2.5, 2.5, 2.51), (">=", 1.5, 1.5, 1.49), (">", 1.5, 1.51, 1.5)]
)
def test_the_threshold_is_the_accepted_figure_and_a_tolerance(
    op: str, bound: float, good_value: float, bad_value: float
) -> None:
    chosen = gate(op=op)
    config = accepted(chosen)
    passed, failed = judged(chosen, good_value, config=config), judged(chosen, bad_value, config=config)
    assert (passed.status, failed.status, passed.threshold) == ("pass", "fail", bound)
    assert failed.margin is not None and failed.margin < 0 or op == ">"
    assert passed.source == "theory: test (2026-11-22); 2 of run that, accepted 2026-11-22: a test"
    assert judged(chosen, float("nan"), config=config).status == "error"


def test_unlike_runs_are_skipped_with_the_reason_and_never_passed() -> None:
    chosen = gate()
    config = accepted(chosen)
    for other, why in (
        (dataclasses.replace(config, train=dataclasses.replace(config.train, seed=7)), "another configuration (train)"),
        (dataclasses.replace(config, profile=dataclasses.replace(config.profile, name="x")), "configuration (profile)"),
        (accepted(chosen, stages={}), "has no eval/loss of stage train"),
        (
            dataclasses.replace(config, phase=dataclasses.replace(config.phase, baseline=None)),
            "no baseline was accepted",
        ),
        (None, "no baseline was accepted"),
    ):
        result = judged(chosen, 2.0, config=other)
        assert (result.status, result.threshold, result.margin) == ("skipped", None, None) and why in result.message
    for device in (Device(kind="NVIDIA H100", count=8), Device(kind="cpu", count=1)):
        result = judged(chosen, 2.0, config=config, device=device)
        assert result.status == "skipped" and f"is for 8 x cpu, this ran on {device.count} x" in result.message


def test_gates_are_no_part_of_what_is_compared() -> None:
    chosen = gate()
    config = accepted(chosen)
    stricter = dataclasses.replace(config.phase, gates={"g": chosen, "h": gate(tolerance=0.5)}, title="Other")
    assert judged(chosen, 2.0, config=dataclasses.replace(config, phase=stricter)).status == "pass"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tolerance": None}, "needs one above 0"),
        ({"tolerance": 0.0}, "needs one above 0"),
        ({"op": "=="}, "give <= or >="),
        ({"severity": "block"}, "can only warn"),
        ({"threshold": 1.0}, "only a gate with `threshold: baseline`"),
        ({"threshold": "basline"}, "did you mean 'baseline'"),
        ({"threshold": "1e3"}, "threshold"),
        ({"threshold": None}, "threshold"),
    ],
)
def test_gates_that_make_no_sense_are_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match="threshold|tolerance") as refused:
        gate(**changes)
    assert why in str(refused.value)


def test_the_training_loss_of_phase_2_is_compared() -> None:
    config, _ = samples.configuration(2)
    chosen = config.phase.gates["train_loss_baseline"]
    assert (chosen.threshold, chosen.severity, chosen.kind, chosen.metric) == (
        "baseline",
        "warn",
        "repro",
        "train/loss",
    )
    assert accept._compared(accept.CONF) == [2]


@pytest.fixture
def compared(tmp_path: Path, runs: Path) -> Path:
    """Phase 1 with one stage, of whose gates one compares with the baseline."""
    notebooks = {"a": lab.write_notebook(tmp_path / "a.ipynb", [])}
    compares = {**lab.gate("a", "quality/error", "<=", 1.0, severity="warn"), "threshold": "baseline", "tolerance": 0.1}
    return lab.write_conf(tmp_path, notebooks, gates={**lab.gates_of("a"), "a_baseline": compares})


def read(runs: Path) -> gates.GateResult:
    return next(one for one in record.read(lab.the_run(runs)).results if one.gate_id == "a_baseline")


def test_accept_writes_a_difference_and_later_runs_are_compared(
    compared: Path, runs: Path, child: type[InProcess], capsys: Any
) -> None:
    conf, path = compared, compared / "baselines" / "phase1.yaml"
    assert pipeline.main(["phase1"], conf=conf) == 0
    assert read(runs).status == "skipped" and "no baseline was accepted yet" in read(runs).message
    first = lab.the_run(runs)
    assert accept.main(["accept", "--phase", "1", "--reason", "the  first\none"], conf=conf) == 0
    out = capsys.readouterr().out
    assert f"phase1: no baseline -> {first.name} (the first one)" in out
    assert "quality/error: new, 0.001 1" in out and f"written: {path}" in out
    baseline = build(BaselineConfig, read_yaml(path))
    (stage,) = baseline.stages.values()
    assert (baseline.run, baseline.reason, stage.device, stage.devices) == (first.name, "the first one", "cpu", 1)
    assert {key: one.value for key, one in stage.metrics.items()} == {
        "perf/tokens_per_s": 100.0,
        "quality/error": 0.001,
    }
    assert "      quality/error: {unit: '1', value: 0.001}\n" in path.read_text(), "one figure to a line"

    assert pipeline.main(["phase1"], conf=conf) == 0
    assert (read(runs).status, read(runs).threshold) == ("pass", pytest.approx(0.0011))
    assert pipeline.main(["phase1", "train.seed=3"], conf=conf) == 0
    assert read(runs).status == "skipped" and "for another configuration (train)" in read(runs).message

    child.acts = {"phase1/a": lambda stage: stage.metrics({"perf/tokens_per_s": 100.0, "quality/error": 0.002})}
    assert pipeline.main(["phase1"], conf=conf) == 0, "it warns"
    assert read(runs).status == "fail"
    capsys.readouterr()
    assert accept.main(["accept", "--reason", "another schedule", "--phase", "1"], conf=conf) == 0
    out = capsys.readouterr().out
    assert "quality/error: 0.001 -> 0.002 1 (+100.00 %)" in out and "perf/tokens_per_s: 100 1, the same" in out
    assert accept.main(["show"], conf=conf) == 0
    assert "quality/error: 0.002 1" in capsys.readouterr().out
    assert promotion.staleness(record.read(lab.the_run(runs))) == [], "to accept its figures makes no run stale"


def test_accepting_the_same_again_leaves_the_figures_as_they_are(
    compared: Path, runs: Path, child: type[InProcess]
) -> None:
    assert pipeline.main(["phase1"], conf=compared) == 0
    path = compared / "baselines" / "phase1.yaml"
    texts = []
    for _ in range(2):
        assert accept.main(["accept", "--phase", "1", "--reason", "r"], conf=compared) == 0
        texts.append(path.read_text())
    assert texts[0] == texts[1]
    keys = list(yaml.safe_load(texts[0]))
    assert keys == sorted(keys)


def refused(capsys: Any, conf: Path, *words: str) -> str:
    with pytest.raises(ConfigError) as error:
        accept.main(["accept", "--phase", "1", *words], conf=conf)
    assert not (conf / "baselines").exists()
    return str(error.value)


def test_what_was_not_promoted_is_refused(compared: Path, runs: Path, child: type[InProcess], capsys: Any) -> None:
    assert "phase1 was never promoted" in refused(capsys, compared, "--reason", "r")
    child.acts = {"phase1/a": slow}
    assert pipeline.main(["phase1"], conf=compared) == 1
    failed = lab.the_run(runs).name
    child.acts = {"phase1/a": good}
    assert pipeline.main(["phase1"], conf=compared) == 0
    said = refused(capsys, compared, "--reason", "r", "--run", failed)
    assert f"phase1/{failed} was not promoted" in said
    promoted = lab.the_run(runs)
    close = promoted.name[:-1] + "x"
    said = refused(capsys, compared, "--reason", "r", "--run", close)
    assert f"did you mean '{promoted.name}'" in said
    with pytest.raises(ConfigError, match="name its phase"):
        accept.main(["accept", "--reason", "r", "--run", promoted.name], conf=compared)
    for blank in ("", "  "):
        assert "--reason" in refused(capsys, compared, "--reason", blank)
    assert "${" in refused(capsys, compared, "--reason", "${oc.env:HOME}")
    with open(promoted / "a" / "metrics.jsonl", "a") as file:
        file.write('{"time":"t","step":1,"metrics":{"quality/error":0.0}}\n')
    assert "changed since it was recorded" in refused(capsys, compared, "--reason", "r")


def test_without_a_phase_it_is_all_or_none(compared: Path, runs: Path, child: type[InProcess], capsys: Any) -> None:
    """The phases with a gate that compares: here the first, and the second of the copied configuration."""
    assert pipeline.main(["phase1"], conf=compared) == 0
    with pytest.raises(ConfigError, match="phase2 was never promoted"):
        accept.main(["accept", "--reason", "r"], conf=compared)
    assert not (compared / "baselines").exists()


def test_a_reason_must_be_given(capsys: Any) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["baseline", "accept"])
    assert end.value.code == 2 and "--reason" in capsys.readouterr().err


def test_a_baseline_that_is_not_committed_does_not_promote(
    compared: Path, runs: Path, child: type[InProcess], capsys: Any
) -> None:
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *words], cwd=compared, check=True)
    assert pipeline.main(["phase1"], conf=compared) == 0
    assert accept.main(["accept", "--phase", "1", "--reason", "r"], conf=compared) == 0
    assert pipeline.main(["phase1"], conf=compared) == 1
    assert "baselines/phase1.yaml is not committed" in capsys.readouterr().out
    for words in (["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "b"]):
        subprocess.run(["git", *words], cwd=compared, check=True)
    assert pipeline.main(["phase1"], conf=compared) == 0


def test_a_baseline_of_another_phase_is_not_taken(compared: Path, runs: Path, child: type[InProcess]) -> None:
    assert pipeline.main(["phase1"], conf=compared) == 0
    assert accept.main(["accept", "--phase", "1", "--reason", "r"], conf=compared) == 0
    assert compose([], phase=1, conf=compared)[0].phase.baseline is not None
    assert compose([], phase=2, conf=compared)[0].phase.baseline is None


def test_the_plan_says_what_is_compared(compared: Path, runs: Path, child: type[InProcess]) -> None:
    before = outline.outline(compose([], phase=1, conf=compared)[0], ["a"], width=140)
    assert "quality/error <= the baseline (none is accepted yet) + 10 %, in 1" in before
    assert pipeline.main(["phase1"], conf=compared) == 0
    assert accept.main(["accept", "--phase", "1", "--reason", "r"], conf=compared) == 0
    after = outline.outline(compose([], phase=1, conf=compared)[0], ["a"], width=140)
    assert f"the baseline (that of run {lab.the_run(runs).name}) + 10 %" in after


def test_a_figure_that_is_not_the_last_has_its_own_name() -> None:
    assert baselines.key(gate()) == "eval/loss" and baselines.key(gate(aggregate="min")) == "eval/loss (min)"
