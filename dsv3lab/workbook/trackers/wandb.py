"""Weights & Biases, offline: a run for each stage and one for the phase in `runs/wandb`, and never the network.

`wandb sync runs/wandb/offline-run-*` is what uploads them, if somebody decides to. They are written at the end of the
phase by a process of their own (`python -m dsv3lab.workbook.trackers.wandb FOLDER RUNS`): the client starts a service,
hooks into the interpreter's exit and reads a dozen variables, none of which the pipeline should meet.
"""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsv3lab.config import ROOT
from dsv3lab.config.run import read_yaml
from dsv3lab.workbook import record as records
from dsv3lab.workbook.record import PhaseRecord, RecordError, StageOutcome
from dsv3lab.workbook.trackers.folder import figures, gate_numbers, lines_after, rows, stages, title

FOLDER = "wandb"
LIMIT_S = 50.0
"""Less than what the pipeline waits for its trackers at its end."""


class WandB:
    """The offline runs of one run folder; see `trackers.Projection`. There is no live view without a server."""

    def __init__(self, folder: Path, *, runs: Path) -> None:
        self._folder, self._runs = folder, runs

    def open_phase(self, *, started: int | None = None) -> None:
        """Nothing yet: an offline run is read only after it was written."""

    def open_stage(self, stage: str, *, started: int | None = None) -> None:
        """Nothing yet."""

    def push(self, stage: str) -> int:
        """Nothing yet."""
        return 0

    def close_stage(self, outcome: StageOutcome, *, ended: int | None = None) -> None:
        """Nothing yet."""

    def close_phase(self, record: PhaseRecord, *, promoted: bool, ended: int | None = None) -> None:
        """Write the runs of the stages, then that of the phase."""
        self._write()

    def kill(self) -> None:
        """The same from what the stages left."""
        self._write()

    @property
    def complete(self) -> bool:
        """Whether the run of the phase is there; it is written last."""
        return bool(_written(self._runs, identity(self._folder)))

    def _write(self) -> None:
        command = [sys.executable, "-m", "dsv3lab.workbook.trackers.wandb", str(self._folder), str(self._runs)]
        environment = _environment()
        try:
            done = subprocess.run(
                command, env=environment, cwd=self._runs, capture_output=True, text=True, timeout=LIMIT_S
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"its client had not written {self._folder.name} within {LIMIT_S:g} s") from None
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"its client ended with status {done.returncode}")


def identity(folder: Path, stage: str = "") -> str:
    """The id of the run of a phase or a stage; with it an upload replaces what was uploaded before."""
    return "-".join(filter(None, (folder.parent.name, folder.name, stage)))


def write(folder: Path, runs: Path) -> None:
    """Write everything that a run folder holds, each run in place of the one that is there."""
    try:
        record = records.read(folder) if (folder / records.NAME).is_file() else None
    except RecordError:  # of another version of this project: the metrics are what they are
        record = None
    config = read_yaml(folder / "config.resolved.yaml")
    outcomes = {outcome.name: outcome for outcome in record.stages} if record else {}
    for stage in stages(folder):
        _write_stage(folder, stage, outcomes.get(stage), config=config, runs=runs)
    verdict = "killed"
    if record:
        promoted = (folder / "promotion.json").is_file()
        verdict = "promoted" if promoted else ("pass" if record.passed else "fail")
    run = _begin(folder, "", config=config, runs=runs)
    run.summary.update({**gate_numbers(record.results if record else ()), "verdict": verdict})
    run.finish()


def _write_stage(folder: Path, stage: str, outcome: StageOutcome | None, *, config: Any, runs: Path) -> None:
    run = _begin(folder, stage, config=config, runs=runs)
    run.define_metric("*", step_metric="step")
    for row in rows(lines_after(folder / stage / "metrics.jsonl", 0)[0]):
        step = {} if row.step is None else {"step": row.step}
        run.log({**row.values, **step, "_timestamp": row.time / 1000})
    image = _client().Image
    for figure in figures(folder / stage):
        picture = image(str(figure.path), caption=figure.title)
        run.log({f"figures/{figure.name}": picture, "_timestamp": figure.path.stat().st_mtime})
    if outcome:
        gates = {f"gate.{result.gate_id}": result.status for result in outcome.results}
        run.summary.update({**gate_numbers(outcome.results), **gates, "status": outcome.status})
    run.finish()


def _begin(folder: Path, stage: str, *, config: Mapping[str, Any], runs: Path) -> Any:
    for old in _written(runs, identity(folder, stage)):
        shutil.rmtree(old)
    wandb, group = _client(), title(folder, runs)
    settings = wandb.Settings(
        mode="offline",
        silent=True,
        console="off",
        symlink=False,
        host="-",
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    return wandb.init(
        dir=str(runs),
        id=identity(folder, stage),
        name=f"{group}/{stage}" if stage else group,
        project=str(config.get("tracking", {}).get("experiment", "dsv3lab")),
        group=group,
        job_type="stage" if stage else "phase",
        config=dict(config),
        settings=settings,
    )


def _written(runs: Path, name: str) -> list[Path]:
    return [path.parent for path in (runs / FOLDER).glob(f"offline-run-*-{name}/run-{name}.wandb")]


def _client() -> Any:
    return importlib.import_module("wandb")


def _environment() -> dict[str, str]:
    """Without a key, a server or a mode of the user's: nothing that was set for another project sends anything."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    path = os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH")])])
    quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "DO_NOT_TRACK": "true"}
    return {**kept, **quiet, "PYTHONPATH": path}


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
