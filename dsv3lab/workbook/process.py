"""The process that executes one notebook, seen from the pipeline: start, ask to save, kill everything below it.

Also the pipeline's own signals and the lock that keeps two pipelines out of one phase.
"""

import fcntl
import functools
import hashlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from dsv3lab.config import ROOT
from dsv3lab.workbook.progress import StageLine

POLL_S = 0.2
"""How often `attend` looks whether its process has ended."""
SCAN_S = 1.0
"""How often the processes below the executor are listed: they must be known before it dies to be found afterwards."""
SAVE_GRACE_S = 120.0
"""How long a stage may take to save after SIGTERM."""
END_GRACE_S = 30.0
"""How long the executor may take to write what it knows after its kernel was killed."""
_LARGE_PAGES = "glibc.malloc.hugetlb"


class BusyError(RuntimeError):
    """Another pipeline is running the same phase."""


class Child:
    """One running `python -m dsv3lab.workbook.execute`, in a session of its own."""

    def __init__(self, folder: Path, notebook: Path, *, runs: Path, stage: str) -> None:
        command = [sys.executable, "-m", "dsv3lab.workbook.execute", str(folder), str(notebook), str(os.getpid())]
        with open(folder / "log.txt", "ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=kernel_environment(runs, stage=stage),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._below: set[psutil.Process] = set()
        self._scanned = 0.0

    def wait(self, seconds: float) -> int | None:
        """The exit status, or `None` if it is still running after `seconds`."""
        if time.monotonic() - self._scanned > SCAN_S:
            self._scan()
        try:
            return self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None

    def ask_to_save(self) -> None:
        """SIGTERM to the executor, which passes it on to the kernel."""
        if self._process.poll() is None:
            self._process.terminate()

    def kill_kernel(self) -> None:
        """Kill all processes below the executor, which then writes where the notebook stood."""
        self._scan()
        for process in self._below:
            _kill(process)

    def end(self) -> int:
        """Kill whatever is still there, executor included; returns the executor's exit status."""
        self._scan()
        if self._process.poll() is None:
            self._process.kill()
        status = self._process.wait()
        for process in self._below:
            _kill(process)
        return status

    def _scan(self) -> None:
        self._scanned = time.monotonic()
        try:
            self._below |= set(psutil.Process(self._process.pid).children(recursive=True))
        except psutil.Error:
            return
        for process in list(self._below):  # grandchildren whose parent ended between two scans
            try:
                self._below |= set(process.children(recursive=True))
            except psutil.Error:
                continue


def attend(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    out: Path,
    line: StageLine,
    interrupts: "Interrupts",
    second: signal.Signals,
) -> int:
    """Run a command in a session of its own and pass signals on to it; returns its exit status.

    Args:
        command: the program and its arguments.
        environment: all of its environment.
        out: what it prints is added here.
        line: kept up to date, and told of signals.
        interrupts: those of this process. Ctrl-C reaches it alone.
        second: what the second signal and those after it become; the first is always SIGTERM, which asks to save.
    """
    with open(out, "ab") as file:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    passed = 0
    while process.poll() is None:
        line.update()
        if interrupts.count > passed:
            passed += 1
            line.say(f"{interrupts.name}: asked it to save and end; a second signal kills it")
            process.send_signal(signal.SIGTERM if passed == 1 else second)
        time.sleep(POLL_S)
    return process.returncode


def last_line(path: Path) -> str:
    """The last line of what a process printed; empty if it printed nothing, or there is no such file."""
    if not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def kernel_environment(runs: Path, *, stage: str) -> dict[str, str]:
    """What the executor and its kernel inherit; what the user set for JAX stays."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "MLFLOW_RUN_ID")}
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(runs / "cache" / "jax" / machine()))
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    path = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return large_pages(environment) | {
        "PYTHONPATH": os.pathsep.join(path),
        "DSV3LAB_RUNS": str(runs),
        "DSV3LAB_STAGE": stage,
        "MLFLOW_TRACKING_URI": f"sqlite:///{runs / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "PYTHONUNBUFFERED": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def large_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with glibc's request for large pages, unless the user has set it; other C libraries ignore it.

    XLA allocates the temporaries of a step anew each time, and the kernel gives and clears them page by page: 73,700
    page faults in a step of the default training on 2 CPU cores, 600 with pages of 2 MiB, and a fifth less CPU time. No
    number changes.
    """
    tunables = [word for word in environment.get("GLIBC_TUNABLES", "").split(":") if word]
    if not any(word.startswith(f"{_LARGE_PAGES}=") for word in tunables):
        tunables.append(f"{_LARGE_PAGES}=1")
    return {**environment, "GLIBC_TUNABLES": ":".join(tunables)}


@functools.cache
def machine() -> str:
    """A short name of this processor: code that XLA compiled for another one must not be loaded."""
    try:
        features = next(
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))
        )
    except (OSError, StopIteration):
        features = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:12]


class Interrupts:
    """Counts SIGTERM, SIGINT and SIGHUP instead of dying: the first asks to save, the second kills."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        self.count = 0
        self.name = ""

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        self.name = signal.Signals(signum).name


@contextmanager
def counted_interrupts() -> Iterator[Interrupts]:
    """`Interrupts` for the time of the block; records are written whatever arrives. Needs the main thread."""
    interrupts = Interrupts()
    before: dict[signal.Signals, Any] = {number: signal.signal(number, interrupts) for number in Interrupts.SIGNALS}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def locked(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock file `path`, which names this process; the system frees it when the process dies, however it dies.

    Raises:
        BusyError: one sentence with the id of the process that holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise BusyError(f"{what} is already running (process {holder}); wait for it, or end it ({path})") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
        file.truncate(0)


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()  # psutil checks that the id still belongs to this process
    except psutil.Error:
        return
