"""`dsv3lab study`: every training once, in a record that is its own, and a prediction that stays as it was written."""

import ast
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dsv3lab import cli
from dsv3lab.config import CONF, ROOT, diff, digest, read_study, study_names
from dsv3lab.config import help as helps
from dsv3lab.config.studies import TrainingsConfig
from dsv3lab.studies import analysis, log, results, run, trainings
from dsv3lab.workbook.compose import compose
from dsv3lab.workbook.inputs import read_inputs
from dsv3lab.workbook.process import locked
from tests.studies.fake import Trainer

pytestmark = pytest.mark.limit(60)  # Hydra composes every training, on a loaded machine for a while
CI = ["--profile", "ci"]


def folder(runs: Path, name: str) -> Path:
    (found,) = runs.glob(f"studies/{name}/*/study.json")
    return found.parent


def result(runs: Path, name: str) -> dict[str, Any]:
    return json.loads((folder(runs, name) / "result.json").read_text())


def test_every_study_has_its_analysis_and_its_size_for_tests() -> None:
    assert set(study_names()) == set(analysis.ANALYSES)
    assert {path.stem for path in (CONF / "studies" / "ci").glob("*.yaml")} == set(study_names())
    for name in study_names():
        full, small = (read_study(name, profile=profile) for profile in ("default", "ci"))
        assert len(small.variants) == len(full.variants) and full.expected_s > small.expected_s
    assert 1800 <= sum(read_study(name, profile="default").expected_s for name in study_names()) <= 3600


def test_every_key_of_a_study_is_explained() -> None:
    assert [path for path, key in helps.keys(TrainingsConfig).items() if not key.meaning] == []


@pytest.mark.parametrize("profile", ["default", "ci"])
def test_tiles_of_the_fp8_study_are_whole(profile: str) -> None:
    for one in trainings.read("fp8", profile=profile).trainings:
        model = one.config.model
        sides = [model.hidden_size, model.intermediate_size, model.moe_intermediate_size, model.kv_lora_rank]
        sides += [model.q_lora_rank or 0, model.num_attention_heads * model.v_head_dim]
        sides += [model.qk_nope_head_dim, model.qk_rope_head_dim, model.v_head_dim]
        assert all(side and side % 128 == 0 for side in sides)


def test_only_what_a_study_compares_differs() -> None:
    """Methods and formats share everything else; the sizes share the tokens for each parameter."""
    allowed = {"balance": "train.loss.", "fp8": "precision."}
    for name, prefix in allowed.items():
        first, *others = trainings.read(name, profile="default").trainings
        for other in others:
            keys = diff(first.config, other.config)
            assert all(key.startswith(prefix) or key == "train.seed" for key in keys), keys
    ratios = [one.tokens / one.parameters for one in trainings.read("scaling", profile="default").trainings]
    assert max(ratios) / min(ratios) < 1.01


def test_an_unknown_study_is_refused_with_the_nearest(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "balanse"]) == 2
    assert "no study 'balanse'; did you mean 'balance'?" in capsys.readouterr().err
    assert not (runs / "studies").exists()


def test_a_mistyped_override_is_refused_before_anything_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "fp8", "train.tokes=5", *CI]) == 2
    assert "did you mean 'train.tokens'?" in capsys.readouterr().err and not (runs / "studies").exists()


def test_an_override_that_hides_what_is_compared_is_refused(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "fp8", "precision=fp32", *CI]) == 2
    assert "two of its trainings are the same" in capsys.readouterr().err


def test_the_plan_runs_nothing(runs: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "--plan", *CI]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}:" in said for name in study_names()) and "predicted from the others" in said
    assert not trainer.ran and not (runs / "studies").exists()


def test_without_a_name_the_plan_is_shown_and_how_to_start(
    runs: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["study", *CI]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}:" in said for name in study_names())
    assert said.splitlines()[-1].startswith("nothing was started: name one, as in `") and said.endswith("or all\n")
    assert cli.main(["study", "--new", *CI]) == 2
    assert "name the studies (balance, fp8, scaling), or all" in capsys.readouterr().err
    assert not trainer.ran and not (runs / "studies").exists()
    assert cli.main(["study", "all", *CI]) == 0 and trainer.ran
    assert {path.parts[-3] for path in runs.glob("studies/*/*/result.json")} == set(study_names())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("", "all"),
        ("--save", "all --save"),
        ("fp8 --save", "fp8 --save"),
        ("--plan", "all --plan"),
        ("--profile ci balanse", "all --profile ci balanse"),  # which the verb refuses
    ],
)
def test_make_study_means_all_unless_it_is_told_a_name(args: str, words: str, tmp_path: Path) -> None:
    (tmp_path / ".installed").write_text("")
    command = ["make", "-n", "study", f"VENV={tmp_path}", f"ARGS={args}"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in said.splitlines() if "-m dsv3lab study" in line]  # make below make says more
    assert line.split("study ")[1].split() == words.split()


