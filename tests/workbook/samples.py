"""Configurations, points and finished run folders for the tests of the workbook."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from dsv3lab.config import GateConfig, RunConfig, digest
from dsv3lab.config.workbook import BaselineConfig, FigureConfig, StageBaselineConfig
from dsv3lab.workbook import baselines, compose, files, gates, promotion, record
from dsv3lab.workbook.gates import Device, GateResult
from dsv3lab.workbook.record import PhaseRecord, StageOutcome, Upstream

CPU = Device(kind="cpu", count=8)

GATE: dict[str, Any] = {
    "stage": "train",
    "title": "A gate",
    "role": "loss",
    "kind": "quality",
    "metric": "eval/loss",
    "aggregate": "last",
    "op": "<=",
    "threshold": 2.0,
    "unit": "nats per token",
    "severity": "block",
    "requires": {"device": "any", "count": 1},
    "source": {"type": "theory", "ref": "test", "date": "2026-11-22"},
    "rationale": "because",
}


@functools.cache
def configuration(phase: int, *overrides: str) -> tuple[RunConfig, dict[str, Any]]:
    """The real configuration of a phase."""
    return compose.compose(overrides, phase=phase)


def points(*values: Any, name: str = "eval/loss") -> list[gates.Point]:
    """Points of one metric, as they come from a file."""
    return [gates.Point(name=name, value=value, step=step, time="") for step, value in enumerate(values)]


def judgeable(gate: GateConfig, *values: Any) -> list[gates.Point]:
    """Points of the metric of `gate`, after as much training as it needs."""
    needed = [] if gate.requires.tokens is None else [gate.requires.tokens]
    return [*points(*values, name=gate.metric), *points(*needed, name=gates.TOKENS)]


FIGURE = 2.0
"""What every metric of `with_baseline` was accepted with."""


def with_baseline(config: RunConfig, device: Device = CPU, **changes: Any) -> RunConfig:
    """`config` as it is after the figures of one of its own runs on `device` were accepted."""
    stages = {
        name: StageBaselineConfig(
            device=device.kind,
            devices=device.count,
            config=baselines.sections(config, name),
            metrics={
                baselines.key(gate): FigureConfig(value=FIGURE, unit=gate.unit)
                for gate in gates.stage_gates(config.phase.gates, name).values()
            },
        )
        for name in config.phase.stages
    }
    accepted = {"run": "that", "profile": "default", "revision": "r", "accepted": "2026-11-22", "reason": "a test"}
    baseline = BaselineConfig(**{**accepted, "stages": stages, **changes})
    return dataclasses.replace(config, phase=dataclasses.replace(config.phase, baseline=baseline))


def with_profile(config: RunConfig, name: str) -> RunConfig:
    """`config` as a run of another profile has it, sizes aside."""
    return dataclasses.replace(config, profile=dataclasses.replace(config.profile, name=name))


def passing(config: RunConfig, stage: str) -> list[GateResult]:
    """Results for the gates of a stage: each observed at its threshold or just on its good side, or for a GPU only."""
    results = []
    for gate_id, gate in gates.stage_gates(config.phase.gates, stage).items():
        shift = {"<": -0.5, ">": 0.5}.get(gate.op, 0.0)
        written = judgeable(gate, (FIGURE if gate.threshold == "baseline" else gate.threshold) + shift)
        judged_by = with_baseline(config)
        results.append(gates.evaluate(gate, gate_id, points=written, executed=True, device=CPU, config=judged_by))
    for result in results:
        gate = config.phase.gates[result.gate_id]
        elsewhere = gate.requires.device == "gpu" or gate.requires.profile is not None
        assert result.status == ("skipped" if elsewhere else "pass")
    return results


def dataset(runs: Path) -> Path:
    """A prepared data folder with a manifest, as the data room leaves it."""
    folder = runs / "data" / "tiny-0123456789ab"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.bin").write_bytes(b"\x01\x02\x03\x04" * 8)
    (folder / "validation.bin").write_bytes(b"\x05\x06" * 8)
    listed = files.hash_folder(folder, leave_out=frozenset({"manifest.json"}))
    (folder / "manifest.json").write_text(json.dumps({"files": listed, "digest": "d"}))
    return folder


def execution(
    runs: Path, config: RunConfig, resolved: dict[str, Any], *, upstream: Upstream | None = None, promote: bool = True
) -> tuple[Path, PhaseRecord]:
    """A finished, passing execution of a phase, promoted unless told otherwise."""
    folder = runs / config.phase.name / files.new_name()
    folder.mkdir(parents=True)
    (folder / "config.resolved.yaml").write_text(compose.dump(resolved))
    (folder / "report.html").write_text("<html></html>")
    shards = dataset(runs)
    outcomes = []
    for name in config.phase.stages:
        home = folder / name
        (home / "checkpoint").mkdir(parents=True)
        (home / "stage.json").write_text(json.dumps({"stage": f"{config.phase.name}/{name}", "figures": []}))
        (home / "metrics.jsonl").write_text('{"time":"t","step":1,"metrics":{"train/loss":2.0}}\n')
        (home / "checkpoint" / "weights.bin").write_bytes(b"weights of " + name.encode())
        uses = {
            "data": {
                "folder": files.relative(shards, runs),
                "digest": "d",
                "manifest_sha256": files.sha256_file(shards / "manifest.json"),
            }
        }
        outcomes.append(
            StageOutcome(
                name=name,
                status="ok",
                seconds=1.5,
                results=tuple(passing(config, name)),
                device=CPU,
                inputs={"needs": {}, "uses": uses},
            )
        )
    start, end = "2026-11-22T10:00:00.000000Z", "2026-11-22T10:01:00.000000Z"
    drafted = record.draft(folder, config=config, stages=outcomes, upstream=upstream, started=start, ended=end)
    written = record.write_phase(folder, drafted, config=config, resolved=resolved)
    assert digest(config) == written.config_sha256
    if promote:
        promotion.promote(folder, written, runs)
    return folder, written


def two_phases(runs: Path) -> list[Path]:
    """Phase 1 and phase 2 promoted, the second upon the first; their folders."""
    first, first_resolved = configuration(1)
    second, second_resolved = configuration(2)
    one, _ = execution(runs, first, first_resolved)
    two, _ = execution(runs, second, second_resolved, upstream=promotion.ground(second, runs).upstream)
    return [one, two]
