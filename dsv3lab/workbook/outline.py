"""What a phase would do: `--plan`."""

import shutil
import textwrap
from collections.abc import Sequence

from dsv3lab.config import WHOLE, GateConfig, RunConfig
from dsv3lab.config.text import clock
from dsv3lab.workbook.gates import stage_gates
from dsv3lab.workbook.verdict import figure
from dsv3lab.workbook.waivers import Waiver

FOR_GPU = "profile {} is for a GPU: on a CPU its stages do not finish within their limits"


def outline(config: RunConfig, order: list[str], *, waivers: Sequence[Waiver] = (), width: int | None = None) -> str:
    """Stages in their order with gates, thresholds, units and sources, and what the seed documents ask of the phase.

    Args:
        config: the composed configuration.
        order: the stages, in the order in which they run.
        waivers: those of the phase.
        width: columns (default: those of the terminal).
    """
    columns = min(width or shutil.get_terminal_size((110, 24)).columns, 140)
    phase = config.phase
    promotes = "its records can be promoted" if config.profile.promotes else "its records are never promoted"
    lines = [f"{phase.name}: {phase.title}", f"  {phase.question}"]
    lines.append(f"  profile {config.profile.name}: {promotes}")
    if config.profile.device == "gpu":
        lines.append(f"  {FOR_GPU.format(config.profile.name)}")
    if phase.requires_phase:
        lines.append(f"  needs phase{phase.requires_phase} promoted first")
    for number, name in enumerate(order, start=1):
        stage = phase.stages[name]
        lines += ["", f"{number}. {phase.name}/{name}: {stage.title}", f"   {stage.notebook}"]
        usual = "" if config.profile.device == "gpu" else f"usually {clock(config.expected_s(name))}, "  # it is a CPU's
        lines.append(f"   {usual}ended after {clock(config.limit_s(name))}")
        if stage.needs:
            lines.append(f"   needs {', '.join(stage.needs)}")
        for gate_id, gate in stage_gates(phase.gates, name).items():
            lines += _gate(gate_id, gate, config, columns)
            lines += _waived(gate_id, phase.name, waivers, columns)
    whole = stage_gates(phase.gates, WHOLE)
    lines += ["", "The phase as a whole, from what the pipeline measures"] if whole else []
    for gate_id, gate in whole.items():
        lines += _gate(gate_id, gate, config, columns)
        lines += _waived(gate_id, phase.name, waivers, columns)
    lines += ["", *_seed(config, columns)]
    return "\n".join(lines)


def _waived(gate_id: str, phase: str, waivers: Sequence[Waiver], columns: int) -> list[str]:
    mine = [waiver for waiver in waivers if waiver.gate == f"{phase}/{gate_id}"]
    return [line for waiver in mine for line in _wrapped(f"may be {waiver.text}", columns)]


def _gate(gate_id: str, gate: GateConfig, config: RunConfig, columns: int) -> list[str]:
    wanted = f"{gate.metric} {gate.op} {_threshold(gate, config)} {gate.unit}".rstrip()
    source = f"source: {gate.source.type}: {gate.source.ref} ({gate.source.date}): {gate.rationale}"
    head = f"   [{gate.severity}] {gate_id}: {gate.title} ({gate.role}, {gate.kind}{_requires(gate)})"
    return [head, *_wrapped(wanted, columns), *_wrapped(source, columns)]


def _threshold(gate: GateConfig, config: RunConfig) -> str:
    if gate.threshold != "baseline":
        return figure(gate.threshold)
    baseline = config.phase.baseline
    accepted = f"that of run {baseline.run}" if baseline else "none is accepted yet"
    return f"the baseline ({accepted}) {'-' if gate.op in ('>', '>=') else '+'} {100 * (gate.tolerance or 0.0):g} %, in"


def _requires(gate: GateConfig) -> str:
    needs = gate.requires
    wanted = [f"profile={needs.profile}"] if needs.profile else []
    if (needs.device, needs.count) != ("any", 1):
        wanted.insert(0, f"{needs.count} x {'devices' if needs.device == 'any' else needs.device}")
    if needs.tokens is not None:
        wanted.append(f"{needs.tokens:,} tokens of training")
    return f", needs {' and '.join(wanted)}" if wanted else ""


def _seed(config: RunConfig, columns: int) -> list[str]:
    seed = config.phase.seed
    lines = [f"What the seed documents say ({seed.ref}; weeks {seed.weeks})"]
    lines += _wrapped(f"infrastructure: {'; '.join(seed.infrastructure)}", columns)
    lines += _wrapped(f"resources: {'; '.join(f'{key} {value}' for key, value in seed.resources.items())}", columns)
    for target in seed.targets:
        answer = f"gate {target.gate}" if target.gate else "no gate yet"
        lines += _wrapped(f"target: {target.text} -> {answer} ({target.note})", columns)
    for criterion in seed.criteria:
        answer = f"gate {criterion.gate}" if criterion.gate else "no gate"
        text = f"criterion ({criterion.ref}): {criterion.text} -> {answer} ({criterion.note})"
        lines += _wrapped(text, columns)
        if criterion.objection:
            lines += _wrapped(f"  but: {criterion.objection}", columns)
    return lines


def _wrapped(text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, width=columns, initial_indent=" " * 6, subsequent_indent=" " * 8)
