"""Gates: a metric compared with a threshold, judged outside the notebook, failing closed.

A gate passes only for a finite number that satisfies its comparison. A metric that is missing, NaN, infinite or not a
number, a stage that did not finish, or a file of metrics that cannot be read is never a pass.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dsv3lab.config import GateConfig, RunConfig, nearest
from dsv3lab.config.text import listed
from dsv3lab.workbook import baselines, hints
from dsv3lab.workbook import waivers as waiving
from dsv3lab.workbook.baselines import Bound

Status = Literal["pass", "fail", "error", "skipped", "waived", "missing"]

SHOWN = 4
"""Metrics that are named where NaN began."""
TOKENS = "train/tokens"
"""The metric by which a stage says how much it has trained."""

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class MetricsError(ValueError):
    """A metrics file that cannot be trusted; the message names the file and the line."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a stage ran on."""

    kind: str = "unknown"
    """`cpu`, or the kind of accelerator as its driver names it."""
    count: int = 0

    @property
    def platform(self) -> str:
        """`cpu`, `gpu`, `tpu` or `unknown`: what `requires.device` of a gate is compared with."""
        kind = self.kind.lower()
        for platform, words in {"cpu": ("cpu",), "tpu": ("tpu",), "unknown": ("unknown", "")}.items():
            if kind in words or (platform == "tpu" and kind.startswith("tpu")):
                return platform
        return "gpu"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value of one metric, as it stands in `metrics.jsonl` ("nan", "inf" and "-inf" become floats)."""

    name: str
    value: Any
    step: int | None
    time: str


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """The judgement of one gate, with everything that a reader needs to judge it again."""

    gate_id: str
    stage: str
    title: str
    role: str
    kind: str
    metric: str
    aggregate: str
    status: Status
    observed: float | None
    """The aggregated value; `None` where there is no finite number."""
    points: int
    """How many points of the metric there are."""
    op: str
    threshold: float | None
    """`None` where there is no baseline to compare with."""
    unit: str
    margin: float | None
    """Distance from the threshold, positive on the passing side."""
    severity: Literal["block", "warn"]
    requires_device: str
    requires_count: int
    source: str
    rationale: str
    message: str
    waiver: str
    """Who waived it, why and until when; empty if nobody did."""


def parse_line(line: str) -> list[Point]:
    """The points of one line of `metrics.jsonl`.

    Raises:
        ValueError: if the line is not an object with the keys time, step and metrics.
    """
    entry = json.loads(line)
    if not isinstance(entry, dict) or not isinstance(entry.get("metrics"), dict):
        raise ValueError("not an object with a mapping 'metrics'")
    step, time = entry.get("step"), entry.get("time", "")
    if not (step is None or (isinstance(step, int) and not isinstance(step, bool))):
        raise ValueError(f"step {step!r} is not an integer")
    return [
        Point(
            name=name,
            value=_NON_FINITE.get(value, value) if isinstance(value, str) else value,
            step=step,
            time=str(time),
        )
        for name, value in entry["metrics"].items()
    ]


def read_points(path: Path) -> list[Point]:
    """All points of a stage's `metrics.jsonl`, in the order of writing; none if there is no such file.

    Raises:
        MetricsError: for a torn last line or any line that is not what a stage writes.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise MetricsError(f"{path}: cannot be read ({error})") from None
    if text and not text.endswith("\n"):
        raise MetricsError(f"{path}: the last line is torn; its stage was cut off while writing")
    points: list[Point] = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            points += parse_line(line)
        except (ValueError, RecursionError) as error:
            raise MetricsError(f"{path}: line {number} is not a line of metrics ({error})") from None
    return points


