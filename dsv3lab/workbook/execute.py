"""Runs one notebook with papermill: `python -m dsv3lab.workbook.execute <stage folder> <notebook> [<pipeline pid>]`.

A process of its own, started by the pipeline as the leader of its own process group, so that the pipeline stays light
and can kill everything below. It writes `executed.ipynb`, `executed.html`, `log.txt` and `result.json` into the stage's
folder. Papermill's own status is not a pass signal: after a dead kernel, a timeout or `sys.exit(0)` the saved notebook
calls its cells completed. A run is `ok` only if every code cell has an execution count, none shows an error, and the
stage closed its `stage.json` with the nonce of this request.
"""

import ast
import json
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import psutil

from dsv3lab.config.disk import temporary_name
from dsv3lab.workbook.files import write_atomic

LAST_LINES = 20
START_TIMEOUT_S = 120
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_MARKER_TAG = "papermill-error-cell-tag"  # papermill removes cells with this tag when a notebook is run again
# Optional imports of papermill and jsonschema that take more than half of this process's start and are not used here:
# a grammar for international addresses and the client of Hadoop. `None` makes them look as if they were not installed.
_NEVER_USED = ("rfc3987_syntax", "pyarrow")
_INTERRUPTS = ("Preempted", "KeyboardInterrupt")


class Terminated(BaseException):
    """SIGTERM arrived while no kernel was running."""


class _Signals:
    """Forwards SIGTERM to the kernel, so that training there saves and raises `Preempted`."""

    def __init__(self) -> None:
        self.terminated = False

    def __call__(self, signum: int, frame: Any) -> None:
        self.terminated = True
        kernels = psutil.Process().children()
        for kernel in kernels:
            kernel.terminate()
        if not kernels:
            raise Terminated


def main(argv: list[str] | None = None) -> int:
    """Execute a notebook in a stage's folder; the exit status is 0 if its `result.json` says `ok`, else 1."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) not in (2, 3) or not all(word.isdecimal() for word in arguments[2:]):
        print("usage: python -m dsv3lab.workbook.execute <stage folder> <notebook> [<pipeline pid>]", file=sys.stderr)
        return 2
    for name in _NEVER_USED:
        sys.modules[name] = None  # type: ignore[assignment]
    folder, notebook = (Path(argument).resolve() for argument in arguments[:2])
    signals = _Signals()
    signal.signal(signal.SIGTERM, signals)
    die_with_parent(int(arguments[2]) if len(arguments) == 3 else os.getppid())
    threading.Thread(target=_preload, name="preload", daemon=True).start()
    started = time.monotonic()
    try:
        result = execute(folder, notebook, signals)
    except Terminated:
        result = _result("preempted", ename="Terminated", evalue="terminated while no kernel was running")
    except Exception as error:  # whatever papermill or the file system adds to the matrix is a failure, with its reason
        traceback.print_exc()
        lines = traceback.format_exc().splitlines()
        result = _result("failed", ename=type(error).__name__, evalue=str(error), lines=lines)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _export(folder)
    result["seconds"] = round(time.monotonic() - started, 3)
    write_atomic(folder / "result.json", json.dumps(result, indent=1, sort_keys=True) + "\n")
    return 0 if result["status"] == "ok" else 1


def execute(folder: Path, notebook: Path, signals: _Signals | None = None) -> dict[str, Any]:
    """Run `notebook` with the parameter `run_dir = folder` and say what became of it.

    A kernel that does not start is tried once more (port races and loaded machines).

    Returns:
        The content of `result.json`: status, cell {index, execution_count, source}, ename, evalue, last lines.
    """
    parameters = {"run_dir": str(folder)}
    unknown = sorted(parameters.keys() - declared_parameters(notebook))
    if unknown:
        reason = f"{notebook}: no cell tagged 'parameters' declares {', '.join(unknown)}"
        return _result("failed", ename="UnknownParameter", evalue=reason)
    signals = signals or _Signals()
    result = _attempt(folder, notebook, parameters, signals)
    if result["status"] == "no_kernel" and not signals.terminated and result["ename"] != "NoSuchKernel":
        print(f"the kernel did not start ({result['evalue']}); trying once more", flush=True)
        result = {**_attempt(folder, notebook, parameters, signals), "attempts": 2}
    return result


def declared_parameters(notebook: Path) -> set[str]:
    """Names assigned in the notebook's cell tagged `parameters`; empty without such a cell."""
    for cell in _read(notebook).cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            body = ast.parse(cell.source).body
            targets = [getattr(node, "targets", None) or [getattr(node, "target", None)] for node in body]
            return {target.id for group in targets for target in group if isinstance(target, ast.Name)}
    return set()


