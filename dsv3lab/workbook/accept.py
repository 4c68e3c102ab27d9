"""`dsv3lab baseline accept`: make the figures of a promoted run those that later runs are compared with.

It writes `conf/baselines/<phase>.yaml`, sorted and one figure to a line, so that `git diff` shows what was accepted; the
file counts once it is committed. Only a run in the chain of promotions, with every recorded byte as it was, is accepted.
"""

import argparse
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from dsv3lab.config import CONF, ConfigError, build, nearest, plain, read_yaml, runs_dir
from dsv3lab.config.workbook import BaselineConfig, FigureConfig, StageBaselineConfig
from dsv3lab.workbook import baselines, chain, commands, compose, gates, promotion
from dsv3lab.workbook import record as records
from dsv3lab.workbook.chain import ChainError, Promotion
from dsv3lab.workbook.files import compare, write_atomic
from dsv3lab.workbook.record import PhaseRecord, RecordError, StageOutcome
from dsv3lab.workbook.verdict import figure

HEADER = (
    "# Figures of a promoted run that later runs are compared with. Written when they were accepted, not by hand.\n"
)


def main(argv: Sequence[str], *, conf: Path = CONF) -> int:
    """Entry point of `dsv3lab baseline`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="dsv3lab baseline", description="The accepted figures that later runs are compared with."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("show", help="print the accepted figures")
    accept = verbs.add_parser("accept", help="accept the figures of a promoted run, and print what differs")
    accept.add_argument(
        "--reason", required=True, help="why these figures are right, for whoever reviews the difference"
    )
    accept.add_argument("--phase", type=int, choices=(1, 2, 3, 4), help="default: each with a gate that compares")
    accept.add_argument("--run", default="", help="name of a promoted run folder of --phase (default: the newest)")
    accept.add_argument("--profile", default="default", help="the profile of the run (default: default)")
    args = parser.parse_args(list(argv))
    if args.verb == "show":
        return _show(conf)
    reason = " ".join(args.reason.split())
    if not reason:
        raise ConfigError("--reason: say why these figures are right")
    if "${" in reason:
        raise ConfigError("--reason: write it without '${', which a configuration would replace")
    if args.run and args.phase is None:
        raise ConfigError("--run: name its phase with --phase")
    numbers = [args.phase] if args.phase else _compared(conf)
    made = [_accepted(number, args.run, args.profile, reason, conf=conf) for number in numbers]
    for number, new in zip(numbers, made, strict=True):  # all or none: what is refused is refused before
        path = conf / "baselines" / f"phase{number}.yaml"
        print("\n".join(difference(f"phase{number}", _read(path), new)))
        write_atomic(path, text(new))
        print(f"written: {path}; review it with `git diff` and commit it, until then no run is promoted")
    return 0


def text(baseline: BaselineConfig) -> str:
    """The file of a baseline: sorted, one figure to a line."""
    body = yaml.safe_dump(plain(baseline), sort_keys=True, allow_unicode=True, width=1000, default_flow_style=None)
    return HEADER + body


def difference(phase: str, old: BaselineConfig | None, new: BaselineConfig) -> list[str]:
    """What accepting `new` changes, one line for each figure, device and configuration."""
    was = f"{old.run} (accepted {old.accepted}: {old.reason})" if old else "no baseline"
    lines = [f"{phase}: {was} -> {new.run} ({new.reason})"]
    for name in sorted({**(old.stages if old else {}), **new.stages}):
        before, after = old.stages.get(name) if old else None, new.stages.get(name)
        lines.append(f"  {name}" + ("" if after else ": no such stage any more"))
        if after:
            lines += [f"    {line}" for line in _stage_difference(before, after)]
    return lines


def _stage_difference(old: StageBaselineConfig | None, new: StageBaselineConfig) -> list[str]:
    lines = []
    if old and (old.device, old.devices) != (new.device, new.devices):
        lines.append(f"device: {old.devices} x {old.device} -> {new.devices} x {new.device}")
    changed = [key for key in {**old.config, **new.config} if old.config.get(key) != new.config.get(key)] if old else []
    if changed:
        lines.append(f"another configuration: {', '.join(sorted(changed))}")
    before = old.metrics if old else {}
    return lines + [
        _figure_difference(key, before.get(key), new.metrics.get(key)) for key in sorted({*before, *new.metrics})
    ]


def _figure_difference(key: str, old: FigureConfig | None, new: FigureConfig | None) -> str:
    if new is None:
        return f"{key}: {figure(old.value) if old else ''} -> none"
    if old is None:
        return f"{key}: new, {figure(new.value)} {new.unit}"
    if old == new:
        return f"{key}: {figure(new.value)} {new.unit}, the same"
    share = f" ({100 * (new.value / old.value - 1):+.2f} %)" if old.value else ""
    return f"{key}: {figure(old.value)} -> {figure(new.value)} {new.unit}{share}"


def _compared(conf: Path) -> list[int]:
    """The phases with a gate that compares with a baseline."""
    found = [
        number
        for number in (1, 2, 3, 4)
        if any(
            gate.threshold == "baseline"
            for gate in compose.compose([], phase=number, conf=conf)[0].phase.gates.values()
        )
    ]
    if not found:
        raise ConfigError(
            "no gate compares with a baseline; name a phase with --phase to accept its figures all the same"
        )
    return found


def _accepted(number: int, run: str, profile: str, reason: str, *, conf: Path) -> BaselineConfig:
    """The baseline that a promoted run makes."""
    folder, record = _promoted(f"phase{number}", run, profile, runs_dir())
    ran = compose.load(folder / "config.resolved.yaml")
    today, _ = compose.compose([f"profile={profile}"], phase=number, conf=conf)
    stages = {}
    for outcome in record.stages:
        if outcome.name in today.phase.stages:
            stages[outcome.name] = StageBaselineConfig(
                device=outcome.device.kind,
                devices=outcome.device.count,
                config=baselines.sections(ran, outcome.name),
                metrics=_figures(gates.stage_gates(today.phase.gates, outcome.name), folder, outcome),
            )
    return BaselineConfig(
        run=record.run,
        profile=profile,
        revision=record.git.revision or "unknown",
        accepted=datetime.now(UTC).date().isoformat(),
        reason=reason,
        stages=stages,
    )


def _figures(judged: Mapping[str, Any], folder: Path, outcome: StageOutcome) -> dict[str, FigureConfig]:
    """The figures that the gates of a stage look at, from what it recorded."""
    points = gates.read_points(folder / outcome.name / "metrics.jsonl")
    found = {}
    for gate in judged.values():
        value = gates.aggregate([point.value for point in points if point.name == gate.metric], gate.aggregate)
        if value is not None:
            found[baselines.key(gate)] = FigureConfig(value=float(value), unit=gate.unit)
    return found


def _promoted(phase: str, run: str, profile: str, runs: Path) -> tuple[Path, PhaseRecord]:
    """The run folder and record that were promoted, checked byte by byte."""
    try:
        mine = [line for line in chain.read_chain(runs) if line.phase == phase and line.profile == profile]
        line = _chosen(mine, phase, run, profile, runs)
        folder = (runs / line.record).parent
        record = records.read(folder)
        damaged = compare(folder, record.files, leave_out=records.NOT_HASHED)
        if records.sha256(folder) != line.record_sha256:
            raise ConfigError(f"{folder / records.NAME}: changed since it was promoted; its figures are not accepted")
        if damaged:
            path, what = damaged[0]
            raise ConfigError(
                f"{path}: {what} since it was recorded; the figures of {run or folder.name} are not accepted"
            )
    except (ChainError, RecordError) as error:
        raise ConfigError(str(error)) from None
    for changed in promotion.staleness(record)[:3]:
        print(f"note: {changed} since {record.run} ran")
    return folder, record


def _chosen(mine: Sequence[Promotion], phase: str, run: str, profile: str, runs: Path) -> Promotion:
    names = {Path(line.record).parts[1]: line for line in mine}
    if not run and mine:
        return mine[-1]
    if run in names:
        return names[run]
    if run and (runs / phase / run).is_dir():
        raise ConfigError(
            f"{phase}/{run} was not promoted with profile '{profile}': only promoted figures are accepted"
        )
    if run:
        raise ConfigError(f"--run: {phase} has no run '{run}'{nearest(run, names)}")
    raise ConfigError(f"{phase} was never promoted with profile '{profile}': only promoted figures are accepted")


def _show(conf: Path) -> int:
    found = sorted((conf / "baselines").glob("phase[1-4].yaml"))
    if not found:
        print(
            f"no baseline is accepted yet; after a promotion: {commands.verb('baseline', 'accept', '--reason', '...')}"
        )
    for path in found:
        baseline = _read(path)
        assert baseline is not None
        print(
            f"{path.stem}: {baseline.run}, profile {baseline.profile}, accepted {baseline.accepted}: {baseline.reason}"
        )
        for name, stage in sorted(baseline.stages.items()):
            print(f"  {name} on {stage.devices} x {stage.device}")
            for key, one in sorted(stage.metrics.items()):
                print(f"    {key}: {figure(one.value)} {one.unit}")
    return 0


def _read(path: Path) -> BaselineConfig | None:
    return build(BaselineConfig, read_yaml(path), path=str(path)) if path.exists() else None
