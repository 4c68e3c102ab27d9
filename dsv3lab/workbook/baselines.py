"""Baselines: figures of a promoted run that later runs are compared with, in `conf/baselines/<phase>.yaml`.

A gate with `threshold: baseline` compares its metric with the accepted figure, with a tolerance on one side. It is
skipped, and says why, where there is no such figure, or where it comes from another kind or number of devices or another
configuration: unlike runs are never compared.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsv3lab.config import GateConfig, RunConfig, digest
from dsv3lab.workbook import commands
from dsv3lab.workbook.inputs import stage_config

if TYPE_CHECKING:  # gates asks for its bounds, so this module only names its types
    from dsv3lab.workbook.gates import Device

DIGITS = 16
"""Of each section's SHA-256, in the file: enough to tell two configurations apart, short enough to review."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What the metric of a gate is compared with."""

    threshold: float | None
    source: str
    lacking: str = ""
    """Why there is no threshold."""


def bound(gate: GateConfig, *, config: RunConfig | None, device: "Device") -> Bound:
    """The threshold of a gate: the number in its configuration, or that which the accepted baseline gives.

    Args:
        gate: the gate.
        config: what its stage ran with; `None` compares with no baseline.
        device: what its stage ran on.
    """
    source = f"{gate.source.type}: {gate.source.ref}" + (f" ({gate.source.date})" if gate.source.date else "")
    if gate.threshold != "baseline":
        return Bound(threshold=gate.threshold, source=source)
    baseline = config.phase.baseline if config else None
    if config is None or baseline is None:
        lacking = f"no baseline was accepted yet (`{commands.verb('baseline', 'accept')}`)"
        return Bound(threshold=None, source=source, lacking=lacking)
    lacking = _incomparable(gate, config, device)
    if lacking:
        return Bound(threshold=None, source=source, lacking=f"the baseline of run {baseline.run} {lacking}")
    figure = baseline.stages[gate.stage].metrics[key(gate)]
    allowed = (gate.tolerance or 0.0) * abs(figure.value)
    return Bound(
        threshold=figure.value - allowed if gate.op in (">", ">=") else figure.value + allowed,
        source=f"{source}; {figure.value:.6g} of run {baseline.run}, accepted {baseline.accepted}: {baseline.reason}",
    )


def key(gate: GateConfig) -> str:
    """The name of a gate's figure among those of its stage."""
    return gate.metric if gate.aggregate == "last" else f"{gate.metric} ({gate.aggregate})"


def sections(config: RunConfig, stage: str) -> dict[str, str]:
    """Section of the configuration that a stage computes with -> the first digits of its SHA-256."""
    return {name: digest(value)[:DIGITS] for name, value in stage_config(config, stage).items()}


def _incomparable(gate: GateConfig, config: RunConfig, device: "Device") -> str:
    """Why the accepted figure is not one for this run; empty if it is."""
    assert config.phase.baseline is not None
    mine = config.phase.baseline.stages.get(gate.stage)
    if mine is None or key(gate) not in mine.metrics:
        return f"has no {key(gate)} of stage {gate.stage}"
    if (mine.device, mine.devices) != (device.kind, device.count):
        return f"is for {mine.devices} x {mine.device}, this ran on {device.count} x {device.kind}"
    now = sections(config, gate.stage)
    others = sorted(name for name in now.keys() | mine.config.keys() if now.get(name) != mine.config.get(name))
    return f"is for another configuration ({', '.join(others)})" if others else ""
