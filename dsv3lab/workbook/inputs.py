"""What a phase execution is determined by, hashed: code, lock files, environment, revision. And what changed since."""

import functools
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from dsv3lab.config import ROOT, RunConfig, plain
from dsv3lab.workbook.files import hash_folder, sha256_file

PACKAGES = ("jax", "jaxlib", "equinox", "optax", "orbax-checkpoint", "numpy", "tokenizers")
"""Packages whose version can change a number in a record."""

_PHASES = {1: "components", 2: "integration", 3: "scale", 4: "production"}


@dataclass(frozen=True, kw_only=True)
class Git:
    """The revision beside the hashes; empty outside a git checkout."""

    revision: str
    dirty: bool

    def __str__(self) -> str:
        return self.revision[:12] + (" with changes" if self.dirty else "") if self.revision else "no git"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a phase ran."""

    python: str
    packages: dict[str, str]
    system: str
    cores: int
    memory_gib: float
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables by which JAX and XLA compute otherwise (`read_variables`)."""

    @property
    def host(self) -> str:
        """The machine, for people."""
        return f"{self.system}, {self.cores} cores, {self.memory_gib} GiB"

    @property
    def settings(self) -> str:
        """The variables, for people."""
        return ", ".join(f"{name}={value}" for name, value in self.variables.items()) or "none of JAX's set"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Hashes of everything that a phase was computed from; paths are relative to the checkout."""

    code: dict[str, str]
    """Package, configuration, pipelines and the notebooks of the phase."""
    lock: dict[str, str]
    """Requirements and constraints."""


def read_inputs(phase: int, root: Path = ROOT) -> Inputs:
    """The hashes of the files that phase number `phase` depends on, as they are now.

    The files of other phases, the waivers, the baselines and the studies are left out: editing them makes nothing stale.
    """
    code: dict[str, str] = {}
    for folder, suffix in (("dsv3lab", ".py"), ("conf", ".yaml"), ("pipelines", ".py")):
        code |= {f"{folder}/{n}": h for n, h in hash_folder(root / folder).items() if n.endswith(suffix)}
    notebooks = f"notebooks/phase{phase}_{_PHASES[phase]}"
    code |= {f"{notebooks}/{n}": h for n, h in hash_folder(root / notebooks).items() if n.endswith(".ipynb")}
    others = {f"phase{other}" for other in _PHASES if other != phase}
    free = ("conf/waivers.yaml", "conf/baselines/", "conf/studies/")
    code = {name: h for name, h in code.items() if Path(name).stem not in others and not name.startswith(free)}
    names = ("pyproject.toml", "environment.yml", "constraints*.txt", "constraints/*.txt")
    lock = {path.relative_to(root).as_posix(): sha256_file(path) for name in names for path in sorted(root.glob(name))}
    return Inputs(code=code, lock=lock)


def code_sha256(root: Path = ROOT) -> dict[str, str]:
    """Hashes of the package's own source files."""
    return {name: h for name, h in hash_folder(root / "dsv3lab").items() if name.endswith(".py")}


def stage_code(code: Mapping[str, str], notebook: str) -> dict[str, str]:
    """Those of the hashes in `Inputs.code` that one stage is computed from: the package, its notebook, and what the
    package reads of `conf/` by name. What Hydra composes is compared by its values (`stage_config`).
    """
    read = ("dsv3lab/", "conf/model/", "conf/corpus_digests.yaml")
    return {name: value for name, value in code.items() if name == notebook or name.startswith(read)}


def stage_config(config: RunConfig, stage: str) -> dict[str, Any]:
    """The part of the configuration that a stage computes with, as plain values by section.

    Gates are left out, since they are judged again from the recorded metrics; so are tracking, other stages, limits and
    what is only shown.
    """
    sections = plain(config)
    del sections["tracking"], sections["profile"]["time_factors"]
    mine = sections["phase"]["stages"][stage]
    return sections | {"phase": {"stages": {stage: {key: mine[key] for key in ("notebook", "needs")}}}}


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """One line for each name on which two tables of hashes (or versions) differ."""
    lines = [f"{name} deleted" for name in old if name not in new]
    lines += [f"{name} changed" for name in old if name in new and old[name] != new[name]]
    lines += [f"{name} added" for name in new if name not in old]
    return sorted(lines)


def read_git(root: Path = ROOT) -> Git:
    """Revision and whether tracked files differ from it."""
    revision = _git(root, "rev-parse", "HEAD")
    return Git(revision=revision, dirty=bool(revision and _git(root, "status", "--porcelain")))


@functools.cache
def read_environment() -> Environment:
    """Python, package versions and the class of this host (no name, no address)."""
    return Environment(
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
        system=f"{platform.system()} {platform.machine()}",
        cores=_cores(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        variables=read_variables(os.environ),
    )


def read_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Those of `environment` that change what JAX and XLA compute: all of theirs but where caches lie and which device.

    The device stands in the record as its scope.
    """
    same = ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_", "JAX_PERSISTENT_CACHE_", "JAX_ENABLE_COMPILATION_CACHE")
    names = [name for name in environment if name.startswith(("JAX_", "XLA_")) and not name.startswith(same)]
    return {name: environment[name] for name in sorted(names)}


def environment_changes(old: Environment, new: Environment) -> list[str]:
    """What changed between two environments and can change a number: Python (major.minor), packages, JAX's variables."""
    lines = [
        f"{name} {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for before, after in ((old.packages, new.packages), (old.variables, new.variables))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    if old.python.split(".")[:2] != new.python.split(".")[:2]:
        lines.insert(0, f"Python {old.python} -> {new.python}")
    return lines


def machine_changes(old: Environment, new: Environment) -> list[str]:
    """What differs between two machines of the same kind of device and can change how long something takes."""
    lines = [] if old.system == new.system else [f"system {old.system} -> {new.system}"]
    return lines + ([] if old.cores == new.cores else [f"cores {old.cores} -> {new.cores}"])


def uncommitted(folder: Path, *names: str, ignored: bool = False) -> list[str]:
    """The files below `folder` whose contents git has not committed, of the given folders and files; sorted.

    Nothing outside a git checkout: there is no telling then. With `ignored`, files that git is told to ignore count, too.
    """
    more = ["--ignored"] if ignored else []
    listed = _git(folder, "status", "--porcelain", "--untracked-files=all", *more, "--", *names)
    return sorted(line.split(maxsplit=1)[1] for line in listed.splitlines())


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux tells which cores this process may use
        return os.cpu_count() or 1
