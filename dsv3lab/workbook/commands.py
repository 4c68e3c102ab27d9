"""The commands that messages tell somebody to run: with this interpreter, whether or not its environment is active."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from dsv3lab.config import ROOT
from dsv3lab.config.workbook import PhaseConfig


def python() -> str:
    """This interpreter as one would type it in the checkout: `.venv/bin/python`, `python`, or its whole path."""
    return _typed(Path(sys.executable))


def verb(*words: str) -> str:
    """`dsv3lab` with `words`, e.g. `.venv/bin/dsv3lab verify`; without its script, `python -m dsv3lab verify`."""
    script = Path(sys.executable).with_name("dsv3lab")
    return f"{_typed(script) if script.is_file() else f'{python()} -m dsv3lab'} {shlex.join(words)}"


def pipeline(name: str, *words: str) -> str:
    """The command that runs a phase ("phase1"), or "all", with flags and overrides."""
    return f"{python()} {shlex.join([f'pipelines/{name}.py', *words])}"


def rerun(phase: PhaseConfig, stage: str, overrides: Sequence[str]) -> str:
    """The command that runs one stage of a phase again, and with it the later ones if any of them reads it."""
    read = any(f"{phase.name}/{stage}" in other.needs for other in phase.stages.values())
    return pipeline(phase.name, "--from" if read else "--only", stage, *overrides)


def _typed(path: Path) -> str:
    if path.is_relative_to(ROOT):
        return shlex.quote(str(path.relative_to(ROOT)))
    found = shutil.which(path.name)  # the environment is active: its name is enough
    return path.name if found and Path(found) == path else shlex.quote(str(path))
