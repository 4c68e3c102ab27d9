"""The prediction of a study: written down, hashed and dated before the training that it speaks of begins."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsv3lab.config import digest
from dsv3lab.config.disk import write_atomic
from dsv3lab.studies import law, log
from dsv3lab.studies.log import StudyError
from dsv3lab.studies.trainings import Training
from dsv3lab.workbook.files import read_json, utc_now

NAME = "prediction.json"


def content(training: Training, outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the finished trainings say of the held-out loss of `training`, by a power law in compute."""
    points = [
        {"name": one["name"], "flops": one["flops"], "loss": one["validation_loss"], "sha256": digest(one)}
        for one in outcomes
    ]
    fitted = law.fit([p["flops"] for p in points], [p["loss"] for p in points])
    low, high = fitted.range(training.flops)
    return {
        "training": training.name,
        "config_sha256": training.sha256,
        "flops": training.flops,
        "loss": fitted.loss(training.flops),
        "low": low,
        "high": high,
        "standard_errors": law.ERRORS,
        "law": asdict(fitted),
        "points": points,
    }


def write(folder: Path, training: Training, outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write the prediction and enter its hash into the log; one that is there already is checked and returned.

    Raises:
        StudyError: if the one that is there was changed, or was not the one that the trainings make.
    """
    made, path = content(training, outcomes), folder / NAME
    entered = [event for event in log.read(folder) if event["event"] == "prediction"]
    if entered:
        written = read(folder)
        check(written, entered[0], begun=None)
        if {key: value for key, value in written.items() if key != "written"} != json.loads(json.dumps(made)):
            raise StudyError(f"{path}: not what the trainings before it say; begin anew with --new")
        return written
    made = {"written": utc_now(), **made}
    path.unlink(missing_ok=True)
    write_atomic(path, json.dumps(made, indent=1) + "\n")
    path.chmod(0o444)
    log.append(folder, "prediction", training=training.name, sha256=digest(made))
    return made


def check(written: Mapping[str, Any], entered: Mapping[str, Any], *, begun: Mapping[str, Any] | None) -> None:
    """Refuse a prediction that is not the one in the log, or that came after its training had begun.

    Args:
        written: the prediction.
        entered: its event in the log.
        begun: the first event of the training that it speaks of; `None` before that.

    Raises:
        StudyError: one sentence.
    """
    if digest(written) != entered["sha256"]:
        raise StudyError("the prediction was changed after it was written: its hash is not the one in the log")
    if begun is not None and not written["written"] <= entered["time"] <= begun["time"]:
        raise StudyError("the prediction was not written before its training began")


def read(folder: Path) -> dict[str, Any]:
    """The prediction in a study's folder.

    Raises:
        StudyError: if it is gone or no JSON.
    """
    try:
        return read_json(folder / NAME)
    except ValueError as error:
        raise StudyError(f"{error}; begin anew with --new") from None
