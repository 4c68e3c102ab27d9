"""The record of one phase execution: what ran, on what, what the gates said, and the hash of every file it left.

`record.json` is written last. It covers every file of the run folder except itself, `promotion.json` (which hashes the
record) and `tracking.json` (which changes when metrics are reported again).
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dsv3lab.config import WHOLE, ConfigError, RunConfig, build, digest, plain
from dsv3lab.workbook.files import hash_folder, relative, sha256_file, write_atomic
from dsv3lab.workbook.gates import Device, GateResult, Point, evaluate_stage, stage_gates
from dsv3lab.workbook.inputs import Environment, Git, Inputs, changes, read_environment, read_git, read_inputs
from dsv3lab.workbook.waivers import Waiver

SCHEMA = 1
NAME = "record.json"
NOT_HASHED = frozenset({NAME, "promotion.json", "tracking.json"})
TRAINED = ("model", "data", "train", "precision")
"""The sections of the configuration on which the weights depend."""
SHARED = (*TRAINED, "eval")
"""The sections on which all phases must agree."""

StageStatus = Literal[
    "ok", "failed", "timeout", "dead_kernel", "no_kernel", "exited_early", "preempted", "not_run", "reused"
]
FINISHED = ("ok", "reused")


class RecordError(ValueError):
    """A record that cannot be read; the message names the file."""


@dataclass(frozen=True, kw_only=True)
class StageOutcome:
    """How one stage ended and what its gates said."""

    name: str
    status: StageStatus
    error: str = ""
    seconds: float = 0.0
    results: tuple[GateResult, ...] = ()
    device: Device = Device()
    inputs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What it read: `needs` (other stages) and `uses` (folders with a manifest), as `stage.json` says. Then `reused_from`
    (phase and run that computed it) or, with `resume=true`, `anew`: why it was not reused."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "results", tuple(self.results))

    @property
    def finished(self) -> bool:
        """Whether every cell ran."""
        return self.status in FINISHED


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """The record that this phase builds on."""

    phase: str
    record: str
    """Path of its `record.json`, relative to the runs folder."""
    record_sha256: str
    promoted: bool
    """Whether it stands in the chain of promotions (profiles that do not promote build on finished executions)."""
    needs: dict[str, str]
    """Stage of another phase that is read -> SHA-256 of the record it belongs to."""
    scope: Device = Device()
    """What it was promoted for: it opens the phases after it on this kind of device."""


@dataclass(frozen=True, kw_only=True)
class PhaseRecord:
    """One execution of one phase."""

    schema: int
    phase: str
    run: str
    """Name of the run folder."""
    profile: str
    promotes: bool
    started: str
    ended: str
    passed: bool
    """Whether every stage finished, by committed gates, and no blocking gate stands in the way."""
    config_sha256: str
    sections: dict[str, str]
    """SHA-256 of each section of the configuration."""
    shared: dict[str, Any]
    """The sections on which all phases must agree, in full, so that a difference can be named."""
    inputs: Inputs
    """As they were when the phase started."""
    drift: tuple[str, ...]
    """Inputs that changed while it ran: nobody can say which version a stage saw."""
    overridden: tuple[str, ...] = ()
    """Where it was measured or judged otherwise than the committed configuration says (`arguments.prepare`)."""
    git: Git
    environment: Environment
    scope: Device
    upstream: Upstream | None
    stages: tuple[StageOutcome, ...]
    whole: tuple[GateResult, ...] | None = None
    """Gates of the execution as a whole; `None` in a record from before there were any."""
    files: dict[str, str]

    @property
    def results(self) -> list[GateResult]:
        """The gates of all stages, then those of the whole."""
        return [*(result for stage in self.stages for result in stage.results), *(self.whole or ())]


def draft(
    folder: Path,
    *,
    config: RunConfig,
    stages: Sequence[StageOutcome],
    upstream: Upstream | None,
    started: str,
    ended: str,
    inputs: Inputs | None = None,
    overridden: Sequence[str] = (),
    waivers: Sequence[Waiver] = (),
) -> PhaseRecord:
    """The record without the files' hashes: what the report shows and `write_phase` completes.

    A stage of the configuration that is not among `stages` enters as `not_run`, a gate without a result as not passed.
    Pass the `inputs` that were read at the start: what has changed by now stands in the record as its drift. Pass as
    `overridden` where `config` departs from the committed stages, gates and profile: it is never promoted then.

    Args:
        folder: the run folder, with one folder for each stage.
        config: what the stages were judged by.
        stages: how each stage ended.
        upstream: the record of the phase before.
        started: UTC ISO time.
        ended: UTC ISO time.
        inputs: hashes of code and lock files, read at the start.
        overridden: where `config` departs from the committed stages, gates and profile.
        waivers: those of the phase, for the gates of the whole; those of the stages were applied with their results.
    """
    now = read_inputs(config.phase.number)
    inputs = inputs or now
    drift = changes(inputs.code, now.code) + changes(inputs.lock, now.lock)
    outcomes = complete(config, stages)
    scope = scope_of([stage for stage in outcomes if stage.finished])
    whole = judge_whole(config, outcomes, scope=scope, waivers=waivers)
    return PhaseRecord(
        schema=SCHEMA,
        phase=config.phase.name,
        run=folder.name,
        profile=config.profile.name,
        promotes=config.profile.promotes,
        started=started,
        ended=ended,
        passed=not blockers(outcomes, scope, whole) and not drift and not overridden,
        config_sha256=digest(config),
        sections={f.name: digest(getattr(config, f.name)) for f in dataclasses.fields(config)},
        shared={name: plain(getattr(config, name)) for name in SHARED},
        inputs=inputs,
        drift=tuple(drift),
        overridden=tuple(overridden),
        git=read_git(),
        environment=read_environment(),
        scope=scope,
        upstream=upstream,
        stages=outcomes,
        whole=whole,
        files={},
    )


def write_phase(folder: Path, record: PhaseRecord, *, config: RunConfig, resolved: Mapping[str, Any]) -> PhaseRecord:
    """Write the drafted `record` as `record.json`, with the hash of every file in `folder`; call it last, after the report.

    Args:
        folder: the run folder, complete.
        record: the draft.
        config: what the stages were judged by.
        resolved: the same as plain values; it must build the same configuration.

    Raises:
        RecordError: if it does not.
    """
    if digest(build(RunConfig, resolved)) != digest(config):
        raise RecordError(f"{folder}: the resolved configuration is not the one that the stages were judged by")
    record = dataclasses.replace(record, files=hash_folder(folder, leave_out=NOT_HASHED))
    write_atomic(folder / NAME, json.dumps(plain(record), sort_keys=True, indent=1, allow_nan=False) + "\n")
    return record


def read(folder: Path) -> PhaseRecord:
    """The record of a run folder.

    Raises:
        RecordError: if it is missing or is not a record of this schema.
    """
    path = folder / NAME
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise RecordError(f"{path}: not a record of schema {SCHEMA}")
        return build(PhaseRecord, value)
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from None
    except RecordError:
        raise
    except (ConfigError, ValueError) as error:
        raise RecordError(f"{path}: not a record ({error})") from None


def sha256(folder: Path) -> str:
    """SHA-256 of the record of a run folder."""
    return sha256_file(folder / NAME)


def complete(config: RunConfig, stages: Sequence[StageOutcome]) -> tuple[StageOutcome, ...]:
    """All stages of the phase in its order, each with a result for each of its gates."""
    given = {stage.name: stage for stage in stages}
    unknown = [name for name in given if name not in config.phase.stages]
    if unknown:
        raise RecordError(f"stage '{unknown[0]}' is not one of {config.phase.name}: {', '.join(config.phase.stages)}")
    outcomes = []
    for name in config.phase.stages:
        outcome = given.get(name, StageOutcome(name=name, status="not_run"))
        judged = {result.gate_id for result in outcome.results}
        gates = {k: g for k, g in stage_gates(config.phase.gates, name).items() if k not in judged}
        ended = outcome.status.replace("_", " ")
        why = "the gate was never evaluated" if outcome.finished else f"the stage did not finish ({ended})"
        rest = evaluate_stage(gates, [], executed=False, device=outcome.device, problem=why)
        outcomes.append(dataclasses.replace(outcome, results=(*outcome.results, *rest)))
    return tuple(outcomes)


def judge_whole(
    config: RunConfig, stages: Sequence[StageOutcome], *, scope: Device, waivers: Sequence[Waiver] = ()
) -> tuple[GateResult, ...]:
    """The gates of the phase as a whole, from what the pipeline itself measured: no notebook has a say in them.

    `stage/wall_s` is there the sum of the stages' seconds, as in MLflow's run of the phase. A reused stage counts with
    the time that it took when it ran: without it the phase would not have its result.

    Args:
        config: what the stages were judged by.
        stages: all stages of the phase (see `complete`).
        scope: what they ran on.
        waivers: those of the phase.
    """
    seconds = sum(stage.seconds for stage in stages)
    results = evaluate_stage(
        stage_gates(config.phase.gates, WHOLE),
        [Point(name="stage/wall_s", value=seconds, step=None, time="")],
        executed=all(stage.finished for stage in stages),
        device=scope,
        config=config,
        waivers=waivers,
        problem="" if all(stage.finished for stage in stages) else "not every stage finished",
    )
    return tuple(results)


def scope_of(stages: Sequence[StageOutcome]) -> Device:
    """What a promotion is good for: the one kind of device that all stages ran on, and the most of them."""
    kinds = sorted({stage.device.kind for stage in stages})
    count = max((stage.device.count for stage in stages), default=0)
    return Device(kind=kinds[0] if len(kinds) == 1 else "unknown", count=count)


def blockers(stages: Sequence[StageOutcome], scope: Device, whole: Sequence[GateResult] = ()) -> list[str]:
    """Why these outcomes cannot be promoted; empty if they can.

    A blocking gate, of a stage or of the `whole`, must have passed or be waived. One that was skipped because it is for
    another kind of device than `scope` does not block by itself: the promotion's scope says what was not shown. But each
    stage needs a throughput gate and a loss or error gate that was judged on this device.
    """
    reasons = []
    for stage in (stage for stage in stages if not stage.finished):
        why = first_line(stage.error)
        reasons.append(f"stage {stage.name}: {stage.status.replace('_', ' ')}{': ' if why else ''}{why}")
    if scope.platform == "unknown" and any(stage.finished for stage in stages):
        reasons.append("the stages do not agree on what they ran on, or do not say (stage.device in the notebook)")
    for result in (*(result for stage in stages if stage.finished for result in stage.results), *whole):
        if result.severity == "block" and result.status not in ("pass", "waived") and not _elsewhere(result, scope):
            reasons.append(f"gate {result.gate_id}: {result.status}: {result.message}")
    return reasons + [line for stage in stages if stage.finished for line in _unjudged(stage, scope)]


def _elsewhere(result: GateResult, scope: Device) -> bool:
    """Whether a gate was skipped because it is for another kind of device than `scope`."""
    known = scope.platform != "unknown"
    return known and result.status == "skipped" and result.requires_device not in ("any", scope.platform)


def _unjudged(stage: StageOutcome, scope: Device) -> list[str]:
    """The kinds of gate of which a stage has some, but only for other devices than it ran on."""
    lines = []
    for what, roles in (("throughput", ("throughput",)), ("loss or error", ("loss", "error"))):
        gates = [result for result in stage.results if result.severity == "block" and result.role in roles]
        if gates and all(_elsewhere(result, scope) for result in gates):
            needs = ", ".join(f"{result.gate_id} is for {result.requires_device}" for result in gates)
            lines.append(f"stage {stage.name}: no {what} gate was judged on {scope.kind}: {needs}")
    return lines


def first_line(text: str) -> str:
    """The first line of `text`, or nothing."""
    return text.strip().splitlines()[0] if text.strip() else ""


def locate(record: PhaseRecord, folder: Path, runs: Path) -> str:
    """The path of a record relative to the runs folder, as chain and upstream name it."""
    return relative(folder / NAME, runs)
