"""Promotions: which records may enter the chain (`chain.py`), and whether a phase may build on one.

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
from dsv3lab.config.text import listed
from dsv3lab.config.workbook import ProfileConfig
from dsv3lab.workbook import commands, waivers
from dsv3lab.workbook import record as records
from dsv3lab.workbook.chain import CHAIN, HEAD, NAME, SCHEMA, START, ChainError, Promotion, read_chain
from dsv3lab.workbook.files import append_line, compare, read_json, sha256_text, utc_now, write_atomic
from dsv3lab.workbook.inputs import changes, environment_changes, read_environment, read_inputs
from dsv3lab.workbook.record import PhaseRecord, RecordError, Upstream


class UpstreamError(RuntimeError):
    """A phase that this one builds on is not promoted or is stale (exit status 4); the message says what to run."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A record that stands for its phase."""

    folder: Path
    record: PhaseRecord
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What an execution builds on, from one reading of the chain."""

    upstream: Upstream | None
    stages: dict[str, Path]
    """Stage of another phase that is read, e.g. "phase2/train" -> its folder in the record that `upstream` names."""


class Newest:
    """The newest record of each phase with one profile, from one reading of the chain.

    What is promoted between two questions does not mix in. For a profile that does not promote, the newest execution
    whose stages all finished stands in.
    """

    def __init__(self, profile: str, *, promotes: bool, runs: Path) -> None:
        self._profile, self._promotes, self._runs = profile, promotes, runs
        self._found: dict[int, Standing] = {}
        try:
            chain = read_chain(runs) if promotes else []
        except ChainError as error:
            raise UpstreamError(str(error)) from None
        self.promotions = {line.phase: line for line in chain if line.profile == profile}
        """The newest promotion of each phase; none for a profile that does not promote."""

    def find(self, number: int) -> Standing:
        """The record of phase `number`, as it was when it was first asked for.

        Raises:
            UpstreamError: if there is none, or it is not the one that was promoted.
        """
        if number not in self._found:
            phase = f"phase{number}"
            try:
                self._found[number] = self._promoted(phase) if self._promotes else self._finished(phase)
            except RecordError as error:
                raise UpstreamError(str(error)) from None
        return self._found[number]

    def stage(self, name: str) -> Path:
        """The folder of a stage, e.g. "phase2/train".

        Raises:
            UpstreamError: if the record has no such stage, or it did not finish.
        """
        found = self.find(_phase_of(name))
        phase, _, stage = name.partition("/")
        if stage not in {outcome.name for outcome in found.record.stages if outcome.finished}:
            command = _command(phase, self._profile)
            raise UpstreamError(f"{found.folder}: the record has no finished stage '{stage}'; {command}")
        return found.folder / stage

    def check(self, number: int, config: RunConfig | None = None) -> Standing:
        """The record of phase `number` if it may be built on: intact, not stale, and built on the newest itself.

        Args:
            number: the phase.
            config: also compare the sections on which all phases must agree with those of this configuration.

        Raises:
            UpstreamError: with what is wrong and the command to run.
        """
        found = self.find(number)
        record, command = found.record, _command(found.record.phase, self._profile)
        damaged = compare(found.folder, record.files, leave_out=records.NOT_HASHED)
        if damaged:
            path, what = damaged[0]
            raise UpstreamError(f"{path}: {what} since {record.phase} was recorded ({len(damaged)} in all); {command}")
        reasons: list[str] = []
        if config is not None:
            shared = {name: plain(getattr(config, name)) for name in records.SHARED}
            reasons = [f"{key} {old!r} -> {new!r}" for key, (old, new) in diff(record.shared, shared).items()]
        reasons += staleness(record)
        if reasons:
            raise UpstreamError(f"{record.phase} is stale: {listed(reasons, most=3)}; {command}")
        self._check_links(number)
        return found

    def _check_links(self, number: int) -> None:
        """Each record below must be the newest of its phase: who built on an older one knows nothing of the newer."""
        record = self.find(number).record
        if record.upstream is None:
            return
        below = {record.upstream.phase: record.upstream.record_sha256}
        below |= {name.split("/")[0]: sha256 for name, sha256 in record.upstream.needs.items()}
        for phase, sha256 in below.items():
            if self.find(_phase_of(phase)).sha256 != sha256:
                kind = "promotion" if self._promotes else "execution"
                command = _command(record.phase, self._profile, again=True)
                raise UpstreamError(f"{record.phase} was built on an older {kind} of {phase}; {command}")
            self._check_links(_phase_of(phase))

    def _promoted(self, phase: str) -> Standing:
        command = _command(phase, self._profile)
        if phase not in self.promotions:
            raise UpstreamError(f"{phase} is not promoted with profile '{self._profile}'; {command}")
        promotion = self.promotions[phase]
        folder = (self._runs / promotion.record).parent
        record = records.read(folder)
        if records.sha256(folder) != promotion.record_sha256:
            raise UpstreamError(f"{folder / records.NAME}: changed since it was promoted; {command}")
        return Standing(folder=folder, record=record, sha256=promotion.record_sha256)

    def _finished(self, phase: str) -> Standing:
        for folder in sorted((self._runs / phase).glob("*"), reverse=True):
            if (folder / records.NAME).exists():
                record = records.read(folder)
                if record.profile == self._profile and all(stage.finished for stage in record.stages):
                    return Standing(folder=folder, record=record, sha256=records.sha256(folder))
        command = _command(phase, self._profile)
        raise UpstreamError(f"{phase} has no finished execution with profile '{self._profile}'; {command}")


def decide(record: PhaseRecord) -> tuple[bool, list[str]]:
    """Whether a record may be promoted, and every reason against it."""
    reasons = records.blockers(record.stages, record.scope, record.whole or ())
    for change in record.drift:
        reasons.append(f"{change} while the phase ran: run it again")
    reasons += [f"{difference}: promoted records are judged by what is committed" for difference in record.overridden]
    above, scope = record.upstream, record.scope
    if above is not None and "unknown" != scope.platform != above.scope.platform:
        reasons.append(
            f"ran on {scope.count} x {scope.kind}, but {above.phase} stands for {above.scope.count} x {above.scope.kind} "
            f"and opens later phases on its own kind of device only: run {above.phase} on {scope.kind} first"
        )
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


def recover(runs: Path) -> list[str]:
    """Complete or take back a promotion that a crash interrupted; returns what was done, one line each."""
    if not (runs / CHAIN).exists():
        return []
    with _locked(runs):
        return _recover(runs)


def ground(config: RunConfig, runs: Path) -> Ground:
    """What the phase of `config` builds on, checked: promoted, intact, not stale, and itself built on the newest.

    For a profile that does not promote it is the newest execution of the same profile whose stages all finished.

    Raises:
        UpstreamError: with the phase, what is wrong and the command to run.
    """
    if config.phase.requires_phase is None:
        return Ground(upstream=None, stages={})
    recover(runs)
    needs = {name: _phase_of(name) for stage in config.phase.stages.values() for name in stage.needs}
    needs = {name: number for name, number in needs.items() if number != config.phase.number}
    newest = Newest(config.profile.name, promotes=config.profile.promotes, runs=runs)
    for number in sorted({config.phase.requires_phase, *needs.values()}):
        newest.check(number, config)
    above = newest.find(config.phase.requires_phase)
    return Ground(
        upstream=Upstream(
            phase=above.record.phase,
            record=records.locate(above.record, above.folder, runs),
            record_sha256=above.sha256,
            promoted=config.profile.promotes,
            needs={name: newest.find(number).sha256 for name, number in needs.items()},
            scope=above.record.scope,
        ),
        stages={name: newest.stage(name) for name in needs},
    )


def find_stage(name: str, profile: ProfileConfig, runs: Path) -> Path:
    """The folder of a stage of another phase, e.g. "phase2/train", from the newest record that may be built on.

    Raises:
        UpstreamError: if there is none.
    """
    return Newest(profile.name, promotes=profile.promotes, runs=runs).stage(name)


def staleness(record: PhaseRecord) -> list[str]:
    """What the record was computed from and has changed since, and waivers that have ended; empty if nothing has."""
    now = read_inputs(_phase_of(record.phase + "/"))
    lines = changes(record.inputs.code, now.code) + changes(record.inputs.lock, now.lock)
    lines += environment_changes(record.environment, read_environment())
    return lines + waivers.ended(record.results)


def record_as_read(record: PhaseRecord) -> PhaseRecord:
    """The record as it comes back from its file (numbers take the type of their field)."""
    return build(PhaseRecord, json.loads(canonical(record)))


def _command(phase: str, profile: str, *, again: bool = False) -> str:
    option = () if profile == "default" else (f"profile={profile}",)
    return f"run `{commands.pipeline(phase, *option)}` {'again ' if again else ''}with the same overrides"


def _phase_of(name: str) -> int:
    phase = name.split("/", 1)[0]
    if not (phase.startswith("phase") and phase[5:].isdigit()):
        raise ConfigError(f"'{name}' does not name a stage as phaseN/stage")
    return int(phase[5:])


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