def unfinished(nb: Any) -> tuple[int, str] | None:
    """The first code cell of an executed notebook that did not finish, as (index, reason); `None` if all did."""
    for index, cell in enumerate(nb.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        errors = [output for output in cell.outputs if output.output_type == "error"]
        if errors:
            return index, f"the cell ended with {errors[0].ename}({errors[0].evalue})"
        if cell.execution_count is None:
            return index, "the cell was not executed"
    return None


def check_closed(folder: Path) -> str | None:
    """Why `stage.json` is not the closed record of this folder's request; `None` if it is."""
    try:
        request = json.loads((folder / "request.json").read_text())
        closed = json.loads((folder / "stage.json").read_text())
    except FileNotFoundError as error:
        if error.filename and Path(error.filename).name == "stage.json":
            return "the notebook ended without stage.close()"
        return f"{error.filename} is missing"
    except ValueError as error:
        return f"stage.json or request.json in {folder} is not JSON ({error})"
    if not isinstance(closed, dict) or closed.get("status") != "closed":
        return f"{folder / 'stage.json'} does not say that the stage was closed"
    if not request.get("nonce") or closed.get("nonce") != request["nonce"]:
        return f"{folder / 'stage.json'} carries another nonce than this request: it is not from this execution"
    return None


def _attempt(folder: Path, notebook: Path, parameters: dict[str, Any], signals: _Signals) -> dict[str, Any]:
    """One papermill execution, with every way in which it ends mapped to a status."""
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.ERROR)
    output = folder / "executed.ipynb"
    try:
        with open(folder / "log.txt", "a", buffering=1, encoding="utf-8") as log:
            papermill.execute_notebook(
                notebook,
                output,
                parameters=parameters,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                stdout_file=log,
                stderr_file=log,
                start_timeout=START_TIMEOUT_S,
                coalesce_streams=True,
                config=Config({"KernelManager": {"transport_encryption": "auto"}}),
            )
    except PapermillExecutionError as error:
        status = (
            "preempted"
            if error.ename in _INTERRUPTS and (signals.terminated or error.ename == "Preempted")
            else "failed"
        )
        lines = [*error.traceback] if error.traceback else [str(error)]
        cell = {"index": error.cell_index, "execution_count": error.exec_count, "source": error.source}
        return _result(status, ename=error.ename, evalue=error.evalue, cell=cell, lines=_split(lines))
    except NoSuchKernel as error:
        return _failed_in_cell(folder, "no_kernel", error, cell=False)
    except CellTimeoutError as error:
        return _failed_in_cell(folder, "timeout", error)
    except DeadKernelError as error:
        return _failed_in_cell(folder, "preempted" if signals.terminated else "dead_kernel", error)
    except (RuntimeError, ValueError, OSError) as error:
        if _started(output):
            raise
        traceback.print_exc()
        return _failed_in_cell(folder, "preempted" if signals.terminated else "no_kernel", error, cell=False)
    return _judge(folder)


def _judge(folder: Path) -> dict[str, Any]:
    """Papermill returned: the status that the saved notebook and `stage.json` really give."""
    nb = _read(folder / "executed.ipynb")
    stopped = unfinished(nb)
    if stopped or nb.metadata.get("papermill", {}).get("exception"):
        index, reason = stopped or (len(nb.cells) - 1, "papermill reports an exception")
        sentence = f"the notebook ended early: {reason}"
        _mark(folder, index, sentence)
        return _result("exited_early", ename="SystemExit", evalue=sentence, cell=_cell(nb, index), lines=_tail(folder))
    problem = check_closed(folder)
    if problem:
        status = "exited_early" if "without stage.close()" in problem else "failed"
        return _result(status, ename="NotClosed", evalue=problem, lines=_tail(folder))
    return _result("ok")


