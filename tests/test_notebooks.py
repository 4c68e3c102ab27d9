"""The notebooks: their form, and every cell of them through the real pipeline with the short profile."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from dsv3lab.config import ROOT
from dsv3lab.workbook import chain as chains
from dsv3lab.workbook import gates, pipeline, verify
from dsv3lab.workbook import record as records
from dsv3lab.workbook.compose import compose
from tests.workbook import test_report_in_browser

NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
STAGES = {
    stage.notebook: f"phase{number}/{name}"
    for number in (1, 2, 3, 4)
    for name, stage in compose([], phase=number)[0].phase.stages.items()
}
# Gates that hold at any size; those on speed, loss and balance need the sizes of the default profile.
EXACT = {
    1: {
        *("mla_error", "mla_causality", "mla_cache_v3", "routing_error", "routing_choice"),
        *("rope_error", "rope_relative", "rope_yarn", "rope_unseen", "rope_scale"),
        *("moe_cost", "mtp_error", "mtp_influence"),
        *("museum_error", "museum_visible"),
        *("fp8_casts", "fp8_products", "fp8_promotion"),
        *("mtp_error", "mtp_influence", "components_error"),
    },
    2: {
        *("train_finite", "resume_bitwise", "resume_kills", "resume_damage"),
        *("memory_state", "memory_residuals", "memory_gradient", "schedule_corners", "schedule_windows"),
    },
    3: {
        *("dp_gradient", "dp_loads", "dp_bias", "dp_bytes"),
        *("stability_finite", "stability_nan", "stability_skipped"),
        *("routing_explained", "routing_dp"),
    },
    4: {"restore_equal", "restore_generate"},
}


# What the runtime of a CPU does not tell. Whatever else a gate for other hardware judges is logged here, too.
ONLY_ON_GPU = {f"memory/device_{name}" for name in ("peak_bytes", "peak_share", "pool_used")}


def _code(path: Path) -> list:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def _pictures(path: Path) -> int:
    """How many pictures a reader of the executed notebook sees."""
    return sum("image/png" in output.get("data", {}) for cell in _code(path) for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_short_story_without_logic_or_outputs(path):
    nb = nbformat.read(path, 4)
    nbformat.validate(nb)
    assert nb.metadata.kernelspec.name == "python3"
    assert nb.cells[0].cell_type == "markdown" and nb.cells[0].source.startswith("# ")
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in nb.cells) == 1
    for cell in _code(path):
        assert not cell.outputs and cell.execution_count is None
        assert len(cell.source.splitlines()) <= 30, cell.source[:200]
        assert not re.search(r"^\s*(def|class) ", cell.source, re.MULTILINE), "logic belongs in the package"
        assert "mlflow" not in cell.source, "notebooks never talk to MLflow"


def test_every_stage_has_its_notebook_and_every_notebook_its_stage():
    here = {path.relative_to(ROOT).as_posix() for path in NOTEBOOKS} - {"notebooks/00_start_here.ipynb"}
    assert here == set(STAGES)
    for notebook, stage in STAGES.items():
        source = "\n".join(cell.source for cell in _code(ROOT / notebook))
        assert f'wb.Stage.open("{stage}"' in source and source.rstrip().endswith("stage.close()")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One runs folder for all phases, as a user has it; the prepared corpus is that of the other tests."""
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSV3LAB_RUNS", str(folder))
        yield folder


@pytest.mark.limit(400)
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_every_cell_of_a_phase_runs_and_its_exact_gates_pass(number, runs, capsys):
    status = pipeline.main([f"phase{number}", "profile=ci"])
    shown = capsys.readouterr().out
    assert status in (0, 1), shown
    (folder,) = (runs / f"phase{number}").glob("2*")
    record = records.read(folder)
    assert all(stage.status == "ok" for stage in record.stages), shown
    passed = {result.gate_id for result in record.results if result.status == "pass"}
    assert passed >= EXACT[number], shown
    assert not any(result.status in ("missing", "error") for result in record.results), shown
    for result in record.results:
        if result.status == "skipped" and result.metric not in ONLY_ON_GPU:
            values = [
                p.value for p in gates.read_points(folder / result.stage / "metrics.jsonl") if p.name == result.metric
            ]
            assert values and gates.number(values[-1]) is not None, f"{result.gate_id} has no {result.metric} to judge"
    assert not chains.read_chain(runs), "the short profile is never promoted"
    for stage in record.stages:
        content = json.loads((folder / stage.name / "stage.json").read_text())
        assert content["status"] == "closed" and content["figures"]
        assert all(figure["axes"] for figure in content["figures"]), "the report names the units of every picture"
        assert _pictures(folder / stage.name / "executed.ipynb") == len(content["figures"])


@pytest.mark.limit(120)
def test_the_reports_of_the_phases_are_read_whole_on_a_screen_and_on_a_telephone(runs, tmp_path):
    pages = sorted(runs.glob("phase*/2*/report.html"))
    assert pages, "the phases run before, in this file"
    for page in pages:
        assert page.stat().st_size < 5_000_000
    for (page, width), found in test_report_in_browser.measure_all(pages, tmp_path, widths=(1280, 390)).items():
        where = f"{page.parent.parent.name}, {width} pixels"
        assert test_report_in_browser.problems(found) == [], where
        figures = json.loads("[" + ",".join(path.read_text() for path in page.parent.glob("*/stage.json")) + "]")
        assert len(found["pictures"]) >= sum(len(stage["figures"]) for stage in figures) > 0
        for picture in found["pictures"]:
            assert picture["drawn"] and test_report_in_browser.without_unit(picture) == [], where


@pytest.mark.limit(60)
def test_what_the_phases_left_verifies(runs, capsys):
    assert verify.main([]) == 0, capsys.readouterr().out


@pytest.mark.limit(120)
def test_start_here_runs(runs, tmp_path):
    out = tmp_path / "out.ipynb"
    command = [
        sys.executable,
        "-m",
        "papermill",
        "--no-progress-bar",
        "--kernel",
        "python3",
        "-y",
        "overrides: [profile=ci]",
    ]
    arguments = [*command, str(ROOT / "notebooks/00_start_here.ipynb"), str(out)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "unknown parameter" not in done.stderr
    assert all(cell.execution_count for cell in _code(out))
    assert _pictures(out) == 1
