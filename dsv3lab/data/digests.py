"""The committed digests of the corpora: which bytes the pinned packages give on each supported Python version."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from dsv3lab.config import CONF, DataConfig, read_yaml
from dsv3lab.data.sources import version

DIGESTS = CONF / "corpus_digests.yaml"

_HEADER = """\
# SHA-256 over the texts of each corpus, and the versions of the packages that they were read from, by Python version.
# Written by `python -m dsv3lab.data --digest --write` under each of them.
"""


@dataclass(frozen=True)
class CorpusStatus:
    """How a corpus compares with the committed digest."""

    status: Literal["committed", "different", "unknown"]
    message: str


def python_version() -> str:
    """The running Python as `major.minor`."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def versions(config: DataConfig) -> dict[str, str]:
    """The installed version of every package that feeds the corpus."""
    return {package: version(package) for package in sorted({p for d in config.domains.values() for p in d.packages})}


def compare(config: DataConfig, digest: str, *, path: Path = DIGESTS) -> CorpusStatus:
    """Compare a corpus digest with the committed one of this Python version; say what differs.

    The result is printed and nothing depends on it: the same texts from another Python are the same corpus.
    """
    committed = read_yaml(path) if path.exists() else {}
    entry = committed.get(config.name, {}).get(python_version())
    if entry is None:
        known = ", ".join(sorted(committed.get(config.name, {}))) or "none"
        return CorpusStatus(
            "unknown",
            f"corpus {config.name} {digest[:12]}: unknown on Python {python_version()} (committed digests: {known})",
        )
    if entry["digest"] == digest:
        return CorpusStatus(
            "committed", f"corpus {config.name} {digest[:12]}: as committed for Python {python_version()}"
        )
    installed = versions(config)
    other = [
        f"{name} {installed[name]} (pinned {pinned})"
        for name, pinned in entry["versions"].items()
        if name in installed and installed[name] != pinned
    ]
    cause = f"other versions are installed: {', '.join(other)}" if other else "the data configuration or a file differs"
    return CorpusStatus(
        "different",
        f"corpus {config.name} {digest[:12]}: not the committed {entry['digest'][:12]} of Python {python_version()}; "
        f"{cause}; results will differ a little from the published ones",
    )


def write(config: DataConfig, digest: str, *, path: Path = DIGESTS) -> None:
    """Record the digest of this Python version in the committed file."""
    committed = read_yaml(path) if path.exists() else {}
    entry = {"digest": digest, "versions": versions(config)}
    committed.setdefault(config.name, {})[python_version()] = entry
    body = yaml.dump(committed, default_flow_style=None, sort_keys=True, width=118)
    path.write_text(_HEADER + body)