def test_a_study_of_seeds_pairs_and_averages_them(runs: Path, trainer: Trainer, tmp_path: Path) -> None:
    trainer.loss = lambda values, step: (
        5.0 + 0.01 * values["train"]["seed"] + 0.002 * (values["precision"]["products"] == "fp8")
    )
    assert run.main(["fp8", *CI], conf=_with_seeds(tmp_path, "fp8", 3)) == 0
    summary = result(runs, "fp8")["summary"]
    assert summary["relative_difference"] == pytest.approx([0.002 / 5.0, 0.002 / 5.01, 0.002 / 5.02], rel=1e-6)
    assert summary["bf16_spread"] == pytest.approx(0.02 / 5.01) and summary["allowed"] == summary["bf16_spread"]
    assert summary["tokens"] == 768 and summary["within"] is None, "too few tokens are not judged"
    assert summary["variants"]["FP8"]["losses"] == pytest.approx([5.002, 5.012, 5.022])


def test_fp8_is_not_excused_by_seeds_that_differ_a_lot() -> None:
    def one(variant: str, seed: int, loss: float) -> dict[str, Any]:
        same = {"validation_loss": loss, "maxvio": 0.0, "nonfinite_steps": 0, "tokens": analysis.FP8_TOKENS}
        return {"variant": variant, "seed": seed, "loss": loss, **same}

    apart = [one("BF16", 0, 5.0), one("BF16", 1, 5.5), one("FP8", 0, 5.1), one("FP8", 1, 5.6)]
    near = [one("BF16", 0, 5.0), one("BF16", 1, 5.0), one("FP8", 0, 5.02), one("FP8", 1, 5.0)]
    assert (analysis.fp8(apart, None)["allowed"], analysis.fp8(apart, None)["within"]) == (0.01, False)
    assert (analysis.fp8(near, None)["allowed"], analysis.fp8(near, None)["within"]) == (0.0025, True)
    cancel = [one("BF16", 0, 5.0), one("BF16", 1, 5.0), one("FP8", 0, 5.05), one("FP8", 1, 4.95)]
    assert analysis.fp8(cancel, None)["within"] is False, "a seed above and one below do not cancel"


def test_the_study_of_fp8_is_judged_as_its_gate_is() -> None:
    gate = compose([], phase=1)[0].phase.gates["fp8_loss"]
    assert gate.requires.tokens == analysis.FP8_TOKENS
    assert all(one.tokens >= analysis.FP8_TOKENS for one in trainings.read("fp8", profile="default").trainings)


def test_a_finished_training_is_not_repeated_after_a_kill(runs: Path, trainer: Trainer) -> None:
    trainer.dies_at = 3
    assert run.main(["balance", *CI]) == 3
    assert not (folder(runs, "balance") / "result.json").exists()
    trainer.dies_at = None
    assert run.main(["balance", *CI]) == 0
    first, second, third, *rest = trainer.ran
    assert rest == [third, "bias-update-seed-0"] and len({first, second, third}) == 3
    stopped = [e["event"] for e in log.read(folder(runs, "balance")) if e["event"] == "stopped"]
    assert stopped == ["stopped"]
    assert not list(folder(runs, "balance").rglob("step_*")), "checkpoints of finished trainings take only space"
    before = result(runs, "balance")
    assert run.main(["balance", *CI]) == 0 and len(trainer.ran) == 5
    assert result(runs, "balance") == before
    assert run.main(["balance", "--new", *CI]) == 0 and len(trainer.ran) == 9


