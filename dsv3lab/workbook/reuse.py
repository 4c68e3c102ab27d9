"""Which stages of an earlier execution still stand: same inputs, today's blocking gates passed, every file intact."""

import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dsv3lab.config import ConfigError, RunConfig, diff
from dsv3lab.workbook import compose, doctor, gates
from dsv3lab.workbook import record as records
from dsv3lab.workbook.files import hash_folder, read_json, sha256_file
from dsv3lab.workbook.gates import Device, GateResult
from dsv3lab.workbook.inputs import (
    Inputs,
    changes,
    environment_changes,
    machine_changes,
    read_environment,
    stage_code,
    stage_config,
)
from dsv3lab.workbook.record import PhaseRecord, RecordError, StageOutcome
from dsv3lab.workbook.waivers import Waiver

SEARCHED = 20
"""Newest executions that are looked at."""
NAMED = 3
"""Changed inputs that a message names; it counts the others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Earlier:
    """An earlier execution of the phase."""

    folder: Path
    record: PhaseRecord

    @functools.cached_property
    def config(self) -> RunConfig | None:
        """What it ran with; `None` if that file is not what was recorded or cannot be read any more."""
        path = self.folder / "config.resolved.yaml"
        try:
            return compose.load(path) if _sha256(path) == self.record.files.get(path.name) else None
        except ConfigError:
            return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reusable:
    """A finished stage of an earlier execution."""

    folder: Path
    outcome: StageOutcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class Today:
    """What a stage would be computed from, and judged by, if it ran now."""

    config: RunConfig
    waivers: Sequence[Waiver]
    inputs: Inputs
    """Hashes of code and lock files."""
    upstream: Mapping[str, Path]
    """Stage of another phase -> its folder."""
    runs: Path
    target: Path
    """The new run folder, or a view of it: stages of the same phase that are read lie in it."""
    device: Callable[[], Device | str]
    """What JAX computes on here, or why nobody knows (`here`); asked only when all else is equal."""


def find(name: str, earlier: Sequence[Earlier], today: Today) -> Reusable | str:
    """The newest of the earlier executions of stage `name` that stands for a new one, or why the newest one does not."""
    why = "there is no earlier execution of it"
    for number, one in enumerate(earlier):
        outcome = next((stage for stage in one.record.stages if stage.name == name), None)
        problem = "it has no such stage" if outcome is None else _problem(one, outcome, today)
        if outcome is not None and not problem:
            return Reusable(folder=one.folder, outcome=outcome)
        if number == 0:
            why = f"in the latest execution, {one.folder.name}, {problem}"
    return why


def newest(phase: str, runs: Path) -> list[Earlier]:
    """The latest executions of a phase that have a readable record, newest first."""
    found = sorted((runs / phase).glob(f"*/{records.NAME}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return list(_readable(path.parent for path in found[:SEARCHED]))


def take(found: Reusable, target: Path, *, config: RunConfig, waivers: Sequence[Waiver]) -> StageOutcome:
    """Link the stage's files into the run folder `target` (copy across file systems) and judge its gates again."""
    outcome = found.outcome
    destination = target / outcome.name
    link_tree(found.folder / outcome.name, destination)
    results = _judged(destination, outcome, config=config, waivers=waivers)
    inputs = {key: value for key, value in outcome.inputs.items() if key != "anew"}
    inputs.setdefault("reused_from", f"{config.phase.name}/{found.folder.name}")  # the execution that computed it
    return dataclasses.replace(outcome, status="reused", error="", results=tuple(results), inputs=inputs)


