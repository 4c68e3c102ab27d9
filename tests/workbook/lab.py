"""A small workbook for tests: a conf folder with one phase, notebooks made in code, and the pipeline over them."""

import json
import shutil
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import yaml

from dsv3lab.config import CONF
from dsv3lab.workbook import Stage, record
from dsv3lab.workbook.tracking import RUN_TAG

OPEN = """
import json, os, pathlib, signal, sys, time
import dsv3lab.workbook as wb
stage = wb.Stage.open("{phase}/{stage}", run_dir=run_dir, overrides=overrides)
stage.device("cpu", 1)
"""
CLOSE = "stage.close()"
GOOD = 'stage.metric("perf/tokens_per_s", 100.0)\nstage.metric("quality/error", 0.001)'


def write_notebook(path: Path, cells: Sequence[str], *, parameters: bool = True) -> Path:
    """A notebook with an introduction, the parameters cell and `cells`."""
    v4 = nbformat.v4
    notebook = v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    declared = v4.new_code_cell('run_dir: str = ""\noverrides: list = []', metadata={"tags": ["parameters"]})
    notebook.cells = [v4.new_markdown_cell("# A tiny stage\n\nWith $x^2$ and\n\n$$y = \\frac{a}{b}$$")]
    notebook.cells += [declared] if parameters else []
    notebook.cells += [v4.new_code_cell(textwrap.dedent(cell).strip()) for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def stage_cells(stage: str, *body: str, phase: str = "phase1", close: bool = True) -> list[str]:
    """The cells of a notebook that opens the stage, runs `body` and closes it."""
    return [OPEN.format(phase=phase, stage=stage), *body, *([CLOSE] if close else [])]


def gate(
    stage: str, metric: str, op: str, threshold: float, *, role: str = "error", severity: str = "block"
) -> dict[str, Any]:
    """One gate as it stands in conf/gates."""
    return {
        "stage": stage,
        "title": f"{metric} of {stage}",
        "role": role,
        "kind": "quality",
        "metric": metric,
        "aggregate": "last",
        "op": op,
        "threshold": threshold,
        "unit": "1",
        "severity": severity,
        "requires": {"device": "any", "count": 1},
        "source": {"type": "policy", "ref": "a test", "date": "2026-11-22"},
        "rationale": "a test",
    }


def gates_of(stage: str) -> dict[str, Any]:
    """A throughput gate and an error gate that `GOOD` passes."""
    return {
        f"{stage}_speed": gate(stage, "perf/tokens_per_s", ">=", 10.0, role="throughput"),
        f"{stage}_error": gate(stage, "quality/error", "<=", 0.01),
    }


def write_conf(
    root: Path,
    notebooks: Mapping[str, Path],
    *,
    number: int = 1,
    gates: Mapping[str, Any] | None = None,
    needs: Mapping[str, Sequence[str]] | None = None,
    limit_s: float = 120.0,
    tracking: bool = False,
    also: Sequence[str] = (),
) -> Path:
    """A conf folder like the project's, whose phase `number` has the stages `notebooks` (name -> path)."""
    conf = root / "conf"
    if not conf.exists():
        shutil.copytree(CONF, conf)
        (conf / "waivers.yaml").unlink(missing_ok=True)
        shutil.rmtree(conf / "baselines", ignore_errors=True)
    if gates is None:
        gates = {key: value for name in notebooks for key, value in gates_of(name).items()}
    stages = {
        name: {
            "title": f"Stage {name}",
            "notebook": str(path),
            "needs": list((needs or {}).get(name, [])),
            "limit_s": limit_s,
            "expected_s": 5.0,
        }
        for name, path in notebooks.items()
    }
    phase = {
        "number": number,
        "title": "A test phase",
        "question": "Does it run?",
        "requires_phase": number - 1 or None,
        "stages": stages,
        "seed": {
            "weeks": "1-2",
            "infrastructure": ["a test machine"],
            "resources": {"memory": "little"},
            "targets": [{"text": "It runs", "gate": next(iter(gates), None), "note": "a test"}],
            "criteria": [{"text": "It ends", "gate": None, "note": "a test", "ref": "none"}],
            "ref": "none",
        },
    }
    _write(conf / "phase" / f"phase{number}.yaml", phase)
    _write(conf / "gates" / f"phase{number}.yaml", dict(gates))
    tracked = {"enabled": tracking, "experiment": "dsv3lab", "flush_s": 0.2, "also": list(also)}
    _write(conf / "tracking" / "mlflow.yaml", tracked)
    return conf


def the_run(runs: Path, phase: str = "phase1") -> Path:
    """The newest run folder of a phase."""
    found = (runs / phase).glob("*/config.resolved.yaml")
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent


def statuses(runs: Path, phase: str = "phase1") -> dict[str, str]:
    """Stage -> status in the newest record of a phase."""
    return {stage.name: stage.status for stage in record.read(the_run(runs, phase)).stages}


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(value, sort_keys=False))


