"""Gates fail closed: whatever is fed in, only a finite number that satisfies the comparison passes."""

import json
import math
import operator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3lab.config import ConfigError, GateConfig, build
from dsv3lab.workbook import gates, waivers
from dsv3lab.workbook.gates import Device
from tests.workbook import samples

OPS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt, "==": operator.eq}
JUNK = st.recursive(
    st.none() | st.booleans() | st.text(max_size=5) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def gate(**changes: Any) -> GateConfig:
    return build(GateConfig, {**samples.GATE, **changes})


def judge(chosen: GateConfig, *values: Any, executed: bool = True, device: Device = samples.CPU) -> gates.GateResult:
    return gates.evaluate(chosen, "g", points=samples.points(*values), executed=executed, device=device)


@given(
    values=st.lists(JUNK, max_size=4),
    op=st.sampled_from(sorted(OPS)),
    aggregate=st.sampled_from(["last", "min", "max", "median"]),
    threshold=st.floats(allow_nan=False, allow_infinity=False),
    executed=st.booleans(),
)
def test_only_finite_numbers_that_satisfy_pass(
    values: list[Any], op: str, aggregate: str, threshold: float, executed: bool
) -> None:
    result = judge(gate(op=op, aggregate=aggregate, threshold=threshold), *values, executed=executed)
    assert result.status in ("pass", "fail", "error", "missing")
    if result.status == "pass":
        assert executed and values
        assert all(type(value) in (int, float) and math.isfinite(value) for value in values)
        assert result.observed is not None and OPS[op](result.observed, threshold)
    elif executed and values and all(type(value) is int and abs(value) < 2**53 for value in values):
        assert result.status == "fail"
        assert result.observed is not None and not OPS[op](result.observed, threshold)


@given(junk=st.lists(JUNK, min_size=1, max_size=3), metric=st.sampled_from(["eval/loss", "other"]))
def test_a_file_of_junk_never_passes_by_accident(tmp_path_factory: Any, junk: list[Any], metric: str) -> None:
    folder = tmp_path_factory.mktemp("junk")
    text = "".join(json.dumps({"time": "t", "step": None, "metrics": {metric: value}}) + "\n" for value in junk)
    (folder / "metrics.jsonl").write_text(text)
    (result,) = gates.evaluate_folder({"g": gate()}, folder, executed=True, device=samples.CPU)
    if result.status == "pass":
        assert metric == "eval/loss" and all(type(v) in (int, float) and math.isfinite(v) and v <= 1e308 for v in junk)
        assert junk[-1] <= 2.0


@pytest.mark.parametrize(("aggregate", "observed"), [("last", 1.0), ("min", 1.0), ("max", 4.0), ("median", 2.5)])
def test_aggregates(aggregate: str, observed: float) -> None:
    assert judge(gate(aggregate=aggregate, threshold=9.0), 4, 3, 2, 1).observed == observed


@pytest.mark.parametrize(("op", "margin"), [("<=", 0.5), ("<", 0.5), (">=", -0.5), (">", -0.5), ("==", -0.5)])
def test_margin_is_positive_on_the_passing_side(op: str, margin: float) -> None:
    result = judge(gate(op=op), 1.5)
    assert result.margin == margin and (result.status == "pass") == (margin > 0)


def test_equal_is_exact_for_large_integers() -> None:
    exact = gate(op="==", threshold=float(2**53))
    assert judge(exact, 2**53).status == "pass"
    assert judge(exact, 2**53 + 1).status == "fail"


def test_one_value_that_is_not_finite_spoils_the_metric() -> None:
    assert judge(gate(), math.nan, 1.0).status == "error"
    assert judge(gate(aggregate="min"), 1.0, math.inf).status == "error"
    assert judge(gate(), 10**400).status == "error"
    assert "nan" in judge(gate(), math.nan).message


def test_a_missing_metric_names_the_nearest() -> None:
    points = samples.points(1.0, name="eval/los")
    result = gates.evaluate(gate(), "g", points=points, executed=True, device=samples.CPU)
    assert result.status == "missing" and "did you mean 'eval/los'" in result.message
    assert judge(gate()).status == "missing"


def test_a_stage_that_did_not_finish_is_never_judged() -> None:
    result = judge(gate(), 1.0, executed=False)
    assert result.status == "error" and result.observed is None


@pytest.mark.parametrize("text", ['{"time":"t","step":1,"metrics":{"eval/loss":1.0}}', "{}\n", "[1]\n", "\n", "\xff"])
def test_a_torn_or_strange_file_errs_every_gate(tmp_path: Path, text: str) -> None:
    good = '{"time":"t","step":1,"metrics":{"eval/loss":1.0}}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good.encode() + text.encode("latin-1"))
    with pytest.raises(gates.MetricsError, match="metrics.jsonl"):
        gates.read_points(tmp_path / "metrics.jsonl")
    (result,) = gates.evaluate_folder({"g": gate()}, tmp_path, executed=True, device=samples.CPU)
    assert result.status == "error" and "metrics.jsonl" in result.message


def test_absent_hardware_skips_and_says_what_is_needed() -> None:
    needs = gate(requires={"device": "gpu", "count": 8})
    result = judge(needs, 1.0)
    assert result.status == "skipped" and "8 x gpu" in result.message
    assert judge(needs, 1.0, device=Device(kind="NVIDIA H100 80GB HBM3", count=8)).status == "pass"
    assert (
        judge(gate(requires={"device": "cpu", "count": 8}), 1.0, device=Device(kind="cpu", count=1)).status == "skipped"
    )
    assert judge(gate(requires={"device": "cpu", "count": 1}), 1.0, device=Device()).status == "skipped"


def waiver(**changes: str) -> waivers.Waiver:
    fields = {
        "gate": "phase2/g",
        "reason": "known noise",
        "by": "someone",
        "created": "2026-01-01",
        "expires": "2999-01-01",
        "scope": "cpu",
    }
    return build(waivers.Waiver, {**fields, **changes})


def waived(*given: waivers.Waiver, value: Any = 9.0) -> gates.GateResult:
    points = samples.points(value)
    (result,) = gates.evaluate_stage({"g": gate()}, points, executed=True, device=samples.CPU, waivers=given)
    return result


def test_a_waiver_lets_a_failure_through_and_is_shown() -> None:
    result = waived(waiver())
    assert result.status == "waived" and "known noise" in result.waiver and "someone" in result.waiver
    assert waived(waiver(), value=1.0).status == "pass"


def test_a_waiver_does_not_cover_what_could_not_be_judged() -> None:
    assert waived(waiver(), value=math.nan).status == "error"


@pytest.mark.parametrize("changes", [{"expires": "2026-02-01"}, {"scope": "gpu"}, {"gate": "phase2/other"}])
def test_a_waiver_that_does_not_hold_changes_nothing(changes: dict[str, str]) -> None:
    assert waived(waiver(**changes)).status == "fail"


def test_an_expired_waiver_is_mentioned() -> None:
    assert "does not hold (until 2026-02-01" in waived(waiver(expires="2026-02-01")).message


@pytest.mark.parametrize(
    "changes", [{"reason": " "}, {"by": ""}, {"expires": "soon"}, {"expires": "2025-01-01"}, {"gate": "g"}]
)
def test_a_waiver_needs_a_reason_an_owner_and_an_end(changes: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="waiver of"):
        waiver(**changes)


def test_waivers_are_read_from_the_file_of_their_phase(tmp_path: Path) -> None:
    path = tmp_path / "waivers.yaml"
    assert waivers.load(path, phase="phase2") == []
    path.write_text(
        "waivers:\n- {gate: phase2/g, reason: r, by: b, created: 2026-01-01, expires: 2026-02-01, scope: any}\n"
        "- {gate: phase3/g, reason: r, by: b, created: 2026-01-01, expires: 2026-02-01, scope: any}\n"
    )
    assert [w.gate for w in waivers.load(path, phase="phase2")] == ["phase2/g"]
    path.write_text("waivers:\n- {gate: phase2/g, by: b, created: 2026-01-01, expires: 2026-02-01, scope: any}\n")
    with pytest.raises(ConfigError, match="reason"):
        waivers.load(path, phase="phase2")


def test_a_gate_that_needs_training_is_skipped_after_too_little_and_judged_otherwise() -> None:
    chosen = gate(requires={"device": "any", "count": 1, "tokens": 1000})

    def judged(value: Any, *tokens: Any) -> gates.GateResult:
        points = [*samples.points(value), *samples.points(*tokens, name="train/tokens")]
        return gates.evaluate(chosen, "g", points=points, executed=True, device=samples.CPU)

    few = judged(1.0, 500, 999)
    assert (few.status, few.observed) == ("skipped", None)
    assert few.message == "needs 1,000 tokens of training, had 999"
    assert judged(1.0, 500, 1000).status == "pass" and judged(9.0, 1000).status == "fail"
    # What hides a result does not excuse it: no metric, a loss that is not finite, tokens that are no number.
    assert (
        gates.evaluate(
            chosen, "g", points=samples.points(10, name="train/tokens"), executed=True, device=samples.CPU
        ).status
        == "missing"
    )
    assert judged("nan", 10).status == "error" and judged(math.nan, 10).status == "error"
    for result in (judged(1.0), judged(1.0, 10, "many"), judged(1.0, 2000, math.nan), judged(9.0)):
        assert result.status == "missing" and "train/tokens does not say" in result.message


@pytest.mark.parametrize("phase", [1, 2, 3, 4])
def test_every_stage_has_a_throughput_gate_and_a_loss_or_error_gate(phase: int) -> None:
    config, _ = samples.configuration(phase)
    for stage in config.phase.stages:
        mine = gates.stage_gates(config.phase.gates, stage).values()
        roles = {g.role for g in mine if g.severity == "block"}
        assert "throughput" in roles, f"phase{phase}/{stage} has no blocking throughput gate"
        assert roles & {"loss", "error"}, f"phase{phase}/{stage} has no blocking loss or error gate"
        assert all(g.rationale and g.source.ref and g.unit for g in mine)


@pytest.mark.parametrize("phase", [1, 2, 3, 4])
def test_every_gate_can_fail(phase: int) -> None:
    """Each gate of the configuration, fed with a value on the wrong side, with none, and with NaN."""
    config, _ = samples.configuration(phase)
    for gate_id, chosen in config.phase.gates.items():
        compared = samples.with_baseline(config)
        bound = gates.baselines.bound(chosen, config=compared, device=samples.CPU).threshold
        assert bound is not None
        step = max(abs(bound), 1.0) * 1e-6
        wrong = bound + (-step if chosen.op in (">", ">=") else step)

        def status(*values: Any, gate_id: str = gate_id, chosen: GateConfig = chosen, compared: Any = compared) -> str:
            points = samples.judgeable(chosen, *values)
            device = gates.Device(kind="NVIDIA H100", count=chosen.requires.count)
            device = device if chosen.requires.device == "gpu" else samples.CPU
            judged_by = samples.with_profile(compared, chosen.requires.profile or "default")
            options: Any = {"device": device, "config": judged_by}
            return gates.evaluate(chosen, gate_id, points=points, executed=True, **options).status

        assert (status(wrong), status(), status(math.nan)) == ("fail", "missing", "error"), gate_id


@pytest.mark.parametrize("phase", [1, 2, 3, 4])
def test_a_gate_for_other_hardware_is_judged_there_and_skipped_with_its_reason_here(phase: int) -> None:
    config, _ = samples.configuration(phase)
    for gate_id, chosen in config.phase.gates.items():
        needs = chosen.requires
        if needs.device != "gpu":
            continue
        right = samples.points(2 * chosen.threshold if chosen.op in (">", ">=") else 0.0, name=chosen.metric)

        def judged(count: int, kind: str = "NVIDIA H100", right: Any = right, chosen: GateConfig = chosen) -> Any:
            device = gates.Device(kind=kind, count=count)
            ran = samples.with_profile(config, chosen.requires.profile or "default")
            return gates.evaluate(chosen, "g", points=right, executed=True, device=device, config=ran)

        assert judged(needs.count).status == judged(2 * needs.count).status == "pass", gate_id
        for few in (judged(needs.count - 1), judged(needs.count, kind="cpu")):
            assert few.status == "skipped" and few.observed is None, gate_id
            assert f"needs {needs.count} x gpu" in few.message and "ran on" in few.message


def test_a_gate_about_one_profile_is_skipped_under_every_other_and_where_nobody_knows() -> None:
    chosen = gate(requires={"device": "gpu", "count": 1, "profile": "tiny"})
    h100 = gates.Device(kind="NVIDIA H100", count=1)
    config, _ = samples.configuration(1)
    tiny, default = (samples.with_profile(config, name) for name in ("tiny", "default"))
    options: Any = {"points": samples.points(1.0), "executed": True}
    assert gates.evaluate(chosen, "g", **options, device=h100, config=tiny).status == "pass"
    other = gates.evaluate(chosen, "g", **options, device=h100, config=default)
    assert (other.status, other.message) == ("skipped", "needs profile=tiny, ran with profile=default")
    neither = gates.evaluate(chosen, "g", **options, device=samples.CPU)
    assert neither.message == "needs 1 x gpu and profile=tiny, ran on 8 x cpu with profile=unknown"


def test_a_condition_that_may_be_none_may_be_left_out_and_nothing_else() -> None:
    assert gate(requires={"device": "any", "count": 1}) == gate(requires={"device": "any", "count": 1, "profile": None})
    with pytest.raises(ConfigError, match=r"requires\.count: missing key"):
        gate(requires={"device": "any"})
