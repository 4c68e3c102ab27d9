"""`dsv3lab ui`: the MLflow UI over `runs/mlflow.db`, light, on the loopback address only.

MLflow's own default starts 15 processes and takes 2.2 GiB; without its job runner and with one worker it is 2 processes
and 0.4 GiB.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from dsv3lab.config import ConfigError, runs_dir
from dsv3lab.workbook import commands
from dsv3lab.workbook.store import view_address

HOST = "127.0.0.1"
PREFERRED_PORT = 5151  # not 5000, which macOS gives to AirPlay
START_S = 180.0  # the server answers after about 8 s on two idle cores, after a minute or more on busy ones


def free_port(preferred: int = PREFERRED_PORT) -> int:
    """`preferred` if nothing listens there on the loopback address, else any free port."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise ConfigError(f"no free port on {HOST}")


def command(database: Path, port: int) -> list[str]:
    """The server's command line."""
    return [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"] + [
        *("--default-artifact-root", (database.parent / "mlartifacts").as_uri()),
        *("--host", HOST, "--port", str(port), "--workers", "1"),
    ]


def environment() -> dict[str, str]:
    """The server's environment: no job runner, nothing reported home."""
    return {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }


def wait_until_up(server: subprocess.Popen[bytes], port: int, *, seconds: float = START_S) -> bool:
    """Whether the server answered within `seconds`; gives up as soon as it has ended."""
    until = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2.0):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    return False


def stop(server: subprocess.Popen[bytes], *, seconds: float = 10.0) -> None:
    """End the server and its worker: ask first, then insist."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, sign)
            server.wait(timeout=seconds)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def serve(database: Path, port: int, *, log: Path) -> int:
    """Run the server until Ctrl-C or SIGTERM (status 0) or until it ends by itself (status 3)."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    with log.open("wb") as out:
        # A session of its own: Ctrl-C reaches us alone, and we end the whole group in order.
        server = subprocess.Popen(
            command(database, port), env=environment(), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        if not wait_until_up(server, port):
            print(f"dsv3lab ui: the server did not come up; its log is {log}", file=sys.stderr)
            return 3
        print(f"MLflow UI: http://{HOST}:{port}  (Ctrl-C ends it)", flush=True)
        if view := view_address(database):
            print(f"all stages side by side: http://{HOST}:{port}{view}", flush=True)
        server.wait()
        print(f"dsv3lab ui: the server ended by itself; its log is {log}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("\nMLflow UI closed", flush=True)
        return 0
    finally:
        stop(server)
        signal.signal(signal.SIGTERM, before)


def main(argv: list[str]) -> int:
    """Entry point of `dsv3lab ui`."""
    parser = argparse.ArgumentParser(prog="dsv3lab ui", description="The MLflow UI over the runs of this checkout.")
    parser.add_argument("--port", type=int, default=None, help=f"port (default: {PREFERRED_PORT} or any free one)")
    args = parser.parse_args(argv)
    database = runs_dir() / "mlflow.db"
    if not database.exists():
        raise ConfigError(
            f"{database} does not exist yet: run a phase first (make run, or {commands.pipeline('phase1')})"
        )
    print("Starting the MLflow UI …", flush=True)
    return serve(database, args.port or free_port(), log=runs_dir() / "ui.log")
