"""Waivers through the whole workbook: where they are shown, and which ones no pipeline starts on."""

import subprocess
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsv3lab.workbook import chain as chains
from dsv3lab.workbook import pipeline, promotion, record, verify, waivers
from tests.workbook import lab
from tests.workbook.lab import InProcess, slow

TODAY = datetime.now(UTC).date()
GOOD = {
    "gate": "phase1/a_speed",
    "reason": "the machine is shared until the new one comes",
    "by": "A. Person",
    "created": TODAY - timedelta(days=3),
    "expires": TODAY + timedelta(days=3),
    "scope": "cpu",
}


def write(conf: Path, **changes: Any) -> Path:
    path = conf / "waivers.yaml"
    path.write_text(yaml.safe_dump({"waivers": [GOOD | changes]}))
    return path


def git(conf: Path, *words: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=conf, check=True)


@pytest.fixture
def repository(conf: Path) -> Path:
    """The conf folder under version control."""
    git(conf, "init", "-q")
    git(conf, "add", ".")
    git(conf, "commit", "-qm", "a")
    return conf


@pytest.mark.limit(60)  # importing MLflow takes seconds, on a loaded machine many
def test_a_waiver_lets_a_failed_gate_through_and_is_shown_everywhere(
    repository: Path, runs: Path, child: type[InProcess], store: Any, capsys: Any
) -> None:
    conf = repository
    (conf / "tracking" / "mlflow.yaml").write_text("{enabled: true, experiment: dsv3lab, flush_s: 0.2, also: []}")
    write(conf)
    git(conf, "add", "-A")
    git(conf, "commit", "-qm", "waive")
    child.acts = {"phase1/a": slow}
    assert pipeline.main(["phase1"], conf=conf) == 0
    out, said = capsys.readouterr().out, f"waived by A. Person until {GOOD['expires']}: {GOOD['reason']}"
    assert f"  gate a_speed may be {said}" in out.split("phase1/a ")[0], "before the stages run"
    assert f"↳ {said}" in out and "3/4 gates pass (1 waived)" in out and "promoted for 1 x cpu" in out
    (result, *_) = record.read(lab.the_run(runs)).results
    assert (result.status, result.waiver) == ("waived", said)
    assert (lab.the_run(runs) / "report.html").read_text().count(said) == 2  # above, and at its gate
    for name, run in lab.found(store).items():
        if not name.endswith("/b"):
            assert (run.data.tags["gate.a_speed"], run.data.tags["waiver.a_speed"]) == ("waived", said)
    assert verify.main([]) == 0
    assert f"waived: phase1 (default): gate a_speed: {said}" in capsys.readouterr().out
    assert verify.verify(runs).waived == {"phase1 (default)": [f"gate a_speed: {said}"]}
    assert pipeline.main(["phase1", "--plan"], conf=conf) == 0
    assert "may be waived by A. Person" in capsys.readouterr().out


def test_a_promotion_by_a_waiver_is_stale_when_it_has_ended(
    conf: Path, runs: Path, child: type[InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(conf)
    child.acts = {"phase1/a": slow}
    assert pipeline.main(["phase1"], conf=conf) == 0
    content = record.read(lab.the_run(runs))
    assert promotion.staleness(content) == []

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.combine(TODAY + timedelta(days=4), datetime.min.time(), tz)

    monkeypatch.setattr(waivers, "datetime", Later)
    assert promotion.staleness(content) == [f"gate a_speed: its waiver ended on {GOOD['expires']}"]
    with pytest.raises(promotion.UpstreamError, match="phase1 is stale: gate a_speed: its waiver ended"):
        promotion.Newest("default", promotes=True, runs=runs).check(1)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"reason": " "}, "give a reason"),
        ({"by": ""}, "a name in 'by'"),
        ({"gate": "phase1/a_sped"}, "there is no such gate; did you mean 'a_speed'?"),
        ({"gate": "phase7/a_speed"}, "name the gate as phaseN/<gate id>"),
        ({"expires": date(2026, 1, 2), "created": date(2026, 1, 1)}, "expired on 2026-01-02; remove or renew it"),
        ({"created": date(2998, 1, 1), "expires": date(2999, 1, 1)}, "yet to come"),
        ({"scope": "tpu"}, "scope"),
    ],
)
def test_no_pipeline_starts_on_a_waiver_that_does_not_count(
    conf: Path, runs: Path, child: type[InProcess], capsys: Any, changes: dict[str, Any], why: str
) -> None:
    write(conf, **changes)
    assert pipeline.main(["phase1"], conf=conf) == 2 and child.calls == []
    error = capsys.readouterr().err
    assert why in error and "waivers.yaml" in error and len(error.splitlines()) == 1
    assert not list(runs.iterdir()) and chains.read_chain(runs) == []


def test_a_waiver_without_the_key_of_its_reason_is_refused(conf: Path, runs: Path, capsys: Any) -> None:
    path = write(conf)
    path.write_text(yaml.safe_dump({"waivers": [{key: value for key, value in GOOD.items() if key != "reason"}]}))
    assert pipeline.main(["phase1"], conf=conf) == 2
    assert "waivers.yaml[0].reason: missing key" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["new", "changed", "ignored"])
def test_a_waiver_that_is_not_committed_is_refused(
    repository: Path, runs: Path, child: type[InProcess], capsys: Any, how: str
) -> None:
    conf = repository
    if how == "ignored":
        (conf / ".gitignore").write_text("waivers.yaml\n")
    write(conf)
    if how == "changed":
        git(conf, "add", "-A")
        git(conf, "commit", "-qm", "waive")
        assert pipeline.main(["phase1"], conf=conf) == 0
        write(conf, expires=TODAY + timedelta(days=300))
    child.calls = []
    capsys.readouterr()
    assert pipeline.main(["phase1"], conf=conf) == 2 and child.calls == []
    error = capsys.readouterr().err
    assert "waivers.yaml: not committed" in error and len(error.splitlines()) == 1


def test_the_waivers_of_other_phases_do_not_stop_this_one(conf: Path, runs: Path, child: type[InProcess]) -> None:
    write(conf, gate="phase2/whatever", created=date(2026, 1, 1), expires=date(2026, 1, 2))
    assert pipeline.main(["phase1"], conf=conf) == 0
