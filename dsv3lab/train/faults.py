"""Training in a process of its own that gets killed."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from dsv3lab.config import RunConfig, plain
from dsv3lab.train import checkpoint, reports
from dsv3lab.train.checkpoint import DEBRIS


@dataclass(frozen=True)
class Child:
    """How a training in a process of its own went.

    status: its exit status; -9 if it was killed.
    first_step_s: seconds from its start to the report of its first step: imports, restore and compilation included; NaN
        if it did no step.
    """

    status: int
    first_step_s: float


def reached(step: int) -> Callable[[Path], bool]:
    """A condition for `run`: the training in this folder has reported `step`."""
    return lambda directory: any(reported >= step for reported, _ in reports.read(directory))


def saving(step: int) -> Callable[[Path], bool]:
    """A condition for `run`: the checkpoint of `step` is being written and not yet whole."""
    return lambda directory: any(directory.glob(f"{DEBRIS}*{step:08d}"))


def run(
    config: RunConfig,
    data: Path,
    directory: Path,
    *,
    stop_after: int,
    kill_when: Callable[[Path], bool] | None = None,
    limit_s: float = 600.0,
) -> Child:
    """Train in a child process, `python -m dsv3lab.train`, and kill it with SIGKILL as soon as `kill_when` holds.

    Args:
        config: the whole run.
        data: folder of the prepared dataset.
        directory: folder of the checkpoints and of the child's log, `train.log`.
        stop_after: steps of the run after which the child saves and ends.
        kill_when: looks at `directory`; None lets the child end by itself.
        limit_s: seconds after which the child is killed whatever it does.

    Raises:
        TimeoutError: if the child did not end within `limit_s`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(plain(config)))
    arguments = ["--config", str(path), "--data", str(data), "--directory", str(directory)]
    command = [sys.executable, "-m", "dsv3lab.train", *arguments, "--stop-after", str(stop_after)]
    found = checkpoint.steps(directory)
    began_at = found[-1] if found else 0
    earlier = _file(directory)  # of a killed process: the child puts its own in the place of it
    first_step_s, started = math.nan, time.monotonic()
    deadline = started + limit_s
    with (directory / "train.log").open("a") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while child.poll() is None:
            if math.isnan(first_step_s) and _file(directory) != earlier and _reached(directory) > began_at:
                first_step_s = time.monotonic() - started
            late = time.monotonic() > deadline
            if late or (kill_when is not None and kill_when(directory)):
                os.kill(child.pid, signal.SIGKILL)
                child.wait()
                if late:
                    raise TimeoutError(f"{directory / 'train.log'}: the training did not end within {limit_s:g} s")
            time.sleep(0.002)
    return Child(child.returncode, first_step_s)


def _file(directory: Path) -> int | None:
    """Which file holds the reports now."""
    path = directory / reports.NAME
    return path.stat().st_ino if path.exists() else None


def _reached(directory: Path) -> int:
    """The last step that was reported; 0 for none."""
    return max((step for step, _ in reports.read(directory)), default=0)
