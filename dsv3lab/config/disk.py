"""What both halves ask of a disk: the hash of a file, and that what was written stays after a power cut."""

import hashlib
import os
from pathlib import Path


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
