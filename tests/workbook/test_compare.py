"""`dsv3lab compare`: what differs between runs is shown, what is missing is said, and names that name nothing help."""

import json
import shutil
from pathlib import Path

import pytest

from dsv3lab import cli
from dsv3lab.config import ConfigError
from dsv3lab.workbook import compare, gates, sides
from dsv3lab.workbook.tables import grid
from tests.workbook import samples


@pytest.fixture
def two(runs: Path) -> list[Path]:
    """A promoted execution of phase 1 and a later one that is still being written, with another seed and loss."""
    config, resolved = samples.configuration(1)
    first, _ = samples.execution(runs, config, resolved)
    second = runs / "phase1" / "29991231T000000Z-abcdef"
    shutil.copytree(first, second)
    for name in ("record.json", "promotion.json", "routing/stage.json"):
        (second / name).unlink()
    text = (second / "config.resolved.yaml").read_text()
    (second / "config.resolved.yaml").write_text(text.replace("peak_lr: 0.006", "peak_lr: 0.004"))
    closed = {
        "status": "closed",
        "stage": "phase1/mla",
        "device": {"kind": "cpu", "count": 1},
        "versions": {"jax": "9"},
    }
    (second / "mla" / "stage.json").write_text(json.dumps(closed))
    write(second / "mla", {"train/loss": 3.0, "quality/error": 1e-9, "odd": "nan"}, torn=True)
    return [first, second]


def write(folder: Path, metrics: dict[str, object], *, torn: bool = False) -> None:
    line = json.dumps({"time": "t", "step": 1, "metrics": metrics}) + "\n"
    (folder / "metrics.jsonl").write_text(line + ('{"time":"t","metr' if torn else ""))


def data(*words: str, runs: Path) -> dict[str, list]:
    return compare.as_data(sides.find(words, runs), compare.PARTS)


def test_metrics_have_unit_difference_and_ratio(two: list[Path], runs: Path) -> None:
    rows = {(row["stage"], row["name"]): row for row in data("phase1/promoted", "phase1/last", runs=runs)["metrics"]}
    loss = rows["mla", "train/loss"]
    assert (loss["unit"], loss["values"], loss["differences"], loss["ratios"]) == (
        "nats/token",
        [2.0, 3.0],
        [None, 1.0],
        [None, 1.5],
    )
    assert rows["mla", "odd"] == {
        "stage": "mla",
        "name": "odd",
        "unit": "",
        "values": [None, "nan"],
        "differences": [None, None],
        "ratios": [None, None],
    }
    gate = samples.configuration(1)[0].phase.gates["mla_error"]
    assert rows["mla", gate.metric]["unit"] == gate.unit, "a gate names its metric's unit"


def test_a_ratio_to_zero_is_no_number() -> None:
    row = compare.Row(stage="", name="x", unit="", values=(0.0, 2.0, None, float("inf")))
    assert row.differences == (None, 2.0, None, None)
    assert row.ratios == (None, None, None, None)


def test_what_is_still_being_written_is_said_and_judged_as_far_as_it_goes(two: list[Path], runs: Path) -> None:
    found = data("phase1/promoted", "phase1/last", runs=runs)
    assert [side["complete"] for side in found["sides"]] == [True, False]
    stages = len(samples.configuration(1)[0].phase.stages)
    state = f"incomplete: no record yet (running or cut off); 1 of {stages} stages closed"
    assert found["sides"][1]["state"] == state
    assert [one["status"] for one in found["gates"]["mla_error"]] == ["pass", "pass"]
    assert found["gates"]["mla_causality"][1]["status"] == "missing"
    assert [one["status"] for one in found["gates"]["routing_error"]] == ["pass", "not yet"]


def test_only_what_differs_in_the_configuration_is_shown(two: list[Path], runs: Path) -> None:
    assert data("promoted", "last", runs=runs)["config"] == {"train.schedule.peak_lr": [0.006, 0.004]}


def test_the_environment_names_device_versions_and_revision(two: list[Path], runs: Path) -> None:
    first, second = sides.find(["promoted", "last"], runs)
    rows = compare.environment_rows([first, second])
    assert rows["jax"][1] == "9" and rows["jax"][0] != "9"
    assert rows["device"] == ["not known yet", "1 x cpu"]
    assert first.record is not None and rows["git revision"][1] == "–"
    assert rows["git revision"][0].startswith(first.record.git.revision[:12] or "no git")


