"""`dsv3lab doctor`: what this machine lacks, each finding with the exact command that mends it.

Exit status 0 if nothing must be mended (warnings allowed), 2 otherwise: a machine that is not set up is a matter of
usage, not a failed gate.
"""

import argparse
import fcntl
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from dsv3lab.config import ROOT, runs_dir
from dsv3lab.workbook import commands

GIB = 1024**3
DISK_FIX, DISK_WARN = 2 * GIB, 10 * GIB  # one run of all phases writes well under 1 GiB; the environment is 1.2 GiB
MEMORY_FIX, MEMORY_WARN = 5 * GIB, 6 * GIB  # the largest kernel of the default held 4.1 GiB, the pipeline 0.3 GiB
_ASK_JAX = """
import json, jax
print(json.dumps({"jax": jax.__version__, "jaxlib": jax.lib.__version__, "backend": jax.default_backend(),
                  "devices": [d.device_kind for d in jax.devices()]}))
"""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    name: str
    status: Literal["ok", "warn", "FIX"]
    text: str
    fix: str = ""
    """The command that mends it; empty only for `ok`."""


def check_python(version: tuple[int, int, int]) -> Finding:
    """Whether this Python is new enough."""
    text = ".".join(map(str, version))
    if version < (3, 11, 0):
        return Finding(
            name="python", status="FIX", text=f"{text} is older than 3.11", fix="make clean-all setup PYTHON=python3.12"
        )
    return Finding(name="python", status="ok", text=f"{text} at {sys.executable}")


def pins(constraints: Path) -> dict[str, str]:
    """The pinned version of each package, for this Python and platform, from a constraints file."""
    pinned = {}
    for line in constraints.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                pinned[requirement.name] = next(iter(requirement.specifier)).version
    return pinned


def check_pins(pinned: dict[str, str], installed: Callable[[str], str | None]) -> Finding:
    """Whether jax and the other packages have the versions that the project was tried with."""
    found = {name: installed(name) for name in pinned}
    wrong = {name: version for name, version in found.items() if version is not None and version != pinned[name]}
    core = [
        f"{name} {found[name] or 'missing'}, pinned {pinned[name]}"
        for name in ("jax", "jaxlib")
        if found.get(name) != pinned.get(name)
    ]
    if core:
        return Finding(name="packages", status="FIX", text="; ".join(core), fix="make clean-all setup")
    if wrong:
        shown = ", ".join(f"{name} {version} (pinned {pinned[name]})" for name, version in sorted(wrong.items())[:5])
        text = f"{len(wrong)} of {len(pinned)} differ from constraints.txt: {shown}{', …' if len(wrong) > 5 else ''}"
        return Finding(name="packages", status="warn", text=text, fix="make clean-all setup")
    here = sum(version is not None for version in found.values())
    text = f"jax {found.get('jax')}, jaxlib {found.get('jaxlib')}; {here} packages as pinned"
    return Finding(name="packages", status="ok", text=text)


def ask_jax(timeout_s: float = 120.0) -> dict[str, object] | str:
    """What JAX says of itself and its devices, asked in a process of its own; a string says what went wrong."""
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # others may be at work on the GPU
    command = [sys.executable, "-c", _ASK_JAX]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment)
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s:.0f} s"
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return last[0]
    return json.loads(done.stdout.splitlines()[-1])


def check_devices(answer: dict[str, object] | str, *, nvidia: bool) -> Finding:
    """The devices that JAX computes on; `nvidia`: whether this machine has an NVIDIA driver."""
    if isinstance(answer, str):
        return Finding(name="devices", status="FIX", text=f"jax does not start: {answer}", fix="make clean-all setup")
    devices = answer["devices"]
    assert isinstance(devices, list)
    text = f"{len(devices)} x {devices[0]} (backend {answer['backend']})"
    if nvidia and answer["backend"] == "cpu":
        fix = f"{commands.python()} -m pip install -c constraints.txt -e '.[gpu]'"
        return Finding(name="devices", status="warn", text=f"{text}; a GPU is there but not used", fix=fix)
    return Finding(name="devices", status="ok", text=text)


