"""The one MLflow writer: the pipeline's process reads what stages leave in their folders and passes it on.

One experiment; a run for each phase execution with nested runs for its stages. The files of the run folder are the truth
and MLflow is a projection of them: `Projection` writes it while the stage runs, and `dsv3lab sync` runs the same code over
an old folder. Runs are found by their tag, so nothing is ever reported twice.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dsv3lab.config import RunConfig, digest
from dsv3lab.workbook import grid, verdict
from dsv3lab.workbook.files import write_atomic
from dsv3lab.workbook.gates import GateResult
from dsv3lab.workbook.inputs import read_git
from dsv3lab.workbook.record import PhaseRecord, StageOutcome
from dsv3lab.workbook.store import prepare
from dsv3lab.workbook.trackers import registry, sweeps
from dsv3lab.workbook.trackers.folder import NOTE_LIMIT, gate_numbers, lines_after, modified, rows
from dsv3lab.workbook.trackers.folder import started as stage_started

STATE = "tracking.json"
RUN_TAG = "dsv3lab.run"
"""`phase1/<run>` on the run of a phase, `phase1/<run>/<stage>` on that of a stage: what makes reporting idempotent."""
BATCH = 1000  # MLflow's limit for one call
PARAMETERS = (
    *("train.seed", "train.tokens", "train.batch_size", "train.schedule.peak_lr", "data.sequence_length"),
    *("model.hidden_size", "model.num_hidden_layers", "model.n_routed_experts", "parallel.data", "precision.products"),
)
STAGE_FILES = {
    "notebook": ("executed.ipynb", "executed.html"),
    "logs": ("log.txt", "result.json", "stage.json", "request.json", "metrics.jsonl"),
}
PHASE_FILES = {"config": ("config.resolved.yaml",), "report": ("report.html", "record.json", "promotion.json")}


class Projection:
    """The MLflow runs of one run folder. Every method may be called again: it completes, and duplicates nothing."""

    def __init__(self, folder: Path, *, config: RunConfig, runs: Path) -> None:
        self._folder, self._config, self._runs = folder, config, runs
        self._name = f"{config.phase.name}/{folder.name}"
        self._client, self._experiment = prepare(runs, config.tracking.experiment)
        self._git = read_git()
        self._state = self._load()
        self._closed: set[str] = set()

    def open_phase(self, *, started: int | None = None) -> str:
        """The phase's run, made if it is not there; returns its id."""
        sweep = grid.sweep_of(self._folder)
        parent = sweeps.parent(self._client, self._experiment, sweep) if sweep else None
        state = self._run(self._state, self._name, run_name=self._name, parent=parent, started=started)
        self._save()
        return state["run"]

    def open_stage(self, stage: str, *, started: int | None = None) -> str:
        """The nested run of a stage, made if it is not there; returns its id."""
        parent = self.open_phase()
        mine = self._state["stages"].setdefault(stage, {})
        name = f"{self._config.phase.name}/{stage}"
        self._run(mine, f"{self._name}/{stage}", run_name=name, parent=parent, started=started)
        self._save()
        return mine["run"]

    def push(self, stage: str) -> int:
        """Pass on the complete lines of the stage's `metrics.jsonl` that are new; returns how many points."""
        mine = self._state["stages"][stage]
        data, end = lines_after(self._folder / stage / "metrics.jsonl", mine.get("bytes", 0))
        points = list(_points(data))
        self._log(mine["run"], metrics=points)
        if mine.get("bytes") != end:
            mine["bytes"] = end
            self._save()
        return len(points)

    def close_stage(self, outcome: StageOutcome, *, ended: int | None = None) -> None:
        """The stage's last metrics, its gates, its files and its status."""
        run = self.open_stage(outcome.name)
        self.push(outcome.name)
        numbers = gate_numbers(outcome.results)
        if not outcome.finished:
            numbers["stage/wall_s"] = outcome.seconds
        tags = _gate_tags(outcome.results) | {
            "status": outcome.status,
            "device": f"{outcome.device.count} x {outcome.device.kind}",
            "mlflow.note.content": _note(verdict.markdown(outcome.results), outcome.error),
        }
        tags |= {key: str(outcome.inputs[key])[:500] for key in ("reused_from", "anew") if key in outcome.inputs}
        if outcome.error:
            tags["failure"] = outcome.error[:500]
        self._log(run, metrics=self._numbers(numbers), tags=tags)
        self._artifacts(run, self._folder / outcome.name, STAGE_FILES)
        status = "FINISHED" if outcome.finished else ("KILLED" if outcome.status == "preempted" else "FAILED")
        self._client.set_terminated(run, status, ended)
        self._closed.add(outcome.name)

    def close_phase(self, record: PhaseRecord, *, promoted: bool, ended: int | None = None) -> None:
        """Everything that the record says: stages, gates, verdict, files, status."""
        run = self.open_phase()
        for outcome in record.stages:
            known = outcome.name in self._state["stages"]
            if outcome.name not in self._closed and (known or outcome.status != "not_run"):
                began = None if outcome.status == "reused" else stage_started(self._folder / outcome.name)
                self.open_stage(outcome.name, started=began or ended)
                self.close_stage(outcome, ended=began + int(outcome.seconds * 1000) if began else ended)
        results = record.results
        statuses = {outcome.status for outcome in record.stages}
        tags = _gate_tags(results) | {f"stage.{outcome.name}": outcome.status for outcome in record.stages}
        tags |= {
            "verdict": "promoted" if promoted else ("pass" if record.passed else "fail"),
            "promoted": str(promoted).lower(),
            "device": f"{record.scope.count} x {record.scope.kind}",
            "mlflow.note.content": _note(verdict.markdown(results), ""),
        }
        numbers = gate_numbers(results) | {"stage/wall_s": sum(outcome.seconds for outcome in record.stages)}
        self._log(run, metrics=self._numbers(numbers), tags=tags)
        self._artifacts(run, self._folder, PHASE_FILES)
        finished = all(outcome.finished for outcome in record.stages)
        status = "FINISHED" if finished else ("KILLED" if "preempted" in statuses else "FAILED")
        self._client.set_terminated(run, status, ended)
        if promoted:
            registry.register(self._client, self._experiment, self._runs)
        self._state["complete"] = True
        self._save()

    def kill(self) -> None:
        """Close what a pipeline without a record left open: it was killed, and no status was ever written."""
        self._client.set_terminated(self.open_phase(), "KILLED")
        for stage in self._config.phase.stages:
            if stage in self._state["stages"] or (self._folder / stage / "request.json").is_file():
                run = self.open_stage(stage)
                self.push(stage)
                self._artifacts(run, self._folder / stage, STAGE_FILES)
                if self._client.get_run(run).info.status == "RUNNING":  # it had not ended by itself
                    self._client.set_terminated(run, "KILLED")
        self._state["complete"] = True
        self._save()

    def close_others(self) -> int:
        """Mark runs of this phase that still say RUNNING, though no pipeline runs it, as KILLED; returns how many.

        Call it only while holding the phase's lock.
        """
        query = f"attributes.status = 'RUNNING' and tags.phase = '{self._config.phase.name}'"
        found = [run for run in self._search(query) if not run.data.tags.get(RUN_TAG, "").startswith(self._name)]
        for run in found:
            self._client.set_terminated(run.info.run_id, "KILLED")
        return len(found)

    @property
    def complete(self) -> bool:
        """Whether this folder was reported to its end, and MLflow still has it."""
        return bool(self._state.get("complete")) and bool(self._find(self._name))

    def _run(
        self, state: dict[str, Any], name: str, *, run_name: str, parent: str | None, started: int | None
    ) -> dict[str, Any]:
        """Set `state["run"]` to the id of the run tagged `name`; one that is new starts with no bytes passed on."""
        if state.get("checked"):
            return state
        found = self._find(name)
        if found is None or found != state.get("run"):
            state.clear()
            state["bytes" if state is not self._state else "stages"] = 0 if state is not self._state else {}
        if found is None:
            tags = self._tags(name) | ({} if parent is None else {"mlflow.parentRunId": parent})
            created = self._client.create_run(self._experiment, start_time=started, tags=tags, run_name=run_name)
            found = created.info.run_id
            self._log(found, params=self._parameters())
        state["run"], state["checked"] = found, True
        return state

    def _find(self, name: str) -> str | None:
        found = self._search(f"tags.`{RUN_TAG}` = '{name}'")
        return found[0].info.run_id if found else None

    def _search(self, query: str) -> list[Any]:
        return list(self._client.search_runs([self._experiment], filter_string=query, max_results=1000))

    def _tags(self, name: str) -> dict[str, str]:
        phase = self._config.phase
        parts = name.split("/")
        tags = {
            RUN_TAG: name,
            "phase": phase.name,
            "profile": self._config.profile.name,
            "config_sha": digest(self._config),
        }
        tags |= {"level": "stage", "stage": parts[2]} if len(parts) > 2 else {"level": "phase"}
        tags |= {"git_sha": self._git.revision or "none", "git_dirty": str(self._git.dirty).lower()}
        source = phase.stages[parts[2]].notebook if len(parts) > 2 else f"pipelines/{phase.name}.py"
        return tags | {"mlflow.source.name": source, "mlflow.source.git.commit": self._git.revision}

    def _parameters(self) -> list[Any]:
        from mlflow.entities import Param

        values = {"profile": self._config.profile.name, "config_sha256": digest(self._config)}
        for path in PARAMETERS:
            value: Any = self._config
            for part in path.split("."):
                value = getattr(value, part)
            values[path] = str(value)
        return [Param(key, value) for key, value in values.items()]

    def _numbers(self, values: Mapping[str, float]) -> list[Any]:
        from mlflow.entities import Metric

        # One time for all, and the same one when it is reported again: MLflow drops points that it already has.
        when = modified(self._folder / "config.resolved.yaml")
        return [Metric(key, float(value), when, 0) for key, value in values.items()]

    def _log(
        self,
        run: str,
        *,
        metrics: Sequence[Any] = (),
        tags: Mapping[str, str] | None = None,
        params: Sequence[Any] = (),
    ) -> None:
        from mlflow.entities import RunTag

        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(run, metrics=metrics[start : start + BATCH])
        labels = [RunTag(key, value) for key, value in (tags or {}).items()]
        for start in range(0, max(len(labels), len(params)), 100):
            self._client.log_batch(run, tags=labels[start : start + 100], params=params[start : start + 100])

    def _artifacts(self, run: str, folder: Path, files: Mapping[str, Sequence[str]]) -> None:
        for place, names in files.items():
            for name in names:
                if (folder / name).is_file():
                    self._client.log_artifact(run, str(folder / name), place)
        if (folder / "figures").is_dir():
            self._client.log_artifacts(run, str(folder / "figures"), "figures")

    def _load(self) -> dict[str, Any]:
        """What was passed on already; ids are checked against the store before they are used."""
        try:
            state = json.loads((self._folder / STATE).read_text(encoding="utf-8"))
            stages = {str(k): {"run": str(v["run"]), "bytes": int(v["bytes"])} for k, v in state["stages"].items()}
            return {"run": str(state["run"]), "complete": bool(state["complete"]), "stages": stages}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {"stages": {}}

    def _save(self) -> None:
        stages = {
            name: {"run": mine["run"], "bytes": mine.get("bytes", 0)}
            for name, mine in self._state["stages"].items()
            if "run" in mine
        }
        state = {"experiment": self._experiment, "run": self._state.get("run", ""), "stages": stages}
        state["complete"] = bool(self._state.get("complete"))
        write_atomic(self._folder / STATE, json.dumps(state, indent=1, sort_keys=True) + "\n")


def _points(data: bytes) -> Iterator[Any]:
    """MLflow's metrics from complete lines of `metrics.jsonl`."""
    from mlflow.entities import Metric

    for row in rows(data):
        for name, value in row.values.items():
            yield Metric(name, value, row.time, row.step or 0)


def _gate_tags(results: Sequence[GateResult]) -> dict[str, str]:
    stopping = [r for r in results if r.severity == "block" and r.status not in ("pass", "waived", "skipped")]
    tags = {f"gate.{result.gate_id}": result.status for result in results}
    tags |= {f"waiver.{result.gate_id}": result.waiver[:500] for result in results if result.waiver}
    tags["gates"] = f"{sum(r.status == 'pass' for r in results)}/{len(results)}"
    return tags | {"verdict": "fail" if stopping else "pass"}


def _note(table: str, error: str) -> str:
    text = f"**{error}**\n\n{table}" if error else table
    if len(text) <= NOTE_LIMIT:
        return text
    return text[: text.rfind("\n", 0, NOTE_LIMIT - 60)] + "\n\nThe rest is in report.html among the artifacts."
