"""The MLflow store of a runs folder: one SQLite database and one experiment, made by one process at a time."""

import fcntl
import logging
import os
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any


def prepare(runs: Path, experiment: str) -> tuple[Any, str]:
    """The client and the experiment's id; makes database and experiment, one process at a time.

    Several processes that open a new database at once crash in its migrations, and without write-ahead log several
    writers wait for each other by seconds. The artifacts' folder is absolute: it does not depend on who looks.
    """
    MlflowClient = import_mlflow()
    database = runs / "mlflow.db"
    with _one_at_a_time(runs / ".mlflow.lock"):
        connection = sqlite3.connect(database, timeout=20.0)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        finally:
            connection.close()
        client = MlflowClient(tracking_uri=f"sqlite:///{database}")
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return client, client.create_experiment(experiment, artifact_location=(runs / "mlartifacts").as_uri())
        if found.lifecycle_stage != "active":
            client.restore_experiment(found.experiment_id)
    return client, found.experiment_id


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
def _one_at_a_time(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
