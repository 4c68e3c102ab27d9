"""Runs tests in copies of the project, each in a forked process that has its third-party imports behind it; prints JSON.

python runner.py '[{"root": <a copy>, "tests": [<test>, ...]}, ...]' -> {root: {test: [outcome, error], ...}, ...}

Importing JAX, Orbax and pytest takes seconds, so it is done once. It happens before any JAX backend starts: from then on a
process must not be forked. Not part of pytest's collection, and imports nothing of ours: the copies do.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import equinox as equinox
import hypothesis.extra.numpy
import jax as jax
import matplotlib as matplotlib
import ml_dtypes as ml_dtypes
import optax as optax
import orbax.checkpoint as checkpoint
import pytest
import tokenizers as tokenizers
import yaml as yaml

PREPARED = (hypothesis.extra.numpy, checkpoint)  # named so that no tool takes the imports out
AT_ONCE = 2


class Recorder:
    """Keeps how each test ended."""

    def __init__(self) -> None:
        self.outcomes: dict[str, tuple[str, str]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.outcomes[report.nodeid] = (report.outcome, "" if crash is None else crash.message)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.outcomes[report.nodeid] = ("error", str(report.longrepr))


def run(root: Path, tests: list[str]) -> None:
    """In the child: run `tests` below `root` and leave the outcomes in `root`/outcomes.json."""
    os.chdir(root)
    sys.path[:] = [str(root), *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).parent)]
    recorder = Recorder()
    with Path("log.txt").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", *tests], plugins=[recorder])
    Path("outcomes.json").write_text(json.dumps(recorder.outcomes))


def main() -> None:
    jobs, children = json.loads(sys.argv[1]), set()
    for job in jobs:
        if len(children) == AT_ONCE:
            children.discard(os.wait()[0])
        child = os.fork()
        if child == 0:
            try:
                run(Path(job["root"]), job["tests"])
            finally:
                os._exit(0)
        children.add(child)
    while children:
        children.discard(os.wait()[0])
    files = {job["root"]: Path(job["root"]) / "outcomes.json" for job in jobs}
    print(json.dumps({root: json.loads(file.read_text()) if file.exists() else {} for root, file in files.items()}))


if __name__ == "__main__":
    main()
