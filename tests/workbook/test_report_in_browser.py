"""The report of a long phase in headless Chromium, as wide as a screen and as a telephone."""

import html
import json
import re
import shutil
import subprocess
import unittest
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dsv3lab import plots
from dsv3lab.workbook import gates, hints, record, report
from dsv3lab.workbook.compose import compose
from dsv3lab.workbook.record import StageOutcome
from dsv3lab.workbook.waivers import Waiver
from tests.workbook import lab, samples
from tests.workbook.test_report import noise

pytestmark = pytest.mark.limit(120)  # starting a browser takes seconds, on a busy machine many
STAGES = [f"stage_number_{number}" for number in range(9)]
LONG = "an_identifier_without_a_place_to_break/" * 4
FALLBACKS = ("on the axes", "none on the axes")
"""What a report says of a picture whose axes nobody has noted."""
UNIT = re.compile(
    # units
    r"\b(nats|bits|bytes|[kMG]B|[KM]iB|ms|seconds?|FLOPs?|tokens|steps)\b|FLOP/s|B/s|%"
    # what is counted one by one
    r"|\b(step|expert|layer|position|pair|token|sequence|turn|product)s?\b"
    # numbers without a unit, with what they are numbers of
    r"|\b(relative|times|multiple|share|factor|norm|log10|standard deviation|score|scores|mean|fraction)\b"
)
MEASURE = (Path(__file__).parent / "measure_page.js").read_text()


def browser() -> str:
    """Chromium, or a test left out with its reason."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        raise unittest.SkipTest("there is no Chromium on this machine")
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a phase with nine stages, one of which failed, with everything that a report can show."""
    root = tmp_path_factory.mktemp("page")
    conf = lab.write_conf(root, {name: root / f"{name}.ipynb" for name in STAGES})
    before, resolved = compose([], phase=1, conf=conf)
    runs = root / "runs"
    runs.mkdir()
    samples.execution(runs, before, resolved)
    config, _ = compose([f"data.name={'x' * 90}", "train.schedule.peak_lr=0.001"], phase=1, conf=conf)
    folder = runs / "phase1" / "20261122T200836Z-738d39"
    heavy = noise(1200, 600)
    for number, name in enumerate(STAGES):
        _stage(folder / name, {"noise": heavy} if number % 2 else {})
    stages = [_outcome(config, folder, name) for name in STAGES]
    error = hints.with_advice(f"XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory in {LONG}\n{'y' * 300}")
    stages[-1] = StageOutcome(name=STAGES[-1], status="failed", error=error, seconds=3.0)
    gate = next(iter(config.phase.gates))
    waiver = Waiver(
        gate=f"phase1/{gate}", reason=LONG, by="Ada", created="2026-01-01", expires="2026-02-01", scope="any"
    )
    drafted = record.draft(
        folder, config=config, stages=stages, upstream=None, started="2026-11-22", ended="2026-11-22"
    )
    return report.write(folder, drafted, config=config, runs=runs, waivers=[waiver])


