"""Runs a phase: compose, execute its notebooks, judge, record, report, promote. `pipelines/*.py` are thin over this.

The process never imports JAX (on a GPU it would hold the memory that the notebooks' kernel needs); papermill runs in a
child, and MLflow is imported in a thread after the first stage has started.

Exit status: 0 promoted (or, for a profile that never promotes, everything passed), 1 a gate failed, 2 usage or
configuration, 3 execution error, 4 an upstream phase is not promoted, 75 preempted: saved, run again.
"""

import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv3lab.config import CONF, ROOT, ConfigError, RunConfig, nearest, runs_dir
from dsv3lab.workbook import notebook, promotion, report, reuse, verdict
from dsv3lab.workbook import record as records
from dsv3lab.workbook import waivers as waiver_files
from dsv3lab.workbook.compose import compose, dump
from dsv3lab.workbook.files import new_name, utc_now, write_atomic
from dsv3lab.workbook.inputs import read_inputs
from dsv3lab.workbook.outline import outline
from dsv3lab.workbook.process import BusyError, Interrupts, counted_interrupts, locked
from dsv3lab.workbook.progress import Durations, StageLine, clock
from dsv3lab.workbook.promotion import ChainError, UpstreamError
from dsv3lab.workbook.record import PhaseRecord, RecordError, StageOutcome, Upstream
from dsv3lab.workbook.waivers import Waiver

PROMOTED, GATE_FAILED, USAGE, EXECUTION_ERROR, UPSTREAM_MISSING, PREEMPTED = 0, 1, 2, 3, 4, 75
PHASES = ("phase1", "phase2", "phase3", "phase4")
FLAGS = ("--plan", "--only", "--from", "--help")
HELP = """usage: python pipelines/{name}.py [--plan] [--only STAGE] [--from STAGE] [key=value ...]

  --plan         show stages, gates, thresholds and sources, and run nothing
  --only STAGE   run this stage; the others are taken from an earlier execution if their inputs are the same
  --from STAGE   run this stage and the later ones; the same holds for the others
  key=value      Hydra overrides, e.g. profile=long train.seed=1

example: python pipelines/{name}.py {example}

exit status: 0 promoted, 1 a gate failed, 2 usage or configuration, 3 execution error, 4 an upstream phase is not
promoted, 75 preempted: saved, run again"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What stands on the command line of a pipeline."""

    overrides: tuple[str, ...] = ()
    plan: bool = False
    only: str = ""
    start: str = ""
    help: bool = False


@dataclass(frozen=True, kw_only=True)
class Finished:
    """How one phase ended."""

    phase: str
    status: int
    seconds: float = 0.0
    folder: Path | None = None
    record: PhaseRecord | None = None
    promoted: bool = False
    reasons: tuple[str, ...] = ()


def main(argv: Sequence[str], *, conf: Path = CONF) -> int:
    """Run the phase that `argv[0]` names ("phase1"), with the rest as its arguments; returns the exit status."""
    name = argv[0] if argv else ""
    if name not in PHASES:
        return _usage("pipeline", f"no phase '{name}'{nearest(name, PHASES)}")
    try:
        arguments = parse(argv[1:])
        if arguments.help:
            print(HELP.format(name=name, example="--plan"))
            return 0
        prepared = _prepare(name, arguments, conf=conf)
    except ConfigError as error:
        return _usage(name, str(error))
    if arguments.plan:
        print(outline(prepared.config, list(prepared.order)))
        return 0
    return run_phase(prepared).status


