"""A sweep in MLflow: one parent run, under which the runs of its combinations are nested, with what was swept and compared."""

from pathlib import Path
from typing import Any

from dsv3lab.workbook.files import read_json
from dsv3lab.workbook.grid import FOLDER
from dsv3lab.workbook.store import prepare
from dsv3lab.workbook.trackers.folder import NOTE_LIMIT, modified, now

NAME = "sweep.json"
STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


def parent(client: Any, experiment: str, sweep: Path) -> str:
    """The id of the run of a sweep, made if it is not there."""
    from dsv3lab.workbook.tracking import RUN_TAG

    name = f"{FOLDER}/{sweep.name}"
    found = _find(client, experiment, name)
    if found:
        return found
    tags = {RUN_TAG: name, "level": "sweep", "mlflow.source.name": "dsv3lab sweep"}
    return client.create_run(experiment, start_time=now(), tags=tags, run_name=sweep.name).info.run_id


def report(sweep: Path, runs: Path, *, alive: bool = True) -> None:
    """Show a sweep as its `sweep.json` says it stands; called again, it completes and duplicates nothing.

    Args:
        sweep: the folder of the sweep.
        runs: the folder of all outputs.
        alive: whether one that says that it is running may be.
    """
    from mlflow.entities import Metric, Param

    content = read_json(sweep / NAME)
    client, experiment = prepare(runs, str(content["experiment"]))
    run = parent(client, experiment, sweep)
    metric, values = str(content["metric"]), [one["value"] for one in content["combinations"]]
    values = [float(value) for value in values if value is not None]
    for one in content["combinations"]:
        child = _find(client, experiment, one["run"]) if one["run"] else ""
        if not child:
            continue
        known = client.get_run(child).data.params
        swept = [Param(key, str(value)) for key, value in one["overrides"].items() if key not in known]
        when = modified(sweep / str(one["run"]) / "config.resolved.yaml")
        logged = [] if one["value"] is None else [Metric(metric, float(one["value"]), when, 0)]
        client.log_batch(child, metrics=logged, params=swept)
        client.set_tag(child, "sweep", sweep.name)
    table = (sweep / "table.md").read_text(encoding="utf-8")
    note = {"mlflow.note.content": table[:NOTE_LIMIT], "sweep_phase": content["phase"], "metric": metric}
    for key, value in (note | {"mode": content["mode"]}).items():
        client.set_tag(run, key, str(value))
    if values:
        best = max(values) if content["mode"] == "max" else min(values)
        # With the time of the file: reported again, it is the same point.
        client.log_batch(run, metrics=[Metric(f"best/{metric}", best, modified(sweep / NAME), len(values))])
    for name in (NAME, "table.md"):
        client.log_artifact(run, str(sweep / name), "sweep")
    status = STATUS[content["state"] if alive or content["state"] != "running" else "interrupted"]
    if status == "RUNNING":
        client.update_run(run, status=status)
    else:
        client.set_terminated(run, status, modified(sweep / NAME))


def _find(client: Any, experiment: str, name: str) -> str:
    from dsv3lab.workbook.tracking import RUN_TAG

    found = client.search_runs([experiment], filter_string=f"tags.`{RUN_TAG}` = '{name}'", max_results=1)
    return found[0].info.run_id if found else ""
