"""`dsv3lab sweep`: every combination of some values, each a phase execution of its own, compared by one metric.

    runs/sweeps/<sweep>/   phase2/<run>/   a combination: a run folder like any other, with its record
                           logs/<run>.txt  what its process printed
                           sweep.json      the grid and what became of each combination
                           table.md        the same for a reader

The name follows from the phase, the swept keys and the fixed overrides: the same command goes on where it was, and with
more values it runs only those that are new. A combination that ran with the same configuration, code, lock files and
environment is not repeated.
"""

import argparse
import dataclasses
import json
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv3lab.config import CONF, ROOT, ConfigError, digest, runs_dir
from dsv3lab.config.text import clock
from dsv3lab.config.workbook import TrackingConfig
from dsv3lab.workbook import commands, grid, trackers, verdict
from dsv3lab.workbook import record as records
from dsv3lab.workbook.arguments import Prepared
from dsv3lab.workbook.files import new_name, utc_now, write_atomic
from dsv3lab.workbook.grid import FOLDER, Grid, Metric
from dsv3lab.workbook.inputs import Inputs, changes, environment_changes, read_environment, read_inputs
from dsv3lab.workbook.process import BusyError, Interrupts, attend, counted_interrupts, last_line, locked
from dsv3lab.workbook.progress import StageLine
from dsv3lab.workbook.promotion import UpstreamError
from dsv3lab.workbook.record import PhaseRecord, RecordError
from dsv3lab.workbook.statuses import EXECUTION_ERROR, PREEMPTED, UPSTREAM_MISSING, USAGE
from dsv3lab.workbook.summary import shown

DESCRIPTION = """Run a phase with every combination of some values (Hydra's syntax: key=a,b or key=range(0,4)), each in a
process of its own, and compare a metric. The records belong to the sweep: they build on no promotion and are never
promoted. The same command again runs only what is missing."""
EPILOG = """example: dsv3lab sweep 2 train.schedule.peak_lr=1e-3,3e-3 train.seed=0,1 profile=ci --only train

exit status: 0 every combination ran (whatever its gates say), 2 usage or configuration, 3 a combination failed, 4 it reads
another phase that has no record, 75 interrupted: run it again, and what ran is kept"""


@dataclass(kw_only=True)
class Combination:
    """One combination and what became of it."""

    values: tuple[str, ...]
    prepared: Prepared
    folder: Path | None = None
    record: PhaseRecord | None = None
    value: float | None = None
    found: bool = False
    """Whether it ran before with the same inputs."""
    problem: str = ""

    @property
    def seconds(self) -> float:
        """How long its stages took."""
        return sum(stage.seconds for stage in self.record.stages) if self.record else 0.0


