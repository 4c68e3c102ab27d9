"""The command line `dsv3lab VERB`: a table of verbs, each loaded only when it is used.

Every verb is a function from its arguments to an exit status in a room of the half without JAX. What computes runs in a
process of its own (`python -m dsv3lab.<room>`), so that this one never holds a GPU's memory.
"""

import argparse
import importlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

STATUSES = (
    "0 promoted · 1 gate failed · 2 usage or configuration · 3 execution error · 4 upstream missing · 75 preempted · "
    "130 interrupted · 141 the reader closed the pipe"
)


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One command: what it does in a line, an example, and where it lives."""

    summary: str
    example: str
    target: str
    """`module:function`; the function takes the arguments after the verb and returns an exit status."""


VERBS = {
    "quickstart": Verb(
        summary="a first run: choose size, data and device, see the command and its cost, start it",
        example="dsv3lab quickstart --profile ci",
        target="dsv3lab.workbook.quickstart:main",
    ),
    "run": Verb(
        summary="run one phase or all of them through their notebooks and gates",
        example="dsv3lab run 2 train.tokens=500000",
        target="dsv3lab.cli:run",
    ),
    "train": Verb(
        summary="train outside the workbook, with checkpoints; the same command goes on after a kill",
        example="dsv3lab train profile=ci train.seed=1 --stop-after 20",
        target="dsv3lab.cli:train",
    ),
    "sweep": Verb(
        summary="run a phase with every combination of some values, and compare a metric",
        example="dsv3lab sweep 2 train.schedule.peak_lr=1e-3,3e-3 train.seed=0,1 profile=ci --only train",
        target="dsv3lab.workbook.sweep:main",
    ),
    "study": Verb(
        summary="run the trainings that one question needs: balance methods, FP8 against BF16, scaling; resumable",
        example="dsv3lab study balance --save",
        target="dsv3lab.studies.run:main",
    ),
    "config": Verb(
        summary="print the resolved configuration, or explain its keys (config help KEY)",
        example="dsv3lab config help train.schedule",
        target="dsv3lab.workbook.settings:main",
    ),
    "compare": Verb(
        summary="show runs or stages side by side: metrics, gates, configuration, environment",
        example="dsv3lab compare phase2/promoted phase2/last",
        target="dsv3lab.workbook.compare:main",
    ),
    "model": Verb(
        summary="print what a model is made of: shapes, parameters, FLOPs, cache",
        example="dsv3lab model show v3",
        target="dsv3lab.plan.show:main",
    ),
    "verify": Verb(
        summary="recompute every record and the chain of promotions, and name what was changed",
        example="dsv3lab verify",
        target="dsv3lab.workbook.verify:main",
    ),
    "baseline": Verb(
        summary="accept the figures of a promoted run as those that later runs are compared with",
        example='dsv3lab baseline accept --reason "first run on the new machine"',
        target="dsv3lab.workbook.accept:main",
    ),
    "sync": Verb(
        summary="pass runs that a tracker has missed on to it: MLflow, TensorBoard, Weights & Biases (offline)",
        example="dsv3lab sync --to tensorboard",
        target="dsv3lab.workbook.sync:main",
    ),
    "ui": Verb(
        summary="open the MLflow UI on a loopback port",
        example="dsv3lab ui --port 5151",
        target="dsv3lab.workbook.ui:main",
    ),
    "doctor": Verb(
        summary="say what this machine lacks, with the command that mends it",
        example="dsv3lab doctor",
        target="dsv3lab.workbook.doctor:main",
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Run the verb that `argv` (default: the process's arguments) names; returns its exit status."""
    words = sys.argv[1:] if argv is None else argv
    try:
        try:
            return _dispatch(words)
        finally:
            sys.stdout.flush()  # here, also where argparse ends the process: a reader that has gone is noticed below
    except BrokenPipeError:
        from dsv3lab.workbook.statuses import reader_gone

        return reader_gone()
    except KeyboardInterrupt:
        print(f"dsv3lab {' '.join(words[:1])}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        from dsv3lab.workbook.statuses import unforeseen

        return unforeseen(error)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if words else 2
    name, rest = words[0], words[1:]
    from dsv3lab.config import ConfigError, nearest  # after --help, which stays instant

    if name not in VERBS:
        print(f"dsv3lab: no verb '{name}'{nearest(name, VERBS)}", file=sys.stderr)
        return 2
    verb = VERBS[name]
    if any(word in ("-h", "--help") for word in rest):
        print(f"{verb.summary}\n\nexample:\n  {verb.example}\n")
    module, function = verb.target.split(":")
    try:
        return getattr(importlib.import_module(module), function)(rest)
    except ConfigError as error:
        print(f"dsv3lab {name}: {error}", file=sys.stderr)
        return 2


def overview() -> str:
    """The text of `dsv3lab --help`."""
    lines = ["usage: dsv3lab VERB [ARGUMENTS]      dsv3lab VERB --help", ""]
    lines += [f"  {name:<10} {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join([*lines, "", f"exit status: {STATUSES}"])


def run(argv: list[str]) -> int:
    """`dsv3lab run`: one phase by its number, or all four; the words after it go to the pipeline as they are."""
    parser = argparse.ArgumentParser(
        prog="dsv3lab run",
        usage="dsv3lab run {1,2,3,4,all} [--plan] [--only STAGE] [--from STAGE] [key=value ...]",
        description="Run a phase, or all in order. `dsv3lab run 2 --help` explains what follows the number.",
    )
    parser.add_argument("phase", choices=("1", "2", "3", "4", "all"))
    phase = parser.parse_args(argv[:1]).phase
    from dsv3lab.workbook import pipeline

    return pipeline.main_all(argv[1:]) if phase == "all" else pipeline.main([f"phase{phase}", *argv[1:]])


def train(argv: list[str]) -> int:
    """`dsv3lab train`: compose, write the configuration beside the checkpoints, train in a process of its own."""
    from dsv3lab.config import ConfigError, digest, runs_dir
    from dsv3lab.workbook.compose import compose, dump

    parser = argparse.ArgumentParser(
        prog="dsv3lab train", description="Train one model from the composed configuration."
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, e.g. train.tokens=500000")
    parser.add_argument(
        "--directory", type=Path, help="checkpoints (default: runs/train/<digest>); found there, it goes on"
    )
    parser.add_argument("--stop-after", type=int, metavar="N", help="end after N steps, as if preempted")
    args = parser.parse_args(argv)
    config, resolved = compose(args.overrides)
    parts = [config.model, config.data, config.train, config.precision]
    directory = args.directory or runs_dir() / "train" / digest(parts)[:12]
    final = directory / "config.resolved.yaml"
    path = final.with_name(f"{final.name}.new") if final.exists() else final
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(dump(resolved))
    except OSError as error:
        where = "--directory" if args.directory else "DSV3LAB_RUNS"
        raise ConfigError(f"{where}: {error.filename}: {error.strerror}; name a folder that can be written") from None
    try:
        status, printed = child("dsv3lab.data", "--config", str(path), capture=True)
        if status:
            return status
        data = printed.splitlines()[-1]
        stop = [] if args.stop_after is None else ["--stop-after", str(args.stop_after)]
        status, _ = child("dsv3lab.train", "--config", str(path), "--data", data, "--directory", str(directory), *stop)
        if status in (0, 75):  # else the directory may be another run's, whose configuration stays
            path.replace(final)
        return status
    finally:
        if path != final:
            path.unlink(missing_ok=True)


def child(module: str, *arguments: str, capture: bool = False) -> tuple[int, str]:
    """Run `python -m module` and pass SIGTERM on to it.

    Args:
        capture: also return what it prints.

    Returns:
        Its exit status where that is a promised one (0, 2, 75), else 3; and its output if it was captured.
    """
    from dsv3lab.workbook.process import large_pages

    pipe = subprocess.PIPE if capture else None
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(command, stdout=pipe, text=True, env=large_pages(os.environ))
    before = signal.signal(signal.SIGTERM, lambda signum, frame: process.send_signal(signum))
    printed: list[str] = []
    try:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            printed.append(line)
        status = process.wait()
    except KeyboardInterrupt:  # the terminal sent it to the child as well, which saves and ends
        status = process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    return status if status in (0, 2, 75) else 3, "".join(printed)
