"""Runs one stage's notebook in its folder: request, process, limit, signals, and what became of it."""

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dsv3lab.config import ROOT, RunConfig
from dsv3lab.workbook import gates, hints
from dsv3lab.workbook.execute import LAST_LINES, tail
from dsv3lab.workbook.files import read_json, sha256_file, write_atomic
from dsv3lab.workbook.gates import Device
from dsv3lab.workbook.process import END_GRACE_S, SAVE_GRACE_S, Child, Interrupts
from dsv3lab.workbook.progress import StageLine
from dsv3lab.workbook.record import StageOutcome, StageStatus
from dsv3lab.workbook.waivers import Waiver

POLL_S = 0.1
SHOWN_SOURCE = 12
"""Lines of a failing cell that are printed."""


def write_request(
    folder: Path, *, config: RunConfig, stage: str, needs: Mapping[str, Path], force: bool = False
) -> None:
    """The stage's folder with its `request.json`; the nonce ties what the notebook closes to this execution.

    Args:
        force: the stage starts from nothing, and not from the work of an execution that was stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    request = {
        "schema": 1,
        "stage": f"{config.phase.name}/{stage}",
        "nonce": secrets.token_hex(16),
        "config": "../config.resolved.yaml",
        "config_sha256": sha256_file(folder.parent / "config.resolved.yaml"),
        "needs": {name: str(path) for name, path in needs.items()},
        "profile": config.profile.name,
        "force": force,
    }
    write_atomic(folder / "request.json", json.dumps(request, indent=1, sort_keys=True) + "\n")


def run(
    folder: Path,
    *,
    config: RunConfig,
    runs: Path,
    waivers: Sequence[Waiver],
    line: StageLine,
    interrupts: Interrupts,
    tick: Callable[[], None],
) -> StageOutcome:
    """Execute the notebook of the stage whose folder this is, and judge its gates.

    Args:
        folder: the stage's folder, with its request.
        line: the stage's line, already shown; the caller ends it.
        interrupts: the pipeline's signals.
        tick: called about ten times a second.
    """
    stage = config.phase.stages[folder.name]
    notebook = ROOT / stage.notebook
    if not notebook.is_file():
        return _outcome(folder, "failed", f"{stage.notebook}: there is no such notebook", line, config, waivers)
    child = Child(folder, notebook, runs=runs, stage=f"{config.phase.name}/{folder.name}")
    how, limit_s = "killed", config.limit_s(folder.name)
    try:
        how = supervise(child, limit_s=limit_s, line=line, interrupts=interrupts, tick=tick)
    finally:
        exit_status = child.end()
    status, error = _status(folder, how, exit_status, interrupted=interrupts.count > 0, limit_s=limit_s)
    if status not in ("ok", "preempted"):
        error = hints.with_advice(error, [str(text) for text in _result(folder).get("lines") or ()])
    return _outcome(folder, status, error, line, config, waivers)


def supervise(
    child: Child, *, limit_s: float, line: StageLine, interrupts: Interrupts, tick: Callable[[], None]
) -> str:
    """Wait for the child within its limit; returns "ended", "timeout", "killed" (by a second signal) or "late" (to save).

    At the limit the kernel is killed first: the executor then still writes where the notebook stood.
    """
    started = time.monotonic()
    asked: float | None = None
    limit_reached: float | None = None
    while child.wait(POLL_S) is None:
        tick()
        line.update()
        now = time.monotonic()
        if limit_reached is None and now - started > limit_s:
            limit_reached = now
            line.say(f"over its limit of {limit_s:g} s: ending it")
            child.kill_kernel()
        if limit_reached is not None and now - limit_reached > END_GRACE_S:
            break
        if asked is None and interrupts.count:
            asked = now
            line.say(f"{interrupts.name}: asked the notebook to save and end; a second signal kills it")
            child.ask_to_save()
        if asked is not None and interrupts.count > 1:
            return "killed"
        if asked is not None and now - asked > SAVE_GRACE_S:
            return "late"
    return "ended" if limit_reached is None else "timeout"


def saved(outcome: StageOutcome) -> bool:
    """Whether a preempted stage said that it had saved; one that was killed, or knows no signal, says nothing."""
    return outcome.status == "preempted" and outcome.error.partition(":")[0] == "Preempted"


def failure_text(folder: Path, *, error: str, command: str) -> str:
    """What to print of a stage that failed: cell, last lines, executed notebook, advice, command that reruns this stage.

    Args:
        folder: the stage's folder.
        error: its error, with what to do (`hints.with_advice`).
        command: reruns just this stage.
    """
    result = _result(folder)
    lines = []
    cell = result.get("cell")
    if isinstance(cell, dict):
        ran = f" (In [{cell['execution_count']}])" if cell.get("execution_count") else ""
        source = str(cell.get("source", "")).splitlines()
        lines.append(f"    cell {cell.get('index')}{ran}:")
        lines += [f"      {text}" for text in source[:SHOWN_SOURCE]]
        if len(source) > SHOWN_SOURCE:
            lines.append(f"      … {len(source) - SHOWN_SOURCE} more lines")
    last = [str(text) for text in result.get("lines") or tail(folder / "log.txt", LAST_LINES)]
    if last:
        lines += ["    last lines:", *(f"      {text}" for text in last[-LAST_LINES:])]
    if (folder / "executed.ipynb").is_file():
        lines.append(f"    executed notebook: {folder / 'executed.ipynb'}")
    lines.append(f"    log:               {folder / 'log.txt'}")
    _, advice = hints.split(error)
    if advice:
        lines.append(f"    {hints.MARK:<19}{advice}")
    lines.append(f"    rerun this stage:  {command}")
    return "\n".join(lines)


def _status(folder: Path, how: str, exit_status: int, *, interrupted: bool, limit_s: float) -> tuple[StageStatus, str]:
    """The stage's status and one sentence, from what the executor wrote and how it ended."""
    result = _result(folder)
    status = result.get("status")
    name, value = result.get("ename") or "", result.get("evalue") or ""
    sentence = f"{name}: {value}" if value else str(name)
    if how == "timeout" and status != "ok":
        return "timeout", f"not done within its limit of {limit_s:g} s (limit_s in conf/phase)"
    if how == "killed" and status != "preempted":
        return "preempted", "killed by a second signal before it had saved"
    if how == "late" and status != "preempted":
        return "preempted", f"killed, since it had not saved within {SAVE_GRACE_S:g} s"
    if status is None:
        if interrupted:
            return "preempted", "ended by a signal before the notebook started"
        by = f"signal {-exit_status}" if exit_status < 0 else f"exit status {exit_status}"
        return "failed", f"the executor ended by {by} without a result"
    return status, "" if status == "ok" else sentence


def _outcome(
    folder: Path, status: StageStatus, error: str, line: StageLine, config: RunConfig, waivers: Sequence[Waiver]
) -> StageOutcome:
    try:
        closed = read_json(folder / "stage.json")
        device = Device(kind=str(closed["device"]["kind"]), count=int(closed["device"]["count"]))
        inputs = dict(closed["inputs"])
    except (ValueError, KeyError, TypeError):
        device, inputs = Device(), {}
        if status == "ok":
            status, error = "failed", f"{folder / 'stage.json'} is not what stage.close() writes"
    results = gates.evaluate_folder(
        gates.stage_gates(config.phase.gates, folder.name),
        folder,
        executed=status == "ok",
        device=device,
        waivers=waivers,
        problem="" if status == "ok" else f"the stage is {status.replace('_', ' ')}: {hints.split(error)[0]}",
        config=config,
    )
    return StageOutcome(
        name=folder.name,
        status=status,
        error=error,
        seconds=round(line.elapsed, 3),
        results=tuple(results),
        device=device,
        inputs=inputs,
    )


def _result(folder: Path) -> dict[str, Any]:
    try:
        value = read_json(folder / "result.json")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
