"""`dsv3lab sync`: pass run folders that a tracker has missed on to it, by the code that the pipeline uses.

A folder that is already there is completed, not duplicated. A pipeline that is still running is left alone.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dsv3lab.config import ConfigError, runs_dir
from dsv3lab.config.run import read_yaml
from dsv3lab.workbook import chain, trackers
from dsv3lab.workbook import record as records
from dsv3lab.workbook.files import read_json
from dsv3lab.workbook.process import BusyError, locked
from dsv3lab.workbook.store import prepare, to_ms
from dsv3lab.workbook.trackers import registry, sentence, sweeps


def main(argv: list[str]) -> int:
    """Entry point of `dsv3lab sync`: 0 if everything is reported, 3 if a tracker or a folder refused."""
    parser = argparse.ArgumentParser(
        prog="dsv3lab sync", description="Report run folders to the trackers that have missed them."
    )
    parser.add_argument("folders", nargs="*", type=Path, help="run folders (default: all below runs/)")
    parser.add_argument("--force", action="store_true", help="report again what is already complete")
    known = ", ".join(trackers.NAMES)
    parser.add_argument(
        "--to",
        metavar="TRACKER[,TRACKER]",
        help=f"of {known} (default: those of each run's own configuration)",
    )
    args = parser.parse_args(argv)
    names = tuple(args.to.split(",")) if args.to else ()
    trackers.require(names)
    runs = runs_dir()
    folders = [folder.resolve() for folder in args.folders] or run_folders(runs)
    for folder in folders:
        if not (folder / "config.resolved.yaml").is_file():
            raise ConfigError(f"{folder}: not a run folder (no config.resolved.yaml)")
    if not folders:
        print(f"no runs below {runs}: nothing to report")
    failed = 0
    for folder in folders:
        for name in names or wanted(folder):
            shown = f"{folder.parent.name}/{folder.name}" + (f" to {name}" if name != trackers.MLFLOW else "")
            try:
                print(f"{shown}: {sync(folder, runs, to=name, force=args.force)}", flush=True)
            except Exception as error:  # one folder or the store: say it, and go on with the next
                failed += 1
                print(f"{shown}: not reported: {sentence(error)}", flush=True)
    if not names or trackers.MLFLOW in names:
        failed += _above(runs)
    return 3 if failed else 0


def _above(runs: Path) -> int:
    """What stands above single runs in MLflow: sweeps and registered models; returns how many could not be reported."""
    failed = 0
    for path in sorted(runs.glob(f"sweeps/*/{sweeps.NAME}")):
        try:
            sweeps.report(path.parent, runs, alive=_running(str(read_json(path)["phase"]), runs))
            print(f"sweeps/{path.parent.name}: reported", flush=True)
        except Exception as error:
            failed += 1
            print(f"sweeps/{path.parent.name}: not reported: {sentence(error)}", flush=True)
    try:
        if (runs / chain.CHAIN).is_file():
            new = register(runs)
            print(f"registered models: {f'{new} new' if new else 'up to date'}", flush=True)
    except Exception as error:
        failed += 1
        print(f"promoted checkpoints: not registered: {sentence(error)}", flush=True)
    return failed


def _running(phase: str, runs: Path) -> bool:
    """Whether a pipeline or a sweep is at work in this phase."""
    try:
        with locked(runs / phase / ".lock", what=phase):
            return False
    except BusyError:
        return True


def register(runs: Path) -> int:
    """Register the promoted checkpoints; returns how many versions are new."""
    newest = (runs / chain.read_chain(runs)[-1].record).parent
    tracking = read_yaml(newest / "config.resolved.yaml").get("tracking", {})
    client, experiment = prepare(runs, str(tracking.get("experiment")))
    return registry.register(client, experiment, runs)


def run_folders(runs: Path) -> list[Path]:
    """All folders of phase executions, oldest first."""
    places = ("phase[1-4]/*", "sweeps/*/phase[1-4]/*")
    found = [path.parent for place in places for path in runs.glob(f"{place}/config.resolved.yaml")]
    return sorted(found, key=lambda folder: (folder.name, folder.parent.name))


def wanted(folder: Path) -> Sequence[str]:
    """The trackers that a run was configured for, also by a configuration of another version of this project."""
    also = read_yaml(folder / "config.resolved.yaml").get("tracking", {}).get("also", [])
    return (trackers.MLFLOW, *(name for name in also if name in trackers.NAMES))


def sync(folder: Path, runs: Path, *, to: str = trackers.MLFLOW, force: bool = False) -> str:
    """Report one run folder, unless its pipeline is at work in it; returns what was done, in words."""
    trackers.require([to])
    phase = folder.parent.name
    try:
        with locked(runs / phase / ".lock", what=phase):
            return _report(folder, runs, to=to, force=force)
    except BusyError:  # the phase runs: in its newest folder, the others are finished
        if folder.name == max((other.name for other in run_folders(runs) if other.parent.name == phase), default=""):
            return "left alone: its pipeline is running"
        return _report(folder, runs, to=to, force=force)


def _report(folder: Path, runs: Path, *, to: str, force: bool) -> str:
    projection = trackers.project(to, folder, config=None, runs=runs)
    if projection.complete and not force:
        return "already reported"
    if not (folder / records.NAME).is_file():
        projection.open_phase()
        projection.kill()
        return "reported as killed: it has no record"
    record = records.read(folder)
    projection.open_phase(started=to_ms(record.started))
    projection.close_phase(record, promoted=(folder / "promotion.json").is_file(), ended=to_ms(record.ended))
    return "reported"
