"""One environment for all tests: CPU, 8 simulated devices, one compilation cache, outputs in a temporary folder.

The pytest process decides the devices, so that modules of all rooms can share it: 8 simulated CPU devices, which a test
on one device does not notice. Nothing is written into the checkout except caches.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from dsv3lab.config import ROOT
from dsv3lab.workbook.process import machine
from tests.limits import pytest_runtest_makereport as pytest_runtest_makereport

DEVICES = 8
# The rooms whose array shapes are checked at run time. The half without JAX is left out: its tests feed it junk on purpose.
CHECKED = ("model", "program", "data", "parallel", "train", "infer", "eval", "museum", "measure")


def _environment() -> Path:
    """Set what child processes (notebook kernels, `python -m dsv3lab.train`) inherit; returns the folder for outputs."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None:
        shared = Path(tempfile.mkdtemp(prefix="dsv3lab-tests-"))
        os.environ["DSV3LAB_TESTS"] = str(shared)
    else:
        shared = Path(os.environ["DSV3LAB_TESTS"])
    # Every worker has its own runs folder (chain of promotions, tracking database); prepared data is shared.
    runs = shared / (worker or "main")
    (shared / "data").mkdir(exist_ok=True)
    runs.mkdir()
    (runs / "data").symlink_to(shared / "data")
    os.environ.update(
        DSV3LAB_RUNS=str(runs),
        JAX_PLATFORMS="cpu",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",  # halves compile times; nothing here is timed
        JAX_COMPILATION_CACHE_DIR=str(ROOT / ".cache" / "jax" / machine()),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
        MLFLOW_DISABLE_TELEMETRY="true",
        MPLBACKEND="Agg",
        HYPOTHESIS_STORAGE_DIRECTORY=str(ROOT / ".cache" / "hypothesis"),
    )
    return shared


def _simulate_devices() -> None:
    """Start JAX with the simulated devices, and take back what only this process should see."""
    os.environ["NPROC"] = "64"  # without it, bursts of collective programs on simulated devices abort the process
    import jax

    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.devices()
    del os.environ["NPROC"]


FOLDER = _environment()
_simulate_devices()

from jaxtyping import install_import_hook  # noqa: E402

from tests import typecheck as typecheck  # noqa: E402  # the hook imports `tests` only and then looks for the module in it

install_import_hook([f"dsv3lab.{room}" for room in CHECKED], "tests.typecheck.checked")


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(FOLDER, ignore_errors=True)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty runs folder of the test's own (data, chain, database)."""
    monkeypatch.setenv("DSV3LAB_RUNS", str(tmp_path / "runs"))
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"
