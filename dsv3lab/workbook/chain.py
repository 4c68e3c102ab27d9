"""The chain of promotions as it stands on disk: its lines, its head, and everything that is wrong with them.

`promotions.jsonl` has one canonical JSON line for each promotion, with the SHA-256 of the line before. The file
`promotions.head` holds the number of lines and the hash of the last one, so that a cut is seen; each promoted folder
holds its own line as `promotion.json`, so that a cut of both is seen too. Tamper-evident, not tamper-proof.
"""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dsv3lab.config import build, canonical
from dsv3lab.workbook import commands
from dsv3lab.workbook.files import read_json, sha256_text
from dsv3lab.workbook.gates import Device

SCHEMA = 1
CHAIN = "promotions.jsonl"
HEAD = "promotions.head"
NAME = "promotion.json"
START = "0" * 64
"""The hash that the first line follows."""


class ChainError(ValueError):
    """A chain of promotions that is not intact; the message names the file and the line."""


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


def read_chain(runs: Path) -> list[Promotion]:
    """The promotions, oldest first.

    Raises:
        ChainError: for the first thing that is wrong with the chain or its head.
    """
    promotions, problems = check_chain(runs)
    if problems:
        raise ChainError("; ".join(problems[:1]) + f"; run `{commands.verb('verify')}` for the whole picture")
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


def _inside(record: str) -> bool:
    path = PurePosixPath(record)
    return not path.is_absolute() and ".." not in path.parts and len(path.parts) == 3


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
            if not _inside(promotion.record):
                raise ValueError(f"record '{promotion.record}' is not a path below the runs folder")
            if promotion.prev_sha256 != previous or promotion.index != number - 1:
                problems.append(f"{chain}: line {number} does not follow the line before it")
            promotions.append(promotion)
        except ValueError as error:
            problems.append(f"{chain}: line {number} is not a promotion ({error})")
        previous = sha256_text(line)
    return promotions, problems
