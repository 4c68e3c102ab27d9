"""`python -m dsv3lab.train`: train in a process of its own; ends with 0, or with 75 when it was asked to stop."""

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

import jax

from dsv3lab.config import ConfigError, RunConfig, build, read_yaml
from dsv3lab.config.disk import write_atomic
from dsv3lab.data import DataError, open_dataset
from dsv3lab.train.checkpoint import CheckpointError
from dsv3lab.train.guard import Diverged
from dsv3lab.train.loop import FitResult, Preempted, fit
from dsv3lab.train.micro_batch import OutOfMemory

USAGE, ERROR, PREEMPTED = 2, 3, 75


def main(arguments: list[str] | None = None) -> int:
    """Train as the arguments say; 0, 2 (configuration), 3 (checkpoint, data or training) or 75 (stopped, saved)."""
    parser = argparse.ArgumentParser(prog="python -m dsv3lab.train", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration (YAML) of the run")
    parser.add_argument("--data", type=Path, required=True, help="folder of the prepared dataset")
    parser.add_argument("--directory", type=Path, required=True, help="folder of checkpoints and metrics.jsonl")
    parser.add_argument("--stop-after", type=int, help="save and end after this many steps of the run")
    parser.add_argument(
        "--summary", type=Path, help="where a finished run writes its end as JSON: steps, last metrics, device"
    )
    options = parser.parse_args(arguments)
    try:
        config = build(RunConfig, read_yaml(options.config))
        dataset = open_dataset(options.data)
        result = fit(
            config,
            dataset,
            options.directory,
            report=_kept_anyway,
            stop_after=options.stop_after,
            stop_on=(signal.SIGTERM, signal.SIGINT),
        )
    except Preempted as stopped:
        print(stopped, flush=True)
        return PREEMPTED
    except KeyboardInterrupt:
        print("stopped by a signal before the training began; run again", flush=True)
        return PREEMPTED
    except (ConfigError, CheckpointError, DataError, Diverged, OutOfMemory) as error:
        print(error, file=sys.stderr)
        return USAGE if isinstance(error, ConfigError) else ERROR
    if options.summary and result.finished:
        write_atomic(options.summary, json.dumps(_summary(result), indent=1) + "\n")
    print(f"{'done' if result.finished else 'stopped'} after step {result.steps}: {result.checkpoint}")
    return 0


def _summary(result: FitResult) -> dict[str, Any]:
    device = jax.devices()[0]
    kind = "cpu" if device.platform == "cpu" else device.device_kind
    return {"steps": result.steps, "last": result.last, "device": {"kind": kind, "count": 1}}


def _kept_anyway(metrics: dict[str, float], step: int) -> None:
    """`fit` writes the reports into `metrics.jsonl` by itself."""


if __name__ == "__main__":
    sys.exit(main())