def test_trainings_of_other_code_are_not_mixed(
    runs: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(folder: Path) -> None:
        for module in (run, trainings):
            monkeypatch.setattr(module, "code_sha256", lambda: {"dsv3lab/cli.py": "edited"})

    trainer.before = edit
    assert run.main(["fp8", *CI]) == 3 and len(trainer.ran) == 1
    assert "the code changed while the study ran" in capsys.readouterr().err
    assert run.main(["fp8", *CI]) == 0 and len(trainer.ran) == 3
    assert len(list(runs.glob("studies/fp8/*/study.json"))) == 2


def test_other_settings_begin_a_study_of_their_own(runs: Path, trainer: Trainer) -> None:
    assert run.main(["balance", *CI]) == run.main(["balance", "train.schedule.peak_lr=1e-3", *CI]) == 0
    assert len(trainer.ran) == 8 and len(list(runs.glob("studies/balance/*/result.json"))) == 2


def test_a_result_that_was_changed_is_named(runs: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["balance", *CI]) == 0
    path = folder(runs, "balance") / "trainings" / "bias-update-seed-0" / "result.json"
    path.write_text(path.read_text().replace('"loss": ', '"loss": 1', 1))
    assert run.main(["balance", *CI]) == 3
    assert f"{path}: changed after it was written" in capsys.readouterr().err


def test_the_prediction_is_written_before_its_training_begins(runs: Path, trainer: Trainer) -> None:
    seen: list[dict[str, Any]] = []

    def before(path: Path) -> None:
        if path.name.startswith("width-48"):
            here = path.parents[1]
            seen.append(json.loads((here / "prediction.json").read_text()))
            assert not list(path.glob("*.jsonl")) and not list(path.glob("step_*"))
            events = [event["event"] for event in log.read(here)]
            assert events[-2:] == ["prediction", "started"]

    _plant(trainer)
    trainer.before = before
    assert run.main(["scaling", *CI]) == 0
    made = result(runs, "scaling")
    assert seen == [made["prediction"]] and trainer.ran[-1] == "width-48-seed-0"
    assert made["summary"]["predicted"] == pytest.approx(made["summary"]["measured"], rel=1e-9)
    assert made["prediction"]["law"]["exponent"] == pytest.approx(0.06)
    entered = next(event for event in made["log"] if event["event"] == "prediction")
    assert entered["sha256"] == digest(made["prediction"])


def test_a_measurement_off_the_law_is_reported_as_such(runs: Path, trainer: Trainer) -> None:
    _plant(trainer, bend=1.03)
    assert run.main(["scaling", *CI]) == 0
    summary = result(runs, "scaling")["summary"]
    assert summary["relative_difference"] == pytest.approx(0.03, rel=1e-6) and summary["within"] is False
    assert "OUTSIDE" in "\n".join(analysis.words("scaling", summary))


@pytest.mark.parametrize("how", ["number", "with its log", "deleted"])
def test_a_prediction_cannot_be_altered_before_its_training_ran(
    runs: Path, trainer: Trainer, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _plant(trainer)
    trainer.dies_at = 4
    assert run.main(["scaling", *CI]) == 3
    here = folder(runs, "scaling")
    path, content = here / "prediction.json", json.loads((here / "prediction.json").read_text())
    assert path.stat().st_mode & 0o222 == 0
    path.unlink()
    content["loss"] += 0.1
    if how != "deleted":
        path.write_text(json.dumps(content))
    if how == "with its log":  # the forger mends the hash in the log, and every line after it
        lines, previous = [], ""
        for event in log.read(here):
            event = event | {"previous": previous}
            event |= {"sha256": digest(content)} if event["event"] == "prediction" else {}
            lines.append(json.dumps(event))
            previous = results.sha256_text(lines[-1])
        (here / "log.jsonl").write_text("\n".join(lines) + "\n")
    trainer.dies_at = None
    assert run.main(["scaling", *CI]) == 3
    said = {
        "number": "changed after it was written",
        "with its log": "not what the trainings",
        "deleted": "cannot be read",
    }
    assert said[how] in capsys.readouterr().err and len(trainer.ran) == 4


def test_a_log_whose_line_was_changed_is_refused(runs: Path, trainer: Trainer) -> None:
    assert run.main(["fp8", *CI]) == 0
    path = folder(runs, "fp8") / "log.jsonl"
    path.write_text(path.read_text().replace('"study": "fp8"', '"study": "FP8"'))
    with pytest.raises(log.StudyError, match="log.jsonl:2: the line before was changed"):
        log.read(folder(runs, "fp8"))


def test_a_line_that_was_being_written_at_a_kill_never_counted(tmp_path: Path) -> None:
    log.append(tmp_path, "begun", study="x")
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"time": "2026')
    log.append(tmp_path, "finished", training="a", sha256="0")
    assert [event["event"] for event in log.read(tmp_path)] == ["begun", "finished"]


def test_a_study_never_promotes(runs: Path, trainer: Trainer) -> None:
    assert run.main(["all", *CI]) == 0
    assert {path.name for path in runs.iterdir()} == {"studies"}
    for path in (ROOT / "dsv3lab" / "studies").glob("*.py"):
        names = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        assert not names & {"dsv3lab.workbook.promotion", "dsv3lab.workbook.chain", "dsv3lab.workbook.pipeline"}


def test_editing_a_study_makes_no_phase_stale() -> None:
    assert not [name for name in read_inputs(1).code if name.startswith("conf/studies/")]


def test_two_studies_of_one_name_do_not_run_at_once(
    runs: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(runs / "studies" / "fp8" / ".lock", what="study fp8"):
        assert run.main(["fp8", *CI]) == 2
    assert "study fp8 is already running" in capsys.readouterr().err


def _plant(trainer: Trainer, *, bend: float = 1.0) -> None:
    """Losses on a line in log-log against compute; the predicted one off it by the factor `bend`."""
    flops = {one.config.model.hidden_size: one.flops for one in trainings.read("scaling", profile="ci").trainings}
    largest = max(flops)

    def loss(values: dict[str, Any], step: int) -> float:
        width = values["model"]["hidden_size"]
        return 30 * flops[width] ** -0.06 * (bend if width == largest else 1.0)

    trainer.loss = loss


def _with_seeds(tmp_path: Path, name: str, count: int) -> Path:
    """A copy of `conf/` in which the small study has more seeds."""
    conf = Path(shutil.copytree(CONF, tmp_path / "conf"))
    path = conf / "studies" / "ci" / f"{name}.yaml"
    path.write_text(path.read_text().replace("seeds: [0]", f"seeds: {list(range(count))}"))
    return conf
