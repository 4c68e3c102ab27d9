"""The result of a study: one JSON file with every curve, and the committed ones that notebooks show.

runs/studies/<study>/<time>/result.json        what a study came to
benchmarks/results/study_<study>.json          the committed one (`dsv3lab study <study> --save`)
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsv3lab.config import ROOT, ConfigError, digest, nearest, plain, read_study, study_names
from dsv3lab.config.disk import write_atomic
from dsv3lab.studies import analysis, figures, prediction
from dsv3lab.studies.log import StudyError
from dsv3lab.workbook import Stage, commands
from dsv3lab.workbook.files import read_json, sha256_text
from dsv3lab.workbook.inputs import uncommitted

NAME = "result.json"
COMMITTED = ROOT / "benchmarks" / "results"
CODE = ("dsv3lab", "conf", "constraints.txt")
"""What a study is repeated from, beside the environment."""
SCHEMA = 1


def write(
    folder: Path,
    about: Mapping[str, Any],
    outcomes: Sequence[Mapping[str, Any]],
    *,
    predicted: Mapping[str, Any] | None,
    events: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Put together what a study came to, and write it.

    Args:
        folder: of the study.
        about: what `study.json` says of it: name, settings, code, environment, dates.
        outcomes: of all its trainings.
        predicted: the prediction, if the study made one.
        events: its whole log.
    """
    made = {
        "schema": SCHEMA,
        **about,
        "finished": events[-1]["time"],
        "seconds": round(sum(one["seconds"] for one in outcomes), 1),
        "device": outcomes[0]["device"],
        "summary": analysis.ANALYSES[about["study"]](outcomes, predicted),
        "prediction": predicted,
        "trainings": list(outcomes),
        "log": list(events),
    }
    write_atomic(folder / NAME, json.dumps(made, indent=1) + "\n")
    return made


def check(result: Mapping[str, Any]) -> None:
    """Refuse a result in which a training or the prediction is not the one that its log names.

    Raises:
        StudyError: one sentence.
    """
    events, previous = result["log"], ""
    for event in events:
        if event["previous"] != previous:
            raise StudyError("its log was changed after it was written")
        previous = sha256_text(json.dumps(event))
    ended = {event["training"]: event["sha256"] for event in events if event["event"] == "finished"}
    for one in result["trainings"]:
        if ended.get(one["name"]) != digest(one):
            raise StudyError(f"the training '{one['name']}' was changed after it was written")
    written = result["prediction"]
    entered = [event for event in events if event["event"] == "prediction"]
    if bool(entered) != (written is not None):
        raise StudyError("the prediction and its entry in the log do not go together")
    if written is not None:
        begun = [e for e in events if e["event"] == "started" and e["training"] == written["training"]]
        if not begun or events.index(begun[0]) < events.index(entered[0]):
            raise StudyError("the prediction was not written before its training began")
        prediction.check(written, entered[0], begun=begun[0])
    summary = analysis.ANALYSES[result["study"]](result["trainings"], written)
    if json.loads(json.dumps(summary)) != result["summary"]:
        raise StudyError("its summary is not what its trainings say")


def committed(name: str, folder: Path = COMMITTED) -> dict[str, Any] | None:
    """The committed result of a study, checked; `None` if there is none.

    Raises:
        ConfigError: for an unknown study (with the nearest).
        StudyError: if the file was changed by hand.
    """
    if name not in study_names():
        raise ConfigError(f"no study '{name}'{nearest(name, study_names())}")
    path = folder / f"study_{name}.json"
    if not path.exists():
        return None
    try:
        result = read_json(path)
        check(result)
    except (StudyError, ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{path}: {error}; run `{commands.verb('study', name, '--save')}` again") from None
    return result


def save(result: Mapping[str, Any], folder: Path = COMMITTED) -> Path:
    """Copy a result to where it is committed; returns the file.

    Raises:
        ConfigError: if it is not the study of the checkout: overrides, another profile, code that is not committed.
    """
    name = result["study"]
    if result["profile"] != "default" or result["overrides"]:
        how = " ".join([f"--profile {result['profile']}", *result["overrides"]])
        raise ConfigError(
            f"--save: study {name} ran with {how}; only the study as it stands in conf/studies is committed"
        )
    refuse_uncommitted(begun_with=result["code"]["uncommitted"])
    check(result)
    path = folder / f"study_{name}.json"
    write_atomic(path, json.dumps(result, indent=1) + "\n")
    return path


def refuse_uncommitted(*, begun_with: Sequence[str] = ()) -> None:
    """Refuse to save what nobody could repeat from a revision.

    Args:
        begun_with: the files that were not committed when the study began.

    Raises:
        ConfigError: naming some of the files that are not, or were not.
    """
    changed = [*uncommitted(ROOT, *CODE), *begun_with]
    if changed:
        what = ", ".join(changed[:3])
        raise ConfigError(f"--save: the code is not committed ({what}); commit it, so that the study can be repeated")


def show(stage: Stage, name: str) -> list[Any]:
    """Show the committed result of a study in a notebook: who made it, its summary, and its figures.

    Returns:
        the figures, in order; none, and a sentence that says so, if no result is committed.
    """
    result = committed(name)
    if result is None:
        print(f"No result of the study '{name}' is committed yet: `{commands.verb('study', name, '--save')}` makes it.")
        return []
    print("\n".join([headline(result), *analysis.words(name, result["summary"])]))
    if other := outdated(result):
        print(f"Made before conf/studies/{name}.yaml changed: {', '.join(other)}.")
    drawn = figures.of(result)
    return [stage.figure(one, f"study_{name}_{key}", title=title) for key, (one, title) in drawn.items()]


def outdated(result: Mapping[str, Any]) -> list[str]:
    """The settings of a result that the checkout's study no longer has; words and the usual time do not count."""
    now = plain(read_study(result["study"], profile=result["profile"]))
    counted = now.keys() - {"title", "question", "expected_s"}
    return sorted(name for name in counted if now[name] != result["settings"].get(name))


def headline(result: Mapping[str, Any]) -> str:
    """Where the numbers of a result come from, in one line."""
    device, environment = result["device"], result["environment"]
    return (
        f"Study '{result['study']}' of {result['started'][:10]}: {len(result['trainings'])} trainings, "
        f"{result['seconds'] / 60:.0f} minutes on {device['count']} {device['kind']} ({environment['cores']} cores), "
        f"jax {environment['packages']['jax']}, code {result['code']['revision'][:10] or 'outside git'}"
    )
