"""What is kept of one finished training: its end, and its curves in a few points."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsv3lab.studies.trainings import Training
from dsv3lab.workbook.files import read_json

CURVES = {"loss": "train/loss", "maxvio": "train/maxvio"}
"""Curve -> the metric of the training that it shows, at every step."""


def outcome(
    training: Training, folder: Path, summary: Path, *, last: float, points: int, seconds: float
) -> dict[str, Any]:
    """What a finished training came to, as JSON values.

    `loss` and `maxvio` are means over the last steps, `validation_loss` is that of the held-out windows at the end.
    The losses are in nats per token.

    Args:
        training: what ran.
        folder: its folder, with the reports of all steps (`metrics.jsonl`).
        summary: what the process wrote when it ended.
        last: share of the steps whose mean is taken.
        points: points that are kept of each curve.
        seconds: wall-clock time of its processes, start and compilation included, as far as the study saw them end.

    Raises:
        ValueError: if a step is missing among the reports.
    """
    ended = read_json(summary)
    steps, rows = steps_of(folder / "metrics.jsonl")
    if steps != list(range(1, training.steps + 1)):
        raise ValueError(
            f"{folder / 'metrics.jsonl'}: {len(steps)} of {training.steps} steps; set train.log_interval=1"
        )
    tail = slice(-max(1, round(last * len(steps))), None)
    model, length = training.config.model, training.config.data.sequence_length
    return {
        "name": training.name,
        "variant": training.variant,
        "seed": training.seed,
        "overrides": list(training.overrides),
        "config_sha256": training.sha256,
        "parameters": training.parameters,
        "flops": training.flops,
        "tokens": training.tokens,
        "steps": training.steps,
        "shape": {"width": model.hidden_size, "layers": model.num_hidden_layers, "sequence_length": length},
        "device": ended["device"],
        "seconds": round(seconds, 1),
        "nonfinite_steps": ended["last"]["train/nonfinite_steps"],
        "validation_loss": ended["last"]["validation/loss"],
        **{name: float(np.mean(rows[name][tail])) for name in CURVES},
        "curves": thin(steps, rows, points=points),
    }


def steps_of(path: Path) -> tuple[list[int], dict[str, list[float]]]:
    """The steps that a training reported, and the value of each curve at each of them."""
    steps: list[int] = []
    rows: dict[str, list[float]] = {name: [] for name in CURVES}
    for line in path.read_text(encoding="utf-8").splitlines():
        report = json.loads(line)
        if "train/loss" in report["metrics"]:
            steps.append(report["step"])
            for name, metric in CURVES.items():
                rows[name].append(float(report["metrics"][metric]))
    return steps, rows


def thin(steps: Sequence[int], rows: Mapping[str, Sequence[float]], *, points: int) -> dict[str, list[float]]:
    """Curves of at most `points` points: each is the mean of the steps since the one before, at the last of them."""
    stride = -(-len(steps) // points)
    starts = range(0, len(steps), stride)
    made: dict[str, list[float]] = {"step": [steps[min(start + stride, len(steps)) - 1] for start in starts]}
    for name, values in rows.items():
        made[name] = [float(f"{np.mean(values[start : start + stride]):.6g}") for start in starts]
    return made