def two_stages(root: Path, **options: Any) -> Path:
    """A conf folder whose phase 1 has the stages a and b."""
    notebooks = {name: write_notebook(root / f"{name}.ipynb", []) for name in ("a", "b")}
    return write_conf(root, notebooks, **options)


def four_phases(root: Path) -> Path:
    """A conf folder whose four phases have one stage each; the fourth reads the second."""
    for number in (1, 2, 3, 4):
        path = write_notebook(root / f"{number}.ipynb", [])
        gates = {f"p{number}_{key}": value for key, value in gates_of("only").items()}
        needs = {"only": ["phase2/only"]} if number == 4 else {}
        conf = write_conf(root, {"only": path}, number=number, gates=gates, needs=needs)
    return conf


Act = Callable[[Stage], None]


def good(stage: Stage) -> None:
    stage.metrics({"perf/tokens_per_s": 100.0, "quality/error": 0.001})


def slow(stage: Stage) -> None:
    stage.metrics({"perf/tokens_per_s": 1.0, "quality/error": 0.001})


def fail(stage: Stage) -> None:
    raise RuntimeError("broken on purpose")


class InProcess:
    """Stands for `process.Child` where papermill is not what is tested: the stage's function runs in this process."""

    acts: dict[str, Act] = {}
    calls: list[str] = []
    hangs = False

    def __init__(self, folder: Path, notebook: Path, *, runs: Path, stage: str) -> None:
        self.folder, self.killed, self.asked = folder, False, False
        self.calls.append(stage)
        result: dict[str, Any] = {"status": "ok"}
        try:
            opened = Stage.open(stage, run_dir=str(folder))
            opened.device("cpu", 1)
            self.acts.get(stage, good)(opened)
            opened.close()
        except RuntimeError as error:
            cell = {"index": 3, "execution_count": 2, "source": "fail(stage)"}
            result = {
                "status": "failed",
                "ename": "RuntimeError",
                "evalue": str(error),
                "cell": cell,
                "lines": ["last"],
            }
        (folder / "result.json").write_text(json.dumps(result))

    def wait(self, seconds: float) -> int | None:
        if self.hangs and not self.killed and not self.asked:
            time.sleep(0.02)
            return None
        return 0

    def ask_to_save(self) -> None:
        self.asked = True
        result = {"status": "preempted", "ename": "Preempted", "evalue": "saved"}
        (self.folder / "result.json").write_text(json.dumps(result))

    def kill_kernel(self) -> None:
        self.killed = True
        (self.folder / "result.json").write_text(json.dumps({"status": "dead_kernel", "ename": "DeadKernelError"}))

    def end(self) -> int:
        return 0


def found(store: Any, query: str = "") -> dict[str, Any]:
    """The runs of the experiment by their tag."""
    experiment = store.get_experiment_by_name("dsv3lab")
    if experiment is None:
        return {}
    listed = store.search_runs([experiment.experiment_id], filter_string=query)
    assert len({run.data.tags[RUN_TAG] for run in listed}) == len(listed), "a run was made twice"
    return {run.data.tags[RUN_TAG].partition("/")[2]: run for run in listed}
