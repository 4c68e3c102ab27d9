"""The report: one page that needs nothing else; and the verdict as text."""

import dataclasses
import io
import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dsv3lab import plots
from dsv3lab.workbook import gates, hints, record, report, report_figures, tracking, ui, verdict
from dsv3lab.workbook.record import StageOutcome
from dsv3lab.workbook.waivers import Waiver
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
                "metrics": {
                    "train/loss": 7.0 - step / 10,
                    "validation/loss": "nan" if step == 3 else 6.0,
                    "perf/tokens_per_s": 900.0,
                },
            }
        )
        for step in range(20)
    ]
    (train / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (train / "figures" / "heat.png").write_bytes(plots.png(plots.bars({"a": 1.0}, title="t", unit="u")))
    figure = {"name": "heat", "title": "Load of <experts>", "axes": ["tokens", "expert"]}
    (train / "stage.json").write_text(json.dumps({"figures": [figure]}))
    (train / "executed.html").write_text("")
    stages = [
        StageOutcome(name="train", status="ok", results=tuple(samples.passing(config, "train")), device=samples.CPU),
        StageOutcome(name="resume", status="failed", error="ValueError: <boom> & more", seconds=3.0),
    ]
    times = {"started": "2026-11-22T10:00:00Z", "ended": "2026-11-22T10:05:00Z"}
    drafted = record.draft(folder, config=config, stages=stages, upstream=None, **times)
    return report.write(folder, drafted, config=config, runs=runs, waivers=[])


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
    drawn: dict[str, Any] = {}
    original = plots.lines

    def lines(series: Any, **options: str) -> Any:
        drawn[options["y"]] = series
        return original(series, **options)

    monkeypatch.setattr(plots, "lines", lines)
    loss, throughput = report_figures.curves(written.parent / "train")
    assert {name: len(x) for name, (x, _) in drawn["nats per token"].items()} == {"training": 20, "held-out text": 20}
    assert math.isnan(drawn["nats per token"]["held-out text"][1][3])  # a gap, not a guess
    assert drawn["tokens per second"] == {"training": ([float(step) for step in range(20)], [900.0] * 20)}
    for picture in (loss, throughput):
        assert picture.content.startswith(b"<?xml") and picture.source == "train/metrics.jsonl"
    assert report_figures.curves(written.parent / "resume") == []


def test_it_needs_nothing_from_outside(written: Path) -> None:
    page = Page()
    page.feed(written.read_text())
    pictures = [address for address in page.addresses if address.startswith("data:image/")]
    assert len(pictures) == 3  # two curves and the figure
    inside = {address for address in page.addresses if address.startswith("#")}
    files = {"train/executed.html", "train/metrics.jsonl", "train/figures/heat.png"}
    assert set(page.addresses) - set(pictures) - inside == files | {"record.json", "config.resolved.yaml"}
    assert not re.search(r"https?:|@import|url\(", written.read_text())


def test_each_picture_names_its_units_and_its_source(written: Path) -> None:
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", written.read_text())
    assert captions[-1] == (
        "<strong>Load of &lt;experts&gt;.</strong> Units: tokens; expert. "
        "Source: <a href='train/executed.html'>train/executed.html</a>."
    )
    assert "Units: nats per token over optimizer steps." in captions[0]
    assert all("<a href='train/metrics.jsonl'>" in caption for caption in captions[:2])


def test_it_suits_a_telephone_and_print(written: Path) -> None:
    text = written.read_text()
    assert "width=device-width" in text and "@media print" in text and "@media screen and (max-width" in text


def again(folder: Path, *, phase: int = 2, waivers: Sequence[Waiver] = (), **outcome: Any) -> str:
    """The report of a run folder without stages, or with one whose `outcome` is given."""
    config, _ = samples.configuration(phase)
    stages = [StageOutcome(**outcome)] if outcome else []
    drafted = record.draft(folder, config=config, stages=stages, upstream=None, started="2026", ended="2026")
    runs = folder.parent.parent
    return report.write(folder, drafted, config=config, runs=runs, waivers=waivers).read_text()


def test_damaged_metrics_do_not_stop_the_report(written: Path) -> None:
    folder = written.parent
    (folder / "train" / "metrics.jsonl").write_text("junk")
    (folder / "train" / "stage.json").write_text("junk")
    page = Page()
    page.feed(again(folder))
    assert sum(address.startswith("data:") for address in page.addresses) == 1  # the figure, by its file's name


def test_it_says_what_is_new_since_the_last_promotion(written: Path, runs: Path) -> None:
    assert "None promoted before" in written.read_text()
    config, resolved = samples.configuration(1)
    folder, _ = samples.execution(runs, config, resolved)
    home = runs / "phase1" / "later"
    home.mkdir()
    same = again(home, phase=1)
    assert f"Compared with {folder.name}" in same and "no keys of the configuration differ." in same
    changed, _ = samples.configuration(1, "train.schedule.peak_lr=0.001")
    drafted = record.draft(home, config=changed, stages=[], upstream=None, started="2026", ended="2026")
    text = report.page(drafted, config=changed, folder=home, runs=runs, waivers=[])
    assert "1 key of the configuration differs." in text
    assert re.findall(r"<td data-label='(.*?)'>(.*?)</td>", text.partition("Since the last promotion</h2>")[2]) == [
        ("key", "train.schedule.peak_lr"),
        ("promoted run", "0.006"),
        ("this run", "0.001"),
    ]
    (folder / "record.json").unlink()
    assert "Nothing to compare with: " in again(home, phase=1)


def test_it_shows_every_waiver_and_what_became_of_it(written: Path) -> None:
    assert "No gate of this phase has a waiver." in written.read_text()
    terms = {"by": "Ada", "created": "2026-01-01", "expires": "2026-02-01", "scope": "any"}
    waivers = [
        Waiver(gate="phase2/train_bigram", reason="too <short>", **terms),  # type: ignore[arg-type]
        Waiver(gate="phase2/resume_kills", reason="nobody died", **terms),  # type: ignore[arg-type]
    ]
    config, _ = samples.configuration(2)
    passed = tuple(samples.passing(config, "train"))
    let_through = dataclasses.replace(passed[0], status="waived")
    text = again(
        written.parent,
        waivers=waivers,
        name="train",
        status="ok",
        results=(let_through, *passed[1:]),
        device=samples.CPU,
    )
    table = text.partition("Waivers</h2>")[2].partition("<h2")[0]
    rows = [tuple(re.findall(r"<td[^>]*>(.*?)</td>", row)) for row in table.split("<tr>")[2:]]
    term = "Ada; 2026-01-01 to 2026-02-01, on any device"
    assert rows == [
        ("train_bigram", "too &lt;short&gt;", term, "lets it through"),
        ("resume_kills", "nobody died", term, "the gate is error"),
    ]


def test_it_links_the_run_in_mlflow(written: Path) -> None:
    folder = written.parent
    assert "Not in MLflow" not in written.read_text() and "In MLflow (make ui): run" in written.read_text()
    (folder / tracking.STATE).write_text(json.dumps({"experiment": "1", "run": "abc", "stages": {}}))
    assert f"href='http://127.0.0.1:{ui.PREFERRED_PORT}/#/experiments/1/runs/abc'" in again(folder)


def test_a_stage_that_ran_out_of_memory_says_what_to_lower(written: Path) -> None:
    error = hints.with_advice("XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes" + "\nx" * 9999)
    text = again(written.parent, name="train", status="failed", error=error)
    assert "<strong>What to do:</strong> memory ran out: lower train.micro_batch" in text
    assert text.count("\nx") < report.ERROR_SIGNS


def noise(width: int, height: int) -> bytes:
    """A picture that hardly compresses, as a scatter of many colours would."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_pictures_are_made_smaller_until_they_fit() -> None:
    plain = plots.png(plots.bars({"a": 1.0}, title="t", unit="u"))
    assert report_figures.fit([plain, b"no picture"], limit=10**6) == [plain, b"no picture"]
    large = noise(1600, 80)
    (fitted,) = report_figures.fit([large], limit=60_000)
    with Image.open(io.BytesIO(fitted)) as image:
        assert len(fitted) <= 60_000 and image.size == (1000, 50)
    kept = report_figures.fit([plain, large, large, b"no picture"], limit=len(plain) + 10)
    assert [bool(content) for content in kept] == [True, False, False, False]


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
