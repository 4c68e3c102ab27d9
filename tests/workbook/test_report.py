"""The report: one page that needs nothing else; and the verdict as text."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dsv3lab import plots
from dsv3lab.workbook import gates, record, report, verdict
from dsv3lab.workbook.record import StageOutcome
from tests.workbook import samples

VOID = {"meta", "img", "br", "link", "hr"}


class Page(HTMLParser):
    """Collects text and addresses, and refuses tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.text: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def written(runs: Path) -> Path:
    config, _ = samples.configuration(2)
    folder = runs / "phase2" / "run"
    for name in config.phase.stages:
        (folder / name / "figures").mkdir(parents=True)
    train = folder / "train"
    lines = [
        json.dumps(
            {
                "time": "t",
                "step": step,
                "metrics": {"train/loss": 7.0 - step / 10, "validation/loss": "nan" if step == 3 else 6.0},
            }
        )
        for step in range(20)
    ]
    (train / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (train / "figures" / "heat.png").write_bytes(plots.png(plots.bars({"a": 1.0}, title="t", unit="u")))
    (train / "stage.json").write_text(json.dumps({"figures": [{"name": "heat", "title": "Load of <experts>"}]}))
    (train / "executed.html").write_text("")
    stages = [
        StageOutcome(name="train", status="ok", results=tuple(samples.passing(config, "train")), device=samples.CPU),
        StageOutcome(name="resume", status="failed", error="ValueError: <boom> & more", seconds=3.0),
    ]
    times = {"started": "2026-11-22T10:00:00Z", "ended": "2026-11-22T10:05:00Z"}
    return report.write(
        folder, record.draft(folder, config=config, stages=stages, upstream=None, **times), config=config
    )


def test_it_is_whole_and_well_formed(written: Path) -> None:
    config, _ = samples.configuration(2)
    page = Page()
    page.feed(written.read_text())
    assert page.stack == [] and "script" not in page.tags
    text = " ".join(page.text)
    for gate_id, gate in config.phase.gates.items():
        assert gate_id in text and gate.title in text and gate.rationale in text and gate.source.ref in text
        assert gate.unit in text
    for words in ("Not promoted", "<boom> & more", "Load of <experts>", "Python", "jax", "hidden_size: 128"):
        assert words in text, words


def test_the_curves_are_those_that_a_training_reports(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "loss", lambda series: drawn.append(series) or plots.lines({}, title="", x="", y=""))
    assert report._loss_curve(written.parent / "train")
    assert {name: len(x) for name, (x, _) in drawn[0].items()} == {"training": 20, "held-out text": 20}


def test_it_needs_nothing_from_outside(written: Path) -> None:
    page = Page()
    page.feed(written.read_text())
    pictures = [address for address in page.addresses if address.startswith("data:image/png;base64,")]
    assert len(pictures) == 2  # the loss curve and the figure
    assert set(page.addresses) - set(pictures) == {"train/executed.html", "train/metrics.jsonl"}
    assert not re.search(r"https?:|@import|url\(", written.read_text())


def test_it_suits_a_telephone_and_print(written: Path) -> None:
    text = written.read_text()
    assert "width=device-width" in text and "@media print" in text and "@media (max-width" in text


def test_damaged_metrics_do_not_stop_the_report(written: Path) -> None:
    config, _ = samples.configuration(2)
    folder = written.parent
    (folder / "train" / "metrics.jsonl").write_text("junk")
    (folder / "train" / "stage.json").write_text("junk")
    drafted = record.draft(folder, config=config, stages=[], upstream=None, started="2026", ended="2026")
    again = report.write(folder, drafted, config=config)
    page = Page()
    page.feed(again.read_text())
    assert sum(address.startswith("data:") for address in page.addresses) == 1  # the figure, by its file's name


def test_the_verdict_fits_a_terminal() -> None:
    config, _ = samples.configuration(2)
    results = samples.passing(config, "train")
    results += gates.evaluate_folder(
        gates.stage_gates(config.phase.gates, "resume"), Path("nowhere"), executed=True, device=samples.CPU
    )
    text = verdict.table(results, title="phase2", next_command="python pipelines/phase3.py", width=100)
    lines = text.splitlines()
    assert lines[0] == "phase2" and lines[-1] == "next: python pipelines/phase3.py"
    for result in results:
        (line,) = [line for line in lines if line.startswith(result.gate_id + " ")]
        assert result.status in line and len(line) <= 100
        assert verdict.figure(result.threshold) in line
    passed, missing, skipped = (sum(r.status == status for r in results) for status in ("pass", "missing", "skipped"))
    assert missing and skipped and passed == len(results) - missing - skipped
    assert f"{passed}/{len(results)} gates pass ({skipped} skipped, {missing} missing)" in text
    assert "no metric" in text


def test_colours_only_when_asked_for() -> None:
    results = samples.passing(samples.configuration(1)[0], "mla")
    assert "\033" not in verdict.table(results)
    assert "\033[32mpass\033[0m" in verdict.table(results, colour=True)


def test_markdown_has_a_row_for_each_gate() -> None:
    results = samples.passing(samples.configuration(1)[0], "mla")
    lines = verdict.markdown(results).splitlines()
    assert len([line for line in lines if line.startswith("|")]) == len(results) + 2
    assert len({line.replace("\\|", "").count("|") for line in lines if line.startswith("|")}) == 1


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0"), (3.0, "3"), (0.123456, "0.1235"), (1.5e-7, "1.5e-07"), (2e9, "2e+09")]
)
def test_numbers_read_well(value: float | None, text: str) -> None:
    assert verdict.figure(value) == text
