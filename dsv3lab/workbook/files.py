"""Small file operations that survive a crash: one-write appends, hashes of folders, UTC time."""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dsv3lab.config.disk import is_temporary
from dsv3lab.config.disk import sha256_file as sha256_file
from dsv3lab.config.disk import write_atomic as write_atomic

IGNORED_FOLDERS = frozenset({"__pycache__", ".ipynb_checkpoints"})
"""Caches that Python and Jupyter leave wherever a folder is opened; they are no part of any record."""


def utc_now() -> str:
    """The time as UTC ISO text with microseconds, e.g. `2026-11-22T11:28:17.000000Z`."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def new_name() -> str:
    """A folder name that sorts by time: `<YYYYmmddTHHMMSSZ>-<6 hex>`."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def append_line(path: Path, line: str, *, sync: bool = False) -> None:
    """Append `line` and a newline by one write, so that lines of several writers do not mix.

    Args:
        sync: wait until the bytes are on disk.

    Raises:
        OSError: naming the file, if the disk takes only a part; the file is then as long as before.
    """
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    data = (line + "\n").encode()
    try:
        try:
            written = os.write(handle, data)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}; a line could not be appended", str(path)) from None
        if written != len(data):
            end = os.lseek(handle, 0, os.SEEK_CUR)
            if os.fstat(handle).st_size == end:  # nobody has written behind it: a torn line would spoil the whole file
                os.ftruncate(handle, end - written)
            reason = f"only {written} of {len(data)} bytes of a line could be written; free some space"
            raise OSError(errno.ENOSPC, reason, str(path))
        if sync:
            os.fsync(handle)
    finally:
        os.close(handle)


def sha256_text(text: str) -> str:
    """SHA-256 (hex) of UTF-8 text."""
    return hashlib.sha256(text.encode()).hexdigest()


def walk(folder: Path) -> Iterator[Path]:
    """All files below `folder`, sorted, caches and the temporary files of `write_atomic` left out.

    A file that is being replaced while somebody lists the folder, or was when a process was killed, is no part of what
    the folder holds: the old file or the new one is.
    """
    for path in sorted(folder.rglob("*")):
        if not is_temporary(path) and (path.is_symlink() or path.is_file()):
            if not IGNORED_FOLDERS.intersection(path.relative_to(folder).parts):
                yield path


def hash_folder(folder: Path, *, leave_out: frozenset[str] = frozenset()) -> dict[str, str]:
    """Relative POSIX path -> SHA-256 of every file below `folder`, except the relative paths in `leave_out`."""
    names = ((path.relative_to(folder).as_posix(), path) for path in walk(folder))
    return {name: sha256_file(path) for name, path in names if name not in leave_out}


def compare(folder: Path, files: dict[str, str], *, leave_out: frozenset[str] = frozenset()) -> list[tuple[Path, str]]:
    """What differs between `folder` and its list of hashes: (file, "changed" | "deleted" | "added")."""
    now = hash_folder(folder, leave_out=leave_out) if folder.is_dir() else {}
    found = [(folder / name, "deleted") for name in files if name not in now]
    found += [(folder / name, "changed") for name in files if name in now and now[name] != files[name]]
    found += [(folder / name, "added") for name in now if name not in files]
    return sorted(found)


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        ValueError: if the file cannot be read or is not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path}: not valid JSON ({error})") from None


def relative(path: Path, base: Path) -> str:
    """`path` relative to `base` where it lies below it, else absolute: records stay valid when `base` moves."""
    path, base = Path(os.path.abspath(path)), Path(os.path.abspath(base))  # links stay as they were named
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()
