"""The MLflow store of a runs folder: one SQLite database and one experiment, made by one process at a time."""

import fcntl
import json
import logging
import os
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

# What MLflow's page of runs reads when its address ends in `viewStateShareKey=stages`: the tag's name is MLflow's own.
VIEW = "stages"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
VIEW_STATE = {
    "selectedColumns": [
        "attributes.`Duration`",
        *("metrics.`perf/tokens_per_s`", "metrics.`perf/peak_fraction`", "metrics.`quality/loss`"),
        *("metrics.`quality/error`", "metrics.`stage/peak_rss_bytes`", "tags.`status`", "tags.`verdict`"),
    ],
    "orderByKey": "attributes.`Created`",  # phases and their stages in one list, whose columns can be compared
    "orderByAsc": False,
}


def prepare(runs: Path, experiment: str) -> tuple[Any, str]:
    """The client and the experiment's id; makes database and experiment, one process at a time.

    Several processes that open a new database at once crash in its migrations, and without write-ahead log several
    writers wait for each other by seconds. The artifacts' folder is absolute: it does not depend on who looks.
    """
    MlflowClient = import_mlflow()
    database = runs / "mlflow.db"
    with one_at_a_time(runs / ".mlflow.lock"):
        connection = sqlite3.connect(database, timeout=20.0)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        finally:
            connection.close()
        client = MlflowClient(tracking_uri=f"sqlite:///{database}")
        found = client.get_experiment_by_name(experiment)
        if found is None:
            known = client.create_experiment(experiment, artifact_location=(runs / "mlartifacts").as_uri())
        else:
            known = found.experiment_id
            if found.lifecycle_stage != "active":
                client.restore_experiment(known)
        view = json.dumps(VIEW_STATE)
        if found is None or found.tags.get(VIEW_TAG) != view:
            client.set_experiment_tag(known, VIEW_TAG, view)
    return client, known


def view_address(database: Path) -> str:
    """The address, below that of the server, of the list of all stages with the metrics that they have in common.

    Empty for a database without it.
    """
    connection = sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True, timeout=20.0)
    try:
        found = connection.execute("SELECT experiment_id FROM experiment_tags WHERE key = ?", (VIEW_TAG,)).fetchone()
    except sqlite3.Error:
        return ""
    finally:
        connection.close()
    return f"/#/experiments/{found[0]}/runs?viewStateShareKey={VIEW}" if found else ""


def to_ms(text: str) -> int | None:
    """UTC ISO text as milliseconds since 1970; `None` if it is not such text."""
    try:
        return int(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)
    except ValueError:
        return None


def import_mlflow() -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    for module in ("mlflow", "sqlalchemy", "alembic", "pydantic"):
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow.tracking import MlflowClient

    return MlflowClient


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; whoever else wants it waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
