"""What a pipeline prints at its end: the verdict table, where to look, and what to run next."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3lab.config import ROOT
from dsv3lab.config.text import clock
from dsv3lab.workbook import commands, notebook, report, verdict
from dsv3lab.workbook import record as records
from dsv3lab.workbook.arguments import PHASES, Prepared
from dsv3lab.workbook.record import PhaseRecord, StageOutcome
from dsv3lab.workbook.statuses import EXECUTION_ERROR, GATE_FAILED, PREEMPTED, PROMOTED, UPSTREAM_MISSING, USAGE


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


def passes(outcome: StageOutcome) -> bool:
    """Whether the stage finished and no blocking gate of it stands in the way."""
    return not records.blockers([outcome], outcome.device)


def print_phase(prepared: Prepared, finished: Finished) -> None:
    """Verdict table, where to look, and what to run next."""
    if finished.record is not None:
        print()
        print(verdict.table(finished.record.results, title=_headline(prepared, finished), **_terminal()))
    for reason in finished.reasons:
        print(f"  not promoted: {reason}")
    _print_places([finished])
    print(f"next:    {_next_command(prepared, finished)}")


def print_all(prepared: Sequence[Prepared], finished: Sequence[Finished]) -> None:
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


def _headline(prepared: Prepared, finished: Finished) -> str:
    """`phase1: promoted for 1 x cpu · 0:41 · 8/8 gates pass`."""
    record = finished.record
    meaning = {
        GATE_FAILED: "not promoted",
        USAGE: "not started",
        EXECUTION_ERROR: "not promoted, a stage failed",
        UPSTREAM_MISSING: "not started: an upstream phase is not promoted",
        PREEMPTED: _preempted(record),
        PROMOTED: f"passed; profile '{prepared.config.profile.name}' is never promoted",
    }[finished.status]
    if finished.promoted and record:
        meaning = f"promoted for {record.scope.count} x {record.scope.kind}"
    took = f" · {clock(finished.seconds)}" if finished.folder else ""
    gates = f" · {verdict.count(record.results)}" if record else ""
    return f"{finished.phase}: {meaning}{took}{gates}"


def _preempted(record: PhaseRecord | None) -> str:
    """What became of the stage that a signal met."""
    stopped = [stage for stage in record.stages if stage.status == "preempted"] if record else []
    if not stopped:
        return "preempted between two stages: run it again"
    lost = [stage.name for stage in stopped if not notebook.saved(stage)]
    return f"preempted: {lost[0]} ended before it had saved, run it again" if lost else "preempted: saved, run it again"


def _print_places(finished: Sequence[Finished]) -> None:
    for done in finished:
        if done.folder and (done.folder / report.NAME).is_file():
            print(f"report:  {shown(done.folder / report.NAME)}")
    print("compare: make ui")


def _next_command(prepared: Prepared, finished: Finished, *, part_of_all: bool = False) -> str:
    """What to run now."""
    name, number = finished.phase, PHASES.index(finished.phase)
    overrides = prepared.arguments.overrides
    # Another phase has other stages and gates, and would refuse what was said of this one's.
    elsewhere = [override for override in overrides if not override.lstrip("+~").startswith("phase.")]
    if finished.status == PROMOTED:
        if number + 1 < len(PHASES):
            return commands.pipeline(PHASES[number + 1], *elsewhere)
        return commands.verb("verify")
    if finished.status == UPSTREAM_MISSING:
        return commands.pipeline(PHASES[number - 1], *elsewhere)
    again = ("resume=true",) if finished.status == PREEMPTED else ()  # what was finished need not run again
    if part_of_all:
        return commands.pipeline("all", "--from", name, *again, *overrides)
    failed = [o.name for o in finished.record.stages if not o.finished or not passes(o)] if finished.record else []
    if len(failed) == 1 and finished.status != PREEMPTED:
        return commands.rerun(prepared.config.phase, failed[0], overrides)
    return commands.pipeline(name, *again, *overrides)


def _terminal() -> dict[str, Any]:
    return {"width": shutil.get_terminal_size((120, 24)).columns, "colour": sys.stdout.isatty()}


def shown(path: Path) -> str:
    """A path relative to the checkout where it lies in it: shorter, and good to click."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
