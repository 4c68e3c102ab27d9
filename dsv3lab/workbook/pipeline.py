"""Runs a phase: compose, execute its notebooks, judge, record, report, promote. `pipelines/*.py` are thin over this.

The process never imports JAX (on a GPU it would hold the memory that the notebooks' kernel needs); papermill runs in a
child, and MLflow is imported in a thread after the first stage has started.

Exit status: 0 promoted (or, for a profile that never promotes, everything passed), 1 a gate failed, 2 usage or
configuration, 3 execution error, 4 an upstream phase is not promoted, 75 preempted: run again, and what was saved is
used.
"""

import io
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dsv3lab.config import CONF, ConfigError, nearest, runs_dir
from dsv3lab.workbook import commands, notebook, promotion, report, reuse, selection, verdict
from dsv3lab.workbook import record as records
from dsv3lab.workbook.arguments import HELP, PHASES, Arguments, Prepared, parse, prepare
from dsv3lab.workbook.chain import ChainError
from dsv3lab.workbook.compose import dump
from dsv3lab.workbook.files import new_name, utc_now, write_atomic
from dsv3lab.workbook.inputs import read_inputs
from dsv3lab.workbook.outline import FOR_GPU, outline
from dsv3lab.workbook.process import BusyError, Interrupts, counted_interrupts, locked
from dsv3lab.workbook.progress import Durations, StageLine
from dsv3lab.workbook.promotion import Ground, UpstreamError
from dsv3lab.workbook.record import PhaseRecord, RecordError, StageOutcome
from dsv3lab.workbook.statuses import (
    EXECUTION_ERROR,
    GATE_FAILED,
    PREEMPTED,
    PROMOTED,
    UPSTREAM_MISSING,
    USAGE,
    statuses_only,
)
from dsv3lab.workbook.summary import Finished, passes, print_all, print_phase, shown


@statuses_only
def main(argv: Sequence[str], *, conf: Path = CONF) -> int:
    """Run the phase that `argv[0]` names ("phase1"), with the rest as its arguments; returns the exit status."""
    name = argv[0] if argv else ""
    if name not in PHASES:
        return _usage("pipeline", f"no phase '{name}'{nearest(name, PHASES)}")
    try:
        arguments = parse(argv[1:])
        if arguments.help:
            print(HELP.format(python=commands.python(), name=name, example="--plan"))
            return 0
        prepared = prepare(name, arguments, conf=conf)
    except ConfigError as error:
        return _usage(name, str(error))
    if arguments.plan:
        print(outline(prepared.config, list(prepared.order), waivers=prepared.waivers))
        return 0
    return run_phase(prepared).status


@statuses_only
def main_all(argv: Sequence[str], *, conf: Path = CONF) -> int:
    """Run all four phases in order until one is not passed; `--from phaseN` starts there. Returns the exit status."""
    try:
        arguments = parse(argv)
        if arguments.help:
            print(
                HELP.format(python=commands.python(), name="all", example="profile=ci --from phase2").replace(
                    "STAGE", "PHASE"
                )
            )
            return 0
        if arguments.only:
            raise ConfigError(f"--only names a stage: run {commands.pipeline('phaseN', '--only', 'STAGE')}")
        if arguments.start and arguments.start not in PHASES:
            raise ConfigError(f"--from: no phase '{arguments.start}'{nearest(arguments.start, PHASES)}")
        first = PHASES.index(arguments.start) if arguments.start else 0
        each = Arguments(overrides=arguments.overrides, resume=arguments.resume, force=arguments.force)
        prepared = [prepare(name, each, conf=conf) for name in PHASES[first:]]
    except ConfigError as error:
        return _usage("all", str(error))
    if arguments.plan:
        print("\n\n".join(outline(one.config, list(one.order), waivers=one.waivers) for one in prepared))
        return 0
    finished: list[Finished] = []
    for one in prepared:
        finished.append(run_phase(one, part_of_all=True))
        if finished[-1].status:
            break
    print_all(prepared, finished)
    return finished[-1].status