def main_all(argv: Sequence[str], *, conf: Path = CONF) -> int:
    """Run all four phases in order until one is not passed; `--from phaseN` starts there. Returns the exit status."""
    try:
        arguments = parse(argv)
        if arguments.help:
            print(HELP.format(name="all", example="profile=ci --from phase2").replace("STAGE", "PHASE"))
            return 0
        if arguments.only:
            raise ConfigError("--only names a stage: run python pipelines/phaseN.py --only STAGE")
        if arguments.start and arguments.start not in PHASES:
            raise ConfigError(f"--from: no phase '{arguments.start}'{nearest(arguments.start, PHASES)}")
        first = PHASES.index(arguments.start) if arguments.start else 0
        each = Arguments(overrides=arguments.overrides)
        prepared = [_prepare(name, each, conf=conf) for name in PHASES[first:]]
    except ConfigError as error:
        return _usage("all", str(error))
    if arguments.plan:
        print("\n\n".join(outline(one.config, list(one.order)) for one in prepared))
        return 0
    finished: list[Finished] = []
    for one in prepared:
        finished.append(run_phase(one, part_of_all=True))
        if finished[-1].status:
            break
    _print_all(prepared, finished)
    return finished[-1].status


def parse(argv: Sequence[str]) -> Arguments:
    """The arguments of a pipeline.

    Raises:
        ConfigError: for an unknown flag (with the nearest one), a flag without its stage, or a word that is no override.
    """
    values: dict[str, Any] = {}
    overrides: list[str] = []
    words = iter(argv)
    for word in words:
        flag, given, value = word.partition("=")
        if word in ("-h", "--help"):
            values["help"] = True
        elif word == "--plan":
            values["plan"] = True
        elif flag in ("--only", "--from"):
            stage = value if given else next(words, "")
            if not stage or stage.startswith("-"):
                raise ConfigError(f"{flag}: name the stage after it")
            values["only" if flag == "--only" else "start"] = stage
        elif word.startswith("-"):
            raise ConfigError(f"unknown flag {flag}{nearest(flag, FLAGS)}")
        elif not given and not word.startswith("~"):
            hint = nearest(f"--{word}", FLAGS) if f"--{word}" in FLAGS else "; overrides are written key=value"
            raise ConfigError(f"'{word}' is neither a flag nor an override{hint}")
        else:
            overrides.append(word)
    if values.get("only") and values.get("start"):
        raise ConfigError("--only and --from exclude each other")
    return Arguments(overrides=tuple(overrides), **values)


