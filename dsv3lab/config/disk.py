"""What both halves ask of a disk: hashes, atomic replacement, and that what was written stays after a power cut."""

import hashlib
import os
import re
import secrets
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes; of a symbolic link, that of its target's name."""
    if path.is_symlink():
        return hashlib.sha256(f"link {os.readlink(path)}".encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries (a rename, a new file), are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_name(path: Path) -> Path:
    """A new name beside `path` for what will replace it; `is_temporary` knows it after a crash, too."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether a file has a name that `temporary_name` gives."""
    return _TEMPORARY.fullmatch(path.name) is not None


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` with `text`: a reader, or a crash at any moment, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)