def main(argv: Sequence[str], *, conf: Path = CONF) -> int:
    """Entry point of `dsv3lab sweep`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="dsv3lab sweep",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("phase", choices=("1", "2", "3", "4"))
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, some with several values")
    parser.add_argument("--only", default="", metavar="STAGE", help="this stage and those of the phase that it reads")
    parser.add_argument(
        "--metric",
        default="",
        help="what is compared: a gate's, or logged before (default: that of the first gate on a loss)",
    )
    parser.add_argument(
        "--mode", choices=("min", "max"), default="", help="which is better (default: as its gate says)"
    )
    parser.add_argument("--name", default="", help="name of the sweep's folder (default: made from the keys)")
    parser.add_argument("--plan", action="store_true", help="list the combinations and run nothing")
    args = parser.parse_intermixed_args(argv)
    if args.name and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_\-.]*", args.name):
        raise ConfigError(f"--name: '{args.name}' is no name of a folder; use letters, digits and _ - .")
    phase, runs = f"phase{args.phase}", runs_dir()
    cells = grid.expand(args.overrides)
    name = args.name or grid.name_of(phase, cells, args.only)
    checked = [
        (values, grid.check(phase, cells.overrides(values), only=args.only, sweep=name, conf=conf))
        for values in cells.values
    ]
    combinations = [Combination(values=values, prepared=prepared) for values, prepared in checked]
    metric = grid.choose(checked[0][1], metric=args.metric, mode=args.mode, runs=runs)
    sweep = _Sweep(
        phase=phase, name=name, cells=cells, metric=metric, combinations=combinations, only=args.only, conf=conf
    )
    if args.plan:
        sweep.find()
        print(sweep.outline())
        return 0
    try:
        grid.ground(checked[0][1], runs)
        with locked(runs / phase / ".lock", what=phase), counted_interrupts() as interrupts:
            return sweep.run(interrupts)
    except BusyError as error:
        print(f"dsv3lab sweep: {error}", file=sys.stderr)
        return USAGE
    except UpstreamError as error:
        print(f"dsv3lab sweep: not started: {error}", file=sys.stderr)
        return UPSTREAM_MISSING


@dataclass(kw_only=True)
class _Sweep:
    phase: str
    name: str
    cells: Grid
    metric: Metric
    combinations: list[Combination]
    only: str
    conf: Path
    started: str = dataclasses.field(default_factory=utc_now)
    tracking: str = ""
    """Why MLflow does not follow, once it has failed."""

    @property
    def folder(self) -> Path:
        return runs_dir() / FOLDER / self.name

    def find(self) -> None:
        """Look for combinations that ran before."""
        now = read_inputs(int(self.phase.removeprefix("phase")))
        earlier = list(_earlier(self.folder / self.phase))
        for one in self.combinations:
            for folder, record in earlier:
                if _same(record, one.prepared, now=now):
                    one.folder, one.record, one.found = folder, record, True
                    one.value = self.metric.read(folder)
                    break

    def outline(self) -> str:
        """The combinations and which of them ran, for a terminal."""
        left = sum(not one.found for one in self.combinations)
        usual = clock(left * _usual(self.combinations))
        lines = [
            f"{self.name}: {len(self.combinations)} combinations, {len(self.combinations) - left} ran before, "
            f"{left} to run, usually {usual} in all · compared by {self.metric.name} ({self.metric.mode})"
        ]
        return "\n".join([*lines, *(f"  {'↺' if one.found else ' '} {self.label(one)}" for one in self.combinations)])

    def label(self, one: Combination) -> str:
        """`peak_lr=0.001 seed=0`."""
        return " ".join(f"{k}={v}" for k, v in zip(self.cells.columns, one.values, strict=True))

    def run(self, interrupts: Interrupts) -> int:
        """Run what is missing, one after the other; returns the exit status."""
        self.find()
        print(f"{self.outline()}\n{shown(self.folder)}", flush=True)
        self._write("running")
        clock_started = time.monotonic()
        for index, one in enumerate(self.combinations):
            if one.found or interrupts.count:
                continue
            self._run_one(index, one, interrupts)
            self._write("running")
            left = sum(not (c.found or c.folder) for c in self.combinations)
            if left and not interrupts.count:
                rest = clock(left * _usual(self.combinations))
                print(
                    f"  {clock(time.monotonic() - clock_started)} elapsed, {left} to run, about {rest} left", flush=True
                )
        failed = [one for one in self.combinations if one.problem]
        stopped = interrupts.count or any(one.record is None and not one.problem for one in self.combinations)
        self._write("interrupted" if stopped else ("failed" if failed else "finished"))
        print(f"\n{self.table()}\ntable:   {shown(self.folder / 'table.md')}\ncompare: make ui")
        if stopped:
            print("interrupted: run the same command again, and what ran is kept")
        return PREEMPTED if stopped else (EXECUTION_ERROR if failed else 0)

    def _run_one(self, index: int, one: Combination, interrupts: Interrupts) -> None:
        run = new_name()
        one.folder = self.folder / self.phase / run
        log = self.folder / "logs" / f"{run}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        label = f"[{index + 1}/{len(self.combinations)}] {self.label(one)}"
        usual = _usual(self.combinations, one)
        line = StageLine(label, one.folder, expected_s=usual, words="*/progress.txt")
        only = ["--only", self.only] if self.only else []
        words = [self.phase, str(one.folder), "--conf", str(self.conf), *only, *self.cells.overrides(one.values)]
        status = execute(words, log=log, line=line, interrupts=interrupts)
        try:
            one.record = records.read(one.folder)
        except RecordError:
            one.problem = last_line(log) or f"its process ended with status {status}"
        wanted = [s for s in one.record.stages if s.name in one.prepared.order] if one.record else []
        broken = [stage for stage in wanted if not stage.finished]
        if broken:
            why = records.first_line(broken[0].error)
            one.problem = f"stage {broken[0].name}: {broken[0].status.replace('_', ' ')}{': ' if why else ''}{why}"
        if interrupts.count and (broken or one.record is None):
            one.problem, one.record = "", None  # not its failure: the next run repeats it
            line.end("interrupted", "interrupted")
            return
        one.value = self.metric.read(one.folder)
        if one.problem:
            line.end("failed", f"{one.problem}; the sweep goes on (log: {shown(log)})")
        else:
            line.end("ok", f"{self.metric.name} {verdict.figure(one.value)} · {_gates(one)}")

    def ranked(self) -> list[Combination]:
        """The combinations, best first; those without a value last, in the order of the grid."""
        sign = -1.0 if self.metric.mode == "max" else 1.0
        return sorted(self.combinations, key=lambda one: (one.value is None, sign * (one.value or 0.0)))

    def table(self, *, markdown: bool = False) -> str:
        """The combinations by the metric, best first."""
        better = "smaller" if self.metric.mode == "min" else "larger"
        header = (*self.cells.columns, self.metric.name, "gates", "time", "run")
        rows = [header, *(self._row(one) for one in self.ranked())]
        if markdown:
            cells = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
            lines = [cells[0], "|" + " --- |" * len(header), *cells[1:]]
        else:
            widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
            lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
            lines.insert(1, "  ".join("─" * w for w in widths))
        values = [one.value for one in self.combinations if one.value is not None]
        folders = [one.folder for one in self.combinations if one.folder]
        note = f"{self.metric.name}: {better} is better" if values else grid.missing(self.metric, folders)
        spread = f"; {verdict.figure(min(values))} to {verdict.figure(max(values))}" if len(values) > 1 else ""
        return "\n".join([*lines, "", note + spread])

    def _row(self, one: Combination) -> tuple[str, ...]:
        if one.problem or one.record is None or one.folder is None:
            state = f"failed: {one.problem}" if one.problem else "not run"
            return (*one.values, state[:60], "–", "–", one.folder.name if one.folder else "–")
        took = clock(one.seconds) + (" (before)" if one.found else "")
        return (*one.values, verdict.figure(one.value), _gates(one), took, one.folder.name)

    def _write(self, state: str) -> None:
        """`sweep.json`, `table.md` and MLflow as things stand."""
        entries = [
            {
                "overrides": dict(zip(self.cells.keys, one.values, strict=True)),
                "run": f"{self.phase}/{one.folder.name}" if one.folder else "",
                "value": one.value,
                "problem": one.problem,
            }
            for one in self.combinations
        ]
        content = {"schema": 1, "phase": self.phase, "state": state, "metric": self.metric.name}
        content |= {"mode": self.metric.mode, "only": self.only, "fixed": list(self.cells.fixed)}
        content |= {"started": self.started, "experiment": self._tracked.experiment, "combinations": entries}
        write_atomic(self.folder / "table.md", self.table(markdown=True) + "\n")
        write_atomic(self.folder / "sweep.json", json.dumps(content, indent=1) + "\n")
        if self._tracked.enabled and not self.tracking:
            from dsv3lab.workbook.trackers.sweeps import report

            try:
                report(self.folder, runs_dir())
            except Exception as error:  # the store must not stop what it only shows
                self.tracking = trackers.sentence(error)
                print(f"  tracking is down ({self.tracking}); `{commands.verb('sync')}` reports it later", flush=True)

    @property
    def _tracked(self) -> TrackingConfig:
        return self.combinations[0].prepared.config.tracking


def execute(words: Sequence[str], *, log: Path, line: StageLine, interrupts: Interrupts) -> int:
    """Run one combination in a process of its own and pass signals on to it; returns its exit status."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return attend(
        [sys.executable, "-m", "dsv3lab.workbook.combination", "--parent", str(os.getpid()), *words],
        environment={**os.environ, "PYTHONPATH": path, "DSV3LAB_RUNS": str(runs_dir())},
        out=log,
        line=line,
        interrupts=interrupts,
        second=signal.SIGTERM,  # which it counts, too, and kills its stage
    )