def stage_order(config: RunConfig) -> list[str]:
    """The stages of a phase so that each follows those of the same phase that it needs; otherwise as configured.

    Raises:
        ConfigError: for a need that names no stage, or stages that need each other.
    """
    phase = config.phase
    order: list[str] = []
    left = list(phase.stages)
    while left:
        for name in left:
            mine = [need.split("/", 1)[1] for need in phase.stages[name].needs if need.startswith(f"{phase.name}/")]
            unknown = [need for need in mine if need not in phase.stages]
            if unknown:
                raise ConfigError(
                    f"phase.stages.{name}.needs: no stage '{unknown[0]}'{nearest(unknown[0], phase.stages)}"
                )
            if all(need in order for need in mine):
                order.append(name)
                left.remove(name)
                break
        else:
            raise ConfigError(f"phase.stages: {', '.join(left)} need each other")
    return order


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A phase that is ready to run: everything that can be mistyped was checked."""

    config: RunConfig
    resolved: Mapping[str, Any]
    arguments: Arguments
    order: tuple[str, ...]
    chosen: tuple[str, ...]
    """Stages that are executed; the others are reused or left out."""
    waivers: tuple[Waiver, ...]


def _prepare(name: str, arguments: Arguments, *, conf: Path) -> _Prepared:
    config, resolved = compose(arguments.overrides, phase=int(name.removeprefix("phase")), conf=conf)
    order = stage_order(config)
    chosen = list(order)
    asked = (arguments.only or arguments.start).removeprefix(f"{name}/")
    if asked:
        if asked not in order:
            flag = "--only" if arguments.only else "--from"
            raise ConfigError(f"{flag}: {name} has no stage '{asked}'{nearest(asked, order)}")
        chosen = [asked] if arguments.only else order[order.index(asked) :]
    found = waiver_files.load(conf / "waivers.yaml", phase=name)
    return _Prepared(
        config=config,
        resolved=resolved,
        arguments=arguments,
        order=tuple(order),
        chosen=tuple(chosen),
        waivers=tuple(found),
    )


def run_phase(prepared: _Prepared, *, part_of_all: bool = False) -> Finished:
    """Execute one phase and say how it ended; nothing is raised for what the run itself meets.

    Args:
        part_of_all: leave the verdict table and the next command to the caller, who prints one for all phases.
    """
    sys.stdout.reconfigure(line_buffering=True) if hasattr(sys.stdout, "reconfigure") else None
    phase, runs = prepared.config.phase.name, runs_dir()
    try:
        with locked(runs / phase / ".lock", what=phase), counted_interrupts() as interrupts:
            upstream = promotion.upstream(prepared.config, runs)
            execution = _Execution(prepared=prepared, runs=runs, upstream=upstream, interrupts=interrupts)
            finished = execution.run()
    except BusyError as error:
        return Finished(phase=phase, status=_usage(phase, str(error)), reasons=(str(error),))
    except UpstreamError as error:
        print(f"{phase}: not started: {error}", file=sys.stderr)
        return Finished(phase=phase, status=UPSTREAM_MISSING, reasons=(str(error),))
    except OSError as error:
        print(f"{phase}: {runs}: {error}", file=sys.stderr)
        return Finished(phase=phase, status=EXECUTION_ERROR, reasons=(str(error),))
    if not part_of_all:
        _print_phase(prepared, finished)
    return finished


@dataclass(kw_only=True)
class _Execution:
    """One execution of one phase: its folder, what has happened in it, and its end."""

    prepared: _Prepared
    runs: Path
    upstream: Upstream | None
    interrupts: Interrupts
    outcomes: dict[str, StageOutcome] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """What went wrong outside the stages."""
    tracker: Any = None
    warned: bool = False

    def __post_init__(self) -> None:
        self.config = self.prepared.config
        self.phase = self.config.phase.name
        self.folder = self.runs / self.phase / new_name()
        self.durations = Durations(self.runs, self.config.profile.name)
        self.inputs = read_inputs(self.config.phase.number)

    def run(self) -> Finished:
        started, clock_started = utc_now(), time.monotonic()
        write_atomic(self.folder / "config.resolved.yaml", dump(self.prepared.resolved))
        print(f"{self.phase}: {self.config.phase.title} · profile {self.config.profile.name} · {_shown(self.folder)}")
        try:
            for name in self.prepared.order:
                self.outcomes[name] = self._stage(name)
        except Exception as error:  # a full disk, a removed folder: what ran is still recorded
            self.problems.append(f"{type(error).__name__}: {error}")
            print(f"{self.phase}: {self.problems[-1]}", file=sys.stderr)
        record, promoted, reasons = self._record(started)
        self._end_tracking(record, promoted=promoted)
        return Finished(
            phase=self.phase,
            status=self._exit_status(reasons, promoted=promoted),
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
        if name not in self.prepared.chosen:
            found = reuse.find(
                name, config=self.config, upstream=self.upstream, runs=self.runs, target=self.folder
            )
            if isinstance(found, str):
                return self._left_out(name, f"not asked for, and cannot be reused: {found}")
            outcome = reuse.take(found, self.folder, config=self.config, waivers=self.prepared.waivers)
            self._say(name, "reused", f"reused from {found.folder.name}; {verdict.count(outcome.results)}")
            return outcome
        needs: dict[str, Path] = {}
        for need in self.config.phase.stages[name].needs:
            phase, _, short = need.partition("/")
            if phase != self.phase:
                needs[need] = promotion.find_stage(need, self.config.profile, self.runs)
            elif self.outcomes[short].finished:
                needs[need] = self.folder / short
            else:
                return self._left_out(name, f"needs {need}, which is {self.outcomes[short].status.replace('_', ' ')}")
        return self._execute(name, needs)

    def _execute(self, name: str, needs: Mapping[str, Path]) -> StageOutcome:
        folder, full = self.folder / name, f"{self.phase}/{name}"
        notebook.write_request(folder, config=self.config, stage=name, needs=needs)
        expected = self.durations.expected(full, self.config.phase.stages[name].expected_s)
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
        if outcome.finished:
            self.durations.add(full, outcome.seconds)
            line.end("ok" if _passes(outcome) else "gates", verdict.count(outcome.results))
        else:
            line.end(outcome.status, f"{outcome.status.replace('_', ' ')}: {outcome.error}")
            command = notebook.python_command(self.phase, name, self.prepared.arguments.overrides)
            print(notebook.failure_text(folder, command=command))
        if self.tracker:
            self.tracker.stage_ended(outcome)
        return outcome

    def _left_out(self, name: str, why: str) -> StageOutcome:
        self._say(name, "not_run", f"not run: {why}")
        return StageOutcome(name=name, status="not_run", error=why)

    def _say(self, name: str, status: str, text: str) -> None:
        mark = {"reused": "↺", "not_run": "–"}[status]
        print(f"{mark} {f'{self.phase}/{name}':<24} {'':>7}  {text}")

    def _track(self, name: str) -> None:
        """Start the tracking thread with the first stage: importing MLflow takes two seconds that nobody waits for."""
        if self.tracker is None and self.config.tracking.enabled:
            from dsv3lab.workbook.tracking import Tracker

            self.tracker = Tracker(self.folder, config=self.config, runs=self.runs)
            self.tracker.start()
        if self.tracker:
            self.tracker.stage_started(name)

    def _warn(self, line: StageLine | None = None) -> None:
        """Say once that the store is down."""
        if self.tracker and self.tracker.problem and not self.warned:
            self.warned = True
            text = f"tracking is down ({self.tracker.problem}); the run goes on, `dsv3lab sync` reports it later"
            line.say(text) if line else print(f"  {text}")

    def _record(self, started: str) -> tuple[PhaseRecord | None, bool, list[str]]:
        """Report, record and promotion; returns the record, whether it was promoted, and the reasons if not."""
        stages = [self.outcomes[name] for name in self.config.phase.stages if name in self.outcomes]
        common: dict[str, Any] = {"config": self.config, "stages": stages, "upstream": self.upstream}
        common |= {"started": started, "ended": utc_now(), "inputs": self.inputs}
        try:
            report.write(self.folder, **common)
        except Exception as error:  # the record matters more than its page
            self.problems.append(f"report.html could not be written: {type(error).__name__}: {error}")
        try:
            record = records.write_phase(self.folder, resolved=self.prepared.resolved, **common)
            allowed, reasons = promotion.decide(record)
            if allowed and not self.problems:
                promotion.promote(self.folder, record, self.runs)
                return record, True, []
            return record, False, [*self.problems, *reasons]
        except (ChainError, RecordError, OSError) as error:
            self.problems.append(str(error))
            return None, False, list(self.problems)

    def _end_tracking(self, record: PhaseRecord | None, *, promoted: bool) -> None:
        if self.tracker is None and self.config.tracking.enabled and record and self.outcomes:
            self._track_all()
        if self.tracker:
            self.tracker.close(record, promoted=promoted)
            self._warn()

    def _track_all(self) -> None:
        """Everything was reused: no stage has started the thread yet."""
        from dsv3lab.workbook.tracking import Tracker

        self.tracker = Tracker(self.folder, config=self.config, runs=self.runs)
        self.tracker.start()

    def _exit_status(self, reasons: Sequence[str], *, promoted: bool) -> int:
        statuses = {outcome.status for outcome in self.outcomes.values()}
        if promoted:
            return PROMOTED
        if "preempted" in statuses or self.interrupts.count:
            return PREEMPTED
        if self.problems or statuses - {"ok", "reused", "not_run"}:
            return EXECUTION_ERROR
        blocked = [o for o in self.outcomes.values() if not _passes(o)]
        return GATE_FAILED if blocked or (reasons and self.config.profile.promotes) else PROMOTED


def _passes(outcome: StageOutcome) -> bool:
    """Whether the stage finished and no blocking gate of it stands in the way."""
    return not records.blockers([outcome], outcome.device)


def _print_phase(prepared: _Prepared, finished: Finished) -> None:
    """Verdict table, where to look, and what to run next."""
    if finished.record is not None:
        print()
        print(verdict.table(finished.record.results, title=_headline(prepared, finished), **_terminal()))
    for reason in finished.reasons:
        print(f"  not promoted: {reason}")
    _print_places([finished])
    print(f"next:    {_next_command(prepared, finished)}")


def _print_all(prepared: Sequence[_Prepared], finished: Sequence[Finished]) -> None:
    """One table for all phases: a line for each, then every gate, where to look, and what to run next."""
    print("\nverdict")
    for index, one in enumerate(prepared):
        done = finished[index] if index < len(finished) else None
        print(f"  {_headline(one, done) if done else f'{one.config.phase.name}: not started'}")
        for reason in done.reasons if done else ():
            if done and done.status:
                print(f"    {reason}")
    results = [result for done in finished if done.record for result in done.record.results]
    if results:
        print()
        print(verdict.table(results, **_terminal()))
    _print_places(finished)
    last = len(finished) - 1
    print(f"next:    {_next_command(prepared[last], finished[last], part_of_all=True)}")


def _headline(prepared: _Prepared, finished: Finished) -> str:
    """`phase1: promoted for 1 x cpu in 0:41, 8/8 gates pass`."""
    record = finished.record
    meaning = {
        GATE_FAILED: "not promoted: a gate stands in the way",
        USAGE: "not started",
        EXECUTION_ERROR: "not promoted: a stage did not finish",
        UPSTREAM_MISSING: "not started: an upstream phase is not promoted",
        PREEMPTED: "preempted: saved, run it again",
        PROMOTED: f"passed; profile '{prepared.config.profile.name}' is never promoted",
    }[finished.status]
    if finished.promoted and record:
        meaning = f"promoted for {record.scope.count} x {record.scope.kind}"
    gates = f", {verdict.count(record.results)}" if record else ""
    return f"{finished.phase}: {meaning} in {clock(finished.seconds)}{gates}"


def _print_places(finished: Sequence[Finished]) -> None:
    for done in finished:
        if done.folder and (done.folder / report.NAME).is_file():
            print(f"report:  {_shown(done.folder / report.NAME)}")
    print("compare: make ui")


def _next_command(prepared: _Prepared, finished: Finished, *, part_of_all: bool = False) -> str:
    """What to run now."""
    name, overrides = finished.phase, shlex.join(prepared.arguments.overrides)
    suffix = f" {overrides}" if overrides else ""
    number = PHASES.index(name)
    if finished.status == PROMOTED:
        if number + 1 < len(PHASES):
            return f"{notebook.python()} pipelines/{PHASES[number + 1]}.py{suffix}"
        return "dsv3lab verify"
    if finished.status == UPSTREAM_MISSING:
        return f"{notebook.python()} pipelines/{PHASES[number - 1]}.py{suffix}"
    if part_of_all:
        return f"{notebook.python()} pipelines/all.py --from {name}{suffix}"
    failed = [o.name for o in finished.record.stages if not o.finished or not _passes(o)] if finished.record else []
    option = f" --only {failed[0]}" if len(failed) == 1 and finished.status != PREEMPTED else ""
    return f"{notebook.python()} pipelines/{name}.py{option}{suffix}"


def _terminal() -> dict[str, Any]:
    return {"width": shutil.get_terminal_size((120, 24)).columns, "colour": sys.stdout.isatty()}


def _shown(path: Path) -> str:
    """A path relative to the checkout where it lies in it: shorter, and good to click."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _usage(name: str, message: str) -> int:
    print(f"{name}: {message}", file=sys.stderr)
    return USAGE
