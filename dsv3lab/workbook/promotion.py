"""Promotions: an append-only chain of records, and the question whether a phase may build on one.

`promotions.jsonl` has one canonical JSON line for each promotion, with the SHA-256 of the line before. The file
`promotions.head` holds the number of lines and the hash of the last one, so that a cut is seen; each promoted folder
holds its own line as `promotion.json`, so that a cut of both is seen too. Tamper-evident, not tamper-proof.

Order of writing: line, promotion.json, head. Whatever a crash leaves between them is completed by `recover`.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3lab.config import ConfigError, RunConfig, build, canonical, diff, plain
from dsv3lab.config.disk import flush
from dsv3lab.config.workbook import ProfileConfig
from dsv3lab.workbook import record as records
from dsv3lab.workbook.files import append_line, compare, read_json, sha256_text, utc_now, write_atomic
from dsv3lab.workbook.gates import Device
from dsv3lab.workbook.inputs import changes, environment_changes, read_environment, read_inputs
from dsv3lab.workbook.record import PhaseRecord, RecordError, Upstream

SCHEMA = 1
CHAIN = "promotions.jsonl"
HEAD = "promotions.head"
NAME = "promotion.json"
START = "0" * 64
"""The hash that the first line follows."""


class ChainError(ValueError):
    """A chain of promotions that is not intact; the message names the file and the line."""


class UpstreamError(RuntimeError):
    """A phase that this one builds on is not promoted or is stale (exit status 4); the message says what to run."""


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """One line of the chain."""

    schema: int
    index: int
    prev_sha256: str
    phase: str
    profile: str
    record: str
    """Path of `record.json` relative to the runs folder."""
    record_sha256: str
    scope: Device
    created: str

    @property
    def line(self) -> str:
        """Its canonical text."""
        return canonical(self)

    @property
    def sha256(self) -> str:
        """The hash that the next line follows."""
        return sha256_text(self.line)


def decide(record: PhaseRecord) -> tuple[bool, list[str]]:
    """Whether a record may be promoted, and every reason against it."""
    reasons = records.blockers(record.stages, record.scope)
    for change in record.drift:
        reasons.append(f"{change} while the phase ran: run it again")
    reasons += [f"{difference}: promoted records are judged by what is committed" for difference in record.overridden]
    if not record.stages:
        reasons.append("the record has no stage")
    if not record.promotes:
        reasons.append(f"profile '{record.profile}' is never promoted")
    return not reasons, reasons


def promote(folder: Path, record: PhaseRecord, runs: Path) -> Promotion:
    """Append the record of `folder` to the chain; a crash at any moment leaves the old chain or the new one.

    Raises:
        ChainError: if the chain is not intact.
        RecordError: if the record may not be promoted or is not what the folder holds.
    """
    allowed, reasons = decide(record)
    if not allowed:
        raise RecordError(f"{folder}: may not be promoted: {'; '.join(reasons)}")
    if records.read(folder) != record_as_read(record):
        raise RecordError(f"{folder / records.NAME}: holds another record than the one to promote")
    with _locked(runs):
        _recover(runs)
        chain = read_chain(runs)
        if not chain and not (runs / HEAD).exists():
            write_atomic(runs / HEAD, canonical({"count": 0, "sha256": START}) + "\n")
        promotion = Promotion(
            schema=SCHEMA,
            index=len(chain),
            prev_sha256=chain[-1].sha256 if chain else START,
            phase=record.phase,
            profile=record.profile,
            record=records.locate(record, folder, runs),
            record_sha256=records.sha256(folder),
            scope=record.scope,
            created=utc_now(),
        )
        append_line(runs / CHAIN, promotion.line, sync=True)
        flush(runs)
        _finish(promotion, runs)
    return promotion


def read_chain(runs: Path) -> list[Promotion]:
    """The promotions, oldest first.

    Raises:
        ChainError: for the first thing that is wrong with the chain or its head.
    """
    promotions, problems = check_chain(runs)
    if problems:
        raise ChainError("; ".join(problems[:1]) + "; run `dsv3lab verify` for the whole picture")
    return promotions


def check_chain(runs: Path) -> tuple[list[Promotion], list[str]]:
    """The readable promotions, and everything that is wrong with the chain and its head (each names the file)."""
    chain, head = runs / CHAIN, runs / HEAD
    promotions, problems = _read_lines(chain)
    if not chain.exists() and not head.exists():
        return [], []
    try:
        expected = read_json(head)
        count, last = int(expected["count"]), str(expected["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error) if str(head) in str(error) else f"{head}: not a head of the chain"
        return promotions, [*problems, reason]
    lines = chain.read_text(encoding="utf-8", errors="replace").splitlines() if chain.exists() else []
    if head.read_text(encoding="utf-8", errors="replace") != canonical(expected) + "\n":
        problems.append(f"{head}: not in the form it was written in")
    if len(lines) < count:
        problems.append(f"{chain}: has {len(lines)} lines, {head.name} says {count}: promotions were cut from its end")
        problems.append(f"{head}: says {count} promotions, {chain.name} has {len(lines)}")
    elif len(lines) > count:
        problems.append(f"{chain}: has {len(lines)} lines, {head.name} says {count}: interrupted, or added by hand")
        problems.append(f"{head}: says {count} promotions, {chain.name} has {len(lines)}")
    elif (sha256_text(lines[-1]) if lines else START) != last:
        problems.append(f"{chain}: the last line is not the one that {head.name} names")
        problems.append(f"{head}: does not name the last line of {chain.name}")
    return promotions, problems


def recover(runs: Path) -> list[str]:
    """Complete or take back a promotion that a crash interrupted; returns what was done, one line each."""
    if not (runs / CHAIN).exists():
        return []
    with _locked(runs):
        return _recover(runs)


def upstream(config: RunConfig, runs: Path) -> Upstream | None:
    """The record that the phase of `config` builds on, checked: promoted, intact, and not stale. `None` for phase 1.

    For a profile that does not promote it is the newest execution of the same profile whose stages all finished.

    Raises:
        UpstreamError: with the phase, what is wrong and the command to run.
    """
    if config.phase.requires_phase is None:
        return None
    recover(runs)
    needs = {name: _phase_of(name) for stage in config.phase.stages.values() for name in stage.needs}
    required = {config.phase.requires_phase, *(n for n in needs.values() if n != config.phase.number)}
    found = {number: _checked(number, config, runs) for number in sorted(required)}
    folder, record = found[config.phase.requires_phase]
    return Upstream(
        phase=record.phase,
        record=records.locate(record, folder, runs),
        record_sha256=records.sha256(folder),
        promoted=config.profile.promotes,
        needs={name: records.sha256(found[number][0]) for name, number in needs.items() if number in found},
    )


def find_stage(name: str, profile: ProfileConfig, runs: Path) -> Path:
    """The folder of a stage of another phase, e.g. "phase2/train", from the newest record that may be built on.

    Raises:
        UpstreamError: if there is none.
    """
    number = _phase_of(name)
    phase, _, stage = name.partition("/")
    folder, record = _newest(number, profile, runs)
    if stage not in {outcome.name for outcome in record.stages if outcome.finished}:
        raise UpstreamError(f"{folder}: the record has no finished stage '{stage}'; {_command(phase, profile)}")
    return folder / stage


def staleness(record: PhaseRecord) -> list[str]:
    """What the record was computed from and has changed since, one line each; empty if nothing has."""
    now = read_inputs(_phase_of(record.phase + "/"))
    lines = changes(record.inputs.code, now.code) + changes(record.inputs.lock, now.lock)
    return lines + environment_changes(record.environment, read_environment())


def record_as_read(record: PhaseRecord) -> PhaseRecord:
    """The record as it comes back from its file (numbers take the type of their field)."""
    return build(PhaseRecord, json.loads(canonical(record)))


def _checked(number: int, config: RunConfig, runs: Path) -> tuple[Path, PhaseRecord]:
    folder, record = _newest(number, config.profile, runs)
    command = _command(record.phase, config.profile)
    damaged = compare(folder, record.files, leave_out=records.NOT_HASHED)
    if damaged:
        path, what = damaged[0]
        raise UpstreamError(f"{path}: {what} since {record.phase} was recorded ({len(damaged)} in all); {command}")
    shared = {name: plain(getattr(config, name)) for name in records.SHARED}
    reasons = [f"{key} {old!r} -> {new!r}" for key, (old, new) in diff(record.shared, shared).items()]
    reasons += staleness(record)
    if reasons:
        more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        raise UpstreamError(f"{record.phase} is stale: {', '.join(reasons[:3])}{more}; {command}")
    return folder, record


def _newest(number: int, profile: ProfileConfig, runs: Path) -> tuple[Path, PhaseRecord]:
    phase = f"phase{number}"
    try:
        if profile.promotes:
            mine = [p for p in read_chain(runs) if p.phase == phase and p.profile == profile.name]
            if not mine:
                raise UpstreamError(
                    f"{phase} is not promoted with profile '{profile.name}'; {_command(phase, profile)}"
                )
            folder = (runs / mine[-1].record).parent
            record = records.read(folder)
            if records.sha256(folder) != mine[-1].record_sha256:
                raise UpstreamError(
                    f"{folder / records.NAME}: changed since it was promoted; {_command(phase, profile)}"
                )
            return folder, record
        for folder in sorted((runs / phase).glob("*"), reverse=True):
            if (folder / records.NAME).exists():
                record = records.read(folder)
                if record.profile == profile.name and all(stage.finished for stage in record.stages):
                    return folder, record
    except (ChainError, RecordError) as error:
        raise UpstreamError(str(error)) from None
    raise UpstreamError(f"{phase} has no finished execution with profile '{profile.name}'; {_command(phase, profile)}")


def _command(phase: str, profile: ProfileConfig) -> str:
    option = "" if profile.name == "default" else f" profile={profile.name}"
    return f"run `python pipelines/{phase}.py{option}` with the same overrides"


def _phase_of(name: str) -> int:
    phase = name.split("/", 1)[0]
    if not (phase.startswith("phase") and phase[5:].isdigit()):
        raise ConfigError(f"'{name}' does not name a stage as phaseN/stage")
    return int(phase[5:])


def _read_lines(chain: Path) -> tuple[list[Promotion], list[str]]:
    promotions: list[Promotion] = []
    problems: list[str] = []
    if not chain.exists():
        return promotions, problems
    data = chain.read_bytes()
    if data and not data.endswith(b"\n"):
        problems.append(f"{chain}: the last line is torn: an interrupted promotion, or a cut")
    previous = START
    for number, line in enumerate(data.decode("utf-8", errors="replace").splitlines(), start=1):
        try:
            promotion = build(Promotion, json.loads(line))
            if promotion.line != line:
                problems.append(f"{chain}: line {number} is not in the form it was written in")
            if promotion.prev_sha256 != previous or promotion.index != number - 1:
                problems.append(f"{chain}: line {number} does not follow the line before it")
            promotions.append(promotion)
        except ValueError as error:
            problems.append(f"{chain}: line {number} is not a promotion ({error})")
        previous = sha256_text(line)
    return promotions, problems


def _recover(runs: Path) -> list[str]:
    chain, head = runs / CHAIN, runs / HEAD
    if not (chain.exists() and head.exists()):
        return []
    try:
        expected = read_json(head)
        count, last = int(expected["count"]), str(expected["sha256"])
    except (ValueError, KeyError, TypeError):
        return []
    lines = chain.read_bytes().split(b"\n")
    complete, tail = lines[:-1], lines[-1]
    hashes = [sha256_text(line.decode("utf-8", errors="replace")) for line in complete]
    before = hashes[count - 1] if 0 < count <= len(hashes) else START
    if before != last or not count <= len(complete) <= count + 1:
        return []  # not what a crash leaves: verify names it
    done = []
    if tail and len(complete) == count:
        with open(chain, "r+b") as file:
            file.truncate(sum(len(line) + 1 for line in complete))
            os.fsync(file.fileno())
        done.append(f"{chain}: took back a promotion that was cut off while writing")
    if not tail and len(complete) == count + 1:
        try:
            promotion = build(Promotion, json.loads(complete[-1]))
            intact = (
                promotion.prev_sha256 == last
                and records.sha256((runs / promotion.record).parent) == promotion.record_sha256
            )
        except (ValueError, OSError):
            return done
        if intact:
            _finish(promotion, runs)
            done.append(f"{head}: completed the promotion of {promotion.record}")
    return done


def _finish(promotion: Promotion, runs: Path) -> None:
    write_atomic((runs / promotion.record).parent / NAME, promotion.line + "\n")
    write_atomic(runs / HEAD, canonical({"count": promotion.index + 1, "sha256": promotion.sha256}) + "\n")


@contextmanager
def _locked(runs: Path) -> Iterator[None]:
    runs.mkdir(parents=True, exist_ok=True)
    handle: Any = os.open(runs / ".promotions.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
