"""What a word on the command line names: a run of a phase, or one stage's folder, finished or not.

    phase2/<run>   phase2/last   phase2/promoted   <run>   last   promoted    and each of them with /<stage> behind it
    or the path of a folder, as it is or below the runs folder (a run by hand, a training of `dsv3lab train`)

A side is read while it is being written: what is not there yet is said, never an error.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsv3lab.config import ConfigError
from dsv3lab.config.run import read_yaml
from dsv3lab.workbook import commands, gates
from dsv3lab.workbook import record as records
from dsv3lab.workbook.arguments import PHASES
from dsv3lab.workbook.chain import ChainError, read_chain
from dsv3lab.workbook.files import read_json, relative
from dsv3lab.workbook.gates import Point
from dsv3lab.workbook.record import PhaseRecord, RecordError, StageOutcome
from dsv3lab.workbook.sync import run_folders
from dsv3lab.workbook.verdict import count

CONFIG = "config.resolved.yaml"
WORDS = ("last", "promoted")


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the things that are compared."""

    name: str
    """Its path below the runs folder, or the whole path."""
    folder: Path
    stages: dict[str, Path]
    """Stage -> its folder; only the one of that name if a stage's folder was named."""
    single: bool
    """Whether it is one stage's folder and not a whole run."""
    config: dict[str, Any]
    """The resolved configuration as it stands in its file."""
    record: PhaseRecord | None
    state: str
    """In words: promoted, passed, or what is missing."""

    @property
    def complete(self) -> bool:
        """Whether nothing will be added to it."""
        return self.record is not None or (self.single and _closed(self.folder))

    @property
    def outcomes(self) -> tuple[StageOutcome, ...]:
        """What the record says of its stages; nothing without a record."""
        return tuple(stage for stage in self.record.stages if stage.name in self.stages) if self.record else ()


def find(words: Sequence[str], runs: Path) -> list[Side]:
    """The sides that `words` name; a bare `last` or `promoted` means the phase of the first word that names one.

    Raises:
        ConfigError: for a word that names nothing, with the nearest runs.
    """
    folders: list[Path | None] = [_named(word, runs) for word in words]
    phases = [folder.parent.name for folder in map(_home, folders) if folder and folder.parent.name in PHASES]
    phases += [word.split("/")[0] for word in words if word.split("/")[0] in PHASES]
    newest = run_folders(runs)
    phase = phases[0] if phases else (newest[-1].parent.name if newest else PHASES[0])
    return [_side(folder or _special(word, phase, runs), runs) for word, folder in zip(words, folders, strict=True)]


def read_points(folder: Path) -> list[Point]:
    """The points of a stage's folder so far; a line that is still being written is left out.

    Raises:
        ConfigError: for a whole line that is not a line of metrics.
    """
    path = folder / "metrics.jsonl"
    *lines, _ = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    found: list[Point] = []
    for number, line in enumerate(lines, start=1):
        try:
            found += gates.parse_line(line.decode())
        except ValueError as error:
            raise ConfigError(f"{path}: line {number} is not a line of metrics ({error})") from None
    return found


def stage_json(folder: Path) -> dict[str, Any]:
    """What a stage wrote when it was closed; nothing before that."""
    try:
        value = read_json(folder / "stage.json")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _closed(folder: Path) -> bool:
    return stage_json(folder).get("status") == "closed"


def _is_stage(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("metrics.jsonl", "request.json", "stage.json"))


def _home(folder: Path | None) -> Path | None:
    """The run folder that a run's or stage's folder belongs to."""
    return folder.parent if folder and _is_stage(folder) and not (folder / CONFIG).is_file() else folder


def _named(word: str, runs: Path) -> Path | None:
    """The folder that a word names by a path or by a run's name; `None` if it has one of `WORDS` to look up."""
    parts = word.strip("/").split("/")
    if parts[0] in WORDS or (parts[0] in PHASES and len(parts) > 1 and parts[1] in WORDS):
        return None
    for folder in (Path(word), runs / word):
        if folder.is_dir() and (_is_stage(folder) or (folder / CONFIG).is_file()):
            return folder.resolve()
    known = {folder.name: folder for folder in run_folders(runs)}
    wanted = parts[1:] if parts[0] in PHASES else parts
    fits = [folder for name, folder in known.items() if wanted and wanted[0] and name.startswith(wanted[0])]
    fits = [folder for folder in fits if parts[0] not in PHASES or folder.parent.name == parts[0]]
    if len(fits) == 1:
        return _stage(fits[0], wanted[1:], runs)
    if len(fits) > 1:
        names = ", ".join(relative(folder, runs) for folder in fits[-3:])
        raise ConfigError(f"'{word}' fits {len(fits)} runs; write more of its name: {names}")
    raise ConfigError(f"no run or stage '{word}' {_nearest(word, runs)}")


