"""The doctor finds what is broken, says how to mend it, and is quiet about the rest."""

import fcntl
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsv3lab.workbook import commands, doctor
from dsv3lab.workbook.doctor import GIB, Finding


def test_python() -> None:
    assert doctor.check_python((3, 11, 0)).status == "ok"
    old = doctor.check_python((3, 10, 14))
    assert old.status == "FIX" and "3.10.14" in old.text and "PYTHON=" in old.fix


def test_pins_are_those_of_this_python(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(
        "# comment\njax==0.10.2 ; python_full_version < '3.0'\njax==1.2 ; python_full_version >= '3.0'\nnumpy==2.4.6\n"
    )
    assert doctor.pins(constraints) == {"jax": "1.2", "numpy": "2.4.6"}


@pytest.mark.parametrize(
    ("installed", "status", "says"),
    [
        ({"jax": "1", "jaxlib": "1", "numpy": "2"}, "ok", "3 packages as pinned"),
        ({"jax": "1", "jaxlib": "1"}, "ok", "2 packages as pinned"),  # an extra that was not asked for
        ({"jax": "2", "jaxlib": "1", "numpy": "2"}, "FIX", "jax 2, pinned 1"),
        ({"numpy": "2"}, "FIX", "jax missing, pinned 1"),
        ({"jax": "1", "jaxlib": "1", "numpy": "3"}, "warn", "numpy 3 (pinned 2)"),
    ],
)
def test_versions_against_the_pins(installed: dict[str, str], status: str, says: str) -> None:
    found = doctor.check_pins({"jax": "1", "jaxlib": "1", "numpy": "2"}, installed.get)
    assert found.status == status and says in found.text


def test_a_gpu_that_is_not_used_is_found() -> None:
    answer: dict[str, object] = {"backend": "cpu", "devices": ["cpu"]}
    assert doctor.check_devices(answer, nvidia=False).status == "ok"
    assert "[gpu]" in doctor.check_devices(answer, nvidia=True).fix
    assert doctor.check_devices({"backend": "gpu", "devices": ["NVIDIA H100"]}, nvidia=True).status == "ok"


def test_a_jax_that_does_not_start_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jax.py").write_text("raise ImportError('no such library')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answer = doctor.ask_jax()
    assert answer == "ImportError: no such library"
    assert doctor.check_devices(answer, nvidia=False).status == "FIX"


def test_the_kernel_of_this_environment_is_fine() -> None:
    spec, hidden = doctor.find_kernel()
    assert doctor.check_kernel(spec, prefix=sys.prefix, hidden=hidden).status == "ok"


@pytest.mark.parametrize(
    ("spec", "status"),
    [
        (("python", "/env/share/jupyter/kernels/python3"), "ok"),
        (("/env/bin/python", "/env/share/jupyter/kernels/python3"), "ok"),
        (("python", "/home/me/.local/share/jupyter/kernels/python3"), "warn"),
        (("/usr/bin/python3", "/home/me/.local/share/jupyter/kernels/python3"), "FIX"),
        (("/usr/bin/python3", "/env/share/jupyter/kernels/python3"), "FIX"),
        (None, "FIX"),
    ],
)
def test_kernels(spec: tuple[str, str] | None, status: str) -> None:
    found = doctor.check_kernel(spec, prefix="/env", hidden=[])
    assert found.status == status
    assert bool(found.fix) == (status != "ok")


def test_a_poisoned_user_kernel_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user kernel that wins over the environment's own is named, with the command that removes it."""
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(
        '{"argv": ["/usr/bin/false", "-f", "{connection_file}"], "display_name": "x", "language": "python"}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    spec, hidden = doctor.find_kernel()
    found = doctor.check_kernel(spec, prefix=sys.prefix, hidden=hidden)
    assert found.status == "FIX" and str(kernel) in found.fix


def test_database(tmp_path: Path) -> None:
    database = tmp_path / "runs" / "mlflow.db"
    assert doctor.check_database(database).status == "ok"
    database.parent.mkdir()
    sqlite3.connect(database).close()
    assert doctor.check_database(database).status == "ok"
    writer = sqlite3.connect(database, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert doctor.check_database(database).status == "warn", "a busy database is not broken"
    writer.close()
    database.write_bytes(b"this is no database" * 100)
    damaged = doctor.check_database(database)
    assert damaged.status == "FIX" and "mv " in damaged.fix and "dsv3lab sync" in damaged.fix
    (tmp_path / "file").write_text("")
    assert doctor.check_database(tmp_path / "file" / "mlflow.db").status == "FIX", "the folder is a file"


@pytest.mark.parametrize(("have", "status"), [(1, "FIX"), (3, "warn"), (5, "ok")])
def test_amounts(have: int, status: str) -> None:
    found = doctor.check_amount("disk", have * GIB, fix_below=2 * GIB, warn_below=4 * GIB, what="free", fix="free some")
    assert found.status == status and bool(found.fix) == (status != "ok")


def test_git(tmp_path: Path) -> None:
    assert doctor.check_git(tmp_path).status == "warn"
    git = shutil.which("git")
    assert git is not None
    as_author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run([git, "init", "-q", str(tmp_path)], check=True)
    subprocess.run([git, *as_author, "-C", str(tmp_path), "commit", "-qm", "x", "--allow-empty"], check=True)
    assert doctor.check_git(tmp_path).status == "ok"


def test_stale_runs(tmp_path: Path) -> None:
    assert doctor.check_stale(tmp_path).status == "ok"
    done, killed = tmp_path / "phase1" / "a", tmp_path / "phase2" / "b"
    for folder in (done, killed):
        folder.mkdir(parents=True)
        (folder / "config.resolved.yaml").write_text("")
    (done / "record.json").write_text("{}")
    (tmp_path / "phase2" / ".lock").write_text("")
    stale = doctor.check_stale(tmp_path)
    assert (
        stale.status == "warn" and "phase2/b" in stale.text and str(killed) in stale.fix and str(done) not in stale.fix
    )
    with (tmp_path / "phase2" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        running = doctor.check_stale(tmp_path)
        assert running.status == "ok" and "phase2 running now" in running.text


def test_runs_that_mlflow_believes_in(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "mlflow.db")
    connection.execute("CREATE TABLE runs (status TEXT, lifecycle_stage TEXT)")
    connection.executemany("INSERT INTO runs VALUES (?, ?)", [("RUNNING", "active"), ("FINISHED", "active")])
    connection.commit()
    connection.close()
    found = doctor.check_stale(tmp_path)
    assert found.status == "warn" and found.text.startswith("1 ") and found.fix == commands.verb("sync")


def test_the_report_ends_with_2_only_if_something_must_be_mended(capsys: pytest.CaptureFixture[str]) -> None:
    def lines(*statuses: str) -> Iterator[Finding]:
        for status in statuses:
            yield Finding(name="thing", status=status, text="text", fix="" if status == "ok" else "do this")  # type: ignore[arg-type]

    assert doctor.report(lines("ok", "warn")) == 0
    assert doctor.report(lines("ok", "FIX", "warn")) == 2
    assert "-> do this" in capsys.readouterr().out


@pytest.mark.limit(30)  # starts JAX in a process of its own
def test_this_machine_is_ready(runs: Path) -> None:
    """The whole report, for real; amounts of disk and memory are the machine's own affair."""
    found = {finding.name: finding for finding in doctor.findings()}
    assert set(found) == {
        *("python", "packages", "devices", "kernel", "database", "runs", "disk", "memory", "git"),
    }
    for name in ("python", "devices", "kernel", "database", "runs"):
        assert found[name].status == "ok", found[name]
