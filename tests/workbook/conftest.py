"""Fixtures of the workbook's tests: a child that runs in this process, and a tracking store of the test's own."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from dsv3lab.workbook import notebook
from dsv3lab.workbook import store as stores
from tests.workbook.lab import InProcess, two_stages


@pytest.fixture
def conf(tmp_path: Path, runs: Path) -> Path:
    """Phase 1 with two stages that do not need each other."""
    return two_stages(tmp_path)


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> type[InProcess]:
    monkeypatch.setattr(notebook, "Child", InProcess)
    monkeypatch.setattr(InProcess, "acts", {})
    monkeypatch.setattr(InProcess, "calls", [])
    monkeypatch.setattr(InProcess, "hangs", False)
    return InProcess


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database without an experiment: making one takes seconds, copying it none."""
    folder = tmp_path_factory.mktemp("mlflow")
    client, experiment = stores.prepare(folder, "throwaway")
    client.delete_experiment(experiment)
    connection = sqlite3.connect(folder / "mlflow.db")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return folder / "mlflow.db"


@pytest.fixture
def store(runs: Path, database: Path) -> Any:
    """A client of this test's own store."""
    shutil.copy(database, runs / "mlflow.db")
    return stores.import_mlflow()(tracking_uri=f"sqlite:///{runs / 'mlflow.db'}")