def check_kernel(spec: tuple[str, str] | None, *, prefix: str, hidden: list[str]) -> Finding:
    """Whether a notebook's `python3` kernel is this environment.

    Args:
        spec: first word of the kernel's command and the folder of its kernelspec; `None` if there is no such kernel.
        prefix: `sys.prefix` of this environment.
        hidden: folders of other `python3` kernels, which this environment's own one hides.
    """
    fix = f"{commands.python()} -m ipykernel install --sys-prefix --name python3"
    if spec is None:
        return Finding(name="kernel", status="FIX", text="there is no kernel 'python3'", fix=fix)
    command, folder = spec
    # jupyter_client starts a bare `python` as the interpreter that it runs in itself.
    bare = command in {"python", f"python{sys.version_info[0]}", f"python{sys.version_info[0]}.{sys.version_info[1]}"}
    if not bare and not Path(command).is_relative_to(prefix):
        text = f"'python3' is {command} (from {folder}), not this environment; its kernels would lack the packages"
        return Finding(name="kernel", status="FIX", text=text, fix=f"rm -r {shlex.quote(folder)}; {fix}")
    if not Path(folder).is_relative_to(prefix):
        text = f"'python3' comes from {folder}; it would run in this environment from here, not from other tools"
        return Finding(name="kernel", status="warn", text=text, fix=fix)
    also = f" (it hides {', '.join(hidden)})" if hidden else ""
    return Finding(name="kernel", status="ok", text=f"'python3' is this environment{also}")