def number(value: Any) -> float | None:
    """`value` if it is a finite number (booleans are not numbers), else `None`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an integer beyond every float
        return None


def holds(observed: float, op: str, threshold: float) -> bool:
    """Whether `observed op threshold`; an unknown comparison holds for nothing."""
    return {
        "<=": observed <= threshold,
        "<": observed < threshold,
        ">=": observed >= threshold,
        ">": observed > threshold,
        "==": observed == threshold,
    }.get(op, False)


def evaluate(
    gate: GateConfig,
    gate_id: str,
    *,
    points: Sequence[Point],
    executed: bool,
    device: Device,
    problem: str = "",
    config: RunConfig | None = None,
) -> GateResult:
    """Judge one gate.

    Args:
        gate: what is compared.
        gate_id: its name in the configuration.
        points: every point that its stage wrote.
        executed: whether every cell of the stage ran and the stage was closed.
        device: what the stage ran on.
        problem: why the stage cannot be judged, if it cannot.
        config: what the stage ran with, for gates about one profile and those that compare with the accepted baseline;
            without it the profile is none that a gate requires, and there is no baseline.
    """
    values = [point.value for point in points if point.name == gate.metric]
    bound = baselines.bound(gate, config=config, device=device)

    def result(status: Status, message: str, observed: float | None = None) -> GateResult:
        return _result(gate, gate_id, status, observed, points=len(values), message=message, bound=bound)

    if problem or not executed:
        return result("error", problem or "the stage did not finish")
    lacking = _lacking(gate, device, config.profile.name if config else "")
    if lacking:
        return result("skipped", lacking)
    if not values:
        names = {point.name for point in points}
        hint = nearest(gate.metric, names) if names else "; the stage wrote no metric"
        return result("missing", f"no metric '{gate.metric}'{hint}")
    bad = [value for value in values if number(value) is None]
    if bad:
        return result("error", _advised(f"{gate.metric} is {_short(bad[0])}, not a finite number", gate, points))
    observed = aggregate(values, gate.aggregate)
    if observed is None:
        return result("error", f"no finite {gate.aggregate} of {gate.metric}")
    if (needed := gate.requires.tokens) is not None:
        trained = _trained(points)
        if trained is None:
            return result(
                "missing", f"needs {needed:,} tokens of training, and {TOKENS} does not say how many there were"
            )
        if trained < needed:
            return result("skipped", f"needs {needed:,} tokens of training, had {trained:,.0f}")
    if bound.threshold is None:
        return result("skipped", bound.lacking, observed)
    if holds(observed, gate.op, bound.threshold):
        return result("pass", "", observed)
    message = f"{gate.metric} is {observed:.6g} {gate.unit}, needs {gate.op} {bound.threshold:.6g}".replace("  ", " ")
    return result("fail", _advised(message, gate, points), observed)


def began(points: Sequence[Point]) -> str:
    """Where the first value that is not finite stands, with its neighbours of the same step; empty if there is none."""
    bad = [p for p in points if isinstance(p.value, float) and not math.isfinite(p.value)]
    if not bad:
        return ""
    names = [p.name for p in bad if (p.step, p.time) == (bad[0].step, bad[0].time)]
    where = "no step" if bad[0].step is None else f"step {bad[0].step}"
    return f"{where}, in {listed(names, most=SHOWN)}"


def aggregate(values: Sequence[Any], how: str) -> float | None:
    """The one number that stands for the finite `values` of a metric; `None` if there is none."""
    reduce = {"last": lambda v: v[-1], "min": min, "max": max, "median": statistics.median}.get(how)
    return number(reduce(values)) if reduce and values else None


def evaluate_stage(
    gates: Mapping[str, GateConfig],
    points: Sequence[Point],
    *,
    executed: bool,
    device: Device,
    waivers: Sequence[waiving.Waiver] = (),
    problem: str = "",
    config: RunConfig | None = None,
) -> list[GateResult]:
    """Judge the gates of one stage (see `evaluate`) and apply the waivers (see `waivers.apply`)."""
    results = [
        evaluate(gate, gate_id, points=points, executed=executed, device=device, problem=problem, config=config)
        for gate_id, gate in gates.items()
    ]
    return waiving.apply(results, waivers, device=device)


def evaluate_folder(
    gates: Mapping[str, GateConfig],
    folder: Path,
    *,
    executed: bool,
    device: Device,
    waivers: Sequence[waiving.Waiver] = (),
    problem: str = "",
    config: RunConfig | None = None,
) -> list[GateResult]:
    """`evaluate_stage` over the `metrics.jsonl` of a stage's folder; a file that cannot be trusted errs every gate."""
    try:
        points = read_points(folder / "metrics.jsonl")
    except MetricsError as error:
        points, problem = [], problem or str(error)
    options: Any = {"executed": executed, "device": device, "config": config}
    return evaluate_stage(gates, points, **options, waivers=waivers, problem=problem)


def stage_gates(gates: Mapping[str, GateConfig], stage: str) -> dict[str, GateConfig]:
    """The gates of one stage, or those of the whole phase (`dsv3lab.config.WHOLE`)."""
    return {gate_id: gate for gate_id, gate in gates.items() if gate.stage == stage}


def _lacking(gate: GateConfig, device: Device, profile: str) -> str:
    """What the gate needs and did not have, and what it had; empty if it had everything."""
    needs = gate.requires
    wanted, had = [], []
    any_machine = needs.device == "any" and needs.count <= 1  # will do, known or not
    if not any_machine and not (needs.device in ("any", device.platform) and device.count >= needs.count):
        wanted.append(f"{needs.count} x {'device' if needs.device == 'any' else needs.device}")
        had.append(f"on {device.count} x {device.kind}")
    if needs.profile not in (None, profile):
        wanted.append(f"profile={needs.profile}")
        had.append(f"with profile={profile or 'unknown'}")
    return f"needs {' and '.join(wanted)}, ran {' '.join(had)}" if wanted else ""


def _trained(points: Sequence[Point]) -> float | None:
    """The tokens that a stage has trained on, as it says last; `None` if it does not say, or says no finite number."""
    said = [point.value for point in points if point.name == TOKENS]
    return number(said[-1]) if said else None


def _advised(message: str, gate: GateConfig, points: Sequence[Point]) -> str:
    """The message with what to do; of NaN and infinite numbers, with where they began."""
    own = [point for point in points if point.name == gate.metric]
    where = began(points) if began(own) or hints.counts_not_finite(gate.metric) else ""
    advice = hints.not_finite(where) if where else hints.of_metric(gate.metric)
    return f"{message}; {advice}" if advice else message


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _result(
    gate: GateConfig,
    gate_id: str,
    status: Status,
    observed: float | None,
    *,
    points: int,
    message: str,
    bound: Bound,
) -> GateResult:
    return GateResult(
        gate_id=gate_id,
        stage=gate.stage,
        title=gate.title,
        role=gate.role,
        kind=gate.kind,
        metric=gate.metric,
        aggregate=gate.aggregate,
        status=status,
        observed=observed,
        points=points,
        op=gate.op,
        threshold=bound.threshold,
        unit=gate.unit,
        margin=_margin(observed, gate.op, bound.threshold),
        severity=gate.severity,
        requires_device=gate.requires.device,
        requires_count=gate.requires.count,
        source=bound.source,
        rationale=gate.rationale,
        message=message,
        waiver="",
    )


def _margin(observed: float | None, op: str, threshold: float | None) -> float | None:
    if observed is None or threshold is None:
        return None
    difference = observed - threshold
    if op in (">=", ">"):
        return difference
    return -difference if op in ("<=", "<") else -abs(difference)
