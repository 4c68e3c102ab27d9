"""Notebooks that end in every way that papermill knows, through the real executor."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from dsv3lab.workbook import execute
from dsv3lab.workbook.export import formula, rows, to_html
from tests.workbook import lab

# A notebook's kernel takes about a second on an idle core; several tests share two cores with other work.
pytestmark = pytest.mark.limit(60)

NONCE = "5f3a"
# Closes the stage as `Stage.close` does, without its imports: the executor looks at status and nonce alone.
CLOSE = """
import json, pathlib
request = json.loads((pathlib.Path(run_dir) / "request.json").read_text())
pathlib.Path(run_dir, "stage.json").write_text(json.dumps({"status": "closed", "nonce": request["nonce"]}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "request.json").write_text(json.dumps({"nonce": NONCE}))
    return tmp_path / "stage"


def run(folder: Path, *cells: str) -> dict:
    return execute.execute(folder, lab.write_notebook(folder.parent / "notebook.ipynb", cells))


def test_a_closed_notebook_is_ok(folder: Path) -> None:
    result = run(folder, 'import sys; print(sys.executable); print("err", file=sys.stderr)', CLOSE, "")
    assert result["status"] == "ok" and result["cell"] is None
    assert {sys.executable, "err"} <= set((folder / "log.txt").read_text().splitlines())


@pytest.mark.parametrize(
    ("cells", "status", "ename", "index"),
    [
        (["print('before')", "1/0", "x = 1"], "failed", "ZeroDivisionError", 4),
        (["import sys; sys.exit(0)", CLOSE], "exited_early", "SystemExit", 3),
        ([CLOSE, "import sys; sys.exit(0)", "x = 1"], "exited_early", "SystemExit", 4),
        (["import sys; sys.exit(1)", CLOSE], "failed", "SystemExit", 3),
        (
            [CLOSE, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "x = 1"],
            "dead_kernel",
            "DeadKernelError",
            4,
        ),
        (["class Preempted(Exception): pass", "raise Preempted('saved at step 7')"], "preempted", "Preempted", 4),
        (["x = 1"], "exited_early", "NotClosed", None),
    ],
)
def test_each_other_end_is_named(folder: Path, cells: list[str], status: str, ename: str, index: int | None) -> None:
    result = run(folder, *cells)
    assert (result["status"], result["ename"]) == (status, ename)
    assert (result["cell"] or {}).get("index") == index
    if index is not None:
        assert result["cell"]["source"] == cells[index - 3].strip()  # introduction, parameters, injected
    json.dumps(result)
    if status == "dead_kernel":  # papermill itself calls every cell of this notebook completed
        notebook = nbformat.read(folder / "executed.ipynb", 4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.metadata["papermill"]["status"] for cell in code[-2:]] == ["failed", "pending"]
        assert notebook.metadata["papermill"]["exception"] is True
        assert "DeadKernelError" in notebook.cells[0].source


@pytest.mark.parametrize(
    ("closed", "words"),
    [
        (None, "without stage.close()"),
        ("{", "not JSON"),
        ("[]", "does not say"),
        ({"status": "open", "nonce": NONCE}, "does not say"),
        ({"status": "closed", "nonce": "another"}, "another nonce"),
        ({"status": "closed"}, "another nonce"),
    ],
)
def test_only_this_requests_closed_stage_counts(folder: Path, closed: object, words: str) -> None:
    if closed is not None:
        (folder / "stage.json").write_text(closed if isinstance(closed, str) else json.dumps(closed))
    assert words in (execute.check_closed(folder) or "")
    (folder / "stage.json").write_text(json.dumps({"status": "closed", "nonce": NONCE}))
    assert execute.check_closed(folder) is None
    (folder / "request.json").write_text("{}")
    assert "another nonce" in (execute.check_closed(folder) or "")


def test_last_lines_are_plain_text_and_few(folder: Path) -> None:
    result = run(folder, "print('a\\nb')", "def f(n):\n    return f(n - 1) if n else 1 / 0\nf(40)")
    assert 0 < len(result["lines"]) <= execute.LAST_LINES
    assert "ZeroDivisionError" in result["lines"][-1]
    assert not any("\x1b" in line for line in result["lines"])


def test_parameters_must_be_declared(folder: Path) -> None:
    notebook = lab.write_notebook(folder.parent / "notebook.ipynb", [CLOSE], parameters=False)
    result = execute.execute(folder, notebook)
    assert (result["status"], result["ename"]) == ("failed", "UnknownParameter")
    assert "run_dir" in result["evalue"] and str(notebook) in result["evalue"]
    assert not (folder / "executed.ipynb").exists()


def test_a_kernel_that_does_not_start_is_tried_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    calls = []

    def start(self: NotebookClient) -> None:
        calls.append(1)
        raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(NotebookClient, "start_new_kernel_client", start)
    result = run(folder, CLOSE)
    assert (result["status"], len(calls), result["attempts"]) == ("no_kernel", 2, 2)
    assert "kernel_info" in result["evalue"]


def test_no_kernelspec_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jupyter_client import kernelspec

    def missing(self: kernelspec.KernelSpecManager, name: str) -> None:
        raise kernelspec.NoSuchKernel(name)

    monkeypatch.setattr(kernelspec.KernelSpecManager, "get_kernel_spec", missing)
    result = run(folder, CLOSE)
    assert (result["status"], result["attempts"], result["cell"]) == ("no_kernel", 1, None)


def start(folder: Path, *cells: str) -> subprocess.Popen[str]:
    notebook = lab.write_notebook(folder.parent / "notebook.ipynb", cells)
    command = [sys.executable, "-m", "dsv3lab.workbook.execute", str(folder), str(notebook)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for(path: Path, seconds: float = 50.0) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.05)


def test_sigterm_reaches_the_kernel_which_saves(folder: Path) -> None:
    process = start(
        folder,
        "import pathlib, signal, time\nclass Preempted(Exception): pass",
        """
        def save(*_):
            pathlib.Path(run_dir, "saved").write_text("checkpoint")
            raise Preempted("saved")
        signal.signal(signal.SIGTERM, save)
        pathlib.Path(run_dir, "ready").touch()
        time.sleep(600)
        """,
    )
    wait_for(folder / "ready")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=50)
    result = json.loads((folder / "result.json").read_text())
    assert process.returncode == 1, output
    assert (result["status"], result["evalue"]) == ("preempted", "saved")
    assert (folder / "saved").read_text() == "checkpoint"
    page = (folder / "executed.html").read_text()
    assert "Preempted" in page