def _failed_in_cell(folder: Path, status: str, error: Exception, *, cell: bool = True) -> dict[str, Any]:
    """The result for an exception that papermill does not attribute to a cell; marks the cell in the notebook."""
    message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    output = folder / "executed.ipynb"
    nb = _read(output) if cell and output.is_file() else None
    # Not the first cell without a count: the kernel may have announced the count before it died in the cell.
    begun = [i for i, c in enumerate(nb.cells) if c.metadata.get("papermill", {}).get("start_time")] if nb else []
    if not nb or not begun:
        return _result(status, ename=type(error).__name__, evalue=message, lines=_tail(folder))
    _mark(folder, begun[-1], f"{type(error).__name__}: {message}")
    return _result(status, ename=type(error).__name__, evalue=message, cell=_cell(nb, begun[-1]), lines=_tail(folder))


def _mark(folder: Path, index: int, sentence: str) -> None:
    """Say in the executed notebook where it stopped, and correct papermill's `completed` on what did not run."""
    import nbformat

    path = folder / "executed.ipynb"
    nb = _read(path)
    nb.metadata.setdefault("papermill", {})["exception"] = True
    for position, cell in enumerate(nb.cells):
        if cell.cell_type == "code" and (position == index or cell.execution_count is None):
            cell.metadata.setdefault("papermill", {})["status"] = "failed" if position == index else "pending"
    for place, text in (
        (index, f"**The execution stopped in the next cell.** {sentence}"),
        (0, f"**Not finished.** {sentence}"),
    ):
        nb.cells.insert(place, nbformat.v4.new_markdown_cell(text, metadata={"tags": [_MARKER_TAG]}))
    temporary = temporary_name(path)
    nbformat.write(nb, temporary)
    os.replace(temporary, path)


def _preload() -> None:
    """Import what the export needs while the kernel works: seconds that nobody waits for."""
    import papermill  # noqa: F401  (first, since the main thread waits for it)

    import dsv3lab.workbook.export as export

    export.warm_up()


def _export(folder: Path) -> None:
    """Write `executed.html`; a notebook that cannot be rendered leaves its reason in the log and changes no status."""
    if not (folder / "executed.ipynb").is_file():
        return
    from dsv3lab.workbook.export import to_html

    try:
        (folder / "executed.html").write_text(to_html(folder / "executed.ipynb"), encoding="utf-8")
    except Exception:
        print("executed.html could not be written:")
        traceback.print_exc()


def _result(
    status: str,
    *,
    ename: str | None = None,
    evalue: str | None = None,
    cell: dict[str, Any] | None = None,
    lines: list[str] | None = None,
) -> dict[str, Any]:
    last = [_ANSI.sub("", line) for line in (lines or [])][-LAST_LINES:]
    return {
        "schema": 1,
        "status": status,
        "cell": cell,
        "ename": ename,
        "evalue": _ANSI.sub("", evalue) if evalue else evalue,
        "lines": last,
        "attempts": 1,
    }


def _cell(nb: Any, index: int) -> dict[str, Any]:
    cell = nb.cells[index]
    return {"index": index, "execution_count": cell.get("execution_count"), "source": cell.source}


def _started(output: Path) -> bool:
    """Whether any cell of the saved notebook ran."""
    return output.is_file() and any(cell.get("execution_count") for cell in _read(output).cells)


def _read(path: Path) -> Any:
    import nbformat

    return nbformat.read(path, 4)


def _split(chunks: list[str]) -> list[str]:
    return [line for chunk in chunks for line in chunk.splitlines()]


def _tail(folder: Path) -> list[str]:
    return tail(folder / "log.txt", LAST_LINES)


def tail(path: Path, count: int) -> list[str]:
    """The last `count` lines of a text file; empty if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            return file.read().decode("utf-8", "replace").splitlines()[-count:]
    except OSError:
        return []


def die_with_parent(parent: int) -> None:
    """End this process and its kernel when the process `parent` is gone, even by SIGKILL.

    The pipeline names itself: it may have died while this process was still importing, which another has adopted then.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