def find_kernel() -> tuple[tuple[str, str] | None, list[str]]:
    """The `python3` kernel as jupyter resolves it here, and the folders of those that it hides."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    manager = KernelSpecManager()
    manager.ensure_native_kernel = False  # the spec on disk, as JupyterLab's own process would list it
    try:
        spec = manager.get_kernel_spec("python3")
    except NoSuchKernel:
        return None, []
    folders = [Path(folder) / "python3" for folder in manager.kernel_dirs]
    hidden = [str(f) for f in folders if (f / "kernel.json").exists() and str(f) != spec.resource_dir]
    return (spec.argv[0], spec.resource_dir), hidden


def check_database(database: Path) -> Finding:
    """Whether the tracking database can be written."""
    folder = database.parent
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Finding(
            name="database",
            status="FIX",
            text=f"{existing} is not a folder that can be written",
            fix=f"chmod u+w {shlex.quote(str(existing))}, or export DSV3LAB_RUNS=ANOTHER_FOLDER",
        )
    if not database.exists():
        return Finding(name="database", status="ok", text=f"{database} will be made by the first run")
    damaged = f"mv {shlex.quote(str(database))} {shlex.quote(str(database) + '.damaged')}; {commands.verb('sync')}"
    try:
        connection = sqlite3.connect(database, timeout=2.0, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            text = f"{database} is busy: another process has been writing for 2 s"
            fix = f"wait for that process, then {commands.verb('doctor')}"
            return Finding(name="database", status="warn", text=text, fix=fix)
        fix = f"chmod u+w {shlex.quote(str(database))}"
        return Finding(name="database", status="FIX", text=f"{database}: {error}", fix=fix)
    except sqlite3.DatabaseError as error:
        return Finding(name="database", status="FIX", text=f"{database}: {error}", fix=damaged)
    return Finding(name="database", status="ok", text=f"{database} can be written")


def check_stale(runs: Path) -> Finding:
    """Executions that were killed: run folders without a record, and MLflow runs that still say RUNNING."""
    live = {lock.parent for lock in runs.glob("phase[1-4]/.lock") if _held(lock)}
    running = f", {', '.join(sorted(folder.name for folder in live))} running now" if live else ""
    folders = sorted(path.parent for path in runs.glob("phase[1-4]/*/config.resolved.yaml"))
    stale = [folder for folder in folders if not (folder / "record.json").exists() and folder.parent not in live]
    if stale:
        names = ", ".join(f"{folder.parent.name}/{folder.name}" for folder in stale[:3])
        text = (
            f"{len(stale)} killed before their record was written ({names}{', …' if len(stale) > 3 else ''}){running}"
        )
        fix = "rm -r " + " ".join(shlex.quote(str(folder)) for folder in stale)
        return Finding(
            name="runs", status="warn", text=f"{text}; training goes on from runs/work all the same", fix=fix
        )
    open_runs = 0 if live else _open_mlflow_runs(runs / "mlflow.db")
    if open_runs:
        text = f"{open_runs} in MLflow still say RUNNING"
        return Finding(name="runs", status="warn", text=text, fix=commands.verb("sync"))
    return Finding(name="runs", status="ok", text=f"{len(folders)} executions, none left half done{running}")


def _held(lock: Path) -> bool:
    """Whether a living process holds the lock file."""
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _open_mlflow_runs(database: Path) -> int:
    """Runs that the tracking database calls RUNNING; 0 where it cannot be read (`check_database` says why)."""
    if not database.exists():
        return 0
    try:
        connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=2.0)
        try:
            query = "SELECT COUNT(*) FROM runs WHERE status = 'RUNNING' AND lifecycle_stage = 'active'"
            return int(connection.execute(query).fetchone()[0])
        finally:
            connection.close()
    except sqlite3.DatabaseError:
        return 0


def check_amount(name: str, have: int, *, fix_below: int, warn_below: int, what: str, fix: str) -> Finding:
    """Whether there is enough of something that is counted in bytes."""
    text = f"{have / GIB:.1f} GiB {what}"
    if have < fix_below:
        return Finding(name=name, status="FIX", text=f"{text}, at least {fix_below / GIB:.0f} are needed", fix=fix)
    if have < warn_below:
        return Finding(name=name, status="warn", text=f"{text}, {warn_below / GIB:.0f} are comfortable", fix=fix)
    return Finding(name=name, status="ok", text=text)


def check_git(root: Path) -> Finding:
    """Whether records can name the revision that they were made from."""
    if shutil.which("git") is None:
        return Finding(name="git", status="warn", text="not found; records will lack the revision", fix="install git")
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if done.returncode:
        fix = f"git clone the project instead of copying it, or git -C {shlex.quote(str(root))} init and commit"
        return Finding(name="git", status="warn", text=f"{root} has no revision; records will lack it", fix=fix)
    return Finding(name="git", status="ok", text=f"revision {done.stdout.strip()}")


def findings() -> Iterator[Finding]:
    """All findings on this machine, in the order of the report."""
    import psutil

    runs = runs_dir()
    yield check_python(sys.version_info[:3])
    yield check_pins(pins(ROOT / "constraints.txt"), _installed)
    yield check_devices(ask_jax(), nvidia=shutil.which("nvidia-smi") is not None)
    spec, hidden = find_kernel()
    yield check_kernel(spec, prefix=sys.prefix, hidden=hidden)
    yield check_database(runs / "mlflow.db")
    yield check_stale(runs)
    existing = next(parent for parent in (runs, *runs.parents) if parent.exists())
    yield check_amount(
        "disk",
        shutil.disk_usage(existing).free,
        fix_below=DISK_FIX,
        warn_below=DISK_WARN,
        what=f"free at {existing}",
        fix="free some space, or export DSV3LAB_RUNS=ANOTHER_FOLDER",
    )
    yield check_amount(
        "memory",
        psutil.virtual_memory().available,
        fix_below=MEMORY_FIX,
        warn_below=MEMORY_WARN,
        what="free",
        fix="close other programs; open JupyterLab kernels hold memory too",
    )
    yield check_git(ROOT)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def report(found: Iterator[Finding]) -> int:
    """Print each finding as it comes; returns the exit status."""
    must = 0
    for finding in found:
        print(f"{finding.status:<5}{finding.name:<10}{finding.text}", flush=True)
        if finding.fix:
            print(f"{'':<15}-> {finding.fix}", flush=True)
        must += finding.status == "FIX"
    print("nothing must be mended" if not must else f"{must} to mend: run the commands after the arrows")
    return 2 if must else 0


def main(argv: list[str]) -> int:
    """Entry point of `dsv3lab doctor`."""
    parser = argparse.ArgumentParser(prog="dsv3lab doctor", description="What this machine lacks, and how to mend it.")
    parser.parse_args(argv)
    return report(findings())