def test_a_side_can_be_one_stage_or_a_folder(two: list[Path], runs: Path, tmp_path: Path) -> None:
    alone = tmp_path / "by_hand"
    shutil.copytree(two[0] / "mla", alone)
    shutil.copy(two[0] / "config.resolved.yaml", alone)
    write(alone, {"train/loss": 1.0})
    found = sides.find(["phase1/promoted/mla", str(alone), str(two[1] / "mla")], runs)
    assert [side.single for side in found] == [True] * 3
    (row,) = (row for row in compare.metric_rows(found) if row.name == "train/loss")
    assert (row.stage, row.values) == ("", (2.0, 1.0, 3.0))
    assert found[0].state.startswith("its run is promoted") and found[0].state.endswith("4/5 gates pass (1 skipped)")
    own = gates.stage_gates(samples.configuration(1)[0].phase.gates, "mla")
    assert set(compare.gate_rows([found[0]])) == set(own)


def test_names_by_run_prefix_and_word(two: list[Path], runs: Path) -> None:
    def folders(*words: str) -> list[Path]:
        return [side.folder for side in sides.find(words, runs)]

    first, second = (folder.resolve() for folder in two)
    assert folders("last", "promoted") == [second, first]
    assert folders(f"phase1/{first.name}", second.name) == [first, second]
    assert folders("2999", str(first)) == [second, first]
    assert folders("last/mla", f"phase1/{first.name}/mla") == [second / "mla", first / "mla"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("phase1/29991231T00000Z-abcdef", "nearest: phase1/29991231T000000Z-abcdef"),
        ("phase1/nope", "nearest: phase1/"),
        ("phase1", "phaseN/last"),
        ("last/mlb", "has no stage 'mlb'; known: mla, routing"),
        ("2", "fits 2 runs; write more of its name"),
        ("phase3/last", "phase3 has not run yet; run `"),
        ("phase3/promoted", "phase3 is not promoted yet; run `"),
    ],
)
def test_a_name_that_names_nothing_is_one_sentence_with_the_nearest(
    two: list[Path], word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", word, "phase1/last"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_an_empty_folder_of_runs_says_what_to_run(runs: Path) -> None:
    with pytest.raises(ConfigError, match="nothing has run yet; run `.*phase1.py"):
        sides.find(["nope", "last"], runs)


def test_one_side_is_not_enough(two: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "last"]) == 2
    assert "at least two" in capsys.readouterr().err


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(
    two: list[Path], width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.main(["compare", "promoted", "last", "last/mla"]) == 0
    lines = capsys.readouterr().out.splitlines()
    tables = lines[lines.index("metrics") :]
    assert max(map(len, tables)) <= width
    assert {"metrics", "gates", "config", "environment"} <= set(lines)
    assert any(line.split() == ["train/loss", "nats/token", "2", "3", "1", "1.5"] for line in lines if "C" not in line)


def test_only_shows_the_parts_that_were_asked_for(two: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "promoted", "last", "--only", "config", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"sides", "config"}


def test_a_line_that_is_no_metric_is_named(two: list[Path], runs: Path) -> None:
    (two[1] / "mla" / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(ConfigError, match=r"mla/metrics.jsonl: line 1"):
        compare.metric_rows(sides.find(["last", "promoted"], runs))


@pytest.mark.parametrize(
    ("metric", "unit"),
    [
        ("perf/tokens_per_s", "tokens/s"),
        ("perf/matmul_peak_flops", "FLOP/s"),
        ("perf/data_wait_fraction", ""),
        ("stage/peak_rss_bytes", "bytes"),
        ("parallel/bytes_per_step", "bytes/step"),
        ("eval/bits_per_byte/readme", "bits/byte"),
        ("eval/ratio_bigram", ""),
        ("validation/loss/source", "nats/token"),
        ("train/balance_loss", ""),
        ("train/compile_s", "s"),
    ],
)
def test_units_follow_from_names(metric: str, unit: str) -> None:
    assert compare.unit(metric) == unit


def test_columns_give_way_in_order() -> None:
    lines = grid(["name", "unit", "A"], [["n" * 30, "u" * 30, "1.5"]], left=(0, 1), first=(1,), width=50)
    assert lines[2] == f"{'n' * 30}  {'u' * 12}…  1.5" and len(lines[1]) == 50
