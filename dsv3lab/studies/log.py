"""The append-only log of a study: each line holds the hash of the line before, so that what was written stays written.

    runs/studies/<study>/<time>/log.jsonl   {"time": ..., "event": "prediction", "sha256": ..., "previous": ...}

Tamper-evident, not tamper-proof, like the chain of promotions.
"""

import json
from pathlib import Path
from typing import Any

from dsv3lab.workbook.files import append_line, sha256_text, utc_now

NAME = "log.jsonl"


class StudyError(RuntimeError):
    """A study that cannot go on, or a result that cannot be believed; the message says why and what to do."""


def read(folder: Path) -> list[dict[str, Any]]:
    """The events of the study in `folder`, oldest first.

    A last line without its newline was being written when the process died: it never counted, and is cut off.

    Raises:
        StudyError: if a line was changed, removed or put between others.
    """
    path = folder / NAME
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    events, previous = [], ""
    for number, line in enumerate(whole.decode(errors="replace").splitlines(), 1):
        try:
            event = json.loads(line)
            said = event["previous"]
        except (ValueError, KeyError, TypeError):
            raise StudyError(f"{path}:{number}: not an event of a study; begin anew with --new") from None
        if said != previous:
            raise StudyError(
                f"{path}:{number}: the line before was changed after it was written; begin anew with --new"
            )
        events.append(event)
        previous = sha256_text(line)
    return events


def append(folder: Path, event: str, **facts: Any) -> dict[str, Any]:
    """Write one more event, on disk when this returns."""
    path = folder / NAME
    read(folder)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    previous = sha256_text(lines[-1]) if lines else ""
    entry = {"time": utc_now(), "event": event, **facts, "previous": previous}
    append_line(path, json.dumps(entry, allow_nan=False), sync=True)
    return entry