@functools.cache
def here() -> Device | str:
    """What JAX computes on here, or why nobody knows. Asked in a process of its own, unless the environment says it."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return Device(kind="cpu", count=1)
    answer = doctor.ask_jax()
    if isinstance(answer, str):
        return answer
    devices = list(answer["devices"])  # type: ignore[call-overload]
    return Device(kind="cpu" if answer["backend"] == "cpu" else str(devices[0]), count=len(devices))


def link_tree(source: Path, target: Path) -> None:
    """Make `target` a folder of the same files: links, or copies across file systems. It is there whole or not at all."""
    temporary = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, copy_function=_link, symlinks=True)
    os.replace(temporary, target)


def clear_work(folder: Path, record: PhaseRecord, *, runs: Path) -> None:
    """Remove the work folders that the stages of a recorded execution list: their files are part of the record now.

    What a reused stage lists was cleared by its own execution; by now another process may be at work there.
    """
    for stage in record.stages:
        for name in _listed_work(folder / stage.name / "stage.json") if stage.status == "ok" else ():
            work = (runs / name).resolve()
            if (runs / "work").resolve() in work.parents:  # a notebook wrote the list: nothing else is deleted for it
                shutil.rmtree(work, ignore_errors=True)
                _remove_empty(work.parent, below=runs / "work")


def _remove_empty(folder: Path, *, below: Path) -> None:
    """Remove `folder` and the folders above it up to `below`, as long as they are empty."""
    while below.resolve() in folder.parents:
        try:
            folder.rmdir()
        except OSError:  # not empty: another stage is at work there
            return
        folder = folder.parent


def _listed_work(path: Path) -> list[str]:
    try:
        return [str(name) for name in read_json(path)["work"]]
    except (ValueError, KeyError, TypeError):
        return []


def _readable(folders: Iterator[Path]) -> Iterator[Earlier]:
    for folder in folders:
        try:
            yield Earlier(folder=folder, record=records.read(folder))
        except RecordError:
            continue


def _problem(earlier: Earlier, outcome: StageOutcome, today: Today) -> str:
    """Why the stage of this execution is not what would be computed now; empty if it is."""
    if not outcome.finished:
        return f"it is {outcome.status.replace('_', ' ')}"
    if earlier.record.drift:
        return f"{earlier.record.drift[0]} while it ran"
    changed = _changed(earlier, outcome, today)
    if changed:
        return _listed(changed)
    listed = {path: value for path, value in earlier.record.files.items() if path.startswith(f"{outcome.name}/")}
    found = {f"{outcome.name}/{path}": value for path, value in hash_folder(earlier.folder / outcome.name).items()}
    if listed != found:
        return f"{changes(listed, found)[0]} since it was recorded"
    results = _judged(earlier.folder / outcome.name, outcome, config=today.config, waivers=today.waivers)
    stopping = records.blockers([dataclasses.replace(outcome, results=tuple(results))], outcome.device)
    if stopping:
        return f"it does not pass ({stopping[0]})"
    return _other_device(outcome.device, today.device())


def _changed(earlier: Earlier, outcome: StageOutcome, today: Today) -> list[str]:
    """One line for each input of the stage that is another now."""
    record, name = earlier.record, outcome.name
    notebook = today.config.phase.stages[name].notebook
    lines = changes(stage_code(record.inputs.code, notebook), stage_code(today.inputs.code, notebook))
    lines += changes(record.inputs.lock, today.inputs.lock)
    environment = read_environment()
    lines += environment_changes(record.environment, environment) + machine_changes(record.environment, environment)
    if earlier.config is None or name not in earlier.config.phase.stages:
        lines.append("its configuration cannot be compared")
    else:
        before, now = stage_config(earlier.config, name), stage_config(today.config, name)
        lines = [f"{key} {old!r} -> {new!r}" for key, (old, new) in diff(before, now).items()] + lines
    return lines + _read_otherwise(outcome, today)


def _read_otherwise(outcome: StageOutcome, today: Today) -> list[str]:
    """What the stage read and is not there as it was: stages, by their `stage.json`, and folders with a manifest."""
    lines = []
    for need, used in outcome.inputs.get("needs", {}).items():
        phase, _, short = need.partition("/")
        folder = today.target / short if phase == today.config.phase.name else today.upstream.get(need)
        if folder is None or _sha256(folder / "stage.json") != used.get("sha256"):
            lines.append(f"it read another execution of {need}")
    for name, used in outcome.inputs.get("uses", {}).items():
        if _sha256(today.runs / used["folder"] / "manifest.json") != used.get("manifest_sha256"):
            lines.append(f"its input {name} changed")
    return lines


def _other_device(then: Device, now: Device | str) -> str:
    """Why what ran on one device does not stand for another; how many CPU devices are simulated is configuration."""
    if isinstance(now, str):
        return f"nobody knows what JAX computes on here ({now})"
    if then.kind != now.kind or (then.platform != "cpu" and then.count != now.count):
        return f"it ran on {then.count} x {then.kind}, and here is {now.count} x {now.kind}"
    return ""


def _judged(folder: Path, outcome: StageOutcome, *, config: RunConfig, waivers: Sequence[Waiver]) -> list[GateResult]:
    """The gates of today over what the stage recorded."""
    mine = gates.stage_gates(config.phase.gates, outcome.name)
    options: Any = {"device": outcome.device, "config": config}
    return gates.evaluate_folder(mine, folder, executed=True, **options, waivers=waivers)


def _listed(lines: Sequence[str]) -> str:
    more = len(lines) - NAMED
    return "; ".join(lines[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def _sha256(path: Path) -> str | None:
    return sha256_file(path) if path.is_file() else None


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
