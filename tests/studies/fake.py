"""A training that takes no time: its losses follow a law, and it leaves what a real one leaves."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dsv3lab.config import read_yaml
from dsv3lab.studies import run

Loss = Callable[[dict[str, Any], int], float]
"""The resolved configuration and the step -> loss in nats per token."""


class Trainer:
    """Stands in the place of `run.execute`; notes which trainings it was asked for."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.ran: list[str] = []
        self.dies_at: int | None = None
        """Number of the training that is killed half way, from 1."""
        self.before: Callable[[Path], None] = lambda folder: None
        """Called with the training's folder when one starts."""

    def __call__(self, words: Sequence[str], *, out: Path, line: Any, interrupts: Any) -> int:
        if words[0] == "dsv3lab.data":
            out.write_text("/the/data\n")
            return 0
        options = dict(zip(words[1::2], words[2::2], strict=True))
        assert options["--data"] == "/the/data"
        folder, values = Path(options["--directory"]), read_yaml(Path(options["--config"]))
        self.before(folder)
        self.ran.append(folder.name)
        if len(self.ran) == self.dies_at:
            out.write_text("killed half way\n")
            return -9
        train = values["train"]
        steps = -(-train["tokens"] // (train["batch_size"] * values["data"]["sequence_length"]))
        losses = [self.loss(values, step) for step in range(1, steps + 1)]
        reports = [
            {"step": step, "metrics": {"train/loss": loss, "train/maxvio": 1 / step}}
            for step, loss in enumerate(losses, 1)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(report) + "\n" for report in reports))
        (folder / "step_00000003").mkdir()
        last = {"train/nonfinite_steps": 0.0, "validation/loss": losses[-1]}
        device = {"kind": "cpu", "count": 1}
        Path(options["--summary"]).write_text(json.dumps({"steps": steps, "last": last, "device": device}))
        return 0


@pytest.fixture
def trainer(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Trainings whose loss depends on seed and step only."""
    made = Trainer(lambda values, step: 6.0 + 0.1 * values["train"]["seed"] - 0.5 * step)
    monkeypatch.setattr(run, "execute", made)
    return made