def _special(word: str, phase: str, runs: Path) -> Path:
    """The folder of `last` or `promoted`, of `phase` unless the word begins with another."""
    parts = word.strip("/").split("/")
    if parts[0] in PHASES:
        phase, parts = parts[0], parts[1:]
    which, rest = parts[0], parts[1:]
    if which == "last":
        found = [folder for folder in run_folders(runs) if folder.parent.name == phase]
        if not found:
            raise ConfigError(f"'{word}': {phase} has not run yet; run `{commands.pipeline(phase)}`")
        return _stage(found[-1], rest, runs)
    try:
        promotions = [line for line in read_chain(runs) if line.phase == phase]
    except ChainError as error:
        raise ConfigError(f"'{word}': {error}") from None
    if not promotions:
        raise ConfigError(f"'{word}': {phase} is not promoted yet; run `{commands.pipeline(phase)}`")
    return _stage((runs / promotions[-1].record).parent, rest, runs)


def _stage(folder: Path, rest: Sequence[str], runs: Path) -> Path:
    """The run `folder`, or the folder of its stage if `rest` names one."""
    if not rest:
        return folder
    known = _stages(folder)
    if len(rest) > 1 or rest[0] not in known:
        raise ConfigError(f"{relative(folder, runs)} has no stage '{'/'.join(rest)}'; known: {', '.join(known)}")
    return known[rest[0]]


def _stages(folder: Path) -> dict[str, Path]:
    """The stages of a run folder in the order of its configuration; those that have begun only."""
    configured = read_yaml(folder / CONFIG).get("phase", {}).get("stages", {})
    return {str(name): folder / str(name) for name in configured if (folder / str(name)).is_dir()}


def _nearest(word: str, runs: Path) -> str:
    names = [relative(folder, runs) for folder in run_folders(runs)]
    if not names:
        return f"below {runs}, where nothing has run yet; run `{commands.pipeline(PHASES[0])}`"
    tail = {name.split("/", 1)[1]: name for name in names}
    close = difflib.get_close_matches(word, [*names, *tail], n=3, cutoff=0.5)
    phase = [name for name in names if name.startswith(f"{word.split('/')[0]}/")]
    near = dict.fromkeys([tail.get(name, name) for name in close] or (phase or names)[-3:])
    return f"below {runs}; nearest: {', '.join(near)} (or phaseN/last, phaseN/promoted, or a folder's path)"


def _side(folder: Path, runs: Path) -> Side:
    home = _home(folder) or folder
    single = _is_stage(folder)
    stages = {_stage_name(folder): folder} if single else _stages(folder)
    record = None
    if (home / records.NAME).is_file():
        try:
            record = records.read(home)
        except RecordError as error:
            raise ConfigError(str(error)) from None
    side = Side(
        name=relative(folder, runs),
        folder=folder,
        stages=stages,
        single=single,
        config=read_yaml(home / CONFIG),
        record=record,
        state="",
    )
    return replace(side, state=_state(side, home))


def _stage_name(folder: Path) -> str:
    """The stage's name without its phase, as its files say; `train` for a training outside the workbook."""
    for name in ("stage.json", "request.json"):
        try:
            return str(read_json(folder / name)["stage"]).split("/")[-1]
        except (ValueError, KeyError, TypeError):
            continue
    return "train"


def _state(side: Side, home: Path) -> str:
    """What a reader must know before the numbers."""
    record = side.record
    if record is not None:
        word = "promoted" if (home / "promotion.json").is_file() else "passed" if record.passed else "not passed"
        results = [result for outcome in side.outcomes for result in outcome.results]
        scope = f"{record.scope.count} x {record.scope.kind}"
        return f"{'its run is ' if side.single else ''}{word} · profile {record.profile} · {scope} · {count(results)}"
    closed = sum(_closed(folder) for folder in side.stages.values())
    if side.single:
        if closed:
            return "closed; no record of its run"
        hand = "" if home != side.folder else ", or a training outside the workbook, which has no stage"
        return f"incomplete: the stage is not closed (running or cut off{hand})"
    listed = side.config.get("phase", {}).get("stages", {})
    return f"incomplete: no record yet (running or cut off); {closed} of {len(listed)} stages closed"