def _stage(home: Path, pictures: dict[str, bytes]) -> None:
    lines = [
        {"time": "t", "step": step, "metrics": {"train/loss": 7.0 - step / 100, "perf/tokens_per_s": 900.0 + step}}
        for step in range(300)
    ]
    (home / "figures").mkdir(parents=True)
    (home / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (home / "executed.html").write_text("")
    heat = plots.heat([[1.0, 2.0], [2.0, 1.0]], steps=[0, 1], title="A map")
    pictures = {**pictures, "heat": plots.png(heat), "bars": plots.png(plots.bars({"a": 1.0}, title="t", unit="u"))}
    for name, content in pictures.items():
        (home / "figures" / f"{name}.png").write_bytes(content)
    figures = [{"name": name, "title": f"{name} {LONG}", "axes": ["tokens", "expert"]} for name in pictures]
    (home / "stage.json").write_text(json.dumps({"figures": figures}))


def _outcome(config: Any, folder: Path, name: str) -> StageOutcome:
    points = samples.points(1.0, name="perf/tokens_per_s") + samples.points(float("nan"), name="quality/error")
    mine = gates.stage_gates(config.phase.gates, name)
    results = gates.evaluate_stage(mine, points, executed=True, device=samples.CPU)
    return StageOutcome(name=name, status="ok", results=tuple(results), device=samples.CPU, seconds=1.0)


def measure(page: Path, folder: Path, *, width: int) -> dict[str, Any]:
    """What `measure_page.js` finds in the page in a frame of `width` pixels."""
    return measure_all([page], folder, widths=[width])[page, width]


def measure_all(
    pages: Sequence[Path], folder: Path, *, widths: Sequence[int]
) -> dict[tuple[Path, int], dict[str, Any]]:
    """Each page in a frame of each width, all in one start of Chromium, which has no window below 500 pixels."""
    frames, names = [], {}
    for page in pages:
        spied = html.escape(page.read_text().replace("</body>", f"<script>{MEASURE}</script></body>"))
        for width in widths:
            names[page, width] = name = f"measured-{len(names)}"
            style = f"width='{width}' height='1200' style='border:0'"
            frames.append(f"<p id='{name}'></p><iframe name='{name}' {style} srcdoc='{spied}'></iframe>")
    outer = folder / "outer.html"
    outer.write_text(f"<!doctype html><meta charset='utf-8'>{''.join(frames)}")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1300", "--dump-dom"]
    done = subprocess.run([browser(), *options, outer.as_uri()], capture_output=True, text=True, timeout=110)
    measured = {}
    for key, name in names.items():
        found = re.search(rf'<p id="{name}">(.+?)</p>', done.stdout, re.DOTALL)
        assert found, f"{done.returncode}: {done.stderr[-500:]}"
        measured[key] = json.loads(found[1])
        assert measured[key]["width"] == key[1]
    return measured


def problems(found: dict[str, Any]) -> list[str]:
    """Everything that a reader would not see whole."""
    beyond = found["scrollWidth"] - found["width"]
    return [*found["outside"], *found["cut"], *([f"{beyond} pixels to the right"] if beyond > 0 else [])]


def without_unit(picture: dict[str, Any]) -> list[str]:
    """What stands on a picture's axes without a unit, a count or what it is relative to; its whole caption if nothing does."""
    units = re.search(r"Units: (.+?)\.\s*Source: \w", picture["caption"], re.DOTALL)
    if not units or units[1] in FALLBACKS:
        return [picture["caption"] or "no caption"]
    return [label for label in units[1].split("; ") if not UNIT.search(label)]


@pytest.mark.parametrize(
    ("label", "named"),
    [
        *((label, True) for label in ("nats per token over optimizer steps", "ms, median", "KiB per token", "expert")),
        *(
            (label, True)
            for label in ("% of the circle", "relative difference, %", "tokens (trillions)", "global L2 norm")
        ),
        *(
            (label, False)
            for label in ("loss", "Loss over training", "value", "speed", "memory", "on the axes", "error")
        ),
    ],
)
def test_a_label_names_a_unit_or_a_count(label: str, named: bool) -> None:
    picture = {"caption": f"A picture. Units: {label}. Source: phase1/mla."}
    assert bool(without_unit(picture)) != named


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_clipped(page: Path, tmp_path: Path, width: int) -> None:
    found = measure(page, tmp_path, width=width)
    assert problems(found) == []
    assert len(found["pictures"]) == 9 * 4 + 4
    for picture in found["pictures"]:
        assert picture["drawn"] and without_unit(picture) == [], picture


@pytest.mark.parametrize(
    "style",
    [
        "pre{white-space:pre;overflow:visible}",
        "pre{white-space:pre;overflow:hidden}",
        "figure{width:60rem}",
        "td{white-space:nowrap}",
        "body{overflow-wrap:normal}",
    ],
)
def test_the_measurement_sees_what_is_clipped(page: Path, tmp_path: Path, style: str) -> None:
    spoiled = tmp_path / "spoiled.html"
    spoiled.write_text(page.read_text().replace("</style>", f"{style}</style>"))
    assert problems(measure(spoiled, tmp_path, width=390))


def test_a_long_phase_stays_below_5_mb(page: Path) -> None:
    assert 1_000_000 < page.stat().st_size < 5_000_000
    pictures = sum(path.stat().st_size for path in page.parent.glob("*/figures/*.png"))
    assert pictures > 8_000_000, "the pictures are too small to need a limit"