def test_the_kernel_does_not_outlive_a_killed_pipeline(folder: Path) -> None:
    notebook = lab.write_notebook(
        folder.parent / "notebook.ipynb",
        ["import os, pathlib, time\npathlib.Path(run_dir, 'pid').write_text(str(os.getpid()))\ntime.sleep(600)"],
    )
    pipeline = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:], start_new_session=True)"]
        + [sys.executable, "-m", "dsv3lab.workbook.execute", str(folder), str(notebook)],
    )
    wait_for(folder / "pid")
    time.sleep(0.1)
    kernel = psutil.Process(int((folder / "pid").read_text()))
    executor = kernel.parent()
    assert executor is not None
    os.kill(pipeline.pid, signal.SIGKILL)
    pipeline.wait()
    gone, alive = psutil.wait_procs([kernel, executor], timeout=20)
    assert not alive


def test_the_page_loads_nothing_and_draws_formulas(tmp_path: Path) -> None:
    notebook = lab.write_notebook(tmp_path / "notebook.ipynb", ["x = 1"])
    page = to_html(notebook)
    assert not re.findall(r"<script[^>]+src=|<link[^>]+href=|@import|url\(\s*['\"]?https?:", page)
    assert re.findall(r'<img[^>]*alt="([^"]+)"', page) == ["x^2", r"y = \frac{a}{b}"]


def test_formulas_that_mathtext_lacks_stay_readable() -> None:
    assert formula(r"\overbrace{a}^{<b>}").startswith("<span") and "&lt;b&gt;" in formula(r"\overbrace{a}^{<b>}")
    assert rows(r"\begin{aligned} a &= b \\ c &= d \end{aligned}") == ["a  = b", "c  = d"]
    assert rows(matrix := r"\begin{bmatrix} a \\ b \end{bmatrix}") == [matrix]
    (cases,) = rows(r"\begin{aligned} g &= \begin{cases} a & b \\ 0 & c \end{cases} \end{aligned}")
    assert formula(cases).startswith("<img") and r"\begin" not in cases
    (three,) = rows(r"\begin{cases} a \\ b \\ c \end{cases}")
    assert formula(three).startswith("<img")
    assert formula(r"\underbrace{-\frac{1}{T} x}_{\text{next}} + \underbrace{\underbrace{a}_{b} \}}_{c} y").startswith(
        "<img"
    )
    assert formula(r"\underbrace{\frac{a").startswith("<span")  # never closed
    for known in (r"a \le \tfrac{1}{2} \bigl( x \bigr)", r"\mathbf W \tag{3}", r"\{x \mid x \ne 0\}"):
        assert formula(known).startswith("<img")


def test_a_pipeline_that_died_before_the_executor_watched_ends_it(folder: Path) -> None:
    notebook = lab.write_notebook(folder.parent / "notebook.ipynb", ["import time; time.sleep(60)"])
    ended = subprocess.Popen([sys.executable, "-c", ""])  # stands for the pipeline: this process has been its child
    ended.wait()
    command = [sys.executable, "-m", "dsv3lab.workbook.execute", str(folder), str(notebook), str(ended.pid)]
    assert subprocess.run(command, timeout=30).returncode == 1
    assert not (folder / "result.json").exists() and not (folder / "executed.ipynb").exists()


@pytest.mark.parametrize("words", [[], ["a"], ["a", "b", "c"], ["a", "b", "1", "2"]])
def test_the_executor_refuses_other_arguments(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert execute.main(words) == 2
    assert "<pipeline pid>" in capsys.readouterr().err