def _earlier(folder: Path) -> list[tuple[Path, PhaseRecord]]:
    """The recorded combinations of a sweep, newest first."""
    found = []
    for path in sorted(folder.glob(f"*/{records.NAME}"), reverse=True):
        try:
            found.append((path.parent, records.read(path.parent)))
        except RecordError:
            continue
    return found


def _same(record: PhaseRecord, prepared: Prepared, *, now: Inputs) -> bool:
    """Whether a record is of this configuration, this code and this environment, and all its stages finished."""
    sections = {f.name: digest(getattr(prepared.config, f.name)) for f in dataclasses.fields(prepared.config)}
    same = {**record.sections, "tracking": ""} == {**sections, "tracking": ""}
    finished = {stage.name for stage in record.stages if stage.finished}
    return (
        same
        and set(prepared.order) <= finished
        and not record.drift
        and not changes({**record.inputs.code, **record.inputs.lock}, {**now.code, **now.lock})
        and not environment_changes(record.environment, read_environment())
    )


def _usual(combinations: Sequence[Combination], one: Combination | None = None) -> float:
    """Seconds that a combination takes: the median of those that ran, before that what the stages usually take."""
    ran = [c.seconds for c in combinations if c.record and not c.problem]
    if ran:
        return statistics.median(ran)
    prepared = (one or combinations[0]).prepared
    return sum(prepared.config.expected_s(name) for name in prepared.order)


def _gates(one: Combination) -> str:
    results = [r for s in one.record.stages if s.name in one.prepared.order for r in s.results] if one.record else []
    return f"{sum(result.status == 'pass' for result in results)}/{len(results)}"
