"""The hook that fails tests which take too long."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

CONFTEST = """
import os
import tests.limits
from tests.limits import pytest_runtest_makereport
tests.limits.LIMIT_S = 0.2
os.getloadavg = lambda: (0.0, 0.0, 0.0)

def pytest_configure(config):
    config.addinivalue_line("markers", "slow: .")
    config.addinivalue_line("markers", "limit(seconds): .")
"""
TESTS = """
import time
import pytest

def test_quick():
    pass

def test_long():
    time.sleep(0.4)

@pytest.mark.limit(20)
def test_marked_limit():
    time.sleep(0.4)

@pytest.mark.slow
def test_marked_slow():
    time.sleep(0.4)

@pytest.fixture
def long_setup():
    time.sleep(0.4)

def test_with_a_long_setup(long_setup):
    pass
"""


def test_an_unmarked_test_over_the_limit_fails(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_times.py").write_text(TESTS)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert "test_times.py::test_long: call took" in done.stdout
    assert "test_times.py::test_with_a_long_setup: setup took" in done.stdout
    assert "1 failed, 3 passed, 1 error" in done.stdout, done.stdout + done.stderr
