"""A training process that kills itself: `python -m tests.train.child DIRECTORY MOMENT`, for `test_kill.py`."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsv3lab import train
from dsv3lab.parallel import simulate_devices
from dsv3lab.train import checkpoint
from tests import builders
from tests.train.test_loop import CONFIG

TEAR = {
    "arrays": "the save of step 2, after the model and before the optimizer: no checkpoint exists yet",
    "step": "after step 5, which is on no disk",
    "delete": "the deletion of step 2, half done",
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_before(owner: Any, name: str, condition: Callable[..., bool]) -> None:
    """Die instead of the first call of `owner.name` whose arguments fulfil the condition."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **options: Any) -> Any:
        if condition(*args):
            die()
        return original(*args, **options)

    setattr(owner, name, wrapped)


def is_half_deleted(path: Path, *_: Any) -> bool:
    if path.name != f"{checkpoint.DEBRIS}00000002":
        return False
    (path / "meta.json").unlink()
    return True


def main(directory: Path, moment: str) -> None:
    simulate_devices(8)  # as in the process that compares: threads decide how a sum is split

    def report(metrics: dict[str, float], step: int) -> None:
        if moment == "step" and step == 5:
            die()

    if moment == "arrays":
        die_before(checkpoint.ocp.Checkpointer, "save", lambda _, path, *rest: path.name == "optimizer")
    if moment == "delete":
        die_before(shutil, "rmtree", is_half_deleted)
    train.fit(CONFIG, builders.FakeDataset(), directory, report=report)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
