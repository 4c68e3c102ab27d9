"""Which stages of an earlier execution still stand: same inputs, every blocking gate passed, every file intact."""

import dataclasses
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from dsv3lab.config import RunConfig, digest
from dsv3lab.workbook import gates
from dsv3lab.workbook import record as records
from dsv3lab.workbook.files import hash_folder, read_json, sha256_file
from dsv3lab.workbook.inputs import Inputs, changes, environment_changes, read_environment
from dsv3lab.workbook.record import PhaseRecord, RecordError, StageOutcome, Upstream
from dsv3lab.workbook.waivers import Waiver

SEARCHED = 20
"""Newest executions that are looked at."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reusable:
    """A finished stage of an earlier execution."""

    folder: Path
    outcome: StageOutcome


def find(
    name: str, *, config: RunConfig, upstream: Upstream | None, runs: Path, target: Path, now: Inputs
) -> Reusable | str:
    """The newest execution of stage `name` that stands for a new one, or why the newest one does not.

    Args:
        name: the stage, without its phase.
        config: what would be run now.
        upstream: the record that the phase builds on now.
        runs: the folder of all outputs.
        target: the new run folder; stages of it that this one needs are compared with those that it read.
        now: the hashes of code and lock files.
    """
    why = "there is no earlier execution of it"
    for number, (folder, record) in enumerate(_newest(config.phase.name, runs, leave_out=target)):
        outcome = next((stage for stage in record.stages if stage.name == name), None)
        problem = "it has no such stage"
        if outcome is not None:
            problem = _difference(folder, record, outcome, config=config, upstream=upstream, now=now)
            problem = problem or _inputs(outcome, config=config, runs=runs, target=target)
        if outcome is not None and not problem:
            return Reusable(folder=folder, outcome=outcome)
        if number == 0:
            why = f"in the latest execution, {folder.name}, {problem}"
    return why


def take(found: Reusable, target: Path, *, config: RunConfig, waivers: Sequence[Waiver]) -> StageOutcome:
    """Link the stage's files into the run folder `target` (copy across file systems) and judge its gates again."""
    outcome = found.outcome
    destination = target / outcome.name
    link_tree(found.folder / outcome.name, destination)
    results = gates.evaluate_folder(
        gates.stage_gates(config.phase.gates, outcome.name),
        destination,
        executed=True,
        device=outcome.device,
        profile=config.profile.name,
        waivers=waivers,
    )
    inputs = {**outcome.inputs, "reused_from": f"{config.phase.name}/{found.folder.name}"}
    return dataclasses.replace(outcome, status="reused", error="", results=tuple(results), inputs=inputs)


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


def _newest(phase: str, runs: Path, *, leave_out: Path) -> Iterator[tuple[Path, PhaseRecord]]:
    """The latest executions of a phase that have a readable record, newest first."""
    found = sorted((runs / phase).glob(f"*/{records.NAME}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in found[:SEARCHED]:
        if path.parent != leave_out:
            try:
                yield path.parent, records.read(path.parent)
            except RecordError:
                continue


def _difference(
    folder: Path,
    record: PhaseRecord,
    outcome: StageOutcome,
    *,
    config: RunConfig,
    upstream: Upstream | None,
    now: Inputs,
) -> str:
    """Why the stage of this record is not what would be computed now; empty if it is."""
    if not outcome.finished:
        return f"it is {outcome.status.replace('_', ' ')}"
    stopping = records.blockers([outcome], outcome.device)
    if stopping:
        return f"it did not pass ({stopping[0]})"
    if record.config_sha256 != digest(config):
        return "the configuration was another"
    notebook = config.phase.stages[outcome.name].notebook
    code = [
        c for c in changes(record.inputs.code, now.code) if not c.startswith("notebooks/") or c.startswith(notebook)
    ]
    changed = code + changes(record.inputs.lock, now.lock)
    changed += environment_changes(record.environment, read_environment())
    if changed:
        return f"{changed[0]} since" + (f", and {len(changed) - 1} more" if len(changed) > 1 else "")
    for need in config.phase.stages[outcome.name].needs:
        before, after = (side.needs.get(need) if side else None for side in (record.upstream, upstream))
        if before != after:
            return f"it read another execution of {need}"
    listed = {path: value for path, value in record.files.items() if path.startswith(f"{outcome.name}/")}
    found = {f"{outcome.name}/{path}": value for path, value in hash_folder(folder / outcome.name).items()}
    return "" if listed == found else f"{changes(listed, found)[0]} since it was recorded"


def _inputs(outcome: StageOutcome, *, config: RunConfig, runs: Path, target: Path) -> str:
    """Why what the stage read is not there as it was: stages of the same phase, and folders with a manifest."""
    for need, used in outcome.inputs.get("needs", {}).items():
        phase, _, short = need.partition("/")
        if phase == config.phase.name and _sha256(target / short / "stage.json") != used.get("sha256"):
            return f"it read another execution of {need}"
    for name, used in outcome.inputs.get("uses", {}).items():
        if _sha256(runs / used["folder"] / "manifest.json") != used.get("manifest_sha256"):
            return f"its input {name} changed"
    return ""


def _sha256(path: Path) -> str | None:
    return sha256_file(path) if path.is_file() else None


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