def run_phase(prepared: Prepared, *, part_of_all: bool = False) -> Finished:
    """Execute one phase and say how it ended; nothing is raised for what the run itself meets.

    Args:
        part_of_all: leave the verdict table and the next command to the caller, who prints one for all phases.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # into a file or a pipe, too, each line is written when it is said
        sys.stdout.reconfigure(line_buffering=True)
    phase, runs = prepared.config.phase.name, runs_dir()
    try:
        with locked(runs / phase / ".lock", what=phase), counted_interrupts() as interrupts:
            ground = promotion.ground(prepared.config, runs)
            execution = Execution(prepared=prepared, runs=runs, ground=ground, interrupts=interrupts)
            finished = execution.run()
    except (BusyError, ConfigError) as error:
        return Finished(phase=phase, status=_usage(phase, str(error)), reasons=(str(error),))
    except UpstreamError as error:
        print(f"{phase}: not started: {error}", file=sys.stderr)
        return Finished(phase=phase, status=UPSTREAM_MISSING, reasons=(str(error),))
    except OSError as error:
        print(f"{phase}: {runs}: {error}", file=sys.stderr)
        return Finished(phase=phase, status=EXECUTION_ERROR, reasons=(str(error),))
    if not part_of_all:
        print_phase(prepared, finished)
    return finished


@dataclass(kw_only=True)
class Execution:
    """One execution of one phase: its folder, what has happened in it, and its end."""

    prepared: Prepared
    runs: Path
    ground: Ground
    interrupts: Interrupts
    place: Path | None = None
    """The run folder; without it a new one of the phase."""
    outcomes: dict[str, StageOutcome] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """What went wrong outside the stages."""
    tracker: Any = None
    warned: str = ""
    """What was said of trackers that failed."""

    def __post_init__(self) -> None:
        self.config = self.prepared.config
        self.phase = self.config.phase.name
        self.folder = self.place or self.runs / self.phase / new_name()
        self.durations = Durations(self.runs, self.config.profile.name)
        self.inputs = read_inputs(self.config.phase.number)
        self.selection = selection.select(self.prepared, ground=self.ground, runs=self.runs, now=self.inputs)

    def run(self) -> Finished:
        """Execute the stages, judge, record, report and, if it may be, promote."""
        started, clock_started = utc_now(), time.monotonic()
        write_atomic(self.folder / "config.resolved.yaml", dump(self.prepared.resolved))
        print(f"{self.phase}: {self.config.phase.title} · profile {self.config.profile.name} · {shown(self.folder)}")
        if self.config.profile.device == "gpu":
            print(f"  {FOR_GPU.format(self.config.profile.name)}")
        for difference in self.prepared.overridden:  # before the minutes that the stages take, not only after them
            print(f"  will not be promoted: {difference}")
        for waiver in self.prepared.waivers:
            print(f"  gate {waiver.gate.partition('/')[2]} may be {waiver.text}")
        try:
            for name in self.prepared.order:
                self.outcomes[name] = self._stage(name)
        except Exception as error:  # a full disk, a removed folder: what ran is still recorded
            self.problems.append(f"{type(error).__name__}: {error}")
            print(f"{self.phase}: {self.problems[-1]}", file=sys.stderr)
        record, promoted, reasons = self._record(started)
        status = self._exit_status(record, reasons, promoted=promoted)
        if record and status != PREEMPTED:  # a preempted phase runs again, and then continues from its work
            reuse.clear_work(self.folder, record, runs=self.runs)
        self._end_tracking(record, promoted=promoted)
        return Finished(
            phase=self.phase,
            status=status,
            seconds=time.monotonic() - clock_started,
            folder=self.folder,
            record=record,
            promoted=promoted,
            reasons=tuple(reasons),
        )

    def _stage(self, name: str) -> StageOutcome:
        """One stage: reused, left out or executed."""
        if self.interrupts.count:
            return self._left_out(name, f"interrupted by {self.interrupts.name}")
        if name in self.selection.reused:
            found = self.selection.reused[name]
            outcome = reuse.take(found, self.folder, config=self.config, waivers=self.prepared.waivers)
            from_run = outcome.inputs["reused_from"].partition("/")[2]
            self._say(name, "reused", f"reused from {from_run}, same inputs; {verdict.count(outcome.results)}")
            return outcome
        needs: dict[str, Path] = {}
        for need in self.config.phase.stages[name].needs:
            phase, _, short = need.partition("/")
            if phase != self.phase:
                needs[need] = self.ground.stages[need]
            elif self.outcomes[short].finished:
                needs[need] = self.folder / short
            else:
                return self._left_out(name, f"needs {need}, which is {self.outcomes[short].status.replace('_', ' ')}")
        return self._execute(name, needs)

    def _execute(self, name: str, needs: Mapping[str, Path]) -> StageOutcome:
        folder, full = self.folder / name, f"{self.phase}/{name}"
        anew = self.selection.anew.get(name, "")
        if anew:
            print(f"  {full:<24} runs anew: {anew}")
        force = self.prepared.arguments.force
        notebook.write_request(folder, config=self.config, stage=name, needs=needs, force=force)
        expected = self.durations.expected(full, self.config.expected_s(name))
        line = StageLine(full, folder, expected_s=expected)
        self._track(name)
        outcome = notebook.run(
            folder,
            config=self.config,
            runs=self.runs,
            waivers=self.prepared.waivers,
            line=line,
            interrupts=self.interrupts,
            tick=lambda: self._warn(line),
        )
        if anew:
            outcome = replace(outcome, inputs={**outcome.inputs, "anew": anew})
        if outcome.finished:
            self.durations.add(full, outcome.seconds)
            line.end("ok" if passes(outcome) else "gates", verdict.count(outcome.results))
        else:
            line.end(outcome.status, f"{outcome.status.replace('_', ' ')}: {records.first_line(outcome.error)}")
            command = commands.rerun(self.config.phase, name, self.prepared.arguments.overrides)
            print(notebook.failure_text(folder, error=outcome.error, command=command))
        if self.tracker:
            self.tracker.stage_ended(outcome)
        return outcome

    def _left_out(self, name: str, why: str) -> StageOutcome:
        self._say(name, "not_run", f"not run: {why}")
        return StageOutcome(name=name, status="not_run", error=why)

    def _say(self, name: str, status: str, text: str) -> None:
        mark = {"reused": "↺", "not_run": "–"}[status]
        print(f"{mark} {f'{self.phase}/{name}':<24} {'':>7}  {text}")

    def _track(self, name: str = "") -> None:
        """Start the tracking thread with the first stage: importing MLflow takes two seconds that nobody waits for."""
        if self.tracker is None and self.config.tracking.enabled:
            from dsv3lab.workbook.trackers import Tracker

            self.tracker = Tracker(self.folder, config=self.config, runs=self.runs)
            self.tracker.start()
        if self.tracker and name:
            self.tracker.stage_started(name)

    def _warn(self, line: StageLine | None = None) -> None:
        """Say once of each tracker that it is down."""
        if self.tracker and self.tracker.problem != self.warned:
            self.warned = self.tracker.problem
            text = f"tracking is down ({self.tracker.problem}); the run goes on, `{commands.verb('sync')}` reports it later"
            line.say(text) if line else print(f"  {text}")

    def _record(self, started: str) -> tuple[PhaseRecord | None, bool, list[str]]:
        """Report, record and promotion; returns the record, whether it was promoted, and the reasons if not."""
        stages = [self.outcomes[name] for name in self.config.phase.stages if name in self.outcomes]
        try:
            draft = records.draft(
                self.folder,
                config=self.config,
                stages=stages,
                upstream=self.ground.upstream,
                started=started,
                ended=utc_now(),
                inputs=self.inputs,
                overridden=self.prepared.overridden,
                waivers=self.prepared.waivers,
            )
            self._report(draft)
            record = records.write_phase(self.folder, draft, config=self.config, resolved=self.prepared.resolved)
        except (RecordError, OSError) as error:
            self.problems.append(f"record.json could not be written: {error}")
            return None, False, list(self.problems)
        allowed, reasons = promotion.decide(record)
        if allowed and not self.problems:
            try:
                promotion.promote(self.folder, record, self.runs)
                return record, True, []
            except (ChainError, RecordError, OSError) as error:
                self.problems.append(str(error))
        return record, False, [*self.problems, *reasons]

    def _report(self, draft: PhaseRecord) -> None:
        try:
            waivers = self.prepared.waivers
            report.write(self.folder, draft, config=self.config, runs=self.runs, waivers=waivers)
        except Exception as error:  # the record matters more than its page
            self.problems.append(f"report.html could not be written: {type(error).__name__}: {error}")

    def _end_tracking(self, record: PhaseRecord | None, *, promoted: bool) -> None:
        self._track()  # if everything was reused, no stage has started it
        if self.tracker:
            self.tracker.close(record, promoted=promoted, seconds=10.0 if self.interrupts.count else 60.0)
            self._warn()

    def _exit_status(self, record: PhaseRecord | None, reasons: Sequence[str], *, promoted: bool) -> int:
        statuses = {outcome.status for outcome in self.outcomes.values()}
        if promoted:
            return PROMOTED
        if "preempted" in statuses or self.interrupts.count:
            return PREEMPTED
        if self.problems or statuses - {"ok", "reused", "not_run"}:
            return EXECUTION_ERROR
        blocked = any(not passes(o) for o in self.outcomes.values())
        blocked = blocked or bool(record and records.blockers((), record.scope, record.whole or ()))
        return GATE_FAILED if blocked or (reasons and self.config.profile.promotes) else PROMOTED


def _usage(name: str, message: str) -> int:
    print(f"{name}: {message}", file=sys.stderr)
    return USAGE
