"""`dsv3lab verify`: recompute every hash of the chain, the records and their inputs, and name each file that differs.

Two separate verdicts. Integrity: is everything that was recorded still what it was? Staleness: has something that a
promotion was computed from (code, configuration, notebooks, lock files, versions) changed since? Editing code is no
tampering, so staleness alone leaves the exit status at 0.

Exit status: 0 intact, 1 not intact (or stale, with `--strict`), 2 usage.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv3lab.config import runs_dir
from dsv3lab.workbook import chain as chains
from dsv3lab.workbook import promotion, record
from dsv3lab.workbook.chain import Promotion
from dsv3lab.workbook.files import compare, read_json, sha256_file
from dsv3lab.workbook.record import PhaseRecord, RecordError

EXAMPLE = "example: dsv3lab verify --json"


@dataclass(kw_only=True)
class Verification:
    """What was found; `problems` and `stale` hold one line each, problems name their file first."""

    records: int = 0
    promotions: int = 0
    files: int = 0
    problems: list[str] = field(default_factory=list)
    stale: dict[str, list[str]] = field(default_factory=dict)
    """Newest promotion of each phase and profile, as `phase (profile)` -> what changed since."""
    waived: dict[str, list[str]] = field(default_factory=dict)
    """Newest promotion of each phase and profile -> its gates that a waiver let through."""
    unfinished: list[str] = field(default_factory=list)
    """Run folders without a record: still running, or killed."""

    @property
    def intact(self) -> bool:
        """Whether nothing recorded differs."""
        return not self.problems


def verify(runs: Path) -> Verification:
    """Both verdicts over a runs folder."""
    found = check_integrity(runs)
    newest = {(line.phase, line.profile): line for line in chains.check_chain(runs)[0]}
    for line in newest.values():
        try:
            content = record.read((runs / line.record).parent)
        except RecordError:
            continue  # integrity names it
        name = f"{line.phase} ({line.profile})"
        changed = promotion.staleness(content)
        if changed:
            found.stale[name] = changed
        waived = [f"gate {result.gate_id}: {result.waiver}" for result in content.results if result.waiver]
        if waived:
            found.waived[name] = waived
    return found


def check_integrity(runs: Path) -> Verification:
    """Check the chain of promotions, every record below `runs` and the inputs that records name."""
    found = Verification()
    chain, problems = chains.check_chain(runs)
    found.promotions, found.problems = len(chain), list(problems)
    promoted = {line.record: line for line in chain}
    folders = {path.parent for path in runs.glob(f"phase*/*/{record.NAME}")}
    folders |= {path.parent for path in runs.glob(f"phase*/*/{chains.NAME}")}
    folders |= {path.parent for path in runs.glob(f"sweeps/*/phase*/*/{record.NAME}")}
    inputs: dict[Path, str] = {}
    for folder in sorted(folders | {(runs / line.record).parent for line in chain}):
        _check_folder(folder, promoted.get(f"{folder.relative_to(runs).as_posix()}/{record.NAME}"), runs, found, inputs)
    for folder in sorted(path for path in runs.glob("phase*/*") if path.is_dir() and path not in folders):
        found.unfinished.append(str(folder))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="dsv3lab verify",
        description="Recompute every hash of promotions, records and data; name each file that differs.",
        epilog=f"{EXAMPLE}. Exit status: 0 intact, 1 not intact (or stale, with --strict), 2 usage.",
    )
    parser.add_argument(
        "runs", nargs="?", type=Path, default=None, help="the runs folder (default: that of the checkout)"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a promotion is stale, too")
    try:
        options = parser.parse_args(argv)
    except SystemExit as error:
        return int(error.code or 0)
    runs = Path(options.runs).resolve() if options.runs else runs_dir()
    if not runs.is_dir():
        parser.print_usage()
        print(f"{runs}: no such folder; nothing has been run yet, start with `make run`")
        return 2
    found = verify(runs)
    print(json.dumps({**vars(found), "intact": found.intact}, indent=1) if options.json else text(found, runs))
    return 1 if not found.intact or (options.strict and found.stale) else 0


def text(found: Verification, runs: Path) -> str:
    """The findings for a terminal."""
    lines = [f"{runs}: {found.promotions} promotions, {found.records} records, {found.files} files"]
    lines += [f"  {problem}" for problem in found.problems]
    lines.append("integrity: intact" if found.intact else f"integrity: NOT intact, findings: {len(found.problems)}")
    lines += [f"waived: {name}: {gate}" for name, gates in found.waived.items() for gate in gates]
    for name, changed in found.stale.items():
        lines.append(f"stale: {name}: {len(changed)} inputs changed since")
        lines += [f"  {change}" for change in changed]
    if found.promotions and not found.stale:
        lines.append("staleness: the promotions are those of the present code, configuration and versions")
    lines += [f"without a record (running, or killed): {folder}" for folder in found.unfinished]
    return "\n".join(lines)


def _check_folder(
    folder: Path, line: Promotion | None, runs: Path, found: Verification, inputs: dict[Path, str]
) -> None:
    found.records += 1
    path = folder / record.NAME
    if line is not None and path.exists() and record.sha256(folder) != line.record_sha256:
        found.problems.append(f"{path}: changed since it was promoted")
    found.problems += _check_promotion(folder, line)
    try:
        content = record.read(folder)
    except RecordError as error:
        found.problems.append(str(error) if path.exists() else f"{path}: deleted")
        return
    for changed, what in compare(folder, content.files, leave_out=record.NOT_HASHED):
        found.problems.append(f"{changed}: {what}")
    found.files += len(content.files)
    if content.run != folder.name or content.phase != folder.parent.name:
        found.problems.append(f"{path}: is the record of {content.phase}/{content.run}")
    found.problems += _check_upstream(path, content, runs)
    for stage in content.stages:
        for used in stage.inputs.get("uses", {}).values():
            found.problems += _check_manifest(path, used, runs, inputs)


def _check_promotion(folder: Path, line: Promotion | None) -> list[str]:
    path = folder / chains.NAME
    if line is None:
        return [f"{path}: not in {chains.CHAIN}: promotions were cut from it"] if path.exists() else []
    if not path.exists():
        return [f"{path}: deleted"]
    return (
        [] if path.read_bytes() == f"{line.line}\n".encode() else [f"{path}: changed: not its line of {chains.CHAIN}"]
    )


def _check_upstream(path: Path, content: PhaseRecord, runs: Path) -> list[str]:
    if content.upstream is None:
        return []
    upstream = runs / content.upstream.record
    if not upstream.exists():
        return [f"{upstream}: deleted; {path} builds on it"]
    if sha256_file(upstream) != content.upstream.record_sha256:
        return [f"{upstream}: changed since {path} was built on it"]
    return []


def _check_manifest(path: Path, used: dict[str, Any], runs: Path, inputs: dict[Path, str]) -> list[str]:
    """The files of an input folder against its manifest, once for each folder, and the manifest against the record."""
    folder = runs / str(used.get("folder"))
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return [f"{manifest}: deleted; {path} was computed from it"]
    problems = []
    if sha256_file(manifest) != used.get("manifest_sha256"):
        problems.append(f"{manifest}: changed since {path} was computed from it")
    if folder in inputs:
        return problems
    inputs[folder] = "checked"
    try:
        files = dict(read_json(manifest)["files"])
    except (ValueError, KeyError, TypeError) as error:
        return [*problems, f"{manifest}: has no readable list of files ({error})"]
    found = compare(folder, files, leave_out=frozenset({"manifest.json"}))
    return problems + [f"{changed}: {what}" for changed, what in found]
